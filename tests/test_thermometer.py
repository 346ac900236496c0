"""The core of every thermometer: readings of exact ensembles, freeze-out, pooling, windows."""

import math
import re
from fractions import Fraction as F  # noqa: N817  # stands in every other expression

import numpy as np
import pytest
from ensembles import AVERAGED, VARIANCES, WHITE, two_points
from exact import U32, U64
from frameworks import framework
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import libraries

from coolmomentum.thermometer import (
    EVERY,
    READINGS,
    SPAN,
    PairSums,
    Rows,
    Window,
    check_intervals,
    pair_sums,
)

jax, jnp = framework("jax"), framework("jax.numpy")
linalg = framework("scipy.linalg")


@pytest.fixture(
    params=libraries("numpy", "array_api_strict", "torch", "jax-jit"),
    ids=lambda library: library.name,
)
def library(request):
    """Each array library; of JAX the jitted form alone, for eagerly every operation compiles."""
    return request.param


# --- exact ensembles ------------------------------------------------------------------------------


def stationary(matrix, noise):
    """Covariance of ``z -> matrix z + noise xi`` at rest, by SciPy's Lyapunov solver."""
    return linalg.solve_discrete_lyapunov(np.array(matrix), np.outer(noise, noise))


def white(rho, eta, k, variance):
    """Variance and lag-one covariance of the displacements on k x**2 / 2 under white noise."""
    # (x, v): v' = rho v - eta k x + eta R, x' = x + v'
    step = np.array([[1 - eta * k, rho], [-eta * k, rho]])
    moments = stationary(step, eta * math.sqrt(variance) * np.ones(2))
    return moments[1, 1], (step @ moments)[1, 1]


def averaged(rho, dt2, k, temperature):
    """The same where the noise is the mean of those of two successive steps, as in BAOAB."""
    eta, friction = dt2 * (1 + rho) / 2, 2 / math.sqrt(dt2) * (1 - rho) / (1 + rho)
    # (x, v, b): R = (b + b') / (2 dt), b' fresh of variance 2 friction T dt
    a = eta / (2 * math.sqrt(dt2))
    step = np.array([[1 - eta * k, rho, a], [-eta * k, rho, a], [0, 0, 0]])
    strength = math.sqrt(2 * friction * temperature * math.sqrt(dt2))
    moments = stationary(step, strength * np.array([a, a, 1]))
    return moments[1, 1], (step @ moments)[1, 1]


def reading_of(before, now, *, library, dtype, **motion):
    """What a window reads after one pair of displacements of one parameter."""
    rows = Rows(sizes=(2,))

    def read(before, now, zeros):
        window = Window.empty(zeros).step()
        return window.add(pair_sums([before], [now]), rows, **motion).read(rows)

    arrays = [library.array(x, dtype=dtype) for x in (before, now, [0.0, 0.0])]
    readings = library.compile(read)(*arrays)
    assert set(readings) == set(READINGS)
    assert all(library.owns(x) and library.dtype_name(x) == dtype for x in readings.values())
    return {name: float(x[-1]) for name, x in readings.items()}


# Roundings: of each number, its square, 2 sums, some 8 in the formulas; the differences of like
# numbers in three-point, predicted and curvature lose at most the digits of 1 - 1/2 (1 - corr).
def close(expected, dtype, loss=1.0):
    """To within 16 roundings of numbers that are ``loss`` times larger."""
    return pytest.approx(expected, rel=0, abs=16 * (U32 if dtype == "float32" else U64) * loss)


# (rho, dt2, k, T): T of Eq. 22 and correlation, science.md 6; three points give T itself.
@pytest.mark.parametrize(("walk", "by_two", "correlation"), WHITE[:2])
def test_a_quadratic_under_white_noise(walk, by_two, correlation, library, dtype):
    """Eq. 22 reads T / (1 - k dt**2 / 4), three points T of Eq. 19, the curvature k dt**2.

    The predicted temperature is that of Eq. 22 times 1 + rho k dt**2 / (2 (1 - rho)).
    """
    rho, dt2, k, temperature = walk
    t = float(by_two)
    points = two_points(t * dt2, t * dt2 * float(correlation))
    reading = reading_of(*points, library=library, dtype=dtype, rho=rho, dt2=dt2)
    assert reading["temperature"] == close(t, dtype, t)
    assert reading["rescaled_temperature"] == close(t * dt2, dtype, t * dt2)
    assert reading["correlation"] == close(float(correlation), dtype)
    assert reading["three_point_temperature"] == close(temperature, dtype, 4 * t)
    assert reading["curvature"] == close(k * dt2, dtype, 16)
    biased = t * (1 + rho * k * dt2 / (2 * (1 - rho)))
    assert reading["predicted_temperature"] == close(biased, dtype, 4 * t / (1 - rho**2))
    assert reading["rho"] == close(rho, dtype)
    assert reading["drift"] == 0
    assert math.isnan(reading["freeze_out"])
    assert math.isnan(reading["freeze_out_error"])


@pytest.mark.parametrize(("walk", "by_two", "correlation"), WHITE)
def test_a_quadratic_from_its_equation_of_motion(walk, by_two, correlation):
    """The same readings from SciPy's covariance of the recursion, at every rho of the table.

    That is good to some 1e-12, because the matrix of the recursion is near 1 at rho = 0.99.
    """
    rho, dt2, k, temperature = walk
    variance = 4 * temperature * (1 - rho) / (dt2 * (1 + rho))  # Eq. 19
    before, now = two_points(*white(rho, dt2 * (1 + rho) / 2, k, variance))
    rows = Rows(sizes=(2,))
    window = Window.empty(np.zeros(2)).step()
    window = window.add(pair_sums([before], [now]), rows, rho=rho, dt2=dt2)
    reading = {name: float(x[-1]) for name, x in window.read(rows).items()}
    assert reading["temperature"] == pytest.approx(float(by_two), rel=1e-11)
    assert reading["correlation"] == pytest.approx(float(correlation), rel=1e-11)
    assert reading["three_point_temperature"] == pytest.approx(temperature, rel=1e-11)
    assert reading["curvature"] == pytest.approx(k * dt2, rel=1e-11)
    biased = float(by_two) * (1 + rho * k * dt2 / (2 * (1 - rho)))
    assert reading["predicted_temperature"] == pytest.approx(biased, rel=1e-11)


@pytest.mark.parametrize(("walk", "by_two", "correlation", "central"), AVERAGED)
def test_a_quadratic_under_averaged_noise(walk, by_two, correlation, central):
    """With BAOAB's noise Eq. 22 reads T (1 + rho) / 2; three points, 2 / (1 + rho) <v_central**2>.

    SciPy's solver is good to some 1e-12 here, whose matrix is near 1 at rho = 0.99.
    """
    rho, dt2, _, _ = walk
    before, now = two_points(*averaged(*walk))
    rows = Rows(sizes=(2,))
    window = Window.empty(np.zeros(2)).step()
    window = window.add(pair_sums([before], [now]), rows, rho=rho, dt2=dt2)
    reading = {name: float(x[-1]) for name, x in window.read(rows).items()}
    assert reading["temperature"] == pytest.approx(float(by_two), rel=1e-11)
    assert reading["correlation"] == pytest.approx(float(correlation), rel=1e-11)
    three_points = 2 / (1 + rho) * float(central)
    assert reading["three_point_temperature"] == pytest.approx(three_points, rel=1e-11)


@pytest.mark.parametrize(("walk", "variance"), VARIANCES)
def test_stationary_variances(walk, variance):
    """The rescaled temperature is the stationary variance of a displacement."""
    v, c = white(*map(float, walk))
    rows = Rows(sizes=(2,))
    sums = pair_sums(*([x] for x in two_points(v, c)))
    reading = Window.empty(np.zeros(2)).step().add(sums, rows, rho=float(walk[0]), dt2=1.0)
    rescaled = reading.read(rows)["rescaled_temperature"]
    np.testing.assert_allclose(rescaled, float(variance), rtol=1e-11)


@pytest.mark.parametrize(("lr", "sigma", "temperature"), [(1e-3, 1, 5e-4), (1e-4, 3, 1.5e-4)])
def test_masses(lr, sigma, temperature):
    """Adam where noise dominates, mass sigma: lr sigma / 2, whatever beta1.

    Times its mass the displacement is that of SGD with step size lr (1 - beta1), of noise sigma.
    """
    for beta1 in (0.0, 0.9):
        variance = (lr * (1 - beta1) * sigma) ** 2 / (1 - beta1**2) / sigma**2
        before, now = two_points(variance, beta1 * variance)
        rows, root = Rows(sizes=(2,)), math.sqrt(sigma)
        window = Window.empty(np.zeros(2)).step()
        window = window.add(
            pair_sums([before], [now]),
            rows,
            rho=beta1,
            dt2=2 * lr * (1 - beta1) / (1 + beta1),
            weighted=pair_sums([root * before], [root * now]),
        )
        reading = window.read(rows)
        for name in ("temperature", "three_point_temperature", "predicted_temperature"):
            np.testing.assert_allclose(reading[name], temperature, rtol=32 * U64)
        np.testing.assert_allclose(reading["rescaled_temperature"], variance, rtol=32 * U64)


def test_the_list_of_two_steps(library, dtype):
    """(.1, -.2, .3), then (0, .1, -.1), at dt**2 = 1/100 and rho = 1/2: T 8/3, by points 2/3.

    Below 16 roundings, and three points subtract -1/10 from 8/50, which loses a factor of 3.
    """

    def read(first, second, zeros):
        rows = Rows(sizes=(3,))
        window = Window.empty(zeros).step()
        window = window.add(pair_sums([first], [first]), rows, rho=0.5, dt2=0.01, paired=0)
        window = window.step().add(pair_sums([first], [second]), rows, rho=0.5, dt2=0.01)
        return window.read(rows)

    steps = [[0.1, -0.2, 0.3], [0.0, 0.1, -0.1], [0.0, 0.0]]
    reading = library.compile(read)(*(library.array(x, dtype=dtype) for x in steps))
    reading = {name: float(x[-1]) for name, x in reading.items()}
    assert reading["rescaled_temperature"] == close(2 / 75, dtype, 2 / 75)
    assert reading["temperature"] == close(8 / 3, dtype, 8 / 3)
    assert reading["three_point_temperature"] == close(2 / 3, dtype, 2)
    assert reading["correlation"] == close(-1 / 20 / math.sqrt(0.14 * 0.02), dtype)


def test_unknown_motion(library, dtype):
    """Where rho and dt**2 are NaN, mean square and correlation are known, and nothing else."""
    unknown = {"rho": math.nan, "dt2": math.nan}
    reading = reading_of([3.0, 4.0], [4.0, 3.0], library=library, dtype=dtype, **unknown)
    assert reading.pop("rescaled_temperature") == 12.5
    assert reading.pop("correlation") == close(24 / 25, dtype)
    assert all(map(math.isnan, reading.values()))


def test_nothing_seen(library, dtype):
    """A window without a measurement reads NaN throughout, the flag included."""
    zeros = library.array([0.0, 0.0, 0.0], dtype=dtype)
    rows = Rows(sizes=(3, 0))
    readings = library.compile(lambda zeros: Window.empty(zeros).step().read(rows))(zeros)
    assert all(math.isnan(float(x[i])) for x in readings.values() for i in range(3))


def test_small_float32_displacements():
    """Mean squares of 1e-24, whose products float32 does not hold, still have a correlation."""
    sums = PairSums(*(np.array([x], np.float32) for x in (1e-24, 1e-24, 5e-25)))
    rows = Rows(sizes=(1,))
    window = Window.empty(np.zeros(2, np.float32)).step().add(sums, rows, rho=0.5, dt2=1.0)
    np.testing.assert_allclose(window.read(rows)["correlation"], 0.5, rtol=16 * U32)


# --- the freeze-out meter -------------------------------------------------------------------------

fractions = st.fractions(-2, 2, max_denominator=8)


@settings(max_examples=40)
@given(
    rho=st.fractions(F(-7, 8), F(7, 8), max_denominator=8),
    eta=fractions,
    v=fractions,
    gradients=st.lists(fractions, min_size=1, max_size=6),
)
def test_the_identity_of_a_span(rho, eta, v, gradients):
    """Bound is 2 eta sum y_n g_n exactly, in rational numbers, whatever the gradients are."""
    zero, one = F(0), np.array([F(1)], dtype=object)
    window = Window.empty(np.array([zero, zero], dtype=object))
    window = window._replace(span_steps=zero, span_measured=zero)  # whose quotient stays rational
    rows, y, work = Rows(sizes=(1,)), zero, zero
    for g in gradients:
        work += 2 * eta * y * g
        before, v = v, rho * v - eta * g
        y += v
        pair = PairSums(one * v * v, one * before * before, one * v * before)
        window = window.step().add(pair, rows, rho=rho, dt2=F(1), xp=Rational)
    window = window.end_span(one * y * y, one * y * v, rows, rho=rho, xp=Rational)
    assert window.bound[-1] == work
    assert window.walked[-1] == (1 + rho) * window.squares[-1]
    assert window.spans == 1


class Rational:
    """What of an array namespace a window needs, for NumPy's arrays of objects."""

    stack, sum, concat, zeros_like = np.stack, np.sum, np.concatenate, np.zeros_like

    @staticmethod
    def where(condition, x, y):
        """NumPy's would compute NaN times a fraction first."""
        del y
        assert condition is True
        return x


def walk(kind, *, rho=0.9, dt2=0.1, every=1, span=20, spans=30, rows=300, size=20, seed=0):
    """Readings of many independent walks: a row for each, all with the same settings.

    Confined by k = 4, free, or drifting by a gradient of three tenths of the noise.
    """
    k, drift = {"confined": (4.0, 0.0), "free": (0.0, 0.0), "drift": (0.0, 0.3)}[kind]
    random, eta = np.random.default_rng(seed), dt2 * (1 + rho) / 2
    x = np.zeros((rows, size))
    v, start = x.copy(), x.copy()
    all_rows = Rows(sizes=(size,) * rows)
    window = Window.empty(np.zeros(rows + 1))
    for n in range(-5 * span, spans * span):
        before = v
        v = rho * v - eta * (k * x + drift + random.standard_normal(x.shape))
        x = x + v
        if n == -1:
            start = x
        if n < 0:
            continue
        window = window.step()
        if window.span_steps % every == 0:
            sums = (v * v, before * before, v * before)
            pair = PairSums(*(np.sum(part, axis=1) for part in sums))
            window = window.add(pair, all_rows, rho=rho, dt2=dt2)
        if window.span_steps == span:
            y = x - start
            distance, overlap = np.sum(y * y, axis=1), np.sum(y * v, axis=1)
            window, start = window.end_span(distance, overlap, all_rows, rho=rho), x
    return {name: x[:-1] for name, x in window.read(all_rows).items()}


@pytest.fixture(scope="module")
def walks():
    """Walks of each kind, all steps measured and one in five."""
    return {
        (kind, k): walk(kind, every=k) for kind in ("confined", "free", "drift") for k in (1, 5)
    }


def confined_freeze_out(rho, dt2, k, span):
    """Its expected numerator and denominator, from the stationary covariance of one coordinate."""
    eta = dt2 * (1 + rho) / 2
    step = np.array([[1 - eta * k, rho], [-eta * k, rho]])
    moments = stationary(step, eta * np.ones(2))
    later = np.linalg.matrix_power(step, span) @ moments  # <z_W z_0>
    distance = 2 * (moments[0, 0] - later[0, 0])
    overlap = moments[0, 1] - later[1, 0]
    walked = (1 + rho) * span * moments[1, 1]
    return 1 - ((1 - rho) * distance + 2 * rho * overlap) / walked


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("kind", ["confined", "free", "drift"])
def test_the_freeze_out_meter(kind, every, walks):
    """1 less an end effect where the walk is confined, 0 where it is free, below 0 in a drift.

    The means over 300 walks are within four of their standard errors (and the bias of a ratio of
    two means of 30, at most some 1/30 of the standard error of one walk).
    """
    reading = walks[kind, every]
    mean, scatter = reading["freeze_out"].mean(), reading["freeze_out"].std()
    allowed = scatter * (4 / math.sqrt(300) + 1 / 30)
    if kind == "drift":
        assert mean < -10 * allowed
    else:
        expected = confined_freeze_out(0.9, 0.1, 4.0, 20) if kind == "confined" else 0.0
        assert mean == pytest.approx(expected, abs=allowed)


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("kind", ["confined", "free", "drift"])
def test_its_standard_error(kind, every, walks):
    """The error that a walk reports is the scatter between walks.

    That scatter is known to 1/sqrt(2 * 300) = 4 per cent, four of which are allowed, and an error
    from 30 spans is some 2 per cent small.
    """
    reading = walks[kind, every]
    reported = math.sqrt((reading["freeze_out_error"] ** 2).mean())
    assert reported / reading["freeze_out"].std() == pytest.approx(1, abs=0.18)


@pytest.mark.parametrize("every", [1, 5])
def test_the_drift_flag(every, walks):
    """On in a drift; off where the walk is free, but for three in a thousand, or confined."""
    assert walks["drift", every]["drift"].mean() > 0.95
    assert walks["free", every]["drift"].sum() <= 3
    assert walks["confined", every]["drift"].sum() == 0


@pytest.mark.parametrize("name", ["temperature", "three_point_temperature", "curvature"])
def test_one_step_in_five_is_unbiased(name, walks):
    """The mean over the walks is that of all steps, within four standard errors of both."""
    every, all_steps = (walks["confined", k][name] for k in (5, 1))
    error = math.sqrt((every.var() + all_steps.var()) / 300)
    assert every.mean() == pytest.approx(all_steps.mean(), abs=4 * error)


# --- pooling --------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(*2 * [st.lists(st.floats(-1e3, 1e3, width=32), min_size=6, max_size=6)]),
    min_size=1,
    max_size=3,
)


def pooled(steps, cuts, groups=(), order=range(6)):
    """The rows of a window over coordinates in some order, split into parameters at the cuts."""
    parts = np.split(np.array(order), cuts)
    rows = Rows(tuple(len(part) for part in parts), groups)
    window = Window.empty(np.zeros(len(rows)))
    for before, now in steps:
        b, a = ([np.array(x, dtype=np.float64)[part] for part in parts] for x in (before, now))
        window = window.step().add(pair_sums(b, a), rows, rho=0.5, dt2=0.25)
        distance = np.array([np.sum(x * x) for x in b])
        overlap = np.array([np.sum(x * y) for x, y in zip(a, b, strict=True)])
        window = window.end_span(distance, overlap, rows, rho=0.5)
    return window.read(rows)


@settings(max_examples=40)
@given(steps=steps, cuts=st.lists(st.integers(0, 6), max_size=3), order=st.permutations(range(6)))
def test_pooling_does_not_know_of_parameters(steps, cuts, order):
    """All together read the same however the coordinates are ordered and split, and so do groups.

    Sums of 6 in any order; the largest term counts, because differences of the sums may cancel.
    """
    whole = pooled(steps, [])
    split = pooled(steps, sorted(cuts), order=order)
    grouped = pooled(steps, sorted(cuts), groups=(len(cuts) + 1,), order=order)
    scale = max(abs(x) for pair in steps for side in pair for x in side) ** 2
    for name in ("rescaled_temperature", "temperature", "three_point_temperature"):
        bound = 64 * U64 * scale * 4
        assert split[name][-1] == pytest.approx(whole[name][-1], abs=bound, nan_ok=True)
        assert grouped[name][-1] == split[name][-1] or np.isnan(split[name][-1])
    assert np.array_equal(
        [x[-1] for x in grouped.values()], [x[-2] for x in grouped.values()], equal_nan=True
    )


def test_groups_and_parameters_have_their_own_rows():
    """A row for each of two parameters, for each of two groups, and for all; rho of each."""
    rows = Rows(sizes=(1, 3), groups=(1, 1))
    sums = PairSums(np.array([4.0, 3.0]), np.array([4.0, 3.0]), np.array([0.0, 3.0]))
    rho, dt2 = np.array([0.0, 0.8]), np.array([1.0, 0.5])
    reading = Window.empty(np.zeros(5)).step().add(sums, rows, rho=rho, dt2=dt2).read(rows)
    np.testing.assert_allclose(reading["rescaled_temperature"], [4, 1, 4, 1, 7 / 4])
    np.testing.assert_allclose(reading["temperature"], [4, 2, 4, 2, 10 / 4])
    np.testing.assert_allclose(reading["rho"], [0, 0.8, 0, 0.8, 0.6])
    np.testing.assert_allclose(reading["correlation"], [0, 1, 0, 1, 3 / 7])


# --- windows --------------------------------------------------------------------------------------


def test_closing_keeps_the_span():
    """A new window starts empty, but the span that has begun goes on across it."""
    rows, one = Rows(sizes=(1,)), np.ones(1)
    pair = PairSums(one, one, one)
    window = Window.empty(np.zeros(2)).step().add(pair, rows, rho=0.5, dt2=1.0)
    closed = window.closed()
    assert (closed.steps, closed.measured, closed.span_steps) == (0, 0, 1)
    ends = [
        w.step().add(pair, rows, rho=0.5, dt2=1.0).end_span(one, one, rows, rho=0.5)
        for w in (window, closed)
    ]
    assert ends[0].bound[-1] == ends[1].bound[-1] == 1.5 * 2 - 0.5 - 1
    assert ends[1].spans == 1
    assert ends[1].steps == 1


def test_a_window_is_a_scan_carry():
    """Steps may be added inside lax.scan, with counts that are traced."""
    rows = Rows(sizes=(2,))
    data = jnp.asarray([[[1.0, 0.0], [1.0, 2.0]], [[1.0, 2.0], [0.0, 1.0]]])

    def body(window, pair):
        sums = pair_sums([pair[0]], [pair[1]])
        return window.step().add(sums, rows, rho=0.0, dt2=1.0), None

    empty = jax.tree.map(jnp.asarray, Window.empty(jnp.zeros(2)))
    window, _ = jax.lax.scan(body, empty, data)
    reading = jax.jit(lambda window: window.read(rows))(window)
    assert [float(x) for x in reading["temperature"]] == [1.5, 1.5]
    assert int(window.steps) == 2


@pytest.mark.parametrize(
    ("every", "span", "error", "message"),
    [
        (0, 100, ValueError, "every must be >= 1: 0"),
        (10, 5, ValueError, "span must be a multiple of every, 10: 5"),
        (10, 25, ValueError, "span must be a multiple of every, 10: 25"),
        (1.0, 100, TypeError, "every must be an integer: 1.0"),
        (1, True, TypeError, "span must be an integer: True"),
    ],
)
def test_intervals_are_checked(every, span, error, message):
    """The message has the argument, the rule and the value."""
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        check_intervals(every, span)


def test_the_defaults_are_intervals():
    """One step in ten, spans of a hundred."""
    assert check_intervals(EVERY, SPAN) == (10, 100)
