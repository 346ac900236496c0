"""What every path of every adapter keeps; see adapters/ and drivers.py."""

from fractions import Fraction

import numpy as np
import pytest
from adapters import DRIVERS
from adapters.numpy import Numpy
from bounds import FORMATS, Precision, RunningBound
from comparison import SHAPES, assert_within, draw
from drivers import Oracle
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from strategies import FEW, LEARNING_RATES, MORE, STEPS, Warmth, allowed, budget, listed, pair, runs

from coolmomentum import CoolingSchedule, from_temperature

# One of each path where the dtype makes no difference to what is tested.
PATHS = {name: driver for name, driver in DRIVERS.items() if name.endswith(", float32")}
# Those that compute in the dtype they store, as momentum SGD of the frameworks does in each.
WIDE = PATHS | {
    name: driver
    for name, driver in DRIVERS.items()
    if driver.dtype == "float64" and not driver.max_compilations
}


@pytest.fixture(params=DRIVERS.values(), ids=DRIVERS.keys())
def driver(request):
    """Each path of each adapter in each dtype."""
    return request.param


@pytest.fixture(params=PATHS.values(), ids=PATHS.keys())
def path(request):
    """Each path of each adapter, in float32."""
    return request.param


def make(driver, start, lr, cooling, decay=0.0):
    """A run in C order, which every path compiles for once."""
    return driver.make(
        [np.ascontiguousarray(x).reshape(x.shape) for x in start], lr, cooling, decay
    )


def assert_same(run, other):
    """Parameters and displacements of both are equal to the last bit."""
    for read in ("params", "displacements"):
        pairs = zip(getattr(run, read)(), getattr(other, read)(), strict=True)
        for i, (ours, theirs) in enumerate(pairs):
            assert_within(ours, theirs, 0.0, f"{read} {i}", run.clock())


# --- against the reference ------------------------------------------------------------------------

# Exact rational trajectories of U = x**2 / 2 from x = 1, by hand from Eqs 14, 16, 20 and 21.
EXACT = {
    "B'": (CoolingSchedule(2, 0.75), "0.25", 0.5, "43/64 653/2048 8489/32768 110357/524288"),
    "A": (CoolingSchedule(6, 0.9, "constant"), "0.1", 0.0, "181/200 29341/40000 4076101/8000000"),
    "B": (CoolingSchedule(2, 0.75), "0.25", 0.0, "25/32 269/512 1883/4096 13181/32768"),
    "C": (
        CoolingSchedule(4, 0.9, "linear"),
        "0.1",
        0.0,
        "181/200 45731/62000 363899/682000 2798291/8060000 53167529/161200000",
    ),
}


@pytest.mark.parametrize("case", EXACT)
def test_exact_trajectories(driver, case):
    """The first steps on a parabola are those of the rational numbers.

    The bound is that of bounds.py, which grants a reference in float64; and u more for the learning
    rate and rho0, which are no binary fractions.
    """
    cooling, lr, decay, exact = EXACT[case]
    if driver.cost > 2 and case != "B'":
        pytest.skip("one program is enough to see that it is Eq. 14 that is compiled")
    run = make(driver, [np.ones(shape) for shape in SHAPES], float(np.float32(lr)), cooling, decay)
    reference = Oracle([np.ones(())], float(lr), cooling, decay)
    bound = RunningBound(driver.precision)
    bound.start(reference.xs[0])
    rho0_error = 2.0**-24  # of lr too: it is rounded to float32
    for n, x in enumerate(exact.split()):
        (before,), (dx,), rho = reference.xs, reference.state.displacements, cooling(n)
        run.step(run.params())
        reference.step(reference.xs)
        # The gradient of the run is its own x: an error of x is one of the gradient.
        bound.step(before, dx, before, float(lr), rho, decay, None)
        bound.dx = bound.dx + rho0_error * (abs(dx) + float(lr)) + float(lr) * bound.x
        bound.x = bound.x + rho0_error * (abs(dx) + float(lr)) + float(lr) * bound.x
        for i, ours in enumerate(run.params()):
            for one in ours.ravel()[:3].tolist():
                deviation = float(Fraction(one) - Fraction(x))  # exact before it is rounded
                assert_within(deviation, 0.0, bound.x, f"parameter {i} less {x}", n + 1)


def follow(driver, options, steps):
    """A run and the reference through steps, a change of the learning rate half way."""
    both = pair(driver, options)
    both.check()
    for n, (seed, kind) in enumerate(steps):
        if n == len(steps) // 2 and n:
            both.set_lr(0.75 * both.oracle.lr)
            both.check()  # the temperature is that of the last step, and its learning rate
        both.step(seed, kind)
        both.check()
    return both


LONG = [(n, "wide" if n in (3, 7) else "moderate") for n in range(10)] + [(10, "zeros")]


def test_every_law_warm_up_and_weight_decay(driver):
    """Through warm-up and cooling and beyond the end, a path is where the reference is."""
    for options in listed(driver):
        follow(driver, options, LONG)


def test_any_settings_and_gradients(driver):
    """Within the bound for any shapes, settings and gradients, in each step and all together."""

    @budget(driver, 12)
    @given(runs(driver), st.lists(STEPS, min_size=1, max_size=14))
    def check(options, steps):
        follow(driver, options, steps)

    check()


def test_zero_gradient_after_a_huge_displacement(driver):
    """Where rho is 0 nothing is left of a displacement, however large it was.

    Found by test_any_settings_and_gradients: the fused kernel of PyTorch takes no momentum of 0.
    """
    options = FEW[0] if driver.max_compilations else {"cooling": CoolingSchedule(2, 0.75)}
    options = {"lr": 1.0} | options
    follow(driver, options, [(0, "huge"), (1, "huge"), (2, "zeros"), (3, "zeros")])


def test_new_parameters_are_cold_at_any_learning_rate(driver):
    """A group that is added while the learning rate is 0 leaves the temperature a number.

    Found by test_anything_in_any_order.
    """
    if "add" in driver.unsupported:
        pytest.skip(driver.unsupported["add"])
    both = pair(driver, {"cooling": CoolingSchedule(2, 0.75)})
    both.step(0)
    both.set_lr(0.0)
    both.add(1, [(3,)])
    both.check()


def test_decoupled_decay_beside_a_larger_displacement(driver):
    """The update of optax is their sum, which is rounded once more.

    Found by test_any_settings_and_gradients in float16.
    """
    options = {
        "cooling": from_temperature(Warmth(1.0)),
        "lr": 1.0,
        "decay": 0.9190440773963928,
        "decoupled": True,
    }
    if driver.max_compilations or options != allowed(driver, options):
        pytest.skip("another program to compile, or no decoupled weight decay")
    follow(driver, options, [(231, "moderate")])


class AnyOrder(RuleBasedStateMachine):
    """A run and the reference, to which anything may happen in any order."""

    driver = None

    @initialize(data=st.data())
    def start(self, data):
        """A new run."""
        self.pair = pair(self.driver, data.draw(runs(self.driver)))

    @rule(step=STEPS)
    def step(self, step):
        """One step."""
        self.pair.step(*step)

    @precondition(lambda self: "skip" not in self.driver.unsupported)
    @rule()
    def skip(self):
        """Gradients that are not finite: the clock stands still."""
        self.pair.skip()

    @rule()
    def reload(self):
        """A checkpoint into a fresh object."""
        self.pair.reload()

    @rule(lr=LEARNING_RATES)
    def set_lr(self, lr):
        """Another learning rate."""
        self.pair.set_lr(lr)

    @precondition(lambda self: "add" not in self.driver.unsupported)
    @rule(seed=st.integers(0, 999), shapes=MORE)
    def add(self, seed, shapes):
        """Parameters that take the running clock."""
        self.pair.add(seed, shapes)

    @invariant()
    def together(self):
        """Clock, rho, displacements, parameters and temperature are the reference's."""
        self.pair.check()


def test_anything_in_any_order(driver):
    """Steps, skipped steps, checkpoints, learning rates, new parameters leave the two together."""
    machine = type("AnyOrderOfOnePath", (AnyOrder,), {"driver": driver})
    run_state_machine_as_test(machine, settings=budget(driver, 8))


def test_a_reloaded_run_goes_on_bit_for_bit(driver):
    """From a checkpoint before, in and after the cooling, the rest of the run is the same."""
    cooling, decay = FEW[0]["cooling"], FEW[0]["decay"]
    run = make(driver, draw(0, driver.dtype), 0.0078125, cooling, decay)
    resumed = []
    for n in range(4):
        if n in ((1,) if driver.max_compilations else (0, 1, 2)):
            resumed.append(run.reloaded())
        for going in (run, *resumed):
            going.step(draw(n, driver.dtype))
    for other in resumed:
        assert_same(run, other)


# --- algebra --------------------------------------------------------------------------------------


def test_rho_falls_to_exactly_zero(driver):
    """At total_steps and after it rho is exactly 0, and it never rises."""
    cooling = FEW[0]["cooling"] if driver.max_compilations else CoolingSchedule(7, 0.9)
    run = make(driver, draw(0, driver.dtype), 0.125, cooling, FEW[0]["decay"])
    rhos = []
    for n in range(cooling.total_steps + 3):
        rhos.append(run.rho())
        run.step(draw(n, driver.dtype))
    assert rhos == sorted(rhos, reverse=True)
    assert rhos[0] > 0
    assert rhos[-3:] == [0.0, 0.0, 0.0]


def positive(seed, dtype):
    """Gradients in [1, 2): with them no displacement is small by cancellation."""
    random = np.random.default_rng(seed)
    coarse = [random.integers(0, 64, shape) for shape in SHAPES]
    return [np.asarray(1 + x / 64.0) for x in coarse]


@pytest.mark.parametrize("factor", [2.0**-4, 2.0**4])
def test_gradients_scale_the_temperature_by_their_square(driver, factor):
    """From rest at 0, gradients times c (a power of two) give c times all, to the last bit."""
    settings = FEW[0]["cooling"], FEW[0]["decay"]
    one, other = (make(driver, [np.zeros(s) for s in SHAPES], 0.125, *settings) for _ in "ab")
    for seed in range(4):
        gradients = positive(seed, driver.dtype)
        one.step(gradients)
        other.step([factor * g for g in gradients])
    for read in ("params", "displacements"):
        pairs = zip(getattr(one, read)(), getattr(other, read)(), strict=True)
        for i, (ours, theirs) in enumerate(pairs):
            assert_within(factor * ours, theirs, 0.0, f"{read} {i}", one.clock())
    assert other.temperature() == pytest.approx(factor**2 * one.temperature(), rel=1e-15)


def test_the_order_of_parameters_does_not_matter(driver):
    """Parameters the other way round go the same ways; the temperature is the same to rounding."""
    settings = FEW[0]["cooling"], FEW[0]["decay"]
    start = draw(0, driver.dtype)
    one, other = (make(driver, s, 0.125, *settings) for s in (start, start[::-1]))
    for seed in range(3):
        gradients = draw(seed, driver.dtype)
        one.step(gradients)
        other.step(gradients[::-1])
    for read in ("params", "displacements"):
        pairs = zip(getattr(one, read)(), getattr(other, read)()[::-1], strict=True)
        for i, (ours, theirs) in enumerate(pairs):
            assert_within(ours, theirs, 0.0, f"{read} {i}", one.clock())
    size = sum(x.size for x in start)
    u = driver.precision.arithmetic.u
    assert other.temperature() == pytest.approx(one.temperature(), rel=2 * (size + 4) * u)


def test_groups_do_not_matter(driver):
    """Parameters that are added before the first step, in groups, go as if they had been there.

    A group may change the kernel's lists, and so what of a list is its tail: then a fused
    multiply-add rounds once where two operations round twice; hence the reference, not equality.
    """
    if "add" in driver.unsupported:
        pytest.skip(driver.unsupported["add"])
    one = pair(driver, {"cooling": FEW[0]["cooling"], "shapes": SHAPES[:2]})
    one.add(7, list(SHAPES[2:]))
    for seed in range(4):
        one.step(seed)
        one.check()


@pytest.mark.parametrize("driver", WIDE.values(), ids=WIDE.keys())
@pytest.mark.parametrize("decay", [0.0, 0.0625])
def test_the_constant_law_is_momentum_sgd(driver, decay):
    """With rho0 = m it is the framework's own SGD of rate lr (1 + m) / 2 and momentum m.

    SGD has ``b = m b + g``, ``x = x - rate b``; with ``-rate b`` for the displacement its roundings
    are no more than those that bounds.py counts, so each is within that bound of the reference, and
    of one another within twice that. In half precision the frameworks round m and each operation.
    """
    if driver.max_compilations and decay:
        pytest.skip("SGD's weight decay is no other when compiled")
    m, lr, shapes = 0.875, 0.0625, WALK if driver.max_compilations else SHAPES
    start = draw(0, driver.dtype, shapes)
    cooling = CoolingSchedule(5, m, "constant")
    run, reference = make(driver, start, lr, cooling, decay), Oracle(start, lr, cooling, decay)
    bounds = [RunningBound(Precision(driver.dtype, driver.dtype, driver.flushes)) for _ in start]
    gradients = [draw(seed, driver.dtype, shapes) for seed in range(8)]
    for bound, x in zip(bounds, start, strict=True):
        bound.start(x)
    for step in gradients:
        moved = reference.state.displacements
        for bound, x, dx, g in zip(bounds, reference.xs, moved, step, strict=True):
            bound.step(x, dx, g, lr, m, decay)
        reference.step(step)
        run.step(step)
    sgd = driver.momentum_sgd(start, gradients, lr * (1 + m) / 2, m, decay)
    for i, (ours, theirs, bound) in enumerate(zip(run.params(), sgd, bounds, strict=True)):
        assert_within(ours, theirs, 2 * bound.x, f"parameter {i}", len(gradients))


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_an_overflow_stays_where_it_is(driver):
    """A coordinate whose displacement overflows is infinite or NaN; its neighbours do not notice.

    The displacement at the edge of the dtype doubles with each equal gradient at rho near 1.
    """
    cooling = FEW[0]["cooling"] if driver.max_compilations else CoolingSchedule(30, 2.0**-1 + 0.25)
    start = draw(0, driver.dtype)
    decay = FEW[0]["decay"] if driver.max_compilations else 0.0
    runs = [make(driver, start, 8.0, cooling, decay) for _ in "ab"]
    for seed in range(3):
        gradients = draw(seed, driver.dtype)
        huge = [g.copy() for g in gradients]
        huge[0][1, 5], huge[4][0, 0] = FORMATS[driver.dtype].largest, -FORMATS[driver.dtype].largest
        runs[0].step(gradients)
        runs[1].step(huge)
    (calm, wild) = (run.params() for run in runs)
    assert wild[0][1, 5] == -np.inf or np.isnan(wild[0][1, 5])
    assert wild[4][0, 0] == np.inf or np.isnan(wild[4][0, 0])
    wild[0][1, 5], wild[4][0, 0] = calm[0][1, 5], calm[4][0, 0]
    for i, (x, y) in enumerate(zip(wild, calm, strict=True)):
        assert_within(x, y, 0.0, f"parameter {i}", 3)
    assert runs[1].clock() == 3


# --- physics --------------------------------------------------------------------------------------

WALK = ((8192,),)


@pytest.mark.parametrize("rho", [0.5, 0.875])
def test_stationary_variances_and_the_virial_identity(path, rho):
    """Noise of variance s**2 on ``U = k x**2 / 2`` gives the stationary variances of Eq. 14.

    ``Var x = (1 + rho) eta s**2 / ((1 - rho) k (2 (1 + rho) - eta k))``, ``Var dx = 2 eta**2 s**2 /
    ((1 - rho) (2 (1 + rho) - eta k))``, and for any potential ``<dx**2> / dt**2 = <x dU/dx>``.

    8,192 walkers, half of them with k = 1 and half with k = 2, are independent; so the standard
    error of a mean over walkers and steps is that of the walkers' own means over steps, which hold
    whatever correlation there is in time. From x = dx = 0 a moment approaches its limit as
    ``rho**n`` (the roots of the recursion have modulus ``rho**(1/2)``), and that is below 1e-4
    after the steps left out. Five standard errors: of the 12 comparisons of a path one in 1e5 runs
    would fail, but the seed is fixed.
    """
    if path.max_compilations and rho != 0.875:
        pytest.skip("another program, to the same end")
    lr = 1.0
    eta, random = lr * (1 + rho) / 2, np.random.default_rng(1)
    k, noise = np.repeat([1.0, 2.0], 4096), np.repeat([1.0, 0.5], 4096)
    run = make(path, [np.zeros(8192)], lr, CoolingSchedule(5, rho, "constant"))
    xs, dxs, virials, left_out = [], [], [], round(-4 * np.log(10) / np.log(rho))
    for n in range(left_out + 40):
        (x,) = run.params()
        gradient = np.float32(k * x + noise * random.standard_normal(8192)).astype(float)
        run.step([gradient])
        if n >= left_out:
            xs.append(x**2)
            dxs.append(run.displacements()[0] ** 2)
            virials.append(x * gradient)
    scale = noise**2 / ((1 - rho) * (2 * (1 + rho) - eta * k))
    comparisons = {
        "Var x": (np.mean(xs, 0), (1 + rho) * eta * scale / k),
        "Var dx": (np.mean(dxs, 0), 2 * eta**2 * scale),
        # x_n and dx_n+1 as they meet in the identity: <x g> = <x dU/dx>, as the noise is white.
        "virial": (np.mean(dxs, 0) / lr - np.mean(virials, 0), np.zeros(8192)),
    }
    for name, (measured, expected) in comparisons.items():
        for half in (slice(4096), slice(4096, None)):
            error = np.std(measured[half]) / np.sqrt(4096)
            assert abs(measured[half].mean() - expected[half][0]) <= 5 * error, name


# E v**2 after n steps of free diffusion under cooling, dt**2 = variance = 1, rho0 = 0.99: of
# the recursion E v**2 -> rho**2 E v**2 + eta**2, in 30 digits.
FREE = [
    (100, "paper", 50, 6.858661657953565),
    (100, "paper", 100, 0.2736146695044891),
    (100, "linear", 50, 25.096294802728192),
    (100, "linear", 100, 1.047888083184222),
    (100, "exponential", 50, 4.8428945672727),
    (100, "exponential", 100, 0.263599824763004),
    (1000, "paper", 1000, 0.2523079440883173),
    (1000, "linear", 1000, 0.2999132798489941),
    (1000, "exponential", 1000, 0.2513268441223111),
]


@pytest.mark.parametrize(("total_steps", "law", "steps", "expected"), FREE)
def test_free_diffusion_under_cooling(total_steps, law, steps, expected):
    """Kicks of variance 1 without a potential heat the walk to what the linear recursion says.

    Coordinate j gets one kick of 1, at step j. White noise is a sum of such kicks with independent
    factors of variance 1, so E v**2 is the sum of the squared responses: exact, without sampling.
    """
    run = Numpy("float64").make([np.zeros(steps)], 1.0, CoolingSchedule(total_steps, 0.99, law), 0)
    for kick in np.eye(steps):
        run.step([kick])
    assert float((run.displacements()[0] ** 2).sum()) == pytest.approx(expected, rel=1e-12)
