"""The Thermometer callback: the core's window in fit, closed forms, and where its readings go."""

import csv

import keras
import numpy as np
import pytest
from exact import U32
from keras_tools import BACKEND, numpy

from coolmomentum import learning_rate_from_sgd
from coolmomentum.keras import CoolMomentum, Thermometer
from coolmomentum.thermometer import READINGS, Rows, Window, pair_sums

RNG = np.random.default_rng(0)
X = RNG.standard_normal((96, 3)).astype("float32")
Y = (X @ np.array([[1.0], [-2.0], [0.5]], "float32")).astype("float32")
JIT = BACKEND != "torch"  # compiling there takes some seconds each time


def model_of(optimizer, **options):
    """A linear model with batch normalization, of a known beginning."""
    layers = [keras.layers.BatchNormalization(), keras.layers.Dense(1, kernel_initializer="ones")]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile(optimizer, "mse", **{"jit_compile": JIT} | options)
    return model


def fit(model, *callbacks, epochs=1, batch_size=4):
    """Its history."""
    return model.fit(
        X, Y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0, callbacks=[*callbacks]
    ).history


class Path(keras.callbacks.Callback):
    """The trainable variables after each batch."""

    def on_train_begin(self, logs=None):
        """Before the first."""
        self.steps = [[numpy(x).astype("float64") for x in self.model.trainable_variables]]

    def on_train_batch_end(self, batch, logs=None):
        """After one."""
        self.steps.append([numpy(x).astype("float64") for x in self.model.trainable_variables])


OPTIMIZERS = {
    "cool": (lambda: CoolMomentum(0.02, 30, 0.8), None),
    "sgd": (lambda: keras.optimizers.SGD(0.02, momentum=0.5), 0.5),
    "decay": (lambda: keras.optimizers.SGD(0.02, weight_decay=0.5), 0.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_reads_what_the_window_of_the_core_reads(name):
    """On the same path in float64; every=2, span=4, 24 steps; the decay taken out.

    A displacement of some 1e-3 from float32 variables of order 1 is wrong by 2 U32 in 1e-3, a
    reading divides by at least 0.1 of it.
    """
    make, rho = OPTIMIZERS[name]
    model, path, thermometer = model_of(make()), Path(), Thermometer(2, 4)
    fit(model, path, thermometer)
    xs, schedule = path.steps, getattr(model.optimizer, "schedule", lambda step: rho)
    shrink = 1 - 0.5 * 0.02 if name == "decay" else 1
    dt2 = 0.02 if name == "cool" else learning_rate_from_sgd(0.02, rho)
    rows = Rows(tuple(x.size for x in xs[0]), (2, 2))
    window, start = Window.empty(np.zeros(len(rows))), xs[0]
    for n in range(1, len(xs)):
        window = window.step()
        if n % 2 == 0:
            before, now = (
                [b - shrink * a for a, b in zip(xs[i - 1], xs[i], strict=True)] for i in (n - 1, n)
            )
            window = window.add(pair_sums(before, now), rows, rho=schedule(n - 1), dt2=dt2)
        if n % 4 == 0:
            way = [x - x0 for x, x0 in zip(xs[n], start, strict=True)]
            sums = [[np.sum(y * z) for y, z in zip(way, zs, strict=True)] for zs in (way, now)]
            window, start = window.end_span(*map(np.array, sums), rows, rho=schedule(n - 1)), xs[n]
    expected = window.read(rows)
    assert thermometer.read()["steps"] == 24
    paths = [x.path for x in model.trainable_variables]
    assert list(thermometer.read("parameter")) == paths
    assert list(thermometer.read("group")) == list(
        dict.fromkeys(path.rpartition("/")[0] for path in paths)
    )
    every = [
        *thermometer.read("parameter").values(),
        *thermometer.read("group").values(),
        thermometer.read(),
    ]
    for reading in ("rescaled_temperature", "temperature", "rho", "correlation", "freeze_out"):
        got, size = [x[reading] for x in every], 2 * U32 / 1e-3 / 0.1
        np.testing.assert_allclose(got, expected[reading], rtol=size, atol=size, err_msg=reading)


class Noise(keras.layers.Layer):
    """Weights whose gradient is the batch, of one row, plus k times the weights."""

    def __init__(self, k=0.0):
        super().__init__()
        self.k = k

    def build(self, shape):
        """Make the weights."""
        self.w = self.add_weight(
            shape=(shape[-1],),
            initializer="zeros",
            regularizer=keras.regularizers.L2(self.k / 2) if self.k else None,
        )

    def call(self, x):
        """Give what has the batch for a gradient."""
        return keras.ops.sum(x * self.w, -1)


def wander(optimizer, k=0.0, steps=400, size=2000):
    """The reading of a noisy walk, after an epoch to come to rest."""
    model = keras.Sequential([keras.Input((size,)), Noise(k)])
    model.compile(optimizer, lambda y, out: out, jit_compile=JIT)
    noise = np.random.default_rng(0).standard_normal((steps, size)).astype("float32")
    thermometer = Thermometer(every=5, span=50)
    model.fit(noise, np.zeros(steps), batch_size=1, epochs=2, verbose=0, callbacks=[thermometer])
    return thermometer.read()


def test_stationary_walks_have_their_closed_forms():
    """At rho 1/2, dt**2 1, k 1: T22 is T / (1 - 1/4), three-point T, correlation 1/8, k dt**2 1.

    1.6e5 pairs: 4e-3 relative; five of them are allowed.
    """
    reading = wander(keras.optimizers.SGD(0.75, momentum=0.5), k=1.0)
    heat = 1.5 / 0.5 / 4  # Eq. 19
    assert reading["temperature"] == pytest.approx(heat / 0.75, rel=0.02)
    assert reading["three_point_temperature"] == pytest.approx(heat, rel=0.02)
    assert reading["correlation"] == pytest.approx(1 / 8, abs=0.02)
    assert reading["curvature"] == pytest.approx(1, abs=0.08)
    assert reading["drift"] == 0
    assert reading["freeze_out"] == pytest.approx(1, abs=0.1)


def test_the_temperature_of_adam_is_half_its_learning_rate_times_sigma():
    """In free diffusion; its second moment is known to some per cent at beta_2 = 0.999."""
    reading = wander(keras.optimizers.Adam(1e-3))
    assert reading["temperature"] == pytest.approx(5e-4, rel=0.05)
    assert abs(reading["freeze_out"]) < 0.1


def test_the_logs_reach_what_comes_after_it(tmp_path):
    """History always; CSVLogger after it, with the numbers of History."""
    file = tmp_path / "log.csv"
    thermometer = Thermometer(every=2, span=4)
    history = fit(
        model_of(CoolMomentum(0.02, 48, 0.8)),
        thermometer,
        keras.callbacks.CSVLogger(file),
        epochs=2,
    )
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    for name in ("rescaled_temperature", "temperature", "rho", "freeze_out"):
        assert [float(row[name]) for row in rows] == history[name]
        assert history[name][-1] == thermometer.read()[name]
    assert history["temperature"][1] < history["temperature"][0]


@pytest.mark.skipif(BACKEND == "torch", reason="there it is one everywhere")
def test_several_steps_in_one_execution_are_refused():
    """Nothing can be seen between them."""
    model = model_of("sgd", steps_per_execution=4)
    with pytest.raises(ValueError, match="steps_per_execution must be 1 for a Thermometer: 4"):
        fit(model, Thermometer())


def test_accumulated_batches_are_no_steps():
    """24 batches in twos are 12 steps, measured between applied ones."""
    optimizer = keras.optimizers.SGD(0.02, momentum=0.5, gradient_accumulation_steps=2)
    thermometer = Thermometer(1, 2)
    fit(model_of(optimizer), thermometer)
    alone = Thermometer(1, 2)
    assert thermometer.read()["steps"] == 12
    path = Path()
    fit(
        model_of(keras.optimizers.SGD(0.02, momentum=0.5, gradient_accumulation_steps=2)),
        path,
        alone,
    )
    moves = [
        np.concatenate([np.ravel(b - a) for a, b in zip(x, y, strict=True)])
        for x, y in zip(path.steps[:-1], path.steps[1:], strict=True)
    ]
    expected = np.mean([move**2 for move in moves if move.any()])
    assert alone.read()["rescaled_temperature"] == pytest.approx(expected, rel=1e-3)


def test_all_weights_count_the_moving_statistics():
    """The paper's way is hotter, and has no temperature of what has no mass."""
    readings = []
    for all_weights in (False, True):
        thermometer = Thermometer(2, 4, all_weights=all_weights, readings=READINGS)
        fit(model_of(keras.optimizers.Adam(1e-5)), thermometer)
        readings.append(thermometer.read())
        names = thermometer.read("parameter")
        assert any("moving_mean" in name for name in names) == all_weights
    walk, paper = (reading["rescaled_temperature"] for reading in readings)
    assert paper > 100 * walk
    assert np.isnan(readings[1]["temperature"])


def test_bad_arguments():
    """Fail at once, and reading before the end of an epoch does."""
    with pytest.raises(ValueError, match="span must be a multiple of every, 3: 10"):
        Thermometer(3, 10)
    with pytest.raises(ValueError, match="readings must be one of"):
        Thermometer(readings=["heat"])
    with pytest.raises(RuntimeError, match="after the end of an epoch"):
        Thermometer().read()
