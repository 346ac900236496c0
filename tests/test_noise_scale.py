"""The core of the gradient noise scale: exact walks, error bars, reasons, and learning rates."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coolmomentum import lr_for_batch, noise_temperature
from coolmomentum.numpy import CoolMomentum, Thermometer
from coolmomentum.thermometer import (
    NOISE_READINGS,
    Bath,
    Dynamics,
    GradientNoise,
    Layout,
    Momentum,
    Sampling,
    check_gradient_noise,
    noise_moments,
    true_square,
)

ONE = Layout.of(["w"], [2])

# --- exact walks ----------------------------------------------------------------------------------


def at_rest(rho, a):
    """|G|**2 and three products of gradients, of a walk with noise 1 at curvature a, step size 1.

    (x, v): v' = rho v - a x - R, x' = x + v'; the covariance P solves P = F P F^T + b b^T.
    """
    step, kick = np.array([[1 - a, rho], [-a, rho]]), -np.ones(2)
    flat = np.linalg.solve(np.eye(4) - np.kron(step, step), np.kron(kick, kick))
    covariance = flat.reshape(2, 2)

    def lag(k):  # of a x_n + R_n and a x_{n-k} + R_{n-k}
        power = np.linalg.matrix_power(step, k - 1)
        return a * a * (power @ step @ covariance)[0, 0] + a * (power @ kick)[0]

    remembered = -(1 - rho) * a * covariance[0, 1]
    return a * a * covariance[0, 0], lag(1), lag(2), remembered


@given(rho=st.floats(0.5, 0.99), a=st.floats(0.01, 0.9))
def test_at_rest_the_square_is_true_to_the_second_order_of_the_curvature(rho, a):
    """It is 1 - a**2 / (rho (1 + rho) (1 + 2 rho)) of |G|**2; C1 alone is not."""
    square, one, two, remembered = at_rest(rho, a)
    # Each of the four is P times numbers below 1, and P loses the digits of (1 - rho) a.
    close = {"rel": 1e-9 / (1 - rho), "abs": 0}
    expected = 1 - a * a / (rho * (1 + rho) * (1 + 2 * rho))
    assert true_square(one, two, remembered, rho) == pytest.approx(expected * square, **close)
    assert one == pytest.approx(square * (2 * rho - 1 - a * rho / (1 + rho)), **close)
    expected = 1 + a * (2 * rho - 1 - a * rho / (1 + rho)) / rho
    assert true_square(one, two, None, rho) == pytest.approx(expected * square, **close)


@given(rho=st.floats(0.5, 0.99), square=st.floats(0.1, 10))
def test_of_one_gradient_in_all_steps_it_is_the_square(rho, square):
    """Down a slope that goes on for ever there is nothing to correct."""
    assert true_square(square, square, square, rho) == pytest.approx(square, rel=1e-12)
    assert true_square(square, square, None, rho) == pytest.approx(square, rel=1e-12)


# --- a walk that is simulated ---------------------------------------------------------------------

CURVATURES = np.geomspace(0.01, 0.3, 100)
REPLICAS = Layout.of(range(32), [100] * 32)


def simulated(rho, seed, steps=2000, every=10, burn_in=500):
    """The readings of 32 confined walks with step size 1 and unit noise, and their noise scales."""
    random = np.random.default_rng(seed)
    x, v, last = np.zeros((32, 100)), np.zeros((32, 100)), [np.zeros((32, 100))] * 2
    noise, squares = GradientNoise.empty(np.zeros(33), batch_size=32), []
    for n in range(-burn_in, steps):
        true = CURVATURES * x
        g = true + random.standard_normal(x.shape)
        if n >= 0 and n % every == 0:
            squares.append((true * true).sum(1))
            gradients = zip(g, *last, strict=True)
            noise = noise.add(noise_moments(gradients, -(1 - rho) * v), REPLICAS, rho)
        last = [g, last[0]]
        v = rho * v - g
        x = x + v
    return noise.readings(), 32 * 100 / np.mean(squares, axis=0)


@pytest.mark.parametrize("rho", [0.65, 0.9, 0.97])
def test_it_reads_what_is_simulated_within_its_error(rho):
    """Over 32 walks the mean is right, and the error bars cover as they should.

    The second order of the curvature makes the reading about 1 per cent high. Of 32 error bars of
    one standard error 22 +- 2.6 should cover; three of those deviations are allowed.
    """
    readings, exact = simulated(rho, seed=1)
    read, errors, traces = (readings[name][:-1] for name in [*NOISE_READINGS[2:], "gradient_noise"])
    ratios = read / exact
    error = 3 * np.std(np.log(ratios)) / math.sqrt(len(ratios))
    assert np.log(ratios).mean() == pytest.approx(0.01, abs=0.01 + error)
    assert abs((abs(read - exact) < errors).sum() - 22) <= 8
    error = 3 * np.std(traces) / math.sqrt(len(traces))
    bias = (readings["gradient_norm"][:-1] ** 2).mean() * 0.01 * 32
    assert traces.mean() == pytest.approx(3200, abs=bias + error)
    assert error < 0.01 * 3200
    assert readings["gradient_norm"][:-1] ** 2 * read == pytest.approx(traces)


# --- sums -----------------------------------------------------------------------------------------


def test_the_readings_are_those_of_a_ratio_of_sums():
    """With r = sum A / sum D: B (r - 1), and B sqrt(m / (m - 1) sum (A - r D)**2) / sum D."""
    random, m, layout = np.random.default_rng(0), 30, Layout.of(["a", "b"], [2, 2])
    noise, squares, below = GradientNoise.empty(np.zeros(3), batch_size=8), [], []
    for _ in range(m):
        g, mean = random.normal(1, 0.4, (3, 2, 2)), random.normal(1, 0.1, (2, 2))
        noise = noise.add(noise_moments(g.swapaxes(0, 1), mean), layout, 0.9)
        lag_one = (g[1] * (g[0] + g[2]) / 2).sum(1)
        square = true_square(lag_one, (g[0] * g[2]).sum(1), (g[0] * mean).sum(1), 0.9)
        below.append([*square, square.sum()])
        squares.append([*(g * g).mean(0).sum(1), (g * g).mean(0).sum()])
    a, d = np.array(squares), np.array(below)
    r = a.sum(0) / d.sum(0)
    error = 8 * np.sqrt(m / (m - 1) * ((a - r * d) ** 2).sum(0)) / d.sum(0)
    expected = np.sqrt(d.mean(0)), 8 * (a - d).mean(0), 8 * (r - 1), error
    found = noise.readings()
    for name, values in zip(NOISE_READINGS, expected, strict=True):
        assert found[name] == pytest.approx(values, rel=1e-9), name


# --- momenta --------------------------------------------------------------------------------------


def test_gradients_come_back_from_the_momenta():
    """The table of a momentum is that of its gradients, whatever its rho and scale in each step."""
    random = np.random.default_rng(0)
    rules = [Momentum(rho, scale) for rho, scale in ((0.9, 0.1), (0.8, -0.2), (0.7, 1.0))]
    g = [random.standard_normal((2, 3)) for _ in rules]
    momenta = [random.standard_normal((2, 3))]
    for rule, gradient in zip(rules[::-1], g[::-1], strict=True):
        momenta.insert(0, rule.rho * momenta[0] + rule.scale * gradient)
    empty = GradientNoise.empty(np.zeros(len(ONE)), 8)
    found = empty.measure([[p] for p in momenta], rules, ONE)
    mean = (1 - 0.9) / -0.2 * momenta[1]
    expected = empty.add(noise_moments([tuple(g)], [mean]), ONE, 0.9)
    assert found.sums == pytest.approx(expected.sums)
    assert found.counts[0] == 1
    stands = [rules[0], rules[1]._replace(scale=0.0), rules[2]]
    skipped = empty.measure([[p] for p in momenta], stands, ONE)
    assert skipped.counts[0] == 0
    assert not skipped.sums.any()


def test_dynamics_that_are_not_known_show_no_gradient():
    """Without rho or dt**2, and in a bath, whose force is no noise of batches."""
    bath = Bath(0.1)
    for how in (Dynamics(), Dynamics(0.9), Dynamics(0.9, math.nan), Dynamics(0.9, 0.1, bath)):
        assert Momentum.of_displacements(how).rho is None
    assert Momentum.of_displacements(Dynamics(0.5, 0.25)) == Momentum(0.5, -0.1875)


# --- what is not known ----------------------------------------------------------------------------


def read(noise_of_step, rho=0.9, steps=40, parameters=1):
    """The readings after some steps of gradient 1 and this noise, and the reason."""
    layout = Layout.of(range(parameters), [2] * parameters)
    noise, random = GradientNoise.empty(np.zeros(len(layout)), 8), np.random.default_rng(0)
    for _ in range(steps):
        draws = random.normal(0, noise_of_step, (parameters, 3))
        gradients = [tuple(np.array([1.0, x]) for x in three) for three in draws]
        table = noise_moments(gradients, [np.array([1.0, 0.0])] * parameters)
        noise = noise.add(table, layout, rho)
    return noise.readings(), noise.why_unknown()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"noise_of_step": 0.5}, None),
        ({"noise_of_step": 1.2}, "drowned in the noise of the 40 steps"),  # 3.5 standard errors
        ({"noise_of_step": 20.0}, "drowned in the noise of the 40 steps"),
        ({"noise_of_step": 0.5, "rho": 0.49}, "below 0.5"),
        ({"noise_of_step": 0.5, "rho": None}, "not known"),
        ({"noise_of_step": 0.5, "rho": math.nan}, "not known"),
        ({"noise_of_step": 0.5, "rho": np.array([0.9, math.nan]), "parameters": 2}, "not known"),
        ({"noise_of_step": 0.5, "steps": 4}, "4 steps of this window were measured"),
        ({"noise_of_step": 0.5, "steps": 0}, "0 steps of this window were measured"),
    ],
)
def test_it_says_why_there_is_no_reading(arguments, reason):
    """NaN with a reason, and of what is drowned the noise is still known."""
    readings, why = read(**arguments)
    if reason is None:
        assert why is None
        assert np.isfinite([x[-1] for x in readings.values()]).all()
    else:
        assert reason in why
        assert np.isnan(readings["critical_batch_size"][-1])
        assert np.isnan(readings["critical_batch_size_error"][-1])
        assert np.isnan(readings["gradient_norm"][-1])
        assert np.isfinite(readings["gradient_noise"][-1]) == ("drowned" in reason)


def test_of_one_parameter_whose_momentum_is_not_known_the_other_is_read():
    """What is unknown makes itself NaN, and all parameters together."""
    readings, _ = read(0.5, rho=np.array([0.9, math.nan]), parameters=2)
    assert np.isfinite(readings["critical_batch_size"]).tolist() == [True, False, False]


def test_without_noise_the_critical_batch_size_is_0():
    """Not less than nothing, where the square of the mean is found larger than the mean square."""
    readings, _ = read(0.0)
    assert readings["critical_batch_size"].tolist() == [0.0, 0.0]
    assert readings["gradient_norm"] == pytest.approx(1)


def test_less_than_no_noise_is_0():
    """Where the momentum remembers less than the gradients, the square is found too large."""
    noise = GradientNoise.empty(np.zeros(2), 8)
    for _ in range(5):
        noise = noise.add(noise_moments([(np.ones(2),) * 3], [np.zeros(2)]), ONE, 0.9)
    for name in ("gradient_noise", "critical_batch_size"):
        assert noise.readings()[name].tolist() == [0.0, 0.0]


def test_the_next_window_is_empty():
    """With the same batch size."""
    noise = GradientNoise.empty(np.zeros(2), 8)
    other = noise.add(noise_moments([(np.ones(2),) * 3], [np.ones(2)]), ONE, 0.9).next()
    assert not other.sums.any()
    assert not other.counts.any()
    assert other.batch_size == 8


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((True, None, 10), "batch_size must be given with gradient_noise=True: None"),
        ((False, 64, 10), "batch_size needs gradient_noise=True: 64"),
        ((True, 0, 10), "batch_size must be >= 1: 0"),
        ((True, 64.0, 10), "batch_size must be an integer: 64.0"),
        ((1, 64, 10), "gradient_noise must be True or False: 1"),
        ((True, 64, 3), "every must be >= 4 with gradient_noise=True: 3"),
    ],
)
def test_arguments_are_checked(arguments, error):
    """Each error names the argument, its value and the rule, in NumPy's thermometer too."""
    with pytest.raises((TypeError, ValueError), match=f"^{error}$"):
        check_gradient_noise(*arguments)
    wanted, batch_size, every = arguments
    with pytest.raises((TypeError, ValueError), match=f"^{error}$"):
        Thermometer(every, 12 * every, gradient_noise=wanted, batch_size=batch_size)


def test_without_it_nothing_is_checked_or_kept():
    """The batch size is None."""
    assert check_gradient_noise(False, None, 1) is None


def test_the_four_steps_before_a_measured_one_are_looked_at():
    """Blocks of four that do not overlap."""
    sampling = Sampling(every=4, span=4)
    assert [sampling.steps_to_noise(n) for n in range(1, 9)] == [3, 2, 1, 0, 3, 2, 1, 0]


# --- NumPy's thermometer --------------------------------------------------------------------------


def test_numpy_measures_the_gradients_that_it_was_given():
    """Of CoolMomentum, as rho and the learning rate change, within the roundings of differences."""
    random, every, rate = np.random.default_rng(0), 5, 0.1
    optimizer = CoolMomentum(learning_rate=rate, schedule=lambda step: 0.9 - 0.001 * step)
    meter = Thermometer(every, every, gradient_noise=True, batch_size=8)
    params = [np.zeros(3), np.ones((2, 2))]
    state, seen = optimizer.init(params), meter.init(params)
    layout, given, last_rho = seen.layout, [], 0.0
    momentum = [np.zeros(3), np.zeros((2, 2))]
    expected = GradientNoise.empty(np.zeros(3), 8)
    for n in range(1, 61):
        rho, g = optimizer.rho(state), [1 + random.normal(0, 0.3, x.shape) for x in params]
        given = [g, *given][:3]
        if n % every == 0:
            scale = -rate * (1 + last_rho) / 2
            mean = [(1 - rho) / scale * p for p in momentum]
            expected = expected.add(noise_moments(zip(*given, strict=True), mean), layout, rho)
        momentum = [rho * p - rate * (1 + rho) / 2 * x for p, x in zip(momentum, g, strict=True)]
        last_rho = rho
        params, state = optimizer.step(params, g, state)
        seen = meter.update(seen, params, rho=rho, learning_rate=rate)
    assert seen.noise.noise.counts[0] == 12
    found = meter.read(seen, "parameter")
    for name, values in expected.readings().items():
        read = [reading[name] for reading in (*found.values(), meter.read(seen))]
        assert read == pytest.approx(values.tolist(), rel=1e-9)
    assert not meter.reset(seen).noise.noise.sums.any()


def test_the_other_readings_do_not_change():
    """To the last bit, and without it the state is the one it was."""
    random = np.random.default_rng(0)
    plain, noisy = Thermometer(5, 10), Thermometer(5, 10, gradient_noise=True, batch_size=8)
    params = [np.zeros(3)]
    a, b = plain.init(params), noisy.init(params)
    for _ in range(40):
        params = [x + random.standard_normal(3) for x in params]
        a = plain.update(a, params, rho=0.9, learning_rate=0.1)
        b = noisy.update(b, params, rho=0.9, learning_rate=0.1)
    assert a.noise is None
    with_noise = noisy.read(b)
    assert with_noise.items() >= {k: v for k, v in plain.read(a).items() if v == v}.items()
    assert with_noise.keys() == plain.read(a).keys() | {*NOISE_READINGS}


# --- learning rates -------------------------------------------------------------------------------


def test_the_temperature_stays_with_the_batch_size():
    """By Eq. 19 with four times less variance, and by lr sigma / 2 with two times less sigma."""
    rate = lr_for_batch(0.01, 64, 256)
    expected = noise_temperature(1.0, 0.01, 0.9)
    assert noise_temperature(1 / 4, rate, 0.9) == pytest.approx(expected, rel=1e-15)
    assert lr_for_batch(0.01, 64, 256, rule="adam") == 0.02
    assert lr_for_batch(np.array([0.5]), 64, 16).tolist() == [0.125]
    with pytest.raises(ValueError, match=r"^rule must be one of sgd, adam: 'lars'$"):
        lr_for_batch(0.01, 64, 256, rule="lars")
    with pytest.raises(ValueError, match=r"^new_batch_size must be finite and > 0: 0$"):
        lr_for_batch(0.01, 64, 0)


@pytest.mark.parametrize("number", [float, np.float64])
def test_nothing_is_divided_by_a_scale_of_0(number):
    """It does not show the gradient, and raises and warns of nothing."""
    rule = Momentum(rho=0.5, scale=number(0.0))
    assert not rule.shows()
    assert rule.gradient(1.0, 1.0) == 0.5
    assert rule.mean(1.0) == 0.5
