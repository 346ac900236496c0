"""The share of its held learning rate that an optimizer without rho follows, in every library."""

import itertools
import math

import numpy as np
import pytest
from exact import COOLING_LAWS, LAWS

from coolmomentum import HELD, CoolingSchedule, cooled_rho, learning_rate_share, reduced_temperature

RHO0, HOTTEST = 0.99, 199.0


def by_temperature(step, hold_steps, total_steps, law, rho0=RHO0):
    """The share as the quotient of two reduced temperatures, from the schedule of rho."""
    rho = cooled_rho(step, total_steps, rho0, law, hold_steps=hold_steps)
    return reduced_temperature(rho) / reduced_temperature(RHO0)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("hold_steps", "total_steps"), [(0, 1), (0, 7), (13, 20), (800, 1000)])
def test_it_is_the_temperature_of_the_law(law, hold_steps, total_steps):
    """Over that of rho0; 1 - rho has 2 digits of rho0 = 0.99 fewer than a float64."""
    for step in range(total_steps + 3):
        share = learning_rate_share(step, hold_steps, total_steps, law)
        assert share == pytest.approx(
            by_temperature(step, hold_steps, total_steps, law), rel=200 * 2**-52
        )


@pytest.mark.parametrize("law", LAWS)
def test_arrays_are_good_to_their_dtype(law, library, dtype):
    """Every library gives what Python floats give, in float32 to a few units of its last place."""
    steps = [0, 1, 399_999, 400_000, 400_001, 700_000, 999_999, 1_000_000, 2_000_000]
    dt = getattr(library.xp, dtype)

    @library.compile
    def shares(n):
        return learning_rate_share(n, 400_000, 1_000_000, law, dtype=dt)

    got = shares(library.array(steps, "int32"))
    assert library.owns(got)
    assert library.dtype_name(got) == dtype
    expected = [learning_rate_share(n, 400_000, 1_000_000, law) for n in steps]
    # exp of up to log(199) = 5.3: its argument is rounded by half a unit, and so is each operation.
    eps = 2.0 ** -(23 if dtype == "float32" else 52)
    np.testing.assert_allclose([float(x) for x in got], expected, rtol=8 * eps, atol=0)


@pytest.mark.parametrize("law", LAWS)
def test_it_holds_to_the_last_bit(law, library, dtype):
    """While it holds, the share is 1, and the learning rate what it would be without it."""
    dt = getattr(library.xp, dtype)
    steps = library.array([0, 1, 1000, 2**31 - 3], "int32")
    got = learning_rate_share(steps, **HELD, law=law, dtype=dt)
    assert [float(x) for x in got] == [1.0] * 4


@pytest.mark.parametrize("law", COOLING_LAWS)
def test_laws_are_self_similar(law):
    """One that starts anew from the share that it has reached goes on as it would."""
    for cut in (801, 850, 999):
        held = learning_rate_share(cut, 800, 1000, law)
        for step in range(cut, 1003):
            again = learning_rate_share(step, cut, 1000, law, held)
            assert again == pytest.approx(learning_rate_share(step, 800, 1000, law), rel=1e-14)


@pytest.mark.parametrize("law", COOLING_LAWS)
def test_a_law_that_starts_anew_starts_where_it_was(law):
    """Also over other steps: from the very share, down to 1/199."""
    held = learning_rate_share(850, 800, 1000, law)
    assert learning_rate_share(850, 850, 5000, law, held) == held
    shares = [learning_rate_share(n, 850, 5000, law, held) for n in range(850, 5001)]
    assert all(a > b for a, b in itertools.pairwise(shares))
    assert shares[-1] == pytest.approx(1 / HOTTEST, rel=1e-14)


@pytest.mark.parametrize("steps", [200, 201, 1000, 100_000])
def test_a_linear_cooldown_ends_at_one_percent_or_less(steps):
    """Its last step, the one after which steps steps of it were taken, from 200 steps on."""
    last = learning_rate_share(5000 + steps - 1, 5000, 5000 + steps)
    assert last <= 0.01 * (1 + 2**-50)
    assert math.isclose(last, (1 + (steps - 1) / HOTTEST) / steps, rel_tol=1e-12)


def test_held_never_cools():
    """The counts that hold are a schedule of every law, whose end is not its beginning."""
    for law in LAWS:
        assert CoolingSchedule(rho0=RHO0, law=law, **HELD)(10**9) == RHO0
    assert HELD["hold_steps"] + 1 == HELD["total_steps"] == 2**31 - 1
