"""What the tests of the Keras adapter share: variables, gradients, runs, and the oracle's run."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pytest
from exact import U32
from keras import ops

from coolmomentum.numpy import CoolMomentum as Oracle

BACKEND = keras.backend.backend()
SHAPES = ((3, 4), (), (0,), (1,), (100,), (5, 1, 17))
Arrays = Sequence[np.ndarray]


def numpy(x: Any) -> np.ndarray:
    """The value of a tensor or variable; of half precision as float32."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    x = ops.cast(x, "float32") if dtype in ("float16", "bfloat16") else x
    return np.asarray(ops.convert_to_numpy(x))


def variables(arrays: Arrays, dtype: str | None = None) -> list[keras.Variable]:
    """Variables with these values, in the default dtype of Keras unless another is given."""
    dtype = dtype or keras.config.floatx()
    return [keras.Variable(ops.convert_to_tensor(a, dtype), dtype=dtype) for a in arrays]


def gradients(steps: int, shapes: Sequence[tuple[int, ...]] = SHAPES, seed: int = 0) -> list[list]:
    """Random gradients over many scales for every step and parameter, exact in float32."""
    rng = np.random.default_rng(seed)
    return [
        [np.float32(rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3)) for shape in shapes]
        for _ in range(steps)
    ]


def follow(optimizer: Any, params: list[keras.Variable], grads: Sequence[Arrays]) -> None:
    """Step through given gradients."""
    for step_grads in grads:
        pairs = zip(step_grads, params, strict=True)
        optimizer.apply([ops.convert_to_tensor(g, x.dtype) for g, x in pairs], params)


def oracle_run(xs: Arrays, grads: Sequence[Arrays], **settings: Any) -> tuple[list, Any]:
    """Parameters and state of the float64 reference after the same gradients."""
    oracle = Oracle(**settings)
    xs = [np.asarray(x, np.float64) for x in xs]
    state = oracle.init(xs)
    for step_grads in grads:
        xs, state = oracle.step(xs, [np.asarray(g, np.float64) for g in step_grads], state)
    return xs, state


def bound(steps: int, x: float, dx: float, rho: float, unit: float) -> float:
    """Rounding error of a parameter after some steps, parameters being below x, displacements dx.

    A step makes at most 12 roundings (of rho, eta, two products, a difference) of numbers below the
    displacement, which live on for 1 / (1 - rho) steps, and one of the parameter.
    """
    return steps * unit * (x + 12 * dx / (1 - rho))


def near(temperature, lr=0.05):
    """What a temperature may be if the gradients are summed in another order, as over replicas.

    A displacement below 0.3 remembers ten steps of 32 roundings each, so it is wrong by at most e;
    its mean square is then wrong by 2 e times its root mean square, and e**2, all over lr.
    """
    e = 10 * 32 * U32 * 0.3
    return pytest.approx(temperature, rel=0, abs=2 * e * math.sqrt(temperature / lr) + e**2 / lr)
