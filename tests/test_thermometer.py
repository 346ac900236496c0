"""The core of every thermometer: readings of exact ensembles, and their pooling."""

import math

import numpy as np
import pytest
from ensembles import AVERAGED, VARIANCES, WHITE, squares_and_products, stationary, two_points
from exact import U32, U64
from frameworks import framework
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import libraries

from coolmomentum.thermometer import (
    COUNTS,
    READINGS,
    Dynamics,
    Layout,
    Sampling,
    Window,
    known,
    moments,
    report,
    why_unmeasured,
)

jax, jnp = framework("jax"), framework("jax.numpy")
ONE = Layout.of(["w"], [2])  # a parameter of two coordinates


@pytest.fixture(
    params=libraries("numpy", "array_api_strict", "torch", "jax-jit"),
    ids=lambda library: library.name,
)
def library(request):
    """Each array library; of JAX the jitted form alone, for eagerly every operation compiles."""
    return request.param


# --- exact ensembles ------------------------------------------------------------------------------


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

    def measure(before, now, zeros):
        return Window.empty(zeros).step().add(moments([now], [before]), ONE, Dynamics(**motion))

    arrays = [library.array(x, dtype=dtype) for x in (before, now, [0.0, 0.0])]
    window = library.compile(measure)(*arrays)
    assert library.owns(window.sums)
    assert library.dtype_name(window.sums) == dtype
    reading = report(on_host(window), ONE)
    assert [*reading] == ["steps", *READINGS]
    assert reading.pop("steps") == 1
    return reading


def on_host(window):
    """The window of any library in arrays of NumPy."""
    rows, columns = window.sums.shape
    sums = [[float(window.sums[i, j]) for j in range(columns)] for i in range(rows)]
    return Window(np.array(sums), np.asarray(window.counts))


# Roundings: of each number, its square, 2 sums, some 8 in the formulas; the differences of like
# numbers in three-point, predicted and curvature lose at most the digits of 1 - 1/2 (1 - corr).
def close(expected, dtype, loss=1.0):
    """To within 16 roundings of numbers that are ``loss`` times larger."""
    return pytest.approx(expected, rel=0, abs=16 * (U32 if dtype == "float32" else U64) * loss)


# (rho, dt2, k, T): T of Eq. 22 and correlation, of ensembles.py; three points give T itself.
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


def numpy_reading(before, now, rho, dt2, mass=None):
    """What a window of NumPy reads after one pair of displacements."""
    window = Window.empty(np.zeros(2)).step()
    return report(window.add(moments([now], [before], mass), ONE, Dynamics(rho, dt2)), ONE)


@pytest.mark.parametrize(("walk", "by_two", "correlation"), WHITE)
def test_a_quadratic_from_its_equation_of_motion(walk, by_two, correlation):
    """The same readings from SciPy's covariance of the recursion, at every rho of the table.

    That is good to some 1e-12, because the matrix of the recursion is near 1 at rho = 0.99.
    """
    rho, dt2, k, temperature = walk
    variance = 4 * temperature * (1 - rho) / (dt2 * (1 + rho))  # Eq. 19
    reading = numpy_reading(*two_points(*white(rho, dt2 * (1 + rho) / 2, k, variance)), rho, dt2)
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
    reading = numpy_reading(*two_points(*averaged(*walk)), rho, dt2)
    assert reading["temperature"] == pytest.approx(float(by_two), rel=1e-11)
    assert reading["correlation"] == pytest.approx(float(correlation), rel=1e-11)
    three_points = 2 / (1 + rho) * float(central)
    assert reading["three_point_temperature"] == pytest.approx(three_points, rel=1e-11)


@pytest.mark.parametrize(("walk", "variance"), VARIANCES)
def test_stationary_variances(walk, variance):
    """The rescaled temperature is the stationary variance of a displacement."""
    reading = numpy_reading(*two_points(*white(*map(float, walk))), float(walk[0]), 1.0)
    assert reading["rescaled_temperature"] == pytest.approx(float(variance), rel=1e-11)


@pytest.mark.parametrize(("lr", "sigma", "temperature"), [(1e-3, 1, 5e-4), (1e-4, 3, 1.5e-4)])
def test_masses(lr, sigma, temperature):
    """Adam where noise dominates, mass sigma: lr sigma / 2, whatever beta1.

    Times its mass the displacement is that of SGD with step size lr (1 - beta1), of noise sigma.
    """
    for beta1 in (0.0, 0.9):
        variance = (lr * (1 - beta1) * sigma) ** 2 / (1 - beta1**2) / sigma**2
        points, dt2 = two_points(variance, beta1 * variance), 2 * lr * (1 - beta1) / (1 + beta1)
        for mass in ([sigma], [np.full(2, sigma)]):
            reading = numpy_reading(*points, beta1, dt2, mass)
            for name in ("temperature", "three_point_temperature", "predicted_temperature"):
                assert reading[name] == pytest.approx(temperature, rel=32 * U64)
            assert reading["rescaled_temperature"] == pytest.approx(variance, rel=32 * U64)


def test_the_list_of_two_steps(library, dtype):
    """(.1, -.2, .3), then (0, .1, -.1), at dt**2 = 1/100 and rho = 1/2: T 8/3, by points 2/3.

    Below 16 roundings, and three points subtract -1/10 from 8/50, which loses a factor of 3.
    """
    layout, how = Layout.of(["w"], [3]), Dynamics(0.5, 0.01)

    def measure(first, second, zeros):
        window = (
            Window.empty(zeros).step().add(moments([first], [first]), layout, how, paired=False)
        )
        return window.step().add(moments([second], [first]), layout, how)

    steps = [[0.1, -0.2, 0.3], [0.0, 0.1, -0.1], [0.0, 0.0]]
    window = library.compile(measure)(*(library.array(x, dtype=dtype) for x in steps))
    reading = report(on_host(window), layout)
    assert reading["rescaled_temperature"] == close(2 / 75, dtype, 2 / 75)
    assert reading["temperature"] == close(8 / 3, dtype, 8 / 3)
    assert reading["three_point_temperature"] == close(2 / 3, dtype, 2)
    assert reading["correlation"] == close(-1 / 20 / math.sqrt(0.14 * 0.02), dtype)


def test_unknown_motion(library, dtype):
    """Where rho and dt**2 are None or NaN, mean square and correlation are known, nothing else."""
    for no in (None, math.nan, -2.0):
        how = {"rho": no, "dt2": no}
        reading = reading_of([3.0, 4.0], [4.0, 3.0], library=library, dtype=dtype, **how)
        check_unknown(reading, dtype)
    no = library.array([math.nan], dtype=dtype)  # one for each parameter
    reading = reading_of([3.0, 4.0], [4.0, 3.0], library=library, dtype=dtype, rho=no, dt2=no)
    check_unknown(reading, dtype)


def check_unknown(reading, dtype):
    """It has a mean square and a correlation."""
    assert reading.pop("rescaled_temperature") == 12.5
    assert reading.pop("correlation") == close(24 / 25, dtype)
    reading.pop("steps", None)
    assert known(reading) == {}


def test_nothing_seen(library, dtype):
    """A window without a measurement reads NaN throughout, the flag included; and says why."""
    layout = Layout.from_groups([(0, [("a", 3)]), (1, [("b", 0)])])
    zeros = library.array([0.0] * len(layout), dtype=dtype)
    window = on_host(library.compile(lambda zeros: Window.empty(zeros).step(3))(zeros))
    for by in ("group", "parameter"):
        for reading in report(window, layout, by).values():
            assert known(reading) == {"steps": 3}
    assert known(report(window, layout)) == {"steps": 3}
    assert why_unmeasured(window, Sampling()) == (
        "no reading: none of the 3 steps of this window was measured; after the first 10 steps one "
        "in every=10 is, so read less often or lower every"
    )
    assert why_unmeasured(Window.empty(np.zeros(2)), Sampling()) is None


def test_small_float32_displacements():
    """Mean squares of 1e-24, whose products float32 does not hold, still have a correlation."""
    table = squares_and_products(*np.array([[1e-24], [1e-24], [5e-25]], np.float32))
    window = Window.empty(np.zeros(2, np.float32)).step().add(table, ONE, Dynamics(0.5, 1.0))
    assert report(window, ONE)["correlation"] == pytest.approx(0.5, rel=16 * U32)


def test_a_learning_rate_of_0():
    """A step at dt**2 = 0 has the temperature 0 at rest, as in a warm-up from 0; else none."""
    for rest, (first, second) in ((True, (0.0, 1.0)), (False, (1.0, 0.0))):
        window = Window.empty(np.zeros(2))
        for dx, dt2 in ((first, 0.0), (second, 0.5)):
            table = moments([np.full(2, dx)], [np.zeros(2)])
            window = window.step().add(table, ONE, Dynamics(0.0, dt2))
        reading = report(window, ONE)
        assert reading["rescaled_temperature"] == 0.5
        assert reading["temperature"] == (1.0 if rest else pytest.approx(math.nan, nan_ok=True))


def test_no_nan_before_it_is_read():
    """Nothing that is not known, not paired or not applied makes a NaN under NaN debuggers."""
    layout = Layout.of("ab", [2, 2])
    zeros, one = jnp.zeros(3), [jnp.ones(2), jnp.zeros(2)]
    for how in (Dynamics(), Dynamics(math.nan, math.nan), Dynamics(0.5, 0.0), Dynamics(None, 1.0)):
        for flag in (True, False, jnp.asarray(True), jnp.asarray(False)):
            with jax.debug_nans(True), jax.disable_jit():
                window = Window.empty(zeros)._replace(counts=jnp.zeros(len(COUNTS), jnp.int32))
                window, table = window.step(), moments(one, one, path=one)
                window = window.add(table, layout, how, paired=flag, applied=flag)
                window = window.end_span(table, layout, how.rho, applied=flag).next()
            assert bool(jnp.all(jnp.isfinite(window.sums)))


@pytest.mark.parametrize("traced", [False, True])
def test_a_step_that_was_not_applied(traced):
    """It leaves the window as it was, even if it is NaN; a span that ends with it is left out."""
    bad, flag = np.full((8, 1), np.nan), np.asarray(False) if traced else False
    window = Window.empty(np.zeros(2)).step().add(np.ones((8, 1)), ONE, Dynamics(0.5, 1.0))
    same = window.add(bad, ONE, Dynamics(0.5, 1.0), applied=flag)
    np.testing.assert_array_equal(same.sums, window.sums)
    np.testing.assert_array_equal(same.counts, window.counts)
    ended = same.end_span(bad, ONE, 0.5, applied=flag)
    np.testing.assert_array_equal(ended.sums[:-1], window.sums[:-1])
    assert (ended.sums[-1] == 0).all()
    assert ended.counts.tolist() == [*window.counts[:5], 0, 0]


def test_a_step_before_that_was_not_seen():
    """What the table has of it is ignored, even where it is NaN."""
    table = np.array([[4.0], [np.nan], [np.nan]] * 2)
    for flag in (False, np.asarray(False)):
        window = Window.empty(np.zeros(2)).step().add(table, ONE, Dynamics(0.5, 1.0), paired=flag)
        assert known(report(window, ONE)) == {
            "steps": 1,
            "rescaled_temperature": 2.0,
            "temperature": 2.0,
            "rho": 0.5,
        }


# --- pooling --------------------------------------------------------------------------------------


steps = st.lists(
    st.tuples(*2 * [st.lists(st.floats(-1e3, 1e3, width=32), min_size=6, max_size=6)]),
    min_size=1,
    max_size=3,
)


def pooled(steps, cuts, grouped=False, order=range(6)):
    """The columns of a window over coordinates in some order, split into parameters at the cuts."""
    parts = np.split(np.array(order), cuts)
    layout = Layout.of(range(len(parts)), map(len, parts))
    if grouped:
        layout = Layout.from_groups([("g", list(enumerate(map(len, parts))))])
    window = Window.empty(np.zeros(len(layout)))
    for before, now in steps:
        b, a = ([np.array(x, dtype=np.float64)[part] for part in parts] for x in (before, now))
        table = moments(a, b, path=b)
        window = window.step().add(table, layout, Dynamics(0.5, 0.25))
        window = window.end_span(table, layout, 0.5)
    return window.readings(layout)


@settings(max_examples=40)
@given(steps=steps, cuts=st.lists(st.integers(0, 6), max_size=3), order=st.permutations(range(6)))
def test_pooling_does_not_know_of_parameters(steps, cuts, order):
    """All together read the same however the coordinates are ordered and split, and so do groups.

    Sums of 6 in any order; the largest term counts, because differences of the sums may cancel.
    """
    whole = pooled(steps, [])
    split = pooled(steps, sorted(cuts), order=order)
    grouped = pooled(steps, sorted(cuts), grouped=True, order=order)
    scale = max(abs(x) for pair in steps for side in pair for x in side) ** 2
    for name in ("rescaled_temperature", "temperature", "three_point_temperature"):
        bound = 64 * U64 * scale * 4
        assert split[name][-1] == pytest.approx(whole[name][-1], abs=bound, nan_ok=True)
        assert grouped[name][-1] == split[name][-1] or np.isnan(split[name][-1])
    assert np.array_equal(
        [x[-1] for x in grouped.values()], [x[-2] for x in grouped.values()], equal_nan=True
    )


@pytest.mark.parametrize("paths", ["ab", "ba"])
def test_groups_and_parameters_have_their_own_columns(paths, library):
    """A column for each parameter, each group, and for all; rho of each. Groups may scatter."""
    layout = Layout.from_paths([(paths[0], "x"), (paths[1], "x"), (paths[0], "y")], [1, 3, 0])

    def measure(table, rho, dt2, zeros):
        return Window.empty(zeros).step().add(table, layout, Dynamics(rho, dt2))

    table = [[4.0, 3.0, 0.0], [4.0, 3.0, 0.0], [0.0, 3.0, 0.0]] * 2
    given = (table, [0.0, 0.8, 0.0], [1.0, 0.5, 1.0], [0.0] * 6)
    arrays = [library.array(x, dtype="float32") for x in given]
    window = on_host(library.compile(measure)(*arrays))
    for name, values in {  # each of a few roundings
        "rescaled_temperature": [4, 1, 4, 1, 7 / 4],
        "temperature": [4, 2, 4, 2, 10 / 4],
        "rho": [0, 0.8, 0, 0.8, 0.6],
        "correlation": [0, 1, 0, 1, 3 / 7],
    }.items():
        got = window.readings(layout)[name][[0, 1, 3, 4, 5]]
        np.testing.assert_allclose(got, values, rtol=8 * U32)
    assert report(window, layout, "group")[paths[1]]["temperature"] == 2
    assert [*report(window, layout, "parameter")] == [*layout.parameters]
