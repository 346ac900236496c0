"""Schedules from a temperature curve of one's own."""

import math
import pickle
import re

import exact
import numpy as np
import pytest
from exact import U32, U64
from frameworks import framework
from laws import cosine
from libraries import STRICT, libraries

from coolmomentum import from_temperature

jax, jnp = framework("jax"), framework("jax.numpy")

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
