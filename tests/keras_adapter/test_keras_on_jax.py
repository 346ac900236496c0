"""Keras on JAX: stateless_apply under jit, exported for TPU, sparse gradients, scans."""

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from exact import LAWS, U32
from jax.experimental import sparse
from keras_tools import near, numpy

from coolmomentum.keras import CoolMomentum
from coolmomentum.numpy import CoolMomentum as Oracle


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


def test_the_state_may_be_donated_after_an_eager_step():
    """No two variables of the optimizer have one array, which JAX would not donate twice."""
    x, optimizer = keras.Variable(np.array([1.0, -2.0], "float32")), CoolMomentum(0.1, 4, 0.75)
    optimizer.apply([x.value + 0], [x])
    all_used = jax.jit(lambda state: [value + 0 for value in state], donate_argnums=(0,))
    assert int(all_used([v.value for v in optimizer.variables])[0]) == 1


def test_a_scan_is_the_loop():
    """The whole run in one compiled loop."""
    x, optimizer = keras.Variable(np.array([1.0, -2.0], "float32")), CoolMomentum(0.1, 4, 0.75)
    optimizer.build([x])

    def step(carry, _):
        weights, state = carry
        return optimizer.stateless_apply(state, weights, weights), None

    start = [x.value], [v.value for v in optimizer.variables]
    ((value,), state), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=6))(start)
    oracle, xs = Oracle(learning_rate=0.1, total_steps=4, rho0=0.75), [np.array([1.0, -2.0])]
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
    assert optimizer.rho == 0.0
    optimizer.apply([jnp.ones(2)], [x])
    assert int(optimizer.iterations) == -(2**31)
    assert 0 <= optimizer.rho < 1


SHARDED = """
import json, sys
import numpy as np, keras
from coolmomentum.keras import CoolMomentum
if sys.argv[1] == "data":
    keras.distribution.set_distribution(keras.distribution.DataParallel())
if sys.argv[1] == "model":
    layout = keras.distribution.LayoutMap(keras.distribution.DeviceMesh((2, 2), ("b", "m")))
    layout[".*kernel"] = ("m", None)
    parallel = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="b")
    keras.distribution.set_distribution(parallel)
keras.utils.set_random_seed(1)
layers = [keras.Input((8,)), keras.layers.Dense(16, "tanh"), keras.layers.Dense(1)]
model = keras.Sequential(layers)
model.compile(CoolMomentum(0.05, total_steps=16, rho0=0.9), "mse")
x = np.random.default_rng(0).standard_normal((32, 8)).astype("float32")
model.fit(x, x[:, :1], batch_size=8, epochs=2, shuffle=False, verbose=0)
optimizer = model.optimizer
print(json.dumps({
    "weights": [w.numpy().ravel().tolist() for w in model.weights],
    "readings": [optimizer.rho, optimizer.temperature(), *optimizer.temperatures().values()],
    "shards": len({str(s.index) for s in optimizer._displacements[0].value.addressable_shards}),
}))
"""


def test_sharded_training_is_the_same():
    """Under DataParallel and ModelParallel on four devices: weights, and the global temperature.

    8 steps; sums in another order, as `near` and the bound on the weights allow for.
    """
    results = {}
    for kind in ("one", "data", "model"):
        flags = "--xla_force_host_platform_device_count=4"
        done = subprocess.run(
            [sys.executable, "-c", SHARDED, kind],
            env=os.environ | {"XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        results[kind] = json.loads(done.stdout)
    assert [results[kind]["shards"] for kind in results] == [1, 1, 2]
    for kind in ("data", "model"):
        pairs = zip(results[kind]["weights"], results["one"]["weights"], strict=True)
        for ours, theirs in pairs:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=8 * 10 * 32 * U32 * 0.3)
        rho, *temperatures = results["one"]["readings"]
        assert results[kind]["readings"] == [rho, *map(near, temperatures)]
