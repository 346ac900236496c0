"""The Keras callback in other hands: names, learning rates, other callbacks, debuggers."""

import contextlib
import copy
import csv
import pickle
import warnings

import keras
import numpy as np
import pytest
from exact import U32
from keras_meter_tools import JIT, dense, fit, line, ones, said
from keras_tools import BACKEND

from coolmomentum.keras import CoolMomentum, Thermometer


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
