"""rho, temperature and rescaled temperature: pooled, by variable, and as a tensor."""

import keras
import numpy as np
import pytest
from exact import U32
from keras import ops
from keras_tools import BACKEND, follow, gradients, numpy, oracle_run, variables

from coolmomentum.keras import CoolMomentum


def test_readings_of_a_trajectory(floatx):
    """After two steps of trajectory B: v = -131/512, T = v**2 / dt**2; then rho is 0."""
    (x,) = variables([np.ones(1)])
    optimizer = CoolMomentum(0.25, 2, 0.75)
    assert (optimizer.rho, optimizer.temperature(), optimizer.temperatures()) == (0.75, 0.0, {})
    for rho in (0.5, 0.0):
        optimizer.apply([ops.convert_to_tensor(numpy(x))], [x])
        assert optimizer.rho == rho
    close = {"rel": 8 * U32, "abs": 0}
    v2 = (131 / 512) ** 2
    assert optimizer.rescaled_temperature() == pytest.approx(v2, **close)
    assert optimizer.temperature() == pytest.approx(4 * v2, **close)
    assert optimizer.rescaled_temperatures() == pytest.approx({x.path: v2}, **close)
    assert optimizer.temperatures() == pytest.approx({x.path: 4 * v2}, **close)


def test_floats_and_tensors_agree(floatx):
    """Each reading is a Python float; temperature_tensor is a 0-d tensor of its value."""
    params = variables(gradients(1)[0])
    optimizer = CoolMomentum(0.01, 10)
    follow(optimizer, params, gradients(3))
    for name in ("temperature", "rescaled_temperature"):
        readings = getattr(optimizer, name)(), *getattr(optimizer, f"{name}s")().values()
        assert [type(reading) for reading in readings] == [float] * (1 + len(params))
    assert type(optimizer.rho) is float
    tensor = optimizer.temperature_tensor()
    assert ops.is_tensor(tensor)
    assert tensor.shape == ()
    assert keras.backend.standardize_dtype(tensor.dtype) == floatx
    assert optimizer.temperature() == float(numpy(tensor))


def test_pooled_and_by_variable():
    """The pooled reading is the oracle's, and the mean of the variables' by their sizes.

    Sums of up to 100 float32 squares: each has below 30 roundings before it is summed.
    """
    shapes = [(3, 4), (), (100,)]
    starts, grads = gradients(1, shapes, seed=1)[0], gradients(5, shapes)
    params = variables(starts)
    optimizer = CoolMomentum(0.01, 20, 0.9)
    follow(optimizer, params, grads)
    _, state = oracle_run(starts, grads, learning_rate=0.01, total_steps=20, rho0=0.9)
    squares = [np.sum(dx**2) for dx in state.displacements]
    sizes = [12, 1, 100]
    close = {"rel": 200 * U32, "abs": 0}
    msd = sum(squares) / sum(sizes)
    assert optimizer.rescaled_temperature() == pytest.approx(msd, **close)
    assert optimizer.temperature() == pytest.approx(msd / 0.01, **close)
    apart = [square / size for square, size in zip(squares, sizes, strict=True)]
    assert [*optimizer.rescaled_temperatures().values()] == pytest.approx(apart, **close)
    readings = optimizer.temperatures()
    assert [*readings.values()] == pytest.approx([t / 0.01 for t in apart], **close)


def test_variables_of_several_dtypes_are_pooled():
    """bfloat16 displacements are summed in float32: 300 of 4 and 100 of 2."""
    params = variables([np.zeros(300)], "bfloat16") + variables([np.zeros(100)], "float32")
    optimizer = CoolMomentum(0.5, 10)
    optimizer.build(params)
    optimizer._displacements[0].assign(np.full(300, 4.0))
    optimizer._displacements[1].assign(np.full(100, 2.0))
    optimizer._last_learning_rate.assign(0.5)
    assert optimizer.rescaled_temperature() == (300 * 16 + 100 * 4) / 400
    assert [*optimizer.temperatures().values()] == [32.0, 8.0]


def test_only_trainable_variables_count():
    """BatchNormalization's moving statistics have no displacement, and so no temperature."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    optimizer = CoolMomentum(0.1, 10)
    model.compile(optimizer, "mse")
    model.fit(np.ones((8, 3)) * 7, np.zeros((8, 3)), verbose=0)
    assert len(model.weights) == 4
    assert len(optimizer.temperatures()) == len(model.trainable_variables) == 2


@pytest.mark.parametrize("accumulation", [None, 2])
def test_the_temperature_is_over_the_learning_rate_of_its_step(accumulation):
    """A learning-rate schedule has moved on when the step is read: 1/4, then 1/16 for ever.

    Such a schedule counts microbatches; the step sees the last of them.
    """
    boundary = 1 if accumulation is None else 3  # the second step is the first with 1/16
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([boundary - 1], [0.25, 0.0625])
    (x,) = variables([np.zeros(2)])
    optimizer = CoolMomentum(
        rate, 10, 0.0, law="constant", gradient_accumulation_steps=accumulation
    )
    for expected in (0.25, 0.0625, 0.0625):
        follow(optimizer, [x], [[np.ones(2)]] * (accumulation or 1))
        # rho = 0: dx = -lr / 2, so dx**2 / lr = lr / 4
        assert optimizer.temperature() == pytest.approx(expected / 4, rel=4 * U32)


def test_weight_decay_is_no_displacement():
    """It is decoupled: with a gradient of zero the parameter shrinks and the temperature is 0."""
    (x,) = variables([np.ones(2)])
    optimizer = CoolMomentum(0.5, 10, weight_decay=0.25)
    follow(optimizer, [x], [[np.zeros(2)]])
    assert numpy(x).tolist() == [0.875, 0.875]
    assert optimizer.temperature() == 0.0


def test_a_callback_reads_them_while_it_trains():
    """Rho after each batch is the schedule's, and the temperature that of the batch."""
    readings = []

    class Reader(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            optimizer = self.model.optimizer
            readings.append((optimizer.rho, optimizer.rescaled_temperature(), self.weight()))

        def weight(self):
            return numpy(self.model.trainable_variables[0]).copy()

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    optimizer = CoolMomentum(0.01, 8, 0.9)
    model.compile(optimizer, "mse")
    before = numpy(model.trainable_variables[0]).copy()
    x = np.random.default_rng(0).standard_normal((16, 2)).astype("float32")
    model.fit(x, x[:, :1], batch_size=4, epochs=2, verbose=0, callbacks=[Reader()])
    assert [rho for rho, _, _ in readings] == [optimizer.schedule(n) for n in range(1, 9)]
    for _, rescaled, weight in readings:
        # Weights below 2: a difference of two is wrong by 4 U32, and its square by twice that.
        moved = float(np.abs(weight - before).max())
        expected = float(np.mean((weight - before) ** 2))
        assert rescaled == pytest.approx(expected, rel=0, abs=8 * U32 * moved + 16 * U32**2)
        before = weight


@pytest.mark.skipif(BACKEND == "torch", reason="the PyTorch backend computes eagerly")
def test_the_tensor_is_for_graphs():
    """Compiled, it is the number."""
    params = variables(gradients(1)[0])
    optimizer = CoolMomentum(0.01, 10)
    follow(optimizer, params, gradients(3))

    if BACKEND == "tensorflow":
        import tensorflow as tf

        temperature = tf.function(optimizer.temperature_tensor, jit_compile=True)()
    else:
        import jax

        @jax.jit
        def stateless_read(values):
            mapping = list(zip(optimizer.variables, values, strict=True))
            with keras.StatelessScope(state_mapping=mapping):
                return optimizer.temperature_tensor()

        temperature = stateless_read([v.value for v in optimizer.variables])
    assert float(temperature) == pytest.approx(optimizer.temperature(), rel=200 * U32)
