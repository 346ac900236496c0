"""TensorFlow: graphs, XLA without a TPU at hand, retracing, checkpoints, tf.Variable."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from exact import LAWS, U32
from keras_tools import numpy, oracle_run

from coolmomentum.tensorflow import CoolMomentum

SETTINGS = {"total_steps": 6, "rho0": 0.9}


def perceptron(dtype="float32"):
    """A small network and its optimizer, built."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, "relu", dtype=dtype), keras.layers.Dense(2, dtype=dtype)]
    model = keras.Sequential([keras.Input((4,), dtype=dtype), *layers])
    optimizer = CoolMomentum(0.01, **SETTINGS)
    optimizer.build(model.trainable_variables)
    return model, optimizer


def train_step(model, optimizer, **options):
    """A whole compiled step: loss, gradients, update, temperature."""

    @tf.function(**options)
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss, optimizer.temperature_tensor()

    return step


def batch(dtype="float32"):
    """Eight samples."""
    return tf.ones((8, 4), dtype), tf.zeros((8, 2), dtype)


# --- the graph ------------------------------------------------------------------------------------


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "XLA"])
def test_no_retracing_while_rho_cools(jit):
    """One trace for the whole run, through the warm-up of nothing, past S, and a new rate."""
    model, optimizer = perceptron()
    step = train_step(model, optimizer, jit_compile=jit)
    rhos = []
    for n in range(9):
        step(*batch())
        rhos.append(optimizer.rho)
        if n == 4:
            optimizer.learning_rate = 0.005
    assert step.experimental_get_tracing_count() == 1
    assert rhos == [optimizer.schedule(n) for n in range(1, 10)]


def test_fit_does_not_trace_again():
    """model.fit traces in its first epoch only."""
    traces = 0

    class Counted(keras.Sequential):
        def train_step(self, data):
            nonlocal traces
            traces += 1
            return super().train_step(data)

    model = Counted([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(CoolMomentum(0.01, **SETTINGS), "mse", jit_compile=True)
    data = {"x": np.ones((32, 4)), "y": np.zeros((32, 2)), "batch_size": 8, "verbose": 0}
    model.fit(**data)
    first = traces
    model.fit(epochs=3, **data)
    assert int(model.optimizer.iterations) == 16
    assert traces == first > 0


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "XLA"])
def test_tf_variables_in_a_custom_loop(jit):
    """Variables of TensorFlow itself are stepped, and are the oracle's."""
    x = tf.Variable([1.0, -2.0])
    optimizer = CoolMomentum(0.1, 4, 0.75)
    optimizer.build([x])
    step = tf.function(lambda: optimizer.apply_gradients([(x + 0.0, x)]), jit_compile=jit)
    xs, state = [np.array([1.0, -2.0])], None
    from coolmomentum.numpy import CoolMomentum as Oracle

    oracle = Oracle(learning_rate=0.1, total_steps=4, rho0=0.75)
    state = oracle.init(xs)
    for _ in range(6):
        step()
        xs, state = oracle.step(xs, xs, state)
    # 6 steps of at most 16 roundings of numbers below 2
    np.testing.assert_allclose(x.numpy(), xs[0], rtol=0, atol=6 * 16 * 2 * U32)
    assert optimizer.temperature() == pytest.approx(float(oracle.temperature(state)), rel=1e-5)
    assert len(optimizer.temperatures()) == 1


def test_sparse_gradients_are_dense_ones():
    """IndexedSlices, with an index twice: the rows without a gradient keep their momentum."""
    slices = tf.IndexedSlices(tf.ones((3, 2)), tf.constant([0, 2, 2]), tf.constant([4, 2]))
    variables = [tf.Variable(tf.ones((4, 2))) for _ in "ab"]
    for x, gradient in zip(variables, (slices, tf.convert_to_tensor(slices)), strict=True):
        optimizer = CoolMomentum(0.1, 10, 0.9)
        for _ in range(3):
            optimizer.apply([gradient], [x])
        optimizer.apply([tf.zeros((4, 2))], [x])
    np.testing.assert_array_equal(*variables)
    grad = np.array([[1.0, 1.0], [0, 0], [2, 2], [0, 0]])
    (expected,), _ = oracle_run(
        [np.ones((4, 2))], [[grad]] * 3 + [[0 * grad]], learning_rate=0.1, total_steps=10, rho0=0.9
    )
    np.testing.assert_allclose(numpy(variables[0]), expected, rtol=0, atol=4 * 16 * 2 * U32)


def test_stateless_apply_is_refused_as_by_every_optimizer():
    """Keras' TensorFlow backend has none."""
    _, optimizer = perceptron()
    with pytest.raises(ValueError, match="stateless_apply is not supported"):
        optimizer.stateless_apply(optimizer.variables, [], [])


# --- ready for a TPU ------------------------------------------------------------------------------


def types(text):
    """The types that occur in an HLO text."""
    return set(re.findall(r"\b(?:[fsuc]\d+|bf16|pred)(?=\[)", text))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("law", LAWS)
def test_the_step_is_what_a_tpu_runs(dtype, law):
    """Its HLO has no float64, no dynamic shape and no way to the host; it compiles and runs.

    A TPU has no float64, needs static shapes and cannot call back. The 64-bit integers are the
    clock of Keras on TensorFlow.
    """
    model, _ = perceptron(dtype)
    optimizer = CoolMomentum(0.1, **SETTINGS, law=law, warmup_steps=2)
    optimizer.build(model.trainable_variables)
    step = train_step(model, optimizer, jit_compile=True)
    losses = [float(step(*batch(dtype))[0]) for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]
    assert optimizer.temperature() > 0
    text = step.experimental_get_compiler_ir(*batch(dtype))(stage="hlo")
    assert types(text) <= {"f32", "s32", "s64", "pred"} | (
        {"bf16"} if dtype == "bfloat16" else set()
    )
    assert "f32" in types(text)
    assert not re.search(r"<=\d", text)  # a bounded dynamic dimension
    for way_out in ("custom-call", "infeed", "outfeed", " send(", " recv(", "callback"):
        assert way_out not in text
    graph = step.get_concrete_function(*batch(dtype)).graph
    operations = {node.op for node in graph.as_graph_def(add_shapes=True).node}
    assert not operations & {"PyFunc", "EagerPyFunc", "PyFuncStateless", "NumpyFunction"}
    assert not [t for op in graph.get_operations() for t in op.outputs if t.dtype == tf.float64]


def test_that_test_can_fail():
    """A step with a float64 schedule is caught by the types of its HLO."""
    x = tf.Variable([1.0])
    optimizer = CoolMomentum(0.1, schedule=lambda n: 0.5 * tf.cast(n, tf.float64) * 0)
    optimizer.build([x])
    step = tf.function(lambda g: optimizer.apply([g], [x]), jit_compile=True)
    assert "f64" in types(step.experimental_get_compiler_ir(tf.ones(1))(stage="hlo"))


# --- checkpoints ----------------------------------------------------------------------------------


def test_a_tensorflow_checkpoint_resumes_bit_for_bit(tmp_path):
    """tf.train.Checkpoint has clock and displacements."""
    whole, part, again = (perceptron() for _ in "abc")
    steps = [train_step(*pair, jit_compile=False) for pair in (whole, part, again)]
    x, y = batch()
    for _ in range(5):
        steps[0](x, y)
    for _ in range(2):
        steps[1](x, y)
    path = tf.train.Checkpoint(model=part[0], optimizer=part[1]).save(tmp_path / "checkpoint")
    loaded = tf.train.Checkpoint(model=again[0], optimizer=again[1]).restore(path)
    loaded.assert_existing_objects_matched().assert_consumed()
    assert int(again[1].iterations) == 2
    assert again[1].temperature() == part[1].temperature() > 0
    for _ in range(3):
        steps[2](x, y)
    for one, other in zip(
        again[0].weights + again[1].variables, whole[0].weights + whole[1].variables, strict=True
    ):
        np.testing.assert_array_equal(numpy(one), numpy(other))


def test_a_tensorflow_checkpoint_has_the_cooling(tmp_path):
    """Of a run that was extended: what is restored cools on so, and says so."""
    part, again = perceptron(), perceptron()
    steps = [train_step(*pair, jit_compile=True) for pair in (part, again)]
    for step in steps:
        step(*batch())
    part[1].extend(40)
    path = tf.train.Checkpoint(model=part[0], optimizer=part[1]).save(tmp_path / "checkpoint")
    tf.train.Checkpoint(model=again[0], optimizer=again[1]).restore(path)
    assert again[1].schedule == part[1].schedule
    assert again[1].get_config() == part[1].get_config()
    for step in steps:
        step(*batch())
        assert step.experimental_get_tracing_count() == 1
    for one, other in zip(
        again[0].weights + again[1].variables, part[0].weights + part[1].variables, strict=True
    ):
        np.testing.assert_array_equal(numpy(one), numpy(other))


def test_a_trained_model_is_exported(tmp_path):
    """A SavedModel holds the network and not the optimizer, which does not stand in its way."""
    model, _ = perceptron()
    model.compile(CoolMomentum(0.01, **SETTINGS), "mse")
    model.fit(np.ones((8, 4)), np.zeros((8, 2)), verbose=0)
    model.export(tmp_path / "model", verbose=False)
    served = tf.saved_model.load(tmp_path / "model")
    np.testing.assert_allclose(
        served.serve(tf.ones((3, 4))), model(tf.ones((3, 4))), rtol=0, atol=32 * U32
    )
