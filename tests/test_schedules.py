"""The laws, Eqs 20 and 21 and their inverses: values, precision, types, warm-up, bad input."""

import itertools
import math
import pickle
import re
from decimal import Decimal
from typing import get_args

import exact
import numpy as np
import pytest
from exact import COOLING_LAWS, LAWS, ONE_OF_COOLING_LAWS, ONE_OF_LAWS, RHO_ROUNDINGS, U32, U64
from frameworks import framework
from hypothesis import assume, example, given
from hypothesis import strategies as st
from libraries import LIBRARIES, NUMPY, STRICT, libraries

from coolmomentum import (
    CoolingSchedule,
    Law,
    adiabatic_rho0,
    adiabaticity,
    check_schedule,
    cooled_rho,
    cooling_rate,
    cooling_speed,
    from_temperature,
    largest_adiabaticity,
    noise_temperature,
    reduced_temperature,
    resolve_schedule,
    rho0_for_cooling_rate,
    rho_at,
    schedules,
    settings_from_sgd,
    step_size,
    steps_for_cooling_rate,
)
from coolmomentum import cooldown as cooldown

jax, jnp = framework("jax"), framework("jax.numpy")

# --- the reference values -------------------------------------------------------------------------

ALPHAS = [
    ("0.99", 1, "0.01"),
    ("0.99", 10, "0.6309573444801932494343601"),
    ("0.99", 100, "0.9549925860214359497239594"),
    ("0.99", 1000, "0.9954054173515269624480615"),
    ("0.99", 78200, "0.9999411120896389682193388"),
    ("0.99", 218948, "0.9999789670526532907546457"),
    ("0.99", 312400, "0.9999852588468529282708245"),
    ("0.9", 10, "0.7943282347242815020659183"),
    ("0.9", 1000, "0.9977000638225533171944219"),
    ("0.999", 1000, "0.9931160484209337715764261"),
    ("0.5", 4, "0.8408964152537145430311255"),
    ("0.95", 10000, "0.9997004716402233879907165"),
]


@pytest.mark.eq(21)
@pytest.mark.parametrize(("rho0", "total_steps", "printed"), ALPHAS)
def test_cooling_rate(rho0, total_steps, printed):
    """Eq. 21 to the last digit that the rounding of rho0 leaves.

    The exponent has 3 roundings (log1p, quotient), exp has 2.
    """
    exponent = -math.log1p(-float(rho0)) / total_steps
    truth = exact.Truth(lambda r: exact.alpha(r, total_steps), rho0, printed)
    assert truth.agrees(cooling_rate(float(rho0), total_steps), roundings=3 * exponent + 2)


def test_steps_for_the_default_of_the_authors():
    """Their default alpha = 0.99997 takes rho0 = 0.99 to 0 in 153503.37 steps: no run of theirs.

    Roundings: log1p 2, log 2, quotient 1.
    """
    # A float alpha is with the float of rho0, a decimal one with the decimal rho0.
    truth = exact.Truth(
        lambda alpha: exact.steps(alpha, 0.99 if isinstance(alpha, float) else "0.99"),
        "0.99997",
        "153503.37026966362",
    )
    assert truth.agrees(steps_for_cooling_rate(0.99997, 0.99), roundings=5)


RHOS = [  # rho0, S, n, then rho of the paper's law, of the linear and of the exponential one
    ("0.99", 100, 0, "0.99", "0.99", "0.99"),
    (
        "0.99",
        100,
        1,
        "0.9895287145194910046654",
        "0.9899000100999899000101",
        "0.9894592744035347440824",
    ),
    (
        "0.99",
        100,
        10,
        "0.984151068075388865148",
        "0.988901220865704772475",
        "0.9830810774731898101536",
    ),
    (
        "0.99",
        100,
        25,
        "0.96837722339831620668",
        "0.9867109634551495016611",
        "0.9629515726060051312481",
    ),
    ("0.99", 100, 50, "0.9", "0.9801980198019801980198", "0.8676087274781223795431"),
    (
        "0.99",
        100,
        75,
        "0.6837722339831620668001",
        "0.9611650485436893203883",
        "0.579469136513293824623",
    ),
    (
        "0.99",
        100,
        90,
        "0.3690426555198067505656",
        "0.9082568807339449541284",
        "0.258653888201992757913",
    ),
    (
        "0.99",
        100,
        99,
        "0.04500741397856405027604",
        "0.4974874371859296482412",
        "0.0264603461250513496746",
    ),
    ("0.99", 100, 100, "0", "0", "0"),
    (
        "0.9",
        10,
        1,
        "0.8741074588205832789576",
        "0.8901098901098901098901",
        "0.8680213746872415525128",
    ),
    (
        "0.9",
        10,
        5,
        "0.6837722339831620668001",
        "0.8181818181818181818182",
        "0.6267890062732584941959",
    ),
    (
        "0.9",
        10,
        9,
        "0.2056717652757184979341",
        "0.4736842105263157894737",
        "0.1461674459225584533432",
    ),
]
PAPER_RHOS = [
    ("0.99", 312400, 1, "0.9899998525862954812884"),
    ("0.99", 312400, 156200, "0.9"),
    ("0.99", 312400, 312399, "0.00001474115314707172917554"),
    ("0.99", 218948, 3127, "0.9893201817988209470878"),
]
PRINTED = [
    (law, *setting, printed)
    for *setting, paper, linear, exponential in RHOS
    for law, printed in zip(COOLING_LAWS, (paper, linear, exponential), strict=True)
] + [("paper", *row) for row in PAPER_RHOS]


def test_every_law_is_everywhere():
    """Each has a curve, a share, a derivative and an exact form: see backends/README.md."""
    for laws in (schedules._LAWS, cooldown._SHARES, RHO_ROUNDINGS):
        assert {*laws} == {*get_args(Law)}
    assert (get_args(Law), schedules.COOLING_LAWS) == (LAWS, COOLING_LAWS)
    assert {law for law, *_ in PRINTED} == {*COOLING_LAWS}
    for law in LAWS:
        assert cooling_speed(0.5, 10, 0.9, law) >= 0


@pytest.mark.parametrize(("law", "rho0", "total_steps", "step", "printed"), PRINTED)
def test_rho_of_the_laws(law, rho0, total_steps, step, printed):
    """Every printed rho, to the last digit that the rounding of rho0 leaves."""
    truth = exact.Truth(lambda r: exact.rho(law, step, total_steps, r), rho0, printed)
    rho = CoolingSchedule(total_steps, float(rho0), law)(step)
    assert truth.agrees(rho, roundings=RHO_ROUNDINGS[law])


@pytest.mark.parametrize(
    ("step", "paper", "linear", "exponential"),
    [
        (0, "199", "199", "199"),
        (50, "19", "100", "14.10673597966588442523"),
        (90, "2.169786384922226970404", "20.8", "1.697795224351207088614"),
        (100, "1", "1", "1"),
    ],
)
def test_reduced_temperature_along_the_laws(step, paper, linear, exponential):
    """T / T(rho=0) of the three laws at rho0 = 0.99 and S = 100.

    dtau = 2 drho / (1 - rho)**2, and 3 roundings.
    """
    for law, printed in zip(COOLING_LAWS, (paper, linear, exponential), strict=True):
        rho = CoolingSchedule(100, 0.99, law)(step)
        truth = exact.Truth(lambda r, law=law: exact.tau(law, step, 100, r), "0.99", printed)
        by_rho = 2 * RHO_ROUNDINGS[law] * rho / ((1 - rho) * (1 + rho))  # relative to tau
        assert truth.agrees(reduced_temperature(rho), roundings=by_rho + 3)


def test_efficientnet_warm_up():
    """The ImageNet run: rho = 0 and eta = 0.3 for 3127 steps, then the clock has run on."""
    schedule = CoolingSchedule(218_948, 0.99, warmup_steps=3127)
    assert [schedule(n) for n in (0, 1, 3126)] == [0.0, 0.0, 0.0]
    assert step_size(0.6, schedule(3126)) == 0.3
    # eta: rho's 6 roundings, and the rounding of rho0 and 0.6, and 2 operations
    assert step_size(0.6, schedule(3127)) == pytest.approx(0.5967960545396462841263, rel=10 * U64)
    assert round(reduced_temperature(schedule(3127)), 1) == 186.3


FREE_DIFFUSION = [  # total_steps, law, steps, <v**2>, and its ratio to Eq. 19
    (100, "paper", 50, 6.858661657953565, 1.37568),
    (100, "paper", 100, 0.2736146695044891, 1.00018),
    (100, "linear", 50, 25.096294802728192, 0.98436),
    (100, "linear", 100, 1.047888083184222, 1.40656),
    (100, "exponential", 50, 4.8428945672727, 1.30242),
    (100, "exponential", 100, 0.263599824763004, 1.00004),
    (1000, "paper", 1000, 0.2523079440883173, None),
    (1000, "linear", 1000, 0.2999132798489941, 1.00138),
    (1000, "exponential", 1000, 0.2513268441223111, None),
    (10000, "paper", 10000, 0.25023031158526376, None),
    (10000, "linear", 10000, 0.2549504758637934, None),
    (10000, "exponential", 10000, 0.25013236765992053, None),
]


@pytest.mark.parametrize(("total_steps", "law", "steps", "printed", "ratio"), FREE_DIFFUSION)
def test_free_diffusion_under_cooling(total_steps, law, steps, printed, ratio):
    """<v**2> of a walk without a force at dt**2 = <R**2> = 1, and how far it lags behind Eq. 19.

    Some 10 roundings a step are forgotten within 1 / (1 - rho**2) <= 50 steps; the rounding of
    rho0 = 0.99 moves T by 100 u. Below 1e-13 in all, and the printed values have 14 digits or more.
    """
    schedule, square = CoolingSchedule(total_steps, 0.99, law), 0.0
    for n in range(steps):
        square = schedule(n) ** 2 * square + step_size(1.0, schedule(n)) ** 2
    assert square == pytest.approx(printed, rel=1e-12, abs=0)
    if ratio is not None:
        assert round(square / noise_temperature(1.0, 1.0, schedule(steps - 1)), 5) == ratio


# --- the laws for any argument --------------------------------------------------------------------

total_steps_ = st.integers(1, 10**9)
rho0s = st.floats(0.0, 1 - 1e-9)
ordinary_rho0s = st.just(0.0) | st.floats(1e-20, 1 - 1e-9)  # beside 1, 50 digits leave 30 of it


@st.composite
def settings_and_steps(draw):
    """A run, and a step of it: total_steps, rho0, n."""
    total_steps = draw(total_steps_)
    return total_steps, draw(ordinary_rho0s), draw(st.integers(0, total_steps))


@pytest.mark.parametrize("law", LAWS)
@given(setting=settings_and_steps())
@example(setting=(312_400, 0.99, 312_399))
def test_float64_rho_to_its_last_digits(law, setting):
    """Rho is the textbook formula's, to the roundings of the operations; nothing cancels."""
    total_steps, rho0, step = setting
    expected = float(exact.rho(law, step, total_steps, rho0))
    rho = CoolingSchedule(total_steps, rho0, law)(step)
    assert rho == pytest.approx(expected, rel=1.01 * (RHO_ROUNDINGS[law] + 1) * U64, abs=0)


@pytest.mark.parametrize("law", LAWS)
@given(rho0=rho0s, total_steps=total_steps_)
def test_the_first_rho_is_rho0(law, rho0, total_steps):
    """rho(0) is rho0, to 2 ulp (the exponential law: 3, of which tanh has 2)."""
    ulps = 3 if law == "exponential" else 2
    error = abs(CoolingSchedule(total_steps, rho0, law)(0) - rho0)
    assert error <= ulps * math.ulp(rho0)


@pytest.mark.parametrize("law", LAWS)
@given(setting=settings_and_steps(), more=st.integers(0, 10**9))
def test_rho_never_rises(law, setting, more):
    """Rho falls, or stays, from step to step, and stays in [0, rho0] to rounding."""
    total_steps, rho0, step = setting
    schedule = CoolingSchedule(total_steps, rho0, law)
    assert schedule(step) >= schedule(step + more) >= 0


@pytest.mark.parametrize("law", COOLING_LAWS)
@given(rho0=rho0s, total_steps=total_steps_, more=st.integers(0, 10**9))
def test_rho_is_zero_from_the_last_step_on(law, rho0, total_steps, more):
    """Rho is 0.0, not nearly so, at step S and after."""
    assert CoolingSchedule(total_steps, rho0, law)(total_steps + more) == 0.0


@pytest.mark.parametrize("law", LAWS)
@given(rho0=rho0s, total_steps=total_steps_, step=st.integers(-(10**12), 0))
def test_a_negative_clock_counts_as_zero(law, rho0, total_steps, step):
    """A clock that wrapped does not heat beyond rho0."""
    schedule = CoolingSchedule(total_steps, rho0, law)
    assert schedule(step) == schedule(0)


@pytest.mark.parametrize("law", ["linear", "exponential"])
@given(setting=settings_and_steps())
def test_the_temperature_falls_as_the_law_is_called(law, setting):
    """Tau is linear, or exponential, in the step: dtau = 2 drho / (1 - rho)**2, and 3 roundings."""
    total_steps, rho0, step = setting
    rho = CoolingSchedule(total_steps, rho0, law)(step)
    expected = float(exact.tau(law, step, total_steps, rho0))
    rho_error = (RHO_ROUNDINGS[law] + 1) * U64 * rho
    # Relative to tau: 2 drho / (1 - rho**2), below 1e-5, so that first order will do.
    close = 1.01 * (2 * rho_error / (1 - rho * rho) + 4 * U64)
    assert reduced_temperature(rho) == pytest.approx(expected, rel=close, abs=0)


@pytest.mark.eq(20)
@given(setting=settings_and_steps())
def test_the_paper_law_is_eq_20(setting):
    """The closed form is Eq. 20 with alpha of Eq. 21, where the power can be trusted.

    alpha is off by 2 u and so alpha**n by 2 n u, and the closed form by 7 u.
    """
    total_steps, rho0, step = setting
    total_steps, step = min(total_steps, 10**6), min(step, 10**6, total_steps)
    alpha = cooling_rate(rho0, total_steps)
    rho = CoolingSchedule(total_steps, rho0)(step)
    close = (1 - rho) * (3 * step + 20) * U64 + 10 * U64
    assert rho == pytest.approx(rho_at(step, rho0, alpha), rel=0, abs=close)


# --- float32 inside compiled steps ----------------------------------------------------------------


def in_float64(law, step, total_steps, rho0):
    """The laws by other formulas than the package's, in float64: wrong by some 1e-14."""
    left = 1 - np.minimum(step, total_steps) / total_steps
    if law == "paper":
        return 1 - (1 - rho0) ** left
    tau0 = (1 + rho0) / (1 - rho0)
    tau = {"linear": 1 + (tau0 - 1) * left, "exponential": tau0**left}
    return np.full(step.shape, rho0) if law == "constant" else (tau[law] - 1) / (tau[law] + 1)


def clock(total_steps):
    """Every step of a run in int32, some after it, and some of a clock that wrapped."""
    return np.concatenate(
        [np.arange(total_steps + 3), [2**31 - 1, -1, -(2**31)]], dtype=np.int32, casting="unsafe"
    )


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("total_steps", [312_400, 10_000_000])
@pytest.mark.parametrize(
    "library", libraries("numpy", "torch", "jax", "jax-jit"), ids=lambda library: library.name
)
def test_float32_rho_at_every_step(library, law, total_steps):
    """In float32 rho is good to 1e-6 at every step of a long run, never NaN, exactly 0 at the end.

    Its errors: 3 roundings of ``left / S log`` (and the constant's), condition <= 1; 4 in expm1 or
    tanh: 8 u = 4.8e-7.
    """
    steps = clock(total_steps)
    schedule = CoolingSchedule(total_steps, 0.99, law)
    kwargs = {} if library.name.startswith("jax") else {"dtype": library.xp.float32}
    rho = np.asarray(library.compile(lambda n: schedule(n, **kwargs))(library.array(steps)))
    assert rho.dtype == np.float32
    expected = in_float64(law, np.maximum(steps, 0), total_steps, 0.99)
    assert np.max(np.abs(rho - expected)) < 1e-6  # fails for NaN
    if law != "constant":
        assert not np.any(rho[total_steps : total_steps + 4])
    assert np.all(rho[-2:] == rho[0])


@pytest.mark.parametrize("total_steps", [312_400, 10_000_000])
def test_the_power_of_eq_20_fails_in_float32(total_steps):
    """Eq. 20 as printed, in float32, is wrong by more than 1e-3: why the closed forms are there."""
    steps = np.arange(total_steps + 1, dtype=np.float32)
    alpha = np.float32(cooling_rate(0.99, total_steps))
    naive = rho_at(steps, np.float32(0.99), alpha)
    assert naive.dtype == np.float32
    expected = in_float64("paper", steps.astype(np.float64), total_steps, 0.99)
    assert np.max(np.abs(naive - expected)) > 1e-3


@pytest.mark.parametrize("library", libraries("jax", "jax-jit"), ids=lambda library: library.name)
@pytest.mark.parametrize("law", LAWS)
def test_float64_rho_in_jax(library, law, jax_x64):
    """With x64 the same function is right to float64, whatever integer counts the steps.

    The bound is that of Python's floats, twice the libm errors, and 1e-14 of the formula here.
    """
    steps = np.arange(0, 312_400, 7, dtype=np.int32)
    schedule = CoolingSchedule(312_400, 0.99, law)
    rho = library.compile(lambda n: schedule(n, dtype=jnp.float64))(library.array(steps))
    assert rho.dtype == jnp.float64
    expected = in_float64(law, steps, 312_400, 0.99)
    np.testing.assert_allclose(rho, expected, rtol=0, atol=2e-14)
    default = library.compile(schedule)(library.array(steps))
    np.testing.assert_array_equal(default, rho)
    narrow = library.compile(lambda n: schedule(n, dtype=jnp.float32))(library.array(steps))
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("total_steps", [2**31, 3_000_000_000, 10**12])
def test_a_run_longer_than_its_clock(library, total_steps):
    """A total_steps beyond the clock's int32 neither fails nor wraps."""
    steps = np.asarray([0, 1_000_000_000, 2**31 - 1, -1])
    rho = library.compile(CoolingSchedule(total_steps))(library.array(steps, dtype="int32"))
    expected = in_float64("paper", np.maximum(steps, 0), total_steps, 0.99)
    np.testing.assert_allclose(np.asarray(rho), expected, rtol=0, atol=1e-6)


# --- types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("step", [0, 3, 3.0, 10, 11])
def test_a_number_gives_a_python_float(law, step):
    """Python numbers in, a Python float out; with a warm-up too."""
    for warmup_steps in (0, 4):
        assert type(CoolingSchedule(10, 0.5, law, warmup_steps)(step)) is float


DEFAULT_FLOAT = {"numpy": "float64", "array_api_strict": "float64"}  # the others: float32


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("shape", [(), (0,), (6,), (2, 3)])
@pytest.mark.parametrize("kind", ["int32", "uint8", "float32"])
def test_an_array_gives_an_array_of_its_kind(library, law, shape, kind):
    """Integers give the library's default float, floats their own dtype; the shape stays."""
    numbers = np.arange(math.prod(shape)).reshape(shape)
    schedule = CoolingSchedule(5, 0.9, law, warmup_steps=1)
    rho = library.compile(schedule)(library.array(numbers, dtype=kind))
    assert library.owns(rho)
    default = DEFAULT_FLOAT.get(library.name, "float32")
    assert library.dtype_name(rho) == ("float32" if kind == "float32" else default)
    assert tuple(rho.shape) == shape
    by_numbers = [schedule(int(n)) for n in numbers.flat]
    np.testing.assert_allclose(np.ravel(np.asarray(rho)), by_numbers, rtol=0, atol=8 * U32)


def test_a_dtype_may_be_asked_for(library, dtype):
    """An array of integers gives the floating dtype that is asked for."""
    wanted = getattr(library.xp, dtype)
    steps = library.array([0, 5], dtype="int32")
    rho = library.compile(lambda n: CoolingSchedule(10, 0.5)(n, dtype=wanted))(steps)
    assert library.dtype_name(rho) == dtype


ARRAYS = [c for c in itertools.product([False, True], repeat=3) if any(c)]


@pytest.mark.parametrize("arrays", ARRAYS, ids=str)
@pytest.mark.parametrize(
    ("law", "warmup_steps", "clock"),
    [(law, 0, "run") for law in LAWS] + [("paper", 3, "run"), ("linear", 3, "hold")],
)
def test_step_total_steps_and_rho0_may_be_arrays(library, law, arrays, warmup_steps, clock):
    """Any of the three may be a 0-d array, traced or not, and gives what the numbers give."""
    numbers = (5, 20, 0.75)
    dtypes = ("int32", "int32", "float32")
    mixed = [
        library.array(x, dtype=d) if is_array else x
        for x, d, is_array in zip(numbers, dtypes, arrays, strict=True)
    ]

    def rho(*chosen):
        given = iter(chosen)
        step, total_steps, rho0 = (
            next(given) if is_array else x for x, is_array in zip(numbers, arrays, strict=True)
        )
        return CoolingSchedule(total_steps, rho0, law, warmup_steps, clock)(step)

    result = library.compile(rho)(
        *[x for x, is_array in zip(mixed, arrays, strict=True) if is_array]
    )
    assert library.owns(result)
    expected = CoolingSchedule(20, 0.75, law, warmup_steps, clock)(5)
    # rho0 = 3/4 is exact in float32; log1p and the coefficient are float32 now: 4 u more
    assert float(result) == pytest.approx(expected, rel=12 * U32, abs=0)


def test_the_alpha_solver_takes_arrays(library):
    """Eq. 21 and its inverses give arrays of the library for arrays."""
    rho0, steps = library.array(0.96875, dtype="float32"), library.array(5.0, dtype="float32")
    alpha = library.compile(cooling_rate)(rho0, steps)
    assert float(alpha) == pytest.approx(0.5, rel=12 * U32)
    for result, expected in [
        (library.compile(steps_for_cooling_rate)(alpha, rho0), 5.0),
        (library.compile(rho0_for_cooling_rate)(alpha, steps), 0.96875),
        (library.compile(rho_at)(steps, rho0, alpha), 0.0),
    ]:
        assert library.owns(result)
        assert float(result) == pytest.approx(expected, rel=60 * U32, abs=60 * U32)


def test_cooled_rho_is_the_schedule():
    """The pure function and the dataclass are one."""
    schedule = CoolingSchedule(9, 0.7, "linear", 2, "hold")
    for n in range(12):
        assert cooled_rho(n, 9, 0.7, "linear", 2, "hold") == schedule(n)


def test_a_schedule_survives_pickling():
    """A schedule is data: equal, hashable and picklable, with whole numbers as they were given."""
    schedule = CoolingSchedule(
        np.int64(9), np.float32(0.5), np.str_("linear"), np.uint8(2), np.str_("hold"), np.int8(0)
    )
    fields = (schedule.total_steps, schedule.rho0, schedule.law, schedule.warmup_steps)
    assert [type(value) for value in fields] == [int, float, str, int]
    assert [type(value) for value in (schedule.warmup_clock, schedule.hold_steps)] == [str, int]
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule == CoolingSchedule(9, 0.5, "linear", 2, "hold")
    assert hash(copy) == hash(schedule)


# --- warm-up --------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
def test_the_clock_runs_on_through_the_warm_up(library, law):
    """Rho is 0 in the warm-up; then it is what it would have been without one."""
    steps = library.array(np.arange(25))
    with_it = library.compile(CoolingSchedule(20, 0.9, law, warmup_steps=5))(steps)
    without = library.compile(CoolingSchedule(20, 0.9, law))(steps)
    assert not np.any(np.asarray(with_it)[:5])
    np.testing.assert_array_equal(np.asarray(with_it)[5:], np.asarray(without)[5:])


@pytest.mark.parametrize("law", LAWS)
def test_the_clock_may_hold_during_the_warm_up(library, law):
    """Rho is 0 in the warm-up; then a cooling of the other 15 steps starts from rho0."""
    steps = library.array(np.arange(25))
    held = library.compile(CoolingSchedule(20, 0.9, law, 5, "hold"))(steps)
    short = library.compile(CoolingSchedule(15, 0.9, law))(steps)
    assert not np.any(np.asarray(held)[:5])
    np.testing.assert_array_equal(np.asarray(held)[5:], np.asarray(short)[:20])


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("clock", ["run", "hold"])
def test_a_warm_up_of_wrapped_and_unsigned_clocks(law, clock):
    """Clocks that would wrap in ``step - warmup_steps`` are in the warm-up all the same."""
    schedule = CoolingSchedule(200, 0.9, law, 100, clock)
    assert not np.any(schedule(np.asarray([-(2**31), -1, 0], dtype=np.int32)))
    assert not np.any(schedule(np.asarray([0, 99], dtype=np.uint8)))


# --- holding rho0 before the law begins -----------------------------------------------------------

HOLDS = [
    (4, 0, "run"),
    (4, 2, "run"),
    (4, 6, "run"),
    (4, 2, "hold"),
    (4, 6, "hold"),
    (0, 6, "hold"),
]


def held(law, step, hold_steps, warmup_steps, clock):
    """Rho of 20 steps from rho0 = 0.9, by the textbook formula in 50 digits."""
    start = max(hold_steps, warmup_steps if clock == "hold" else 0)
    if step < warmup_steps:
        return 0.0
    return 0.9 if step < start else float(exact.rho(law, step - start, 20 - start, 0.9))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("hold", HOLDS, ids=str)
def test_rho_is_held_and_then_cools_over_the_steps_that_remain(library, law, hold):
    """In every law, with and without a warm-up, by either clock; the warm-up is counted in."""
    hold_steps, warmup_steps, clock = hold
    schedule = CoolingSchedule(20, 0.9, law, warmup_steps, clock, hold_steps)
    expected = [held(law, n, *hold) for n in range(23)]
    by_numbers = [schedule(n) for n in range(23)]
    close = (RHO_ROUNDINGS[law] + 1) * U64
    assert by_numbers == pytest.approx(expected, rel=close, abs=0)
    assert by_numbers[warmup_steps:hold_steps] == [0.9] * (hold_steps - warmup_steps)
    rho = library.compile(schedule)(library.array(np.arange(23), dtype="int32"))
    assert library.owns(rho)
    # Of float32: the law's roundings, and 8 of the libraries' expm1 and tanh, as in Keras' test.
    close = (RHO_ROUNDINGS[law] + 8) * U32
    np.testing.assert_allclose(np.asarray(rho), expected, rtol=close, atol=0)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("clock", [np.int32(-1), np.int32(-(2**31)), np.uint32(3), np.int8(3)])
def test_a_held_clock_before_its_start_is_at_rho0(law, clock):
    """A clock that wrapped, or would wrap in ``step - hold_steps``, is at rho0, not beyond it."""
    steps = np.asarray([clock])
    assert np.all(CoolingSchedule(200, 0.9, law, hold_steps=100)(steps) == 0.9)


COUNTS = [c for c in itertools.product([False, True], repeat=4) if any(c)]


@pytest.mark.parametrize("arrays", COUNTS, ids=str)
@pytest.mark.parametrize("clock", ["run", "hold"])
@pytest.mark.parametrize("steps", [("int32", 2), ("int32", 6), ("int32", 13), ("float32", 13)])
def test_the_counts_may_be_arrays(library, arrays, clock, steps):
    """Step, total_steps, warmup_steps and hold_steps: any may be a 0-d array, traced or not."""
    dtype, step = steps
    numbers = (step, 20, 3, 8)
    dtypes = (dtype, "int32", "int32", "int32")  # no library has to mix integers and floats
    given = [
        library.array(x, dtype=d)
        for x, d, is_array in zip(numbers, dtypes, arrays, strict=True)
        if is_array
    ]

    def rho(*given):
        rest = iter(given)
        counts = [next(rest) if a else x for x, a in zip(numbers, arrays, strict=True)]
        n, total_steps, warmup_steps, hold_steps = counts
        schedule = CoolingSchedule(total_steps, 0.9, "linear", warmup_steps, clock, hold_steps)
        return schedule(n)

    result = library.compile(rho)(*given)
    assert library.owns(result)
    expected = CoolingSchedule(20, 0.9, "linear", 3, clock, 8)(step)
    assert float(result) == pytest.approx(expected, rel=8 * U32, abs=0)


@pytest.mark.parametrize("law", COOLING_LAWS)
@pytest.mark.parametrize("total_steps", [10, 1000, 312_400])
@pytest.mark.parametrize("rho0", [0.3, 0.9, 0.99, 0.999])
def test_the_laws_are_self_similar(law, total_steps, rho0):
    """A law that starts anew at step n, from the rho it has there, goes on as it would have.

    Both have their own roundings. That of the rho at n is carried on: with r the part of the steps
    that remains, tau is 1 + r (tau_n - 1), or tau_n**r, and 1 - rho is (1 - rho_n)**r; all change
    rho by at most r ((1 - rho) / (1 - rho_n))**2 times the change of rho_n.
    """
    whole = CoolingSchedule(total_steps, rho0, law)
    for n in (1, total_steps // 3, total_steps - 2):
        again = CoolingSchedule(total_steps, whole(n), law, hold_steps=n)
        steps = np.unique(np.linspace(n, total_steps, 100).astype(int))
        rho, remains = whole(steps), (total_steps - steps) / (total_steps - n)
        carried = remains * ((1 - rho) / (1 - whole(n))) ** 2
        close = (RHO_ROUNDINGS[law] + 1) * U64 * (2 + carried)
        assert np.all(np.abs(again(steps) - rho) <= close)
        assert rho0 > 0.5 or np.max(np.abs(again(steps) - rho)) <= 6e-16


@given(setting=settings_and_steps())
def test_without_a_hold_rho_is_the_closed_form_bit_for_bit(setting):
    """Nothing is added to the laws where rho0 is not held: numbers and float64 arrays alike."""
    total_steps, rho0, step = setting
    left = total_steps - step
    formulas = {
        "paper": -math.expm1(left / total_steps * math.log1p(-rho0)),
        "linear": rho0 * left / (left + (1 - rho0) * step),
        "exponential": math.tanh(left / total_steps * ((math.log1p(rho0) - math.log1p(-rho0)) / 2)),
        "constant": rho0,
    }
    for law, expected in formulas.items():
        assert CoolingSchedule(total_steps, rho0, law)(step) == expected
        assert CoolingSchedule(total_steps, rho0, law, hold_steps=0)(step) == expected
    array = CoolingSchedule(total_steps, rho0, "linear")(np.asarray([step]))
    assert array[0] == formulas["linear"]


def test_a_hold_longer_than_the_clock(library):
    """A hold_steps beyond the clock's int32 neither fails nor wraps: rho stays at rho0."""
    steps = library.array([0, 2**31 - 1, -1], dtype="int32")
    schedule = CoolingSchedule(4_000_000_000, 0.5, "linear", hold_steps=3_000_000_000)
    rho = library.compile(schedule)(steps)
    np.testing.assert_array_equal(np.asarray(rho), [0.5] * 3)
    later = schedule(np.asarray([2_999_999_999, 3_500_000_000, 4_000_000_000]))
    np.testing.assert_allclose(later, [0.5, 1 / 3, 0], rtol=4 * U64)


def test_adiabaticity_is_that_of_the_steps_after_the_hold():
    """What is held does not cool: fewer steps remain, from the same rho0."""
    schedule = CoolingSchedule(1000, 0.9, "linear", hold_steps=400)
    assert largest_adiabaticity(schedule) == largest_adiabaticity(
        CoolingSchedule(600, 0.9, "linear")
    )
    # In the warm-up the clock runs on, here 100 steps into the cooling.
    warm = CoolingSchedule(1000, 0.9, "exponential", warmup_steps=500, hold_steps=400)
    tau = 19 ** (5 / 6)
    by_hand = math.log(19) / 600 * (1 + tau) ** 2 / (4 * tau)
    assert largest_adiabaticity(warm) == pytest.approx(by_hand, rel=1e-13)
    rho0 = adiabatic_rho0(600, law="paper")
    assert largest_adiabaticity(CoolingSchedule(1000, rho0, hold_steps=400)) < 0.1


# --- the constant law has no end ------------------------------------------------------------------


def test_the_constant_law_needs_no_total_steps(library):
    """Who holds does not know how long; with a warm-up, in arrays and numbers, and as a setting."""
    schedule = CoolingSchedule(None, 0.9, "constant", warmup_steps=2)
    assert [schedule(n) for n in (0, 1, 2, 10**12)] == [0.0, 0.0, 0.9, 0.9]
    rho = library.compile(schedule)(library.array([0, 2, 2**31 - 1], dtype="int32"))
    np.testing.assert_allclose(np.asarray(rho), [0, 0.9, 0.9], rtol=U32)
    assert resolve_schedule(law="constant", rho0=0.9, warmup_steps=2) == schedule
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert largest_adiabaticity(schedule) == 0.0


@pytest.mark.parametrize("law", COOLING_LAWS)
def test_a_law_that_ends_needs_total_steps(law):
    """None is refused where rho is to reach 0."""
    with pytest.raises(
        TypeError, match=r"^total_steps is required: the optimizer steps over which"
    ):
        CoolingSchedule(None, law=law)


# --- half precision, short integers and other arrays ----------------------------------------------

HALF = [(NUMPY, "float16")] + [
    (library, dtype)
    for library in libraries("torch", "jax", "jax-jit")
    for dtype in ("float16", "bfloat16")
]
halves = pytest.mark.parametrize(
    ("library", "half"), HALF, ids=[f"{library.name}-{half}" for library, half in HALF]
)


def assert_rounded_once(library, value, expected, half):
    """``value`` is ``expected`` in half precision, of which float32 kept 8 roundings more."""
    assert library.dtype_name(value) == half
    u = 2.0**-11 if half == "float16" else 2.0**-8
    value = np.asarray(library.array(value, dtype="float32"))
    np.testing.assert_allclose(value, expected, rtol=u + 8 * U32, atol=2.0**-25)


@halves
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("total_steps", [1000, 100_000, 10**7])
def test_a_half_precision_rho_is_computed_in_float32(library, half, law, total_steps):
    """Past 65,504 steps, which float16 does not count, too; rounded once, and 0 at the end."""
    steps = np.asarray([0, total_steps // 3, total_steps // 2, total_steps - 1, total_steps])
    dtype = getattr(library.xp, half)
    schedule = CoolingSchedule(total_steps, 0.99, law)
    rho = library.compile(lambda n: schedule(n, dtype=dtype))(library.array(steps, dtype="int32"))
    assert_rounded_once(library, rho, in_float64(law, steps, total_steps, 0.99), half)
    if law != "constant":
        assert float(rho[-1]) == 0.0


@halves
@pytest.mark.parametrize("hold_steps", [0, 70_000])
def test_steps_in_half_precision(library, half, hold_steps):
    """An array of float16 steps beside a total_steps beyond its range; its own dtype comes back."""
    steps = library.array([0.0, 1024.0, 61440.0], dtype=half)
    schedule = CoolingSchedule(100_000, 0.99, "linear", hold_steps=hold_steps)
    rho = library.compile(schedule)(steps)
    assert_rounded_once(library, rho, [schedule(n) for n in (0, 1024, 61440)], half)


@halves
def test_rho0_in_half_precision(library, half):
    """A 0-d rho0 does not make the law one of half precision: 1 - rho0 has all its digits."""
    rho0 = library.array(0.96875, dtype=half)
    for law in LAWS:
        rho = library.compile(
            lambda rho0, law=law: cooled_rho(70_000, 100_000, rho0, law, dtype=library.xp.float32)
        )(rho0)
        expected = CoolingSchedule(100_000, 0.96875, law)(70_000)
        assert float(rho) == pytest.approx(expected, rel=20 * U32, abs=0)


SHORT = [(library, kind) for library in LIBRARIES for kind in ("int8", "uint8", "int16", "uint16")]


@pytest.mark.parametrize(
    ("library", "kind"), SHORT, ids=[f"{library.name}-{kind}" for library, kind in SHORT]
)
@pytest.mark.parametrize("total_steps", [100, 1000, 100_000, 10**10])
@pytest.mark.parametrize("setting", [(0, 0), (30, 0), (0, 40), (30, 40)], ids=str)
def test_steps_in_short_integers(library, kind, total_steps, setting):
    """No count wraps: neither ``step - start`` of unsigned integers nor a long total_steps."""
    warmup_steps, hold_steps = setting
    schedule = CoolingSchedule(total_steps, 0.9, "paper", warmup_steps, "hold", hold_steps)
    steps = [0, 3, 35, 41, 99, 100, 127]
    rho = library.compile(schedule)(library.array(steps, dtype=kind))
    expected = [schedule(n) for n in steps]
    np.testing.assert_allclose(np.asarray(rho), expected, rtol=14 * U32, atol=1e-30)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64, np.uint64, np.float16, np.float64])
@pytest.mark.parametrize("law", LAWS)
def test_a_numpy_scalar_is_a_0d_array(kind, law):
    """It gives a 0-d array of NumPy, or a scalar, with the value of the number."""
    schedule = CoolingSchedule(100_000, 0.9, law, hold_steps=2)
    rho = schedule(kind(3))
    assert NUMPY.owns(rho)
    assert rho.shape == ()
    assert rho.dtype == (np.float16 if kind is np.float16 else np.float64)
    u = 2.0**-11 if kind is np.float16 else 8 * U64
    assert float(rho) == pytest.approx(schedule(3), rel=u, abs=0)
    assert CoolingSchedule(200, 0.9, "linear")(np.uint8(255)) == 0.0


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (np.ma.array([0, 5], mask=[False, True]), "masked arrays lose their mask here"),
        (np.asarray([False, True]), "steps must be integers or floats: bool"),
        (np.asarray([0j]), "steps must be integers or floats: complex128"),
        (np.asarray([None]), "steps must be integers or floats: object"),
        ([0, 5], "arguments must be numbers or arrays of one array-API library: list"),
        (True, "arguments must be numbers or arrays of one array-API library: bool"),
        (None, "arguments must be numbers or arrays of one array-API library: NoneType"),
    ],
    ids=lambda case: type(case).__name__,
)
def test_steps_that_are_no_steps_are_refused(steps, message):
    """By one TypeError, never by a number that is wrong."""
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        CoolingSchedule(10)(steps)


@halves
def test_the_alpha_solver_in_half_precision(library, half):
    """Each function is computed in float32 from its half-precision arguments and rounded once."""
    rho0 = library.array(0.96875, dtype=half)  # exact: 1 - rho0 = 2**-5
    alpha = library.compile(lambda rho0: cooling_rate(rho0, 1000))(rho0)
    assert_rounded_once(library, alpha, 2.0 ** (-5 / 1000), half)
    half_alpha = library.array(0.5, dtype=half)
    for function, arguments, expected in (
        (steps_for_cooling_rate, (half_alpha, rho0), 5.0),
        (rho0_for_cooling_rate, (half_alpha, library.array(5, dtype="int32")), 0.96875),
        (rho_at, (library.array(5, dtype="int32"), rho0, half_alpha), 0.0),
    ):
        assert_rounded_once(library, library.compile(function)(*arguments), expected, half)


def test_the_alpha_solver_takes_integers(library):
    """total_steps may be an array of integers, short ones too; NumPy's scalars are checked."""
    for kind in ("int32", "uint8"):
        steps = library.array(5, dtype=kind)
        assert float(library.compile(lambda s: cooling_rate(0.96875, s))(steps)) == pytest.approx(
            0.5, rel=4 * U32
        )
    with pytest.raises(ValueError, match=r"^total_steps must be >= 1: np\.int64\(0\)$"):
        cooling_rate(0.5, np.int64(0))
    with pytest.raises(ValueError, match=r"^rho0 must be in \[0, 1\): np\.float64\(1\.5\)$"):
        cooling_rate(np.float64(1.5), 10)


# --- the alpha solver -----------------------------------------------------------------------------


@st.composite
def cooling_settings(draw):
    """A cooling: rho0, total_steps and a final rho below 0.9 rho0."""
    rho0 = draw(st.floats(1e-3, 1 - 1e-9))
    return rho0, draw(st.integers(1, 10**6)), draw(st.floats(0, 0.9)) * rho0


def log_ratio(rho0, final_rho):
    """-ln((1 - rho0) / (1 - final_rho)), and what its floats lose: log1p 2 each, difference 1."""
    hot, cool = -math.log1p(-rho0), -math.log1p(-final_rho)
    return hot - cool, 2 * hot + 2 * cool + (hot - cool)


@pytest.mark.eq(21)
@given(setting=cooling_settings())
def test_cooling_rate_to_steps_and_back(setting):
    """Steps come back as well as alpha, rounded beside 1, remembers them.

    ln alpha is off by exp's 2 u and log's own 2 u of it, and carries the error of the exponent.
    """
    rho0, total_steps, final_rho = setting
    size, error = log_ratio(rho0, final_rho)
    assume(size / total_steps > 1e-10)
    close = 2 * error / size + 4 + 2 * total_steps / size
    back = steps_for_cooling_rate(cooling_rate(rho0, total_steps, final_rho), rho0, final_rho)
    assert back == pytest.approx(total_steps, rel=1.01 * close * U64, abs=0)


@pytest.mark.eq(21)
@given(setting=cooling_settings())
def test_cooling_rate_to_rho0_and_back(setting):
    """Rho0 comes back to S times the rounding of alpha: drho0 = (1 - rho0) S dalpha / alpha."""
    rho0, total_steps, final_rho = setting
    size, error = log_ratio(rho0, final_rho)
    exponent_error = error + 5 * size + 2 * total_steps - 3 * math.log1p(-final_rho)
    assume(size / total_steps > 1e-10)
    back = rho0_for_cooling_rate(cooling_rate(rho0, total_steps, final_rho), total_steps, final_rho)
    close = (1 - rho0) * exponent_error + 2 * rho0 - math.log1p(-rho0) * (1 - rho0)
    assert back == pytest.approx(rho0, rel=0, abs=1.01 * close * U64)


def test_a_final_rho_other_than_zero():
    """From 15/16 to 3/4 in two steps 1 - rho doubles each time: alpha = 1/2."""
    assert cooling_rate(0.9375, 2, final_rho=0.75) == pytest.approx(0.5, rel=10 * U64)
    assert steps_for_cooling_rate(0.5, 0.9375, final_rho=0.75) == pytest.approx(2, rel=10 * U64)
    assert rho0_for_cooling_rate(0.5, 2, final_rho=0.75) == pytest.approx(0.9375, rel=10 * U64)
    assert rho_at(2, 0.9375, 0.5) == 0.75


# --- how hot may a run start ----------------------------------------------------------------------


def exact_cooling_speed(law, step, total_steps, rho0):
    """|d ln tau / dn| by a symmetric difference over 2e-15 of a step, in 50 digits."""
    with exact.localcontext(exact.DIGITS):
        h = Decimal("1e-15")
        before, after = (
            exact.tau(law, Decimal(step) + s * h, total_steps, rho0).ln() for s in (-1, 1)
        )
        return float((before - after) / (2 * h))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("step", [0, 1, 50, 99, 100])
def test_cooling_speed_is_the_derivative_of_the_temperature(law, step):
    """It is -d ln tau / dn of the exact law.

    Near S the linear law's own rho decides, to 7 u: below 20 roundings in all, at condition 200.
    """
    rho = float(exact.rho(law, step, 100, 0.99))
    expected = exact_cooling_speed(law, step, 100, 0.99)
    close = 20 * 200 * U64
    assert cooling_speed(rho, 100, 0.99, law) == pytest.approx(expected, rel=close, abs=1e-30)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("rho0", [0.0, 0.1, 0.3, 0.5, 0.9, 0.99])
def test_the_largest_adiabaticity_is_at_an_end(law, rho0):
    """No step on the way has a larger number than the ends have."""
    schedule = CoolingSchedule(200, rho0, law)
    on_the_way = [
        adiabaticity(cooling_speed(schedule(n), 200, rho0, law), schedule(n)) for n in range(201)
    ]
    assert largest_adiabaticity(schedule) == pytest.approx(max(on_the_way), rel=1e-12)


def test_adiabaticity_of_the_default():
    """The paper's law at rho0 = 0.99 starts at an adiabaticity number of about 233 / S.

    2 ln(100) / (1.99 * (1 - 0.99**2)) = 232.6.
    """
    by_hand = 2 * math.log(100) / (1.99 * 0.0199)
    assert largest_adiabaticity(CoolingSchedule(1000)) == pytest.approx(by_hand / 1000, rel=1e-13)


def test_adiabaticity_is_looked_at_from_the_end_of_the_warm_up():
    """A held clock leaves fewer steps to cool in; one that runs on leaves a cooler start."""
    held = CoolingSchedule(1000, warmup_steps=400, warmup_clock="hold")
    assert largest_adiabaticity(held) == largest_adiabaticity(CoolingSchedule(600))
    run = CoolingSchedule(1000, 0.9, "exponential", warmup_steps=500)
    # tau0 = 19 has fallen to sqrt(19); 1 - rho**2 = 4 tau / (1 + tau)**2
    by_hand = math.log(19) / 1000 * (1 + math.sqrt(19)) ** 2 / (4 * math.sqrt(19))
    assert largest_adiabaticity(run) == pytest.approx(by_hand, rel=1e-13)


@pytest.mark.parametrize("law", COOLING_LAWS)
@given(total_steps=st.integers(1, 10**7), bound=st.floats(1e-3, 10))
def test_adiabatic_rho0_meets_its_bound(law, total_steps, bound):
    """The number is below the bound at the rho0 found, and no longer at 2e-12 more."""
    rho0 = adiabatic_rho0(total_steps, bound, law)
    assert largest_adiabaticity(CoolingSchedule(total_steps, rho0, law)) < bound
    assume(rho0 + 2e-12 < 1)
    assert largest_adiabaticity(CoolingSchedule(total_steps, rho0 + 2e-12, law)) >= bound


# --- any curve ------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", ["linear", "exponential"])
def test_from_temperature_gives_the_laws_again(law):
    """A schedule from the curve of a law is the law."""
    schedule = from_temperature(lambda n: float(exact.tau(law, n, 50, 0.5)))
    for n in range(51):
        expected = float(exact.rho(law, n, 50, 0.5))
        assert schedule(n) == pytest.approx(expected, rel=0, abs=3 * U64)


def test_from_temperature_takes_arrays(library):
    """A curve over arrays gives a schedule over arrays."""
    schedule = from_temperature(lambda n: 1 + 2 * 0.5**n)
    rho = library.compile(schedule)(library.array([0.0, 1.0, 2.0], dtype="float32"))
    assert library.owns(rho)
    np.testing.assert_allclose(np.asarray(rho), [1 / 2, 1 / 3, 1 / 5], rtol=6 * U32)


def cosine(step):
    """From 199 to 1 in 100 steps, and up again, by operators and by NumPy's cosine."""
    return 1 + 99 * (1 + np.cos(np.pi * step / 100))


def test_a_curve_is_held_after_its_end():
    """With total_steps tau(total_steps) holds for ever; without it the cosine heats again."""
    schedule = from_temperature(cosine, total_steps=100)
    assert schedule(0) == pytest.approx(0.99, rel=4 * U64)
    assert [float(schedule(n)) for n in (100, 101, 150, 10**12)] == [0.0] * 4
    assert float(from_temperature(cosine)(150)) > 0.9


def test_a_curve_that_ends_is_not_asked_beyond_its_end():
    """A table of temperatures has a last entry; what is asked for is never beyond it."""
    table = [199.0, 3.0, 1.0]
    schedule = from_temperature(lambda n: table[n], total_steps=2)
    assert [schedule(n) for n in (0, 1, 2, 3, 1000)] == [0.99, 0.5, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["int32", "uint8", "float32"])
def test_a_held_curve_takes_arrays(library, kind):
    """Of any shape, integers or floats, compiled or not: the last value is held in each place."""
    numbers = np.asarray([[0, 1, 2], [3, 4, 200]])
    schedule = from_temperature(lambda n: 3.0 - (n > 1) * 1.0 * (n > 1), total_steps=2)
    if library is STRICT:  # which multiplies no booleans
        schedule = from_temperature(
            lambda n: STRICT.xp.where(n > 1, STRICT.xp.asarray(2.0), STRICT.xp.asarray(3.0)), 2
        )
    rho = library.compile(schedule)(library.array(numbers, dtype=kind))
    assert library.owns(rho)
    np.testing.assert_allclose(np.asarray(rho), [[1 / 2, 1 / 2, 1 / 3], [1 / 3] * 3], rtol=4 * U32)


def test_the_last_step_of_a_curve_may_be_beyond_the_clock():
    """A total_steps that short integers, int32 or float16 do not hold does not wrap.

    tau = 1.001 is rounded by U32, and tau - 1, which is exact, is 1e-3 of it; two more roundings.
    """
    schedule = from_temperature(lambda n: 1 + n / 1e5, total_steps=10**10)
    for steps in (np.asarray([100], np.int8), np.asarray([100], np.float16), jnp.asarray([100])):
        assert float(schedule(steps)[0]) == pytest.approx(0.001 / 2.001, rel=2 * U32 / 1e-3)
    half = from_temperature(lambda n: 1 + n / 1e5, total_steps=100_000)
    assert np.asarray(half(np.asarray([65504], np.float16)))[0] > 0.2


def test_a_constant_curve_has_the_shape_of_the_steps(library):
    """A tau that gives one number for an array of steps gives an array of rho."""
    rho = library.compile(from_temperature(lambda n: 3.0))(library.array([[0, 1]], dtype="int32"))
    assert library.owns(rho)
    np.testing.assert_allclose(np.asarray(rho), [[0.5, 0.5]], rtol=2 * U32)


def test_a_curve_of_integers_has_a_rho_between_them(library):
    """Tau = 3, 2, 1 in integers, unsigned ones too, is rho = 1/2, 1/3, 0."""
    for kind in ("int32", "uint8"):
        tau = library.array([3, 2, 1, 0], dtype=kind)
        rho = library.compile(from_temperature(lambda tau: tau))(tau)
        np.testing.assert_allclose(np.asarray(rho), [1 / 2, 1 / 3, 0, -1], rtol=2 * U32)


NUMBERS_ONLY = [
    lambda n: 2.0 if n < 3 else 1.0,
    lambda n: max(1.0, 3.0 - n),
    lambda n: 2 + math.cos(n),
    lambda n: [3, 2, 1][int(n) // 2],
]


@pytest.mark.parametrize("tau", NUMBERS_ONLY, ids=["if", "max", "math", "int"])
@pytest.mark.parametrize(
    "library", libraries("numpy", "torch", "jax", "jax-jit"), ids=lambda library: library.name
)
def test_a_curve_for_numbers_alone(library, tau):
    """It works for Python ints; an array, traced or not, is refused in words that say why."""
    schedule = from_temperature(tau, total_steps=5)
    assert all(0 <= schedule(n) < 1 for n in range(8))
    with pytest.raises(TypeError, match=r"^tau must take an array of steps, by functions of its"):
        library.compile(schedule)(library.array([0, 1]))


def test_a_curve_of_jax_traces():
    """jax.numpy's cosine in a jitted, scanned step: the rho of the numbers."""
    schedule = from_temperature(lambda n: 1 + 99 * (1 + jnp.cos(jnp.pi * n / 100)), total_steps=100)
    rho = jax.jit(jax.vmap(schedule))(jnp.arange(150))
    expected = [float(schedule(n)) for n in range(150)]
    np.testing.assert_allclose(rho, expected, rtol=0, atol=40 * U32)


def test_a_curve_is_data():
    """Schedules of the same curve and end are equal, hashable, picklable and shown in full."""
    schedule = from_temperature(cosine, np.int64(100))
    assert type(schedule.total_steps) is int
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule == from_temperature(cosine, total_steps=100)
    assert hash(copy) == hash(schedule)
    assert schedule != from_temperature(cosine)
    assert repr(schedule).endswith("total_steps=100)")


@pytest.mark.parametrize(
    ("total_steps", "error", "message"),
    [
        (0, ValueError, "total_steps must be >= 1: 0"),
        (2.0, TypeError, "total_steps must be an integer: 2.0"),
        (True, TypeError, "total_steps must be an integer: True"),
    ],
)
def test_the_end_of_a_curve_is_checked(total_steps, error, message):
    """When the schedule is made, with argument, rule and value."""
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        from_temperature(cosine, total_steps)


# --- what the arguments of an optimizer mean ------------------------------------------------------


def test_settings_make_a_cooling_schedule():
    """None stands for the default of the class."""
    assert resolve_schedule(total_steps=10) == CoolingSchedule(10)
    settings = {"rho0": 0.5, "law": "linear", "warmup_steps": 1, "warmup_clock": "hold"}
    expected = CoolingSchedule(10, **settings, hold_steps=2)
    assert resolve_schedule(None, total_steps=10, **settings, hold_steps=2) == expected


def test_a_schedule_is_taken_as_it_is():
    """Beside a function total_steps says how far to probe, and only there."""
    schedule, function = CoolingSchedule(10), from_temperature(cosine, 100)
    assert resolve_schedule(schedule) is schedule
    assert resolve_schedule(function) is resolve_schedule(function, total_steps=7) is function


@pytest.mark.parametrize(
    ("schedule", "settings", "error", "message"),
    [
        (None, {}, TypeError, "total_steps is required: the optimizer steps over which rho"),
        (CoolingSchedule(9), {"total_steps": 9}, ValueError, "total_steps must not be given besid"),
        (CoolingSchedule(9), {"hold_steps": 0}, ValueError, "hold_steps must not be given beside"),
        (
            cosine,
            {"law": "linear"},
            ValueError,
            "law must not be given beside a schedule: 'linear'",
        ),
        (cosine, {"total_steps": 0}, ValueError, "total_steps must be >= 1: 0"),
        ("linear", {}, TypeError, "schedule must be a CoolingSchedule or a function of the step"),
        (0.9, {"total_steps": 9}, TypeError, "schedule must be a CoolingSchedule or a function"),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_a_schedule_beside_settings_is_refused(schedule, settings, error, message):
    """One of the two, and a schedule is a CoolingSchedule or a function, no name of a law."""
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        resolve_schedule(schedule, **settings)


# --- from SGD -------------------------------------------------------------------------------------


@given(lr=st.floats(1e-6, 10), momentum=st.floats(0, 0.999), total_steps=st.integers(1, 10**7))
def test_settings_from_sgd_start_at_its_effective_learning_rate(lr, momentum, total_steps):
    """lr_sgd / (1 - momentum), and never above the lr of the constant law.

    tau0 has 3 roundings at condition 2 / (1 - rho0**2) <= 1001, on both sides; 6 more.
    """
    settings = settings_from_sgd(lr, momentum, total_steps)
    assert settings.keys() == {"lr", "rho0", "law"}
    assert settings["law"] == "linear"
    rho0, ours = settings["rho0"], settings["lr"]
    first = ours * (1 + rho0) / (2 * (1 - rho0))
    assert first == pytest.approx(lr / (1 - momentum), rel=20 * U64, abs=0)
    assert ours <= 2 * lr / (1 + momentum) * (1 + 20 * U64)


@pytest.mark.parametrize(
    ("momentum", "total_steps", "rho0", "ours"),
    [  # in fractions: lr = 2 * 0.1 (1 - rho0) / ((1 - momentum) (1 + rho0))
        (0.9, 50, 0.9, 2 / 19),  # adiabatic is 0.667: the momentum stays
        (0.9, 500, 25 / 26, 2 / 51),  # (tau0 - 1) / S = 0.1
        (0.9, 100_000, 0.99, 2 / 199),
        (0.0, 1000, 50 / 51, 2 / 1010),
        (0.995, 1000, 0.995, 0.2 / 1.995),
    ],
)
def test_settings_from_sgd_by_hand(momentum, total_steps, rho0, ours):
    """rho0 is 0.99, the adiabatic one of the linear law, or the momentum; to its 12 digits."""
    settings = settings_from_sgd(0.1, momentum, total_steps)
    assert settings["rho0"] == pytest.approx(rho0, rel=0, abs=1e-12)
    assert settings["lr"] == pytest.approx(ours, rel=1e-9)
    assert all(type(settings[name]) is float for name in ("lr", "rho0"))


def test_check_schedule_gives_the_schedule_back():
    """A good schedule passes through, and is probed at both ends and in the middle."""
    seen = []
    assert check_schedule(seen.append and (lambda n: seen.append(n) or 0.5), 10)
    assert seen == [0, 5, 9, 10]


# --- bad input ------------------------------------------------------------------------------------

BAD_SETTINGS = [
    ({"total_steps": 0}, ValueError, "total_steps must be >= 1: 0"),
    ({"total_steps": -5}, ValueError, "total_steps must be >= 1: -5"),
    ({"total_steps": 10.0}, TypeError, "total_steps must be an integer: 10.0"),
    ({"total_steps": "10"}, TypeError, "total_steps must be an integer: '10'"),
    ({"total_steps": True}, TypeError, "total_steps must be an integer: True"),
    (
        {"total_steps": None},
        TypeError,
        "total_steps is required: the optimizer steps over which rho cools to 0 "
        "(or pass a schedule)",
    ),
    ({"rho0": 1.0}, ValueError, "rho0 must be in [0, 1): 1.0"),
    ({"rho0": 1.2}, ValueError, "rho0 must be in [0, 1): 1.2"),
    ({"rho0": -0.1}, ValueError, "rho0 must be in [0, 1): -0.1"),
    ({"rho0": math.nan}, ValueError, "rho0 must be in [0, 1): nan"),
    ({"rho0": "hot"}, TypeError, "rho0 must be a real number: 'hot'"),
    ({"rho0": None}, TypeError, "rho0 must be a real number: None"),
    ({"rho0": True}, TypeError, "rho0 must be a real number: True"),
    ({"rho0": np.True_}, TypeError, "rho0 must be a real number: np.True_"),
    ({"rho0": 10**400}, ValueError, "rho0 must be a number that a float can hold"),
    ({"law": "cosine"}, ValueError, f"{ONE_OF_LAWS}: 'cosine'"),
    ({"law": 3}, TypeError, f"{ONE_OF_LAWS}: 3"),
    ({"warmup_steps": -1}, ValueError, "warmup_steps must be >= 0: -1"),
    ({"warmup_steps": 1.5}, TypeError, "warmup_steps must be an integer: 1.5"),
    ({"warmup_steps": 10}, ValueError, "warmup_steps must be < total_steps = 10: 10"),
    ({"warmup_clock": "walk"}, ValueError, "warmup_clock must be one of run, hold: 'walk'"),
    ({"warmup_clock": None}, TypeError, "warmup_clock must be one of run, hold: None"),
    ({"hold_steps": -1}, ValueError, "hold_steps must be >= 0: -1"),
    ({"hold_steps": 1.5}, TypeError, "hold_steps must be an integer: 1.5"),
    ({"hold_steps": True}, TypeError, "hold_steps must be an integer: True"),
    ({"hold_steps": None}, TypeError, "hold_steps must be an integer: None"),
    ({"hold_steps": 10}, ValueError, "hold_steps must be < total_steps = 10: 10"),
]


@pytest.mark.parametrize(("setting", "error", "message"), BAD_SETTINGS)
def test_a_bad_setting_fails_when_the_schedule_is_made(setting, error, message):
    """The message has the argument, the rule and the value."""
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        CoolingSchedule(**{"total_steps": 10} | setting)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cooling_rate(1.0, 10), ValueError, "rho0 must be in [0, 1): 1.0"),
        (lambda: cooling_rate(0.5, 0), ValueError, "total_steps must be >= 1: 0"),
        (lambda: cooling_rate(0.5, 9.0), TypeError, "total_steps must be an integer: 9.0"),
        (lambda: cooling_rate(0.5, 10, 0.7), ValueError, "final_rho must be <= rho0 = 0.5: 0.7"),
        (lambda: cooling_rate(0.5, 10, -0.1), ValueError, "final_rho must be in [0, 1): -0.1"),
        (lambda: steps_for_cooling_rate(1.0, 0.5), ValueError, "alpha must be in (0, 1): 1.0"),
        (lambda: steps_for_cooling_rate(0.5, 2.0), ValueError, "rho0 must be in [0, 1): 2.0"),
        (lambda: rho0_for_cooling_rate(0.0, 10), ValueError, "alpha must be in (0, 1): 0.0"),
        (lambda: rho0_for_cooling_rate(0.5, -1), ValueError, "total_steps must be >= 1: -1"),
        (lambda: rho0_for_cooling_rate(0.5, 1, 1), ValueError, "final_rho must be in [0, 1): 1"),
        (lambda: adiabatic_rho0(0), ValueError, "total_steps must be >= 1: 0"),
        (lambda: adiabatic_rho0(10, 0.0), ValueError, "bound must be finite and > 0: 0.0"),
        (lambda: adiabatic_rho0(10, math.inf), ValueError, "bound must be finite and > 0: inf"),
        (
            lambda: adiabatic_rho0(10, law="constant"),
            ValueError,
            f"{ONE_OF_COOLING_LAWS}: 'constant'",
        ),
        (lambda: settings_from_sgd(0.0, 0.9, 9), ValueError, "lr must be finite and > 0: 0.0"),
        (lambda: settings_from_sgd(0.1, 1.0, 9), ValueError, "momentum must be in [0, 1): 1.0"),
        (lambda: settings_from_sgd(0.1, 0.9, 0), ValueError, "total_steps must be >= 1: 0"),
        (lambda: settings_from_sgd("x", 0.9, 9), TypeError, "lr must be a real number: 'x'"),
        (lambda: from_temperature(3.0), TypeError, "tau must be a function of the step: 3.0"),
        (
            lambda: from_temperature(lambda n: -1.0)(0),
            ValueError,
            "tau must be finite and >= 0: -1.0",
        ),
        (lambda: check_schedule(0.9), TypeError, "schedule must be a function of the step: 0.9"),
        (
            lambda: check_schedule(lambda n: n / 10, 10),
            ValueError,
            "schedule(10) must be in [-1, 1): 1.0",
        ),
        (
            lambda: check_schedule(lambda n: math.nan),
            ValueError,
            "schedule(0) must be in [-1, 1): nan",
        ),
        (
            lambda: check_schedule(lambda n: None),
            TypeError,
            "schedule(0) must be a real number: None",
        ),
    ],
)
def test_a_bad_argument_is_refused(call, error, message):
    """The message has the argument, the rule and the value."""
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


def test_traced_settings_pass_unchecked():
    """Under jit total_steps and rho0 have no value to check yet."""
    jitted = jax.jit(lambda n, s, r: CoolingSchedule(s, r, "linear")(n))
    assert float(jitted(5, 10, 0.5)) == pytest.approx(1 / 3, rel=8 * U32)
