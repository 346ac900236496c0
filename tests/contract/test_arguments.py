"""What an optimizer is told about its cooling, and refuses, is the same in every adapter."""

import pytest
from adapters import TESTED

from coolmomentum import CoolingSchedule

RHO = {name: rho for module in TESTED.values() for name, rho in module.RHO.items()}
adapter = pytest.mark.parametrize("rho", RHO.values(), ids=RHO.keys())


def half(step):
    """A schedule of one's own."""
    return 0.5 + 0 * step


@adapter
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"total_steps": 10, "rho0": 0.75}, 0.75),
        ({"total_steps": 10, "rho0": 0.75, "law": "linear"}, 0.75),
        ({"total_steps": 10, "warmup_steps": 2}, 0.0),
        ({"total_steps": 10, "rho0": 0.75, "hold_steps": 2}, 0.75),
        ({"law": "constant", "rho0": 0.75}, 0.75),
        ({"schedule": CoolingSchedule(10, 0.5)}, 0.5),
        ({"schedule": CoolingSchedule(None, 0.5, "constant")}, 0.5),
        ({"schedule": CoolingSchedule(10, 0.5, warmup_steps=2)}, 0.0),
        ({"schedule": half}, 0.5),
        ({"schedule": half, "total_steps": 10}, 0.5),
    ],
)
def test_ways_to_say_it(rho, settings, expected):
    """Numbers and a law, a CoolingSchedule, or a callable and how far to probe it."""
    assert rho(**settings) == pytest.approx(expected, abs=2**-23)


@adapter
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"schedule": 0.9}, TypeError, "schedule must be a CoolingSchedule or a function"),
        ({"schedule": "linear", "total_steps": 9}, TypeError, "(law names a law): 'linear'"),
        ({"schedule": half, "total_steps": -5}, ValueError, "total_steps must be >= 1: -5"),
        ({"schedule": half, "total_steps": 2.5}, TypeError, "total_steps must be an integer: 2.5"),
        ({"schedule": half, "rho0": 0.5}, ValueError, "rho0 must not be given beside a schedule"),
        ({"schedule": half, "warmup_steps": 3}, ValueError, "warmup_steps must not be given"),
        (
            {"schedule": CoolingSchedule(10), "total_steps": 20},
            ValueError,
            "total_steps must not be given beside a schedule: 20",
        ),
        (
            {"schedule": CoolingSchedule(10, 0.5), "rho0": 0.5},
            ValueError,
            "rho0 must not be given beside a schedule: 0.5",
        ),
        ({"schedule": lambda n: 1.5 + 0 * n}, ValueError, "schedule(0) must be in [-1, 1): 1.5"),
        ({"total_steps": 10, "rho0": 1.0}, ValueError, "rho0 must be in [0, 1): 1.0"),
        ({"total_steps": 0}, ValueError, "total_steps must be >= 1: 0"),
        ({"total_steps": 9, "law": "warm"}, ValueError, "must be one of paper, linear"),
        ({"total_steps": 9, "warmup_steps": 9}, ValueError, "warmup_steps must be < total_steps"),
        (
            {"total_steps": 9, "hold_steps": 9},
            ValueError,
            "hold_steps must be < total_steps = 9: 9",
        ),
    ],
)
def test_contradictions_and_bad_values(rho, settings, error, message):
    """Each adapter refuses the same at construction, in the same words."""
    with pytest.raises(error) as caught:
        rho(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "rho", [rho for name, rho in RHO.items() if "group" not in name], ids=lambda rho: rho.__module__
)
def test_total_steps_has_no_default(rho):
    """Without it, and without a schedule, there is no cooling."""
    with pytest.raises(TypeError, match="total_steps is required"):
        rho()
