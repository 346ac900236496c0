"""What Hypothesis draws for the contract: settings of a run, and the shapes of its parameters."""

from dataclasses import dataclass

from comparison import KINDS, Comparison
from exact import LAWS
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from coolmomentum import CoolingSchedule
from coolmomentum.schedules import from_temperature

_POOL = [(), (0,), (1,), (3, 43), (2, 0, 3), (2, 3, 4), (2500,)]
_JUST_BELOW_1 = 1 - 2.0**-24


@dataclass(frozen=True)
class Halving:
    """A schedule of one's own: ``rho0 / 2**n``, the same in whatever it is computed."""

    rho0: float

    def __call__(self, step):
        """Rho at a step."""
        return self.rho0 * 0.5**step


@dataclass(frozen=True)
class Warmth:
    """A reduced temperature that falls to 1: ``1 + excess / 2**n``."""

    excess: float

    def __call__(self, step):
        """Tau at a step."""
        return 1 + self.excess * 0.5**step


@st.composite
def _coolings(draw):
    total_steps = draw(st.one_of(st.integers(1, 12), st.integers(1, 10**7)))
    return CoolingSchedule(
        total_steps,
        # Numbers of float32, so that they mean the same to a path that traces them.
        draw(
            st.one_of(
                st.sampled_from([0.0, 0.5, 0.99, _JUST_BELOW_1]),
                st.floats(0, _JUST_BELOW_1, width=32),
            )
        ),
        draw(st.sampled_from(LAWS)),
        warmup_steps=draw(st.integers(0, min(total_steps, 8) - 1)),
        warmup_clock=draw(st.sampled_from(["run", "hold"])),
    )


_SCHEDULES = st.one_of(
    _coolings(),
    _coolings(),
    st.floats(-1, _JUST_BELOW_1, width=32).map(Halving),
    st.integers(-3, 7).map(lambda n: from_temperature(Warmth(2.0**n))),
)
_LEARNING_RATES = st.one_of(st.sampled_from([0.0, 2.0**-7, 1.0]), st.floats(2.0**-40, 1, width=32))
_DECAYS = st.one_of(st.just(0.0), st.floats(2.0**-20, 1, width=32))

# What paths that compile for each setting draw from: the first few of these.
FEW = [
    {"cooling": CoolingSchedule(2, 0.75), "decay": 0.5},  # B' of the exact trajectories
    {
        "cooling": CoolingSchedule(9, 0.99, "linear", warmup_steps=3, warmup_clock="hold"),
        "decay": 0.25,
        "decoupled": True,
    },
    {"cooling": from_temperature(Warmth(8.0))},
    {"cooling": CoolingSchedule(9, 0.9, "exponential", warmup_steps=3), "maximize": True},
    {"cooling": CoolingSchedule(9, 0.9, "constant"), "decay": 0.5, "decoupled": True},
]
# Every law, warm-up, callable and kind of weight decay once, whatever is drawn.
EXAMPLES = [
    *FEW,
    {"cooling": CoolingSchedule(10, 0.9, "paper", warmup_steps=4), "decay": 0.1},
    {"cooling": CoolingSchedule(10, 0.99, "linear"), "decay": 0.1, "maximize": True},
    {"cooling": CoolingSchedule(3, 0.0)},
    {"cooling": CoolingSchedule(1, _JUST_BELOW_1, "exponential")},
    {"cooling": CoolingSchedule(8, _JUST_BELOW_1), "lr": 1.0},
    {"cooling": Halving(-1.0), "lr": 1.0},
]


def allowed(driver, options):
    """The settings without those that the framework does not have."""
    return {name: x for name, x in options.items() if getattr(driver, name, True)}


@st.composite
def runs(draw, driver):
    """Arguments of a Pair for a driver."""
    lr, seed, kind = draw(_LEARNING_RATES), draw(st.integers(0, 99)), draw(st.sampled_from(KINDS))
    if driver.max_compilations:
        few = [o for o in FEW if o == allowed(driver, o)][: few_programs(driver)]
        return {"lr": lr, "seed": seed, "kind": kind} | draw(st.sampled_from(few))
    decay = draw(_DECAYS)
    options = {
        "cooling": draw(_SCHEDULES),
        "lr": lr,
        "seed": seed,
        "kind": kind,
        "decay": decay,
        "decoupled": draw(st.booleans()),
        "maximize": draw(st.booleans()),
    }
    if thorough() or driver.cost == 1:
        options["shapes"] = ((1,), *draw(st.lists(st.sampled_from(_POOL), max_size=4)))
    return allowed(driver, options)


def thorough():
    """Whether Hypothesis is to look for more than the usual run has time for."""
    return settings.default.max_examples > 100


def few_programs(driver):
    """How many settings a path that compiles for each is tried with."""
    return len(FEW) if thorough() else driver.max_compilations


def listed(driver):
    """The settings of EXAMPLES that a path has and that the run has time for."""
    few = EXAMPLES if driver.cost == 1 or thorough() else FEW[:3] if driver.half else FEW
    few = few[: few_programs(driver)] if driver.max_compilations else few
    return [options for options in few if options == allowed(driver, options)]


def budget(driver, most):
    """Settings of Hypothesis: how many examples a path is worth, and no limit on their size."""
    return settings(
        max_examples=max(1, most * settings.default.max_examples // 100 // driver.cost),
        stateful_step_count=8,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


def pair(driver, options):
    """The run and the reference for settings that were drawn, or listed above."""
    own = dict(options)
    return Comparison(driver, own.pop("cooling"), **own)


STEPS = st.tuples(st.integers(0, 999), st.sampled_from(KINDS))
LEARNING_RATES = _LEARNING_RATES
MORE = st.lists(st.sampled_from(_POOL), min_size=1, max_size=2)
