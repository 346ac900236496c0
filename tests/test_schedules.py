"""The laws of cooling, Eqs 20 and 21: printed values, precision, and any argument."""

import math
from typing import get_args

import exact
import numpy as np
import pytest
from exact import COOLING_LAWS, LAWS, RHO_ROUNDINGS, U64
from frameworks import framework
from hypothesis import example, given
from hypothesis import strategies as st
from laws import in_float64, rho0s, settings_and_steps, total_steps_
from libraries import libraries

from coolmomentum import (
    CoolingSchedule,
    Law,
    cooling_rate,
    cooling_speed,
    noise_temperature,
    reduced_temperature,
    rho_at,
    schedules,
    step_size,
    steps_for_cooling_rate,
)
from coolmomentum import cooldown as cooldown

jnp = framework("jax.numpy")

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
