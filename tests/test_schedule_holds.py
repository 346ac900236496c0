"""Warm-up, holding rho0 before the law begins, and the law that has no end."""

import itertools
import math
import pickle

import exact
import numpy as np
import pytest
from exact import COOLING_LAWS, LAWS, RHO_ROUNDINGS, U32, U64
from hypothesis import given
from laws import settings_and_steps

from coolmomentum import (
    CoolingSchedule,
    adiabatic_rho0,
    largest_adiabaticity,
    resolve_schedule,
)

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
