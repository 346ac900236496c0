"""What settings mean, those of SGD in our terms, and bad ones, which are refused."""

import math
import re

import numpy as np
import pytest
from exact import ONE_OF_COOLING_LAWS, ONE_OF_LAWS, U32, U64
from frameworks import framework
from hypothesis import given
from hypothesis import strategies as st
from laws import cosine

from coolmomentum import (
    CoolingSchedule,
    adiabatic_rho0,
    check_schedule,
    cooling_rate,
    from_temperature,
    resolve_schedule,
    rho0_for_cooling_rate,
    settings_from_sgd,
    steps_for_cooling_rate,
)

jax = framework("jax")

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
