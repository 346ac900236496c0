"""The Thermometer callback in other hands: other callbacks, models, loops and debuggers."""

import contextlib
import copy
import csv
import pickle
import warnings

import keras
import numpy as np
import pytest
from exact import U32
from keras_tools import BACKEND

from coolmomentum.keras import CoolMomentum, Thermometer
from coolmomentum.keras import _thermometer as module

JIT = BACKEND == "jax"
SIZE = 5
TEMPERATURE = ("rescaled_temperature", "temperature", "three_point_temperature", "curvature")


class Line(keras.layers.Layer):
    """Weights whose gradient is the batch, of one row."""

    def build(self, shape):
        """Make the weights."""
        self.w = self.add_weight(shape=(shape[-1],), initializer="zeros", name="w")

    def call(self, x):
        """Give what has the batch for a gradient."""
        return keras.ops.sum(x * self.w, -1)


def line(optimizer, **options):
    """A model each of whose steps moves SGD by its learning rate, if the batches are ones."""
    model = keras.Sequential([keras.Input((SIZE,)), Line()])
    model.compile(optimizer, lambda y, out: out, **{"jit_compile": JIT} | options)
    return model


def ones(steps, scale=1.0):
    """Batches that are the gradients."""
    return np.full((steps, SIZE), scale, "float32"), np.zeros(steps, "float32")


def fit(model, *callbacks, steps=6, **options):
    """Its history, after steps whose gradients are ones."""
    settings = {"batch_size": 1, "verbose": 0, "shuffle": False, "callbacks": [*callbacks]}
    return model.fit(*ones(steps), **settings | options).history


def said(told):
    """The warnings of the thermometer among others: Keras makes NumPy deprecate things."""
    return [x for x in told if x.category is UserWarning]


def dense(inputs=2, outputs=1):
    """Data for models of layers."""
    random = np.random.default_rng(0)
    x = random.standard_normal((12, inputs)).astype("float32")
    return x, random.standard_normal((12, outputs)).astype("float32")


# --- names ----------------------------------------------------------------------------------------


def test_equal_names_keep_their_rows():
    """Two towers with a layer fc each have four parameters in two groups."""
    inputs, towers = keras.Input((2,)), []
    for _ in range(2):
        x = keras.Input((2,))
        towers.append(keras.Model(x, keras.layers.Dense(1, name="fc")(x)))
    model = keras.Model(inputs, keras.layers.add([tower(inputs) for tower in towers]))
    model.compile("sgd", "mse", jit_compile=JIT)
    thermometer = Thermometer()
    model.fit(*dense(), verbose=0, callbacks=[thermometer])
    paths = [x.path for x in model.trainable_variables]
    rows, groups = thermometer.read("parameter"), thermometer.read("group")
    assert len(rows) == len(paths) == 4
    assert len(groups) == 2
    assert list(rows) == ["fc/kernel", "fc/bias", "fc/kernel#2", "fc/bias#2"]
    assert list(groups) == ["fc", "fc#2"]
    assert all(row["rescaled_temperature"] > 0 for row in [*rows.values(), *groups.values()])
    # Both biases have the one gradient, and so have the groups one reading of them.
    biases = [row["rescaled_temperature"] for name, row in rows.items() if "bias" in name]
    assert biases[0] == biases[1]


def test_two_nets_of_keras_applications_keep_their_rows():
    """Each has layers of the same names."""
    inputs = keras.Input((32, 32, 3))
    nets = [
        keras.applications.MobileNet((32, 32, 3), alpha=0.25, weights=None, classes=2, name=name)
        for name in "ab"
    ]
    model = keras.Model(inputs, keras.layers.add([net(inputs) for net in nets]))
    model.compile("sgd", "mse", jit_compile=JIT)
    thermometer = Thermometer()
    x, y = np.ones((2, 32, 32, 3), "float32"), np.zeros((2, 2), "float32")
    model.fit(x, y, verbose=0, callbacks=[thermometer])
    rows = thermometer.read("parameter")
    assert len(rows) == len(model.trainable_variables)
    half = len(rows) // 2
    assert len(thermometer.read("group")) == 2 * len(
        {name.rpartition("/")[0] for name in list(rows)[:half]}
    )


# --- the learning rate ----------------------------------------------------------------------------


def rate_set(hook, rates):
    """A callback that sets the next of some rates at a hook."""

    class Setter(keras.callbacks.Callback):
        coming = iter(rates)

    def on_batch(self, batch, logs=None):
        self.model.optimizer.learning_rate = next(self.coming)

    setattr(Setter, hook, on_batch)
    return Setter()


@pytest.mark.parametrize("first", [True, False], ids=["before it", "after it"])
@pytest.mark.parametrize("hook", ["on_train_batch_begin", "on_train_batch_end"])
def test_the_rate_is_that_of_the_step(hook, first):
    """At SGD's rate r_n, dx = r_n and dt**2 = 2 r_n: the temperature is half the mean rate."""
    rates = [0.5, 0.25, 0.125, 2.0, 1.0, 4.0]
    setter, thermometer = rate_set(hook, rates), Thermometer()
    model = line(keras.optimizers.SGD(8.0))
    fit(model, *((setter, thermometer) if first else (thermometer, setter)))
    used = rates if hook == "on_train_batch_begin" else [8.0, *rates[:-1]]
    assert thermometer.read()["temperature"] == pytest.approx(np.mean(used) / 2, rel=1e-6)


@pytest.mark.parametrize(
    "make", [keras.optimizers.SGD, lambda rate: CoolMomentum(rate, law="constant", rho0=0.0)]
)
def test_a_rate_reduced_at_the_end_of_an_epoch_is_not_yet_in_it(make):
    """ReduceLROnPlateau, before the thermometer in the list, sets the rate after the last step."""
    reduce = keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1, mode="max")
    thermometer, model = Thermometer(), line(make(0.5))
    history = fit(model, reduce, thermometer, epochs=3, steps=3)
    moved = 0.5 if isinstance(model.optimizer, keras.optimizers.SGD) else 0.25
    dt2 = 2 * moved
    used = np.array(history["learning_rate"])  # those that the epochs began with
    assert used[-1] < used[0]
    expected = [(moved * r / 0.5) ** 2 / (dt2 * r / 0.5) for r in used]
    assert history["temperature"] == pytest.approx(expected, rel=1e-5)


def test_a_schedule_of_the_rate_is_that_of_the_step():
    """PiecewiseConstantDecay changes within the window, with accumulated gradients too."""
    for accumulated in (None, 2):
        every = accumulated or 1
        schedule = keras.optimizers.schedules.PiecewiseConstantDecay([3 * every - 1], [1.0, 0.5])
        optimizer = keras.optimizers.SGD(schedule, gradient_accumulation_steps=accumulated)
        thermometer = Thermometer()
        fit(line(optimizer), thermometer, steps=6 * every)
        reading = thermometer.read()
        assert reading["steps"] == 6
        assert reading["temperature"] == pytest.approx((3 * 1.0 + 3 * 0.5) / 2 / 6, rel=1e-6)


@pytest.mark.parametrize(
    "make", [keras.optimizers.SGD, lambda rate: CoolMomentum(rate, total_steps=20)]
)
def test_the_first_step_of_a_warm_up_from_0_has_the_temperature_0(make):
    """Nothing moved: no NaN."""
    warm_up = keras.optimizers.schedules.PolynomialDecay(0.0, 10, 0.1)
    history = fit(line(make(warm_up)), Thermometer(), steps=1)
    assert history["temperature"] == history["rescaled_temperature"] == [0.0]


# --- callbacks that change the variables ----------------------------------------------------------


@pytest.mark.parametrize("first", [True, False], ids=["before it", "after it"])
def test_weights_swapped_for_their_averages_are_no_displacement(first):
    """SwapEMAWeights swaps at the ends of epochs, wherever it is in the list."""

    def readings(*swaps):
        thermometer = Thermometer(readings=("rescaled_temperature", "correlation"))
        model = line(keras.optimizers.SGD(0.5, momentum=0.5, use_ema=True, ema_momentum=0.5))
        order = (*swaps, thermometer) if first else (thermometer, *swaps)
        return fit(model, *order, epochs=3, steps=4)

    plain, swapped = readings(), readings(keras.callbacks.SwapEMAWeights(swap_on_epoch=True))
    for name in ("rescaled_temperature", "correlation"):
        assert swapped[name] == pytest.approx(plain[name], rel=1e-5)


def test_weights_that_a_callback_sets_are_no_displacement():
    """Between two batches; 100 would be seen in the mean square."""

    class Jump(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            for x in self.model.trainable_variables:
                x.assign(x + 100.0)

    thermometer = Thermometer()
    fit(line(keras.optimizers.SGD(0.5)), Jump(), thermometer)
    # In 6 steps places stay below 700; their rounding is that of 0.5, which is squared.
    near = pytest.approx(0.25, rel=2 * 700 * U32 / 0.5)
    assert thermometer.read()["rescaled_temperature"] == near


def test_validation_and_early_stopping_are_no_steps():
    """Each epoch reads its six steps, and the one that stops the fit reads those it made."""

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 2 and self.epoch == 1

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

    thermometer = Thermometer()
    stop = keras.callbacks.EarlyStopping("loss", patience=5, restore_best_weights=True)
    history = fit(
        line(keras.optimizers.SGD(0.5)),
        *(stop, thermometer, Stop()),
        epochs=4,
        validation_data=ones(3),
        validation_batch_size=1,
    )
    assert history["rescaled_temperature"] == pytest.approx([0.25, 0.25], rel=1e-5)
    assert thermometer.read()["steps"] == 3


# --- models and loops -----------------------------------------------------------------------------


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


# --- the first readings ---------------------------------------------------------------------------


def test_short_epochs_are_read_from_the_first_on(tmp_path):
    """Four steps at every=10 have a temperature; the log has no reading that does not exist."""
    file, thermometer = tmp_path / "log.csv", Thermometer()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        history = fit(
            line(keras.optimizers.SGD(0.5)),
            *(thermometer, keras.callbacks.CSVLogger(file)),
            steps=4,
            epochs=2,
        )
    assert history["temperature"] == pytest.approx([0.25] * 2, rel=1e-6)
    assert "freeze_out" not in history
    with file.open() as lines:
        assert "nan" not in str(list(csv.DictReader(lines)))


def test_a_window_without_a_measured_step_is_said_once():
    """Of steps 13 to 20 in fours only the 20th is measured: the fourth window has none."""
    thermometer = Thermometer()
    with pytest.warns(UserWarning, match=r"none of the 4 steps.*every=10") as told:
        history = fit(line(keras.optimizers.SGD(0.5)), thermometer, steps=4, epochs=7)
    assert len(said(told)) == 1
    assert len(history["loss"]) == 7
    assert len(history["temperature"]) == 4  # windows 1, 2, 3, 5


def test_without_a_training_there_is_nothing_to_read():
    """No steps, and nothing known."""
    reading = Thermometer().read()
    assert reading.pop("steps") == 0
    assert all(np.isnan(value) for value in reading.values())
    assert Thermometer().read("parameter") == {}


# --- copies and debuggers -------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_has_the_settings_and_the_readings(copied):
    """After a fit, as hyperparameter tuners make one; it measures in the next."""
    thermometer, model = Thermometer(2, 4), line(keras.optimizers.SGD(0.5))
    fit(model, thermometer)
    again = copied(thermometer)
    for by in ("all", "group", "parameter"):
        assert str(again.read(by)) == str(thermometer.read(by))
    assert fit(model, again)["temperature"] == pytest.approx([0.25], rel=1e-5)


@contextlib.contextmanager
def nan_debugger():
    """What stops at the first NaN or infinity that is made, on the backend."""
    if BACKEND == "jax":
        import jax

        with jax.debug_nans(True), jax.debug_infs(True):
            yield
        return
    import tensorflow as tf

    tf.debugging.enable_check_numerics()
    try:
        yield
    finally:
        tf.debugging.disable_check_numerics()


@pytest.mark.skipif(BACKEND == "torch", reason="it has no such debugger outside of autograd")
@pytest.mark.parametrize("name", ["SGD", "Nadam", "Adam", "RMSprop", "scaled"])
def test_no_nan_is_made(name):
    """Before it is read: where nothing is known, moved or has ended yet, too."""
    kinds = keras.optimizers
    if name == "scaled":
        optimizer = kinds.LossScaleOptimizer(kinds.Adam(0.1), initial_scale=8.0)
    else:
        optimizer = getattr(kinds, name)(0.0 if name == "SGD" else 0.1)
    with nan_debugger():
        thermometer = Thermometer(1, 3)
        fit(line(optimizer), thermometer, epochs=2, steps=4)
    assert thermometer.read()["steps"] == 4
