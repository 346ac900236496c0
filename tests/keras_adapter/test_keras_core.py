"""The core runs over keras.ops, which is no array-API namespace."""

import keras
import numpy as np
import pytest
from exact import LAWS, RHO_ROUNDINGS, U32
from keras import ops
from keras_tools import BACKEND, numpy

from coolmomentum import (
    CoolingSchedule,
    DisplacementSum,
    cooled_rho,
    from_temperature,
    langevin_step,
    next_displacement,
    rescaled_temperature,
    squared_norm,
    three_point_temperature,
)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("warmup_steps", "clock"), [(0, "run"), (2, "run"), (2, "hold")])
def test_rho_of_a_tensor_is_that_of_the_number(law, warmup_steps, clock):
    """Before, during and after the cooling, and for a clock that has wrapped to a negative number.

    Beyond the roundings of a float32 rho, 8 for the float32 expm1 and tanh of the backends, which
    promise no bound.
    """
    schedule = CoolingSchedule(12, 0.9, law, warmup_steps, clock)
    for n in [0, 1, 2, 7, 11, 12, 13, 10**6, 2**31 - 1, -(2**31)]:
        step = ops.convert_to_tensor(np.int32(n))
        rho = schedule(step, dtype="float32", xp=ops)
        assert keras.backend.standardize_dtype(rho.dtype) == "float32"
        close = (RHO_ROUNDINGS[law] + 8) * U32
        assert float(numpy(rho)) == pytest.approx(schedule(n), rel=close, abs=0)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rho_is_held_before_the_law_begins(law, dtype):
    """By tensors and numbers of hold_steps alike; half precision is rounded once.

    The roundings of float32 as above, and one of 2**-11 or 2**-8.
    """
    schedule = CoolingSchedule(100_000, 0.9, law, warmup_steps=1, hold_steps=70_000)
    u = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 0.0}[dtype]
    close = u + (RHO_ROUNDINGS[law] + 8) * U32
    for n in [0, 1, 69_999, 70_000, 85_000, 99_999, 100_000, -1]:
        step = ops.convert_to_tensor(np.int32(n))
        rho = schedule(step, dtype=dtype, xp=ops)
        assert keras.backend.standardize_dtype(rho.dtype) == dtype
        value = float(numpy(ops.cast(rho, "float32")))
        assert value == pytest.approx(schedule(n), rel=close, abs=2.0**-25)
        held = ops.convert_to_tensor(np.int32(70_000))
        rho = cooled_rho(step, 100_000, 0.9, law, 1, "run", held, dtype="float32", xp=ops)
        assert float(numpy(rho)) == pytest.approx(schedule(n), rel=16 * U32, abs=0)


def test_a_curve_is_held_after_its_end():
    """Of float tensors, as the optimizer gives them to a curve: tau = 3, 2, 1, 1, 1."""
    schedule = from_temperature(lambda step: 3.0 - step, total_steps=2)
    rho = [float(schedule(ops.convert_to_tensor(n))) for n in (0.0, 1.0, 2.0, 3.0, 1e6)]
    assert rho == pytest.approx([1 / 2, 1 / 3, 0, 0, 0], rel=4 * U32, abs=0)


def test_rho_takes_numbers_beside_tensors_and_runs_longer_than_int32():
    """A Python step beside a tensor of total_steps, and 2**40 steps."""
    assert float(cooled_rho(5, ops.convert_to_tensor(10), xp=ops)) == pytest.approx(0.9, abs=1e-6)
    rho = cooled_rho(ops.convert_to_tensor(np.int32(5)), 2**40, xp=ops)
    assert keras.backend.standardize_dtype(rho.dtype) == keras.config.floatx()
    assert float(rho) == pytest.approx(0.99, abs=1e-6)


def test_a_temperature_curve_may_be_written_with_keras():
    """from_temperature takes a curve of tensors: tau = 3 is rho = 1/2."""
    schedule = from_temperature(lambda step: ops.cast(step, "float32") + 3.0)
    assert float(schedule(ops.convert_to_tensor(0))) == pytest.approx(0.5, rel=4 * U32)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_sums_of_squares_are_float32_at_least(dtype):
    """300 squares of 16 add up to 76800, which float16 cannot hold and bfloat16 not count to."""
    x = ops.cast(ops.full((300,), 16.0), dtype)
    for result in (squared_norm(x, xp=ops), DisplacementSum().add(x, xp=ops).sum_of_squares):
        assert keras.backend.standardize_dtype(result.dtype) == "float32"
        assert float(result) == 76800.0
    assert float(rescaled_temperature([x, ops.zeros((2, 50))], xp=ops)) == 192.0


def test_complex_numbers_count_as_two():
    """Sum 25, over two coordinates."""
    if BACKEND == "jax":
        x = ops.array([3 + 4j])
    else:
        x = ops.convert_to_tensor(np.array([3 + 4j], "complex64"))
    assert float(rescaled_temperature(x, xp=ops)) == 12.5


def test_the_three_point_thermometer():
    """The example of science: 2/3."""
    first, second = (ops.convert_to_tensor(v) for v in ([0.1, -0.2, 0.3], [0.0, 0.1, -0.1]))
    reading = three_point_temperature(first, second, 0.01, 0.5, xp=ops)
    assert float(reading) == pytest.approx(2 / 3, rel=16 * U32)


def test_the_update_rule():
    """One step of the rational trajectory B, in float32 and stored in bfloat16: 25/32, -7/32."""
    for dtype in ("float32", "bfloat16"):
        one, zero = ops.cast([1.0], dtype), ops.cast([0.0], dtype)
        results = langevin_step(one, zero, one, learning_rate=0.25, rho=0.75, xp=ops)
        assert [keras.backend.standardize_dtype(x.dtype) for x in results] == [dtype, dtype]
        assert [float(numpy(x)[0]) for x in results] == [25 / 32, -7 / 32]
    assert float(next_displacement(one, one, rho=0.5, step_size=0.25, xp=ops)[0]) == 0.25
