"""One suite for the thermometers of all frameworks: closed forms, read without any statistics.

Each framework's CoolMomentum, at constant rho, is given the gradients that make two displacements
whose moments are exactly those of a walk at rest; its thermometer measures the second.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from adapters import TESTED as ADAPTERS
from ensembles import AVERAGED, VARIANCES, WHITE, two_points
from roles import Walk


@pytest.fixture(params=ADAPTERS.values(), ids=ADAPTERS.keys())
def framework(request):
    """What reads a walk in each framework, and the unit roundoff of what it computes in."""
    return request.param.read_walk, request.param.UNIT


# --- closed forms ---------------------------------------------------------------------------------


def moved(displacements, rho, dt2, every):
    """The walk from rest that has these displacements, a list of arrays for each step."""
    eta, before, steps = dt2 * (1 + rho) / 2, [np.zeros_like(x) for x in displacements[0]], []
    for now in displacements:
        steps.append([(rho * b - a) / eta for b, a in zip(before, now, strict=True)])
        before = now
    return Walk(rho, dt2, every, steps)


def at_rest(variance, correlation, rho, dt2):
    """Two steps with those moments, of which the second is measured."""
    points = two_points(float(variance), float(variance * correlation))
    return moved([[x] for x in points], rho, dt2, every=2)


def near(expected, u, loss=1.0):
    """Within the roundings.

    A displacement makes 6: of the gradient, eta, two products, a sum, and storing it; as a
    difference of places 3 more, of at most the two displacements together. All are of numbers below
    2.7 root mean squares (rho and the earlier displacement, the larger 2**0.5 of them), so that a
    mean square is wrong by 2 x 9 x 2.7 = 49 u; a few more are those of the sums. ``loss`` is how
    much larger the terms are than what is left of them.
    """
    return pytest.approx(float(expected), rel=64 * u * loss, abs=64 * u)


@pytest.mark.parametrize(("walk", "by_two", "correlation"), WHITE)
def test_white_noise(framework, walk, by_two, correlation):
    """Eq. 22 reads T / (1 - k dt**2 / 4), three points Eq. 19's T, and the curvature k dt**2."""
    read, u = framework
    rho, dt2, k, temperature = walk
    reading, _ = read(at_rest(by_two * Fraction(dt2), correlation, rho, dt2))
    assert reading["temperature"] == near(by_two, u)
    assert reading["rescaled_temperature"] == near(float(by_two) * dt2, u)
    # 2 v (1 + c), of terms up to 4 v
    assert reading["three_point_temperature"] == near(temperature, u, 2 / (1 + correlation))
    assert reading["correlation"] == near(correlation, u)
    assert reading["curvature"] == pytest.approx(k * dt2, abs=4 * 2 * 2 * 64 * u)
    assert reading["rho"] == near(rho, u)


@pytest.mark.parametrize(("walk", "by_two", "correlation", "central"), AVERAGED)
def test_averaged_noise(framework, walk, by_two, correlation, central):
    """Of BAOAB: Eq. 22 reads T (1 + rho) / 2, three points 2 / (1 + rho) <v_central**2>."""
    read, u = framework
    rho, dt2, _, _ = walk
    reading, _ = read(at_rest(by_two * Fraction(dt2), correlation, rho, dt2))
    assert reading["temperature"] == near(by_two, u)
    assert reading["three_point_temperature"] == near(2 / (1 + rho) * float(central), u, 2)
    assert reading["correlation"] == near(correlation, u)


@pytest.mark.parametrize(("walk", "variance"), VARIANCES)
def test_stationary_variances(framework, walk, variance):
    """The rescaled temperature is the variance of a displacement, whose correlation is known."""
    read, u = framework
    rho, eta, k, _ = map(Fraction, walk)
    correlation = rho - eta * k / 2
    reading, _ = read(at_rest(variance, correlation, float(rho), float(2 * eta / (1 + rho))))
    assert reading["rescaled_temperature"] == near(variance, u)
    assert reading["correlation"] == near(correlation, u)


LIST = [np.array([0.1, -0.2, 0.3]), np.array([0.0, 0.1, -0.1])]


def test_the_list_of_two_steps(framework):
    """At dt**2 = 1/100 and rho = 1/2 the mean square is 2/75: T is 8/3, and by three points 2/3."""
    read, u = framework
    reading, _ = read(moved([[x] for x in LIST], 0.5, 0.01, every=1))
    assert reading["rescaled_temperature"] == near(2 / 75, u)
    assert reading["temperature"] == near(8 / 3, u)
    # Terms of the first step, of 0.14, where 0.06 is left.
    assert reading["three_point_temperature"] == near(2 / 3, u, 3)
    assert reading["correlation"] == near(-0.05 / (0.14 * 0.02) ** 0.5, u, 3)
    assert reading["steps"] == 2


def test_the_parameters_do_not_matter(framework):
    """Flat, split into parameters or in another order, all together read the same."""
    read, u = framework
    random = np.random.default_rng(0)
    steps = [random.standard_normal(24) for _ in range(3)]
    shapes = ((2, 3), (), (4, 1, 3), (5,))
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]

    def split(x, order):
        parts = np.split(x, ends)
        return [parts[i].reshape(shapes[i]) for i in order]

    whole, _ = read(moved([[x] for x in steps], 0.5, 0.25, every=1))
    one, each = read(moved([split(x, (0, 1, 2, 3)) for x in steps], 0.5, 0.25, every=1))
    other, permuted = read(moved([split(x, (2, 0, 3, 1)) for x in steps], 0.5, 0.25, every=1))
    exact = np.mean(np.square(steps))
    assert whole["rescaled_temperature"] == near(exact, u)
    for name in ("rescaled_temperature", "temperature", "three_point_temperature", "correlation"):
        assert one[name] == near(whole[name], u, 4)
        assert other[name] == near(whole[name], u, 4)
    for i, j in enumerate((2, 0, 3, 1)):
        exact = np.mean([np.square(split(x, range(4))[j]) for x in steps])
        for reading in (permuted[i], each[j]):
            assert reading["rescaled_temperature"] == near(exact, u, 8)


def test_the_first_reading_exists_after_two_steps(framework):
    """At every=10 two steps of 1 and 2 have the mean square 5/2, and a correlation."""
    read, u = framework
    reading, _ = read(moved([[np.ones(2)], [np.full(2, 2.0)]], 0.5, 0.25, every=10))
    assert reading["steps"] == 2
    assert reading["rescaled_temperature"] == near(5 / 2, u)
    assert reading["temperature"] == near(10, u)
    assert reading["correlation"] == near(1, u)
    assert math.isnan(reading["freeze_out"])


def test_the_first_steps_do_not_count_more(framework):
    """Ten steps of 3 and ten of 1 have the mean square 5, though only one of the latter is seen."""
    read, u = framework
    steps = [[np.full(2, 3.0 if n < 10 else 1.0)] for n in range(20)]
    reading, _ = read(moved(steps, 0.5, 0.25, every=10))
    assert reading["rescaled_temperature"] == near(5, u)
    assert reading["rho"] == near(0.5, u)


def test_a_walk_that_turns_back_is_confined(framework):
    """Steps of 1 and -1 come back to where the span began: the freeze-out meter reads 1."""
    read, u = framework
    steps = [[np.full(2, 1.0 if n % 2 else -1.0)] for n in range(4)]
    reading, (each,) = read(moved(steps, 0.5, 0.25, every=2))
    for row in (reading, each):
        assert row["freeze_out"] == near(1, u)
        assert row["freeze_out_error"] == near(0, u)


def test_at_rest_all_temperatures_are_0(framework):
    """Without any gradient nothing moves, and there is no correlation."""
    read, _ = framework
    reading, _ = read(moved([[np.zeros(3)]] * 2, 0.5, 0.25, every=1))
    assert reading["temperature"] == reading["three_point_temperature"] == 0
    assert reading["rescaled_temperature"] == reading["predicted_temperature"] == 0
    assert math.isnan(reading["correlation"])
