"""The thermometer in training loops and models of other kinds."""

import contextlib

import keras
import numpy as np
import pytest
from keras_meter_tools import JIT, SIZE, Line, dense, fit, line, ones, said
from keras_tools import BACKEND

from coolmomentum.keras import CoolMomentum, Thermometer
from coolmomentum.keras import _thermometer as module


class OwnStep(keras.Model):
    """Trains its two players by optimizers of their own, as a GAN; the one of compile is idle."""

    def __init__(self, times=1):
        super().__init__()
        self.player, self.other = keras.layers.Dense(1), keras.layers.Dense(1)
        self.mine, self.its = (keras.optimizers.SGD(rate, momentum=0.5) for rate in (0.1, 0.2))
        self.times = times  # steps of the first optimizer in a batch

    def build(self, shape):
        """Build the players."""
        self.player.build(shape), self.other.build(shape)

    def call(self, x):
        """Both."""
        return self.player(x) + self.other(x)

    def loss_of(self, x):
        """Of both players."""
        return keras.ops.mean(self(x) ** 2)

    def train_step(self, data):
        """One step of each."""
        x, _ = data
        both = [(self.mine, self.player)] * self.times + [(self.its, self.other)]
        for optimizer, player in both:
            if BACKEND == "tensorflow":
                import tensorflow as tf

                with tf.GradientTape() as tape:
                    loss = self.loss_of(x)
                gradients = tape.gradient(loss, player.trainable_variables)
            else:
                self.zero_grad()
                self.loss_of(x).backward()
                gradients = [v.value.grad for v in player.trainable_variables]
            with no_grad():
                optimizer.apply(gradients, player.trainable_variables)
        return {"loss": self.loss_of(x)}


def no_grad():
    """On PyTorch without gradients."""
    if BACKEND != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()


@pytest.mark.skipif(BACKEND == "jax", reason="there a train_step has no state but the model's")
def test_a_model_with_its_own_optimizers_trains_on():
    """The one of compile takes no step: NaN, one warning that says what to do; named it reads."""
    model = OwnStep()
    model.compile(loss="mse")
    idle, mine = Thermometer(), Thermometer(optimizer=model.mine)
    with pytest.warns(UserWarning, match=r"took 0 steps in 12 batches.*optimizer=") as told:
        history = model.fit(*dense(), batch_size=1, epochs=2, verbose=0, callbacks=[idle, mine])
    assert len(said(told)) == 1
    assert len(history.history["temperature"]) == 2
    assert idle.read()["steps"] == 0
    assert np.isnan(idle.read()["temperature"])
    reading = mine.read()
    assert reading["steps"] == 12
    assert reading["rho"] == pytest.approx(0.5)
    assert reading["temperature"] > 0
    assert list(mine.read("parameter")) == [x.path for x in model.player.trainable_variables]


@pytest.mark.skipif(BACKEND == "jax", reason="there a train_step has no state but the model's")
def test_several_steps_in_a_batch_are_said():
    """What cannot be told apart reads NaN, with one warning."""
    model = OwnStep(times=3)
    model.compile(loss="mse")
    mine = Thermometer(optimizer=model.mine)
    with pytest.warns(UserWarning, match="took 36 steps in 12 batches"):
        model.fit(*dense(), batch_size=1, verbose=0, callbacks=[mine])
    assert np.isnan(mine.read()["rescaled_temperature"])


@pytest.mark.skipif(BACKEND != "jax", reason="a train_step of JAX")
def test_a_model_that_takes_its_own_steps_trains_on():
    """Without any optimizer: NaN, and one warning."""
    import jax

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.player = keras.layers.Dense(1)

        def call(self, x):
            return self.player(x)

        def train_step(self, state, data):
            trainable, others, optimizer, metrics = state

            def loss(xs):
                return jax.numpy.mean(self.stateless_call(xs, others, data[0])[0] ** 2)

            trainable = [
                x - 0.1 * g for x, g in zip(trainable, jax.grad(loss)(trainable), strict=True)
            ]
            return {}, (trainable, others, optimizer, metrics)

    model, thermometer = Own(), Thermometer()
    model.compile(loss="mse")
    with pytest.warns(UserWarning, match="took 0 steps in 12 batches"):
        model.fit(*dense(), batch_size=1, verbose=0, callbacks=[thermometer])
    assert np.isnan(thermometer.read()["temperature"])


def test_what_is_not_measured_does_not_stop_the_training(monkeypatch):
    """An error within the thermometer is the reason that its one warning gives."""

    def broken(*_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(module.Meter, "after", broken)
    model = line(keras.optimizers.SGD(0.5))
    with pytest.warns(UserWarning, match="no reading: RuntimeError: out of luck") as told:
        history = fit(model, Thermometer(), epochs=2)
    assert len(said(told)) == 1
    assert "temperature" not in history
    assert keras.ops.convert_to_numpy(model.trainable_variables[0])[0] == -6


def test_another_optimizer_is_refused():
    """When the thermometer is made."""
    with pytest.raises(TypeError, match=r"optimizer must be a keras.optimizers.Optimizer: 'sgd'"):
        Thermometer(optimizer="sgd")


@pytest.mark.parametrize("eagerly", [False, True])
def test_a_model_that_is_not_built_yet(eagerly):
    """A subclass of Model has its variables after the first batch; all steps count."""

    class Late(keras.Model):
        def __init__(self):
            super().__init__()
            self.line = Line()

        def call(self, x):
            return self.line(x)

    model, thermometer = Late(), Thermometer()
    options = {"run_eagerly": True} if eagerly else {"jit_compile": JIT}
    model.compile(keras.optimizers.SGD(0.5), lambda y, out: out, **options)
    fit(model, thermometer)
    assert thermometer.read()["steps"] == 6
    assert thermometer.read()["temperature"] == pytest.approx(0.25, rel=1e-6)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_batches_of_a_generator_of_unknown_length_are_the_steps():
    """The end of the data is no step, and each epoch goes on."""
    accumulated = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
    thermometer = Thermometer()
    x, y = ones(6)
    batches = ((x[i : i + 1], y[i : i + 1]) for _ in range(3) for i in range(6))
    model = line(accumulated)
    history = model.fit(batches, shuffle=False, verbose=0, callbacks=[thermometer]).history
    assert thermometer.read()["steps"] == 9
    assert history["rescaled_temperature"] == pytest.approx([0.25], rel=1e-6)


def test_a_loop_of_train_on_batch():
    """By the hooks of Keras, and reset, windows of one's own; reading leaves them as they are."""
    model, thermometer = line(keras.optimizers.SGD(0.5)), Thermometer()
    thermometer.set_model(model)
    thermometer.on_train_begin()
    x, y = ones(1)
    for i in range(4):
        thermometer.on_train_batch_begin(i)
        model.train_on_batch(x, y)
    assert thermometer.read()["steps"] == thermometer.read()["steps"] == 4
    assert thermometer.read(reset=True)["temperature"] == pytest.approx(0.25, rel=1e-6)
    assert thermometer.read()["steps"] == 0
    thermometer.on_train_batch_begin(4)
    model.train_on_batch(2 * x, y)
    assert thermometer.read()["steps"] == 1
    assert thermometer.read()["rescaled_temperature"] == pytest.approx(1, rel=1e-6)


def test_steps_that_the_model_does_not_take_are_said():
    """In a loop without train_function nothing is seen, and that is the warning."""
    model, thermometer = line(keras.optimizers.SGD(0.5)), Thermometer()
    model.optimizer.build(model.trainable_variables)
    thermometer.set_model(model)
    thermometer.on_train_begin()
    for i in range(3):
        thermometer.on_train_batch_begin(i)
        model.optimizer.apply([keras.ops.ones((SIZE,))])
    with pytest.warns(UserWarning, match="took 3 steps in 0 batches"):
        assert thermometer.read()["steps"] == 3


def test_each_fit_and_each_model_begins_anew():
    """One thermometer: two fits, another compile, another model, another optimizer."""
    thermometer = Thermometer()
    model = line(keras.optimizers.SGD(0.5))
    first = fit(model, thermometer)["temperature"]
    assert fit(model, thermometer)["temperature"] == pytest.approx(first, rel=1e-5)
    fit(model, steps=3)  # without it
    assert thermometer.read()["steps"] == 6
    model.compile(keras.optimizers.SGD(2.0), lambda y, out: out, jit_compile=JIT)
    assert fit(model, thermometer)["temperature"] == pytest.approx([1.0], rel=1e-5)
    other = line(CoolMomentum(1.0, total_steps=9, law="constant", rho0=0.0))
    assert fit(other, thermometer)["temperature"] == pytest.approx([0.25], rel=1e-5)
    assert other.train_function.__qualname__.count("Thermometer") == 0


def test_frozen_variables_are_left_out():
    """A layer that is not trainable has no row, also where an optimizer has it."""
    layers = [keras.layers.Dense(1, name=name) for name in ("frozen", "free")]
    model = keras.Sequential([keras.Input((2,)), *layers])
    model.compile("sgd", "mse", jit_compile=JIT)
    thermometer = Thermometer()
    model.fit(*dense(), verbose=0, callbacks=[thermometer])
    assert len(thermometer.read("parameter")) == 4
    layers[0].trainable = False
    model.compile("sgd", "mse", jit_compile=JIT)
    model.fit(*dense(), verbose=0, callbacks=[thermometer])
    assert len(thermometer.read("parameter")) == 2


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="Keras 3.12 has no such optimizer"
)
def test_a_part_of_a_multi_optimizer():
    """The whole has no one temperature; one of its optimizers has that of its variables."""
    kernel, bias = keras.optimizers.SGD(0.1), keras.optimizers.Adam(0.01)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    chosen = keras.optimizers.MultiOptimizer(lambda x: kernel if "kernel" in x.path else bias)
    model.compile(chosen, "mse", jit_compile=JIT)
    whole, part = Thermometer(), Thermometer(optimizer=kernel)
    model.fit(*dense(), batch_size=4, verbose=0, callbacks=[whole, part])
    assert whole.read()["rescaled_temperature"] > 0
    assert np.isnan(whole.read()["temperature"])
    (name,) = part.read("parameter")
    assert "kernel" in name
    row = part.read()
    assert row["temperature"] == pytest.approx(row["rescaled_temperature"] / 0.2, rel=1e-5)
    assert whole.read("parameter")[name]["rescaled_temperature"] == row["rescaled_temperature"]


def test_a_step_of_ones_own_has_no_known_temperature():
    """A subclass of SGD that takes other steps is not SGD."""

    class Signs(keras.optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate):
            rate = keras.ops.cast(learning_rate, variable.dtype)
            self.assign_sub(variable, rate * keras.ops.sign(gradient))

        def _parallel_update_step(self, grads, variables, learning_rate):
            for gradient, variable in zip(grads, variables, strict=True):
                self.update_step(gradient, variable, learning_rate)

    thermometer = Thermometer()
    fit(line(Signs(0.5)), thermometer)
    reading = thermometer.read()
    assert reading["rescaled_temperature"] == pytest.approx(0.25, rel=1e-6)
    assert np.isnan(reading["temperature"])
    assert np.isnan(reading["rho"])
