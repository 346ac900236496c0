"""The core on JAX arrays: where int32 ends, and under tracing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import LAWS

from coolmomentum import CoolingSchedule, DisplacementSum


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("warmup_steps", [0, 3, 2**32])
def test_a_run_longer_than_int32_has_a_schedule(law, warmup_steps):
    """total_steps and warmup_steps need not fit in the clock's int32."""
    schedule = CoolingSchedule(10**10, 0.99, law, warmup_steps)
    step = 2**31 - 1
    # float32 on the way: as everywhere within 1e-6 of the exact rho
    assert abs(float(schedule(jnp.int32(step))) - schedule(step)) < 1e-6
    assert abs(float(jax.jit(schedule)(jnp.int32(step))) - schedule(step)) < 1e-6


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("clock", ["run", "hold"])
def test_total_steps_rho0_and_warmup_steps_may_be_traced(law, clock):
    """A schedule of traced numbers is the schedule of these numbers."""
    steps = np.arange(9)

    def rho(total_steps, rho0, warmup_steps):
        return CoolingSchedule(total_steps, rho0, law, warmup_steps, clock)(jnp.asarray(steps))

    exact = CoolingSchedule(7, 0.75, law, 2, clock)(steps)
    # a handful of float32 roundings: 8 units of 6e-8
    np.testing.assert_allclose(jax.jit(rho)(7, 0.75, 2), exact, rtol=5e-7, atol=0)


@pytest.mark.parametrize("steps", [1, jnp.asarray(1)])
def test_more_coordinates_than_int32_can_be_read(steps):
    """Three thousand million squares of 2 have the mean 2."""
    total = DisplacementSum(jnp.float32(6e9), 3_000_000_000, steps)
    assert float(total.read()) == 2
