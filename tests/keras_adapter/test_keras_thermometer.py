"""The Thermometer callback: the core's window in fit, closed forms, and where its readings go."""

import csv
import importlib
import itertools
import threading

import keras
import numpy as np
import pytest
from exact import U32
from keras_tools import BACKEND, numpy

from coolmomentum import CoolingSchedule, learning_rate_from_sgd
from coolmomentum.keras import CoolMomentum, Thermometer
from coolmomentum.keras._meter import Meter
from coolmomentum.thermometer import READINGS, Dynamics, Layout, Sampling, Window, moments

RNG = np.random.default_rng(0)
X = RNG.standard_normal((104, 3)).astype("float32")
Y = (X @ np.array([[1.0], [-2.0], [0.5]], "float32")).astype("float32")
STEPS = 26  # of an epoch: not a multiple of the span
JIT = BACKEND == "jax"  # elsewhere compiling takes some seconds each time
NEAR = 2 * U32 / 1e-3 / 0.1  # relative error of what test_it_reads_what_the_window... says


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


def readings_of(xs, schedule, dt2, shrink):
    """The core's readings of the last epoch from the path in float64; every=2, span=4."""
    layout = Layout(tuple("abcd"), tuple(x.size for x in xs[0]), ("ab", "cd"), ((0, 1), (2, 3)))
    sampling, window, start = Sampling(2, 4), Window.empty(np.zeros(len(layout))), xs[0]
    now = [0 * x for x in xs[0]]
    for n in range(1, len(xs)):
        before, now = now, [b - shrink * a for a, b in zip(xs[n - 1], xs[n], strict=True)]
        window = window.next() if n % STEPS == 1 else window
        window = window.step()
        if sampling.measures(n):
            ends = sampling.ends_span(n)
            path = [x - x0 for x, x0 in zip(xs[n], start, strict=True)] if ends else None
            table = moments(now, before, path=path)
            how, weight = Dynamics(schedule(n - 1), dt2), sampling.weight(n)
            window = window.measure(table, layout, how, weight=weight, paired=n > 1)
            start = xs[n] if ends else start
    return window.readings(layout)


def assert_reads(thermometer, model, expected):
    """Whether rows, names and readings are those of the core."""
    assert thermometer.read()["steps"] == STEPS
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
        got = [x[reading] for x in every]
        np.testing.assert_allclose(got, expected[reading], rtol=NEAR, atol=NEAR, err_msg=reading)


def test_it_reads_what_the_window_of_the_core_reads(tmp_path):
    """On the same path in float64, the span going on from one epoch to the next; and the logs.

    A displacement of some 1e-3 from float32 variables of order 1 is wrong by 2 U32 in 1e-3, a
    reading divides by at least 0.1 of it. History has the readings, and CSVLogger, which comes
    after the thermometer, the numbers of History.
    """
    schedule, file = CoolingSchedule(60, 0.8), tmp_path / "log.csv"
    model, path, thermometer = (
        model_of(CoolMomentum(0.02, schedule=schedule)),
        Path(),
        Thermometer(2, 4),
    )
    history = fit(model, path, thermometer, keras.callbacks.CSVLogger(file), epochs=2)
    assert_reads(thermometer, model, readings_of(path.steps, schedule, 0.02, 1))
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    assert list(history) == ["loss", "rescaled_temperature", "temperature", "rho", "freeze_out"]
    for name in list(history)[1:]:
        assert [float(row[name]) for row in rows] == history[name]
        assert history[name][-1] == thermometer.read()[name]
    assert history["temperature"][1] < history["temperature"][0]


def test_decoupled_weight_decay_is_no_displacement():
    """With SGD the decay is taken out, except of the way that the freeze-out meter follows."""
    model = model_of(keras.optimizers.SGD(0.02, momentum=0.5, weight_decay=0.5))
    path, thermometer = Path(), Thermometer(2, 4)
    fit(model, path, thermometer)
    dt2 = learning_rate_from_sgd(0.02, 0.5)
    assert_reads(thermometer, model, readings_of(path.steps, lambda _: 0.5, dt2, 1 - 0.5 * 0.02))


def correlation_of(pairs):
    """Of displacements with those before them."""
    before, now = (np.concatenate(x) for x in zip(*pairs, strict=True))
    return before @ now / np.sqrt((before @ before) * (now @ now))


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

    1.6e5 pairs: 4e-3 relative; five of them are allowed. At the ends of a span of W, where y_W is
    the difference of two independent x, the meter loses (2 (1 - rho) <x**2> / <dx**2> + rho) /
    ((1 + rho) W) = 1.5 / 75: by the Lyapunov equation <x**2> = <dx**2> here.
    """
    reading = wander(keras.optimizers.SGD(0.75, momentum=0.5), k=1.0)
    heat = 1.5 / 0.5 / 4  # Eq. 19
    assert reading["temperature"] == pytest.approx(heat / 0.75, rel=0.02)
    assert reading["three_point_temperature"] == pytest.approx(heat, rel=0.02)
    assert reading["correlation"] == pytest.approx(1 / 8, abs=0.02)
    assert reading["curvature"] == pytest.approx(1, abs=4 * 0.02)
    assert reading["drift"] == 0
    error = reading["freeze_out_error"]
    assert reading["freeze_out"] == pytest.approx(1 - 1.5 / 75, abs=5 * error)
    assert error < 0.01


def test_the_temperature_of_adam_is_half_its_learning_rate_times_sigma():
    """In free diffusion, after 400 gradients, whose decaying mean of squares is one of n = 400.

    The temperature is then low by 1 / (4 n): 3/4 - 1 of 1/n, for the second moment's own scatter
    and for what it shares with the first. Its mean is of 1.6e5 squares, whose neighbours 5 steps
    apart share 0.9**10, 0.9**20, ...: four standard errors are 4 sqrt(2 (1 + 2 * 0.54) / 1.6e5).
    """
    reading = wander(keras.optimizers.Adam(1e-3))
    close = 1 / 1600 + 4 * (2 * (1 + 2 * 0.54) / 1.6e5) ** 0.5
    assert reading["temperature"] == pytest.approx(5e-4, rel=close)
    assert abs(reading["freeze_out"]) < 5 * reading["freeze_out_error"] < 0.1


@pytest.mark.skipif(BACKEND == "torch", reason="there it is one everywhere")
def test_several_steps_in_one_execution_are_refused():
    """Nothing can be seen between them."""
    model = model_of("sgd", steps_per_execution=4)
    with pytest.raises(ValueError, match="steps_per_execution must be 1 for a Thermometer: 4"):
        fit(model, Thermometer())


def test_accumulated_batches_are_no_steps():
    """26 batches in twos are 13 steps, measured between applied ones."""
    optimizer = keras.optimizers.SGD(0.02, momentum=0.5, gradient_accumulation_steps=2)
    path, thermometer = Path(), Thermometer(1, 2)
    fit(model_of(optimizer), path, thermometer)
    assert thermometer.read()["steps"] == 13
    moves = [
        np.concatenate([np.ravel(b - a) for a, b in zip(x, y, strict=True)])
        for x, y in zip(path.steps[:-1], path.steps[1:], strict=True)
    ]
    assert [bool(move.any()) for move in moves] == [False, True] * 13
    moves = np.array(moves[1::2])
    reading = thermometer.read()
    assert reading["rescaled_temperature"] == pytest.approx(np.mean(moves**2), rel=NEAR)
    assert reading["correlation"] == pytest.approx(
        correlation_of(itertools.pairwise(moves)), abs=NEAR
    )


def test_skipped_steps_do_not_count():
    """Of nine batches, the three that overflow are no steps, and no pair goes across them.

    A gradient is its batch, so displacements are sums of a few float32 numbers of order 0.01.
    """
    noise = np.random.default_rng(0).standard_normal((9, 500)).astype("float32")
    noise[[0, 3, 4]] = np.inf
    inner = keras.optimizers.SGD(0.01, momentum=0.5)
    model = keras.Sequential([keras.Input((500,)), Noise()])
    scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)
    model.compile(scaled, lambda y, out: out, jit_compile=JIT)
    path, thermometer = Path(), Thermometer(every=1, span=2)
    model.fit(
        noise, np.zeros(9), batch_size=1, shuffle=False, verbose=0, callbacks=[path, thermometer]
    )
    moves = np.diff([x for (x,) in path.steps], axis=0)
    applied = [bool(move.any()) for move in moves]
    assert applied == [n not in (0, 3, 4) for n in range(9)]
    reading = thermometer.read()
    assert reading["steps"] == 6
    mean = np.mean(moves[applied] ** 2)
    assert reading["rescaled_temperature"] == pytest.approx(mean, rel=NEAR)
    pairs = [(moves[n - 1], moves[n]) for n in range(1, 9) if applied[n - 1] and applied[n]]
    assert reading["correlation"] == pytest.approx(correlation_of(pairs), abs=NEAR)


def test_all_weights_count_the_moving_statistics():
    """The paper's way is hotter, and has no temperature of what has no mass."""
    walk, paper = (
        Thermometer(2, 4, all_weights=all_weights, readings=READINGS)
        for all_weights in (False, True)
    )
    fit(model_of(keras.optimizers.Adam(1e-5)), walk, paper)
    for thermometer in (walk, paper):
        names = thermometer.read("parameter")
        assert any("moving_mean" in name for name in names) == (thermometer is paper)
    hot, cold = (x.read()["rescaled_temperature"] for x in (paper, walk))
    assert hot > 100 * cold
    assert np.isnan(paper.read()["temperature"])
    assert walk.read()["temperature"] > 0


def test_bad_arguments():
    """Fail at once, and reading by what is not there does."""
    with pytest.raises(ValueError, match="span must be a multiple of every, 3: 10"):
        Thermometer(3, 10)
    with pytest.raises(ValueError, match="readings must be one of"):
        Thermometer(readings=["heat"])
    with pytest.raises(ValueError, match="by must be one of"):
        Thermometer().read("layer")
    with pytest.raises(TypeError, match="reset must be"):
        Thermometer().read(reset="no")


NUMBERS = ("__float__", "__int__", "__bool__", "__array__", "item", "tolist", "numpy")
TENSORS = {  # the class of eager tensors
    "tensorflow": ("tensorflow.python.framework.ops", "_EagerTensorBase"),
    "jax": ("jax._src.array", "ArrayImpl"),
    "torch": ("torch", "Tensor"),
}


@pytest.fixture
def host_reads(monkeypatch):
    """One entry for each time that the host asks for numbers: the thread that asks."""
    entries = []

    def count(owner, name):
        call = getattr(owner, name)

        def counting(*arguments, **options):
            entries.append(threading.get_ident())
            return call(*arguments, **options)

        monkeypatch.setattr(owner, name, counting)

    module, name = TENSORS[BACKEND]
    tensor = getattr(importlib.import_module(module), name)
    for name in NUMBERS:
        if hasattr(tensor, name):
            count(tensor, name)
    count(keras.ops, "convert_to_numpy")  # NumPy takes the numbers of JAX without asking Python
    return entries


@pytest.mark.parametrize(
    "optimizer",
    [lambda: CoolMomentum(0.02, total_steps=60), lambda: keras.optimizers.AdamW(0.001)],
    ids=["cool", "adamw"],
)
def test_no_step_waits(monkeypatch, host_reads, optimizer):
    """Looking at the variables asks the device for no number; the end of the epoch does."""
    looked, asked = [], []

    def counting(of, entries):
        def call(*arguments, **options):
            before, here = len(host_reads), threading.get_ident()  # Keras reads its logs in another
            result = of(*arguments, **options)
            entries.append(host_reads[before:].count(here))
            return result

        return call

    for hook in ("before", "after"):
        monkeypatch.setattr(Meter, hook, counting(getattr(Meter, hook), looked))
    monkeypatch.setattr(Thermometer, "read", counting(Thermometer.read, asked))
    fit(model_of(optimizer()), Thermometer(2, 4))
    assert len(looked) > 2 * STEPS / 2
    assert sum(looked) == 0
    assert asked[0] > 0


@pytest.mark.skipif(BACKEND == "torch", reason="it compiles nothing there")
def test_the_measurement_is_compiled_twice(monkeypatch):
    """With and without the end of a span, whatever the step, the window and the fit."""
    traces = []
    measured = Meter._measured

    def counting(*arguments):
        traces.append(1)
        return measured(*arguments)

    monkeypatch.setattr(Meter, "_measured", counting)
    model, thermometer = model_of(keras.optimizers.SGD(0.02, momentum=0.5)), Thermometer(2, 4)
    for _ in range(2):
        fit(model, thermometer, epochs=2)
    assert len(traces) == 2
