"""Training: compile and fit in every mode, mixed precision, embeddings, all against the oracle."""

import itertools

import keras
import numpy as np
import pytest
from exact import U32
from keras import ops
from keras_tools import BACKEND, numpy, oracle_run

from coolmomentum.keras import CoolMomentum

RNG = np.random.default_rng(0)
X = RNG.standard_normal((24, 3)).astype("float32")
Y = (X @ np.array([[1.0], [-2.0], [0.5]], "float32")).astype("float32")
COOLING = {"total_steps": 16, "rho0": 0.9}


def linear():
    """A linear model that starts from zero."""
    layer = keras.layers.Dense(1, kernel_initializer="zeros")
    return keras.Sequential([keras.Input((3,)), layer])


def oracle_fit(epochs, batch, lr=0.01):
    """The weights of the linear model after training without shuffling, in float64."""
    from coolmomentum.numpy import CoolMomentum as Oracle

    oracle = Oracle(learning_rate=lr, **COOLING)
    params = [np.zeros((3, 1)), np.zeros(1)]
    state = oracle.init(params)
    for _, i in itertools.product(range(epochs), range(0, len(X), batch)):
        x, y = X[i : i + batch].astype("float64"), Y[i : i + batch].astype("float64")
        error = 2 * (x @ params[0] + params[1] - y) / len(x)
        params, state = oracle.step(params, [x.T @ error, error.sum(0)], state)
    return params, oracle.rho(state)


MODES = {
    "default": {},
    "eager": {"run_eagerly": True},
    "jit": {"jit_compile": True},
    "no jit": {"jit_compile": False},
    "several steps": {"jit_compile": True, "steps_per_execution": 3},
}
if BACKEND == "torch":
    del MODES["several steps"]  # Keras has it for TensorFlow and JAX only

# torch.compile takes some 8 seconds each time; on PyTorch only the modes above are compiled.
jit = pytest.mark.parametrize("jit", [False] if BACKEND == "torch" else [False, True])


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_fit_is_the_oracle(mode):
    """18 batches, past S: in every mode the weights are the oracle's, and rho has cooled.

    A gradient of 4 to 8 products of numbers below 4 has some 20 roundings; it is below 30, so that
    a displacement is below 0.3 and is remembered for ten steps.
    """
    model = linear()
    model.compile(CoolMomentum(0.01, **COOLING), "mse", **mode)
    model.fit(X, Y, batch_size=4, epochs=3, shuffle=False, verbose=0)
    expected, rho = oracle_fit(3, 4)
    for weight, x in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(numpy(weight), x, rtol=0, atol=18 * 10 * 32 * U32 * 0.3)
    assert int(model.optimizer.iterations) == 18
    assert model.optimizer.rho == rho == 0.0


def test_train_on_batch_and_fit_are_the_same():
    """Bit for bit, epoch by epoch: the optimizer has no state of its own outside its variables."""
    whole, parts = linear(), linear()
    for model in (whole, parts):
        model.compile(CoolMomentum(0.01, **COOLING), "mse")
    whole.fit(X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0)
    for _ in range(3):
        parts.fit(X, Y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    for one, other in zip(whole.weights, parts.weights, strict=True):
        np.testing.assert_array_equal(numpy(one), numpy(other))


def test_a_model_with_two_optimizers_has_two_clocks():
    """Each instance has its own; no state is shared by the class."""
    one, other = linear(), linear()
    one.compile(CoolMomentum(0.01, 10), "mse")
    other.compile(CoolMomentum(0.01, 20), "mse")
    one.fit(X, Y, batch_size=8, verbose=0)
    assert [int(m.optimizer.iterations) for m in (one, other)] == [3, 0]
    assert one.optimizer.rho < other.optimizer.rho == 0.99


@pytest.fixture
def policy(request):
    """A dtype policy of Keras, for the test."""
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"], indirect=True)
@jit
def test_mixed_precision_has_float32_state(policy, jit):
    """Variables, displacements and temperature are float32, and the model learns."""
    model = linear()
    model.compile(CoolMomentum(0.01, **COOLING), "mse", jit_compile=jit)
    history = model.fit(X, Y, batch_size=8, epochs=5, shuffle=False, verbose=0).history
    assert history["loss"][-1] < history["loss"][0] / 2
    optimizer = model.optimizer
    if policy == "mixed_float16":
        assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        optimizer = optimizer.inner_optimizer
    assert all(x.dtype == "float32" for x in optimizer._displacements)
    assert optimizer.temperature() > 0
    # The first scale of Keras, 2**15, may be too large for the first steps, which are skipped then.
    steps = int(optimizer.iterations)
    assert steps == 15 or (steps >= 12 and policy == "mixed_float16")
    assert optimizer.rho == optimizer.schedule(steps)


@pytest.mark.parametrize("policy", ["bfloat16"], indirect=True)
def test_a_bfloat16_model_learns(policy):
    """Its variables and displacements are bfloat16."""
    model = linear()
    model.compile(CoolMomentum(0.01, **COOLING), "mse")
    history = model.fit(X, Y, batch_size=8, epochs=5, shuffle=False, verbose=0).history
    assert history["loss"][-1] < history["loss"][0] / 2
    assert all(x.dtype == "bfloat16" for x in model.optimizer._displacements)
    assert model.optimizer.temperature() > 0


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
@jit
def test_a_skipped_step_changes_nothing(policy, jit):
    """Gradients that overflow float16 leave weights, displacements, clock, rho as they were."""
    model, inner = linear(), CoolMomentum(0.01, **COOLING)
    scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=64.0)
    model.compile(scaled, "mse", jit_compile=jit)
    model.fit(X, Y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    before = [numpy(x).copy() for x in model.weights + inner.variables]
    readings = inner.rho, inner.temperature()
    model.fit(X[:8] * 1e30, Y[:8], batch_size=8, epochs=1, shuffle=False, verbose=0)
    assert float(scaled.dynamic_scale) == 32.0
    for now, then in zip(model.weights + inner.variables, before, strict=True):
        np.testing.assert_array_equal(numpy(now), then)
    assert (inner.rho, inner.temperature()) == readings
    assert int(inner.iterations) == 3


@jit
def test_embeddings_go_as_with_sgd(jit):
    """Sparse gradients of TensorFlow's embeddings too: each row as with momentum in Keras' SGD.

    The rows of the third batch have their momentum only.
    """
    table = RNG.standard_normal((6, 2)).astype("float32")
    words = np.array([[0, 1], [1, 1], [2, 3], [3, 3], [4, 4], [0, 0]])
    factor = 1.875 / 2
    optimizers = (
        CoolMomentum(0.1, 9, 0.875, law="constant"),
        keras.optimizers.SGD(0.1 * factor, momentum=0.875),
    )
    weights = []
    for optimizer in optimizers:
        embedding = keras.layers.Embedding(6, 2)
        model = keras.Sequential([keras.Input((2,), dtype="int32"), embedding])
        model.compile(optimizer, "mse", jit_compile=jit)
        embedding.embeddings.assign(table)
        model.fit(words, np.ones((6, 2, 2)), batch_size=2, epochs=2, shuffle=False, verbose=0)
        weights.append(numpy(embedding.embeddings))
    ours, theirs = weights
    assert np.abs(theirs - table).min(axis=1)[:5].min() > 1e-3
    assert np.array_equal(theirs[5], table[5])
    # 6 steps, 12 roundings each, of displacements below 1 that are remembered for 8 steps.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=6 * 12 * 8 * U32)


def test_frozen_layers_are_not_moved():
    """A layer that is not trainable has no gradient, no displacement and no part in the clock."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(1)])
    model.layers[0].trainable = False
    frozen = [numpy(x).copy() for x in model.layers[0].weights]
    model.compile(CoolMomentum(0.01, 10), "mse")
    model.fit(X, Y, batch_size=8, verbose=0)
    for now, then in zip(model.layers[0].weights, frozen, strict=True):
        np.testing.assert_array_equal(numpy(now), then)
    assert len(model.optimizer.temperatures()) == 2


@pytest.mark.skipif(BACKEND == "torch", reason="its optimizers step the variables in place")
@pytest.mark.parametrize("steps", [5])
def test_a_custom_loop(steps):
    """Apply on TensorFlow and stateless_apply on JAX, compiled, are the oracle."""
    x = keras.Variable(np.array([1.0, -2.0], "float32"))
    optimizer = CoolMomentum(0.1, 4, 0.75)
    optimizer.build([x])
    if BACKEND == "jax":
        import jax

        @jax.jit
        def step(state):
            (x,), variables = state
            return optimizer.stateless_apply(variables, [x], [x])

        state = [x.value], [v.value for v in optimizer.variables]
        for _ in range(steps):
            state = step(state)
        value = state[0][0]
    else:
        import tensorflow as tf

        @tf.function
        def step():
            optimizer.apply_gradients([(ops.convert_to_tensor(x), x)])

        for _ in range(steps):
            step()
        value = x.value
    xs = [np.array([1.0, -2.0])]
    from coolmomentum.numpy import CoolMomentum as Oracle

    oracle = Oracle(learning_rate=0.1, total_steps=4, rho0=0.75)
    state = oracle.init(xs)
    for _ in range(steps):
        xs, state = oracle.step(xs, xs, state)
    np.testing.assert_allclose(numpy(value), xs[0], rtol=0, atol=steps * 16 * U32 * 2)


def test_the_oracle_here_is_that_of_the_gradients():
    """The linear model's closed gradients give the first step that Keras gives."""
    model = linear()
    model.compile(CoolMomentum(0.01, **COOLING), "mse")
    model.fit(X[:4], Y[:4], batch_size=4, epochs=1, shuffle=False, verbose=0)
    x, y = X[:4].astype("float64"), Y[:4].astype("float64")
    grads = [[-2 * x.T @ y / 4, -2 * y.mean(0)]]
    expected, _ = oracle_run([np.zeros((3, 1)), np.zeros(1)], grads, learning_rate=0.01, **COOLING)
    for weight, value in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(numpy(weight), value, rtol=0, atol=32 * U32 * 0.3)
