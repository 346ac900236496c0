"""Keras on JAX: stateless_apply under jit, exported for TPU, sparse gradients, scans."""

import re

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from exact import U32
from jax.experimental import sparse
from keras_tools import numpy

from coolmomentum.keras import CoolMomentum
from coolmomentum.numpy import CoolMomentum as Oracle

LAWS = ("paper", "linear", "exponential", "constant")


def perceptron(law="paper", dtype="float32"):
    """A small network, its optimizer, and a whole train step with both states as arguments."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, "relu", dtype=dtype), keras.layers.Dense(2, dtype=dtype)]
    model = keras.Sequential([keras.Input((4,), dtype=dtype), *layers])
    optimizer = CoolMomentum(0.1, 6, 0.9, law=law, warmup_steps=2)
    optimizer.build(model.trainable_variables)

    def loss(weights, x, y):
        predicted, _ = model.stateless_call(weights, [], x)
        return jnp.mean((predicted - y) ** 2)

    def step(weights, state, x, y):
        gradients = jax.grad(loss)(weights, x, y)
        return optimizer.stateless_apply(state, gradients, weights)

    weights = [v.value for v in model.trainable_variables]
    state = [v.value for v in optimizer.variables]
    return step, weights, state


def batch(dtype="float32"):
    """Eight samples."""
    return jnp.ones((8, 4), dtype), jnp.zeros((8, 2), dtype)


def test_one_compilation_while_rho_cools():
    """The step is traced once for the whole run, past S; buffers may be donated."""
    step, weights, state = perceptron()
    compiled = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(9):
        weights, state = compiled(weights, state, *batch())
    assert compiled._cache_size() == 1
    assert int(state[0]) == 9


def test_a_scan_is_the_loop():
    """The whole run in one compiled loop."""
    x, optimizer = keras.Variable(np.array([1.0, -2.0], "float32")), CoolMomentum(0.1, 4, 0.75)
    optimizer.build([x])

    def step(carry, _):
        weights, state = carry
        return optimizer.stateless_apply(state, weights, weights), None

    start = [x.value], [v.value for v in optimizer.variables]
    ((value,), state), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=6))(start)
    oracle, xs = Oracle(lr=0.1, total_steps=4, rho0=0.75), [np.array([1.0, -2.0])]
    oracle_state = oracle.init(xs)
    for _ in range(6):
        xs, oracle_state = oracle.step(xs, xs, oracle_state)
    np.testing.assert_allclose(np.asarray(value), xs[0], rtol=0, atol=6 * 16 * 2 * U32)
    assert int(state[0]) == 6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("law", LAWS)
def test_the_step_is_exported_for_a_tpu(dtype, law):
    """No float64, no dynamic shape, no call to the host."""
    step, weights, state = perceptron(law, dtype)
    exported = jax.export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(
        weights, state, *batch(dtype)
    )
    text = re.sub(r"loc\(.*", "", exported.mlir_module())
    types = set(re.findall(r"(?:bf16|\bf\d+|(?<=x)f\d+)(?=>)", text))
    assert "f64" not in types
    assert "f32" in types
    assert not re.search(r"[<x]\?", text)  # a dynamic dimension
    for way_out in ("custom_call", "infeed", "outfeed", "callback"):
        assert way_out not in text


def test_sparse_gradients_are_dense_ones():
    """BCOO gradients, which have no operators with dense arrays."""
    gradient = sparse.BCOO((jnp.ones((3, 2)), jnp.array([[0], [2], [3]])), shape=(4, 2))
    results = []
    for g in (gradient, gradient.todense()):
        x, optimizer = keras.Variable(np.ones((4, 2))), CoolMomentum(0.1, 10, 0.9)
        for _ in range(3):
            optimizer.apply([g], [x])
        results.append(numpy(x))
    np.testing.assert_array_equal(*results)
    assert np.all(results[0][1] == 1.0)


def test_a_clock_that_wraps_keeps_rho_in_range():
    """Keras' int32 clock on JAX goes from 2**31 - 1 to -2**31; rho stays in [0, 1)."""
    x, optimizer = keras.Variable(np.ones(2)), CoolMomentum(0.1, 10)
    optimizer.build([x])
    optimizer._iterations.assign(2**31 - 1)
    assert optimizer.rho == float(optimizer.rho_tensor()) == 0.0
    optimizer.apply([jnp.ones(2)], [x])
    assert int(optimizer.iterations) == -(2**31)
    assert 0 <= optimizer.rho < 1
    assert float(optimizer.rho_tensor()) == pytest.approx(optimizer.rho, rel=4 * U32)
