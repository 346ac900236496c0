"""The alpha solver, Eq. 21 and its inverses, and how hot a run may start."""

import math
from decimal import Decimal

import exact
import pytest
from exact import COOLING_LAWS, LAWS, U64
from hypothesis import assume, given
from hypothesis import strategies as st

from coolmomentum import (
    CoolingSchedule,
    adiabatic_rho0,
    adiabaticity,
    cooling_rate,
    cooling_speed,
    largest_adiabaticity,
    rho0_for_cooling_rate,
    rho_at,
    steps_for_cooling_rate,
)

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
