"""The gradient noise in Keras' callback: its logs, settings and what is not known."""

import copy
import math

import keras
import numpy as np
import pytest
from keras_tools import BACKEND

from coolmomentum import CoolingSchedule
from coolmomentum.keras import CoolMomentum, Langevin, Thermometer
from coolmomentum.thermometer import (
    NOISE_READINGS,
    GradientNoise,
    Layout,
    noise_moments,
    true_square,
)

X = np.random.default_rng(0).standard_normal((240, 3)).astype("float32")
Y = X @ np.ones((3, 1), "float32") + 0.1
NOISE = {"gradient_noise": True, "batch_size": 4}
SETTINGS = {"every": 4, "span": 4, **NOISE}
SGD = keras.optimizers.SGD
HOT = CoolingSchedule(1000, 0.9, "constant")


def fit(optimizer, thermometer, epochs=1, x=X, y=Y):
    """The history of a linear model, whose gradient changes little at this learning rate."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(optimizer, "mse", jit_compile=BACKEND == "jax")
    how = {"batch_size": 4, "epochs": epochs, "shuffle": False, "verbose": 0}
    return model.fit(x, y, callbacks=[thermometer], **how).history


def test_it_is_in_the_logs_where_it_is_named():
    """Of each epoch, which is a window; the others are as ever, and read() has all."""
    chosen = ["temperature", *NOISE_READINGS]
    thermometer = Thermometer(**SETTINGS, readings=chosen)
    history = fit(SGD(1e-6, momentum=0.9), thermometer, 2)
    plain = Thermometer(4, 4, readings=["temperature"])
    without = fit(SGD(1e-6, momentum=0.9), plain, 2)
    assert list(history) == ["loss", *chosen]
    assert history["temperature"] == without["temperature"]
    reading = thermometer.read()
    assert reading.keys() == plain.read().keys() | {*NOISE_READINGS}
    assert [history[name][-1] for name in chosen] == [reading[name] for name in chosen]
    assert copy.deepcopy(thermometer).read() == pytest.approx(reading, nan_ok=True)


def test_it_is_that_of_the_examples():
    """At a rate that hardly moves the weights: the covariance of the gradients of all examples."""
    # Gradients of (x w + b - y)**2 at w = 1, b = 0: -0.2 x and -0.2. Batches of independent draws.
    chosen = np.random.default_rng(1).integers(len(X), size=4000)
    thermometer = Thermometer(**SETTINGS)
    fit(SGD(1e-9, momentum=0.9), thermometer, x=X[chosen], y=Y[chosen])
    each = -0.2 * np.hstack([X, np.ones((len(X), 1))])
    trace, norm = each.var(axis=0).sum(), np.linalg.norm(each.mean(axis=0))
    g = each[chosen].reshape(-1, 4, 4).mean(axis=1)
    layout, noise = Layout.of(["all"], [4]), GradientNoise.empty(np.zeros(2), 4)
    mean, traces = 0 * g[0], []
    for n, now in enumerate(g, 1):
        if n % 4 == 0:
            table = noise_moments([(now, g[n - 2], g[n - 3])], [mean])
            noise = noise.add(table, layout, 0.9)
            traces.append(4 * (table[0, 0] - true_square(*table[1:, 0], 0.9)))
        mean = 0.9 * mean + 0.1 * now
    reading = thermometer.read()
    # The roundings of x w - y, which is 1/50 of what it is the difference of, come to 60 u of
    # tests/contract/test_gradient_noise.py.
    expected = {name: x[-1] for name, x in noise.readings().items()}
    assert {name: reading[name] for name in NOISE_READINGS} == pytest.approx(expected, rel=2e-3)
    three = 3 * np.std(traces) / len(traces) ** 0.5
    assert reading["gradient_noise"] == pytest.approx(trace, abs=three)
    assert three < 0.25 * trace
    error = reading["critical_batch_size_error"]
    assert reading["critical_batch_size"] == pytest.approx(trace / norm**2, abs=3 * error)
    assert error < 0.25 * reading["critical_batch_size"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: SGD(1e-6, momentum=0.9, nesterov=True), "as Nesterov's is another"),
        (lambda: SGD(1e-6), "as SGD has none"),
        (lambda: keras.optimizers.RMSprop(1e-6), "of RMSprop"),
        (lambda: Langevin(1e-6, temperature=1e-6, schedule=HOT), "in a heat bath"),
    ],
)
def test_it_says_what_is_not_known(make, reason):
    """One warning in all epochs, with the reason."""
    thermometer = Thermometer(**SETTINGS)
    with pytest.warns(UserWarning, match=f"^no critical_batch_size: .* {reason}$") as seen:
        fit(make(), thermometer, 2)
    assert sum("critical_batch_size" in str(x.message) for x in seen) == 1
    assert all(math.isnan(thermometer.read()[name]) for name in NOISE_READINGS)


def test_variables_of_16_bits_are_not_read():
    """What their momenta round away would count as noise."""
    before, thermometer = keras.config.dtype_policy(), Thermometer(**SETTINGS)
    keras.config.set_dtype_policy("bfloat16")
    try:
        with pytest.warns(UserWarning, match="not known, in 16 bits"):
            fit(CoolMomentum(1e-3, total_steps=1000), thermometer)
    finally:
        keras.config.set_dtype_policy(before)


def test_accumulated_batches_are_one_step():
    """Of the batch size that is told; steps of two batches each."""
    optimizer = SGD(1e-9, momentum=0.9, gradient_accumulation_steps=2)
    thermometer = Thermometer(**SETTINGS | {"batch_size": 8})
    fit(optimizer, thermometer, 4)
    assert thermometer._seen[2].counts.tolist() == [8]  # steps 92 to 120, of the last epoch
    assert thermometer.read()["gradient_noise"] > 0


def test_a_loss_scaler_that_skips_a_step_spoils_its_block_only():
    """Gradients that are not finite leave the window as it is."""
    x = X.copy()
    x[4 * 21] = np.inf  # batch 22 of 60, in the block of step 24
    thermometer = Thermometer(**SETTINGS)
    scaled = keras.optimizers.LossScaleOptimizer(SGD(1e-9, momentum=0.9), initial_scale=2.0)
    fit(scaled, thermometer, x=x)
    assert thermometer._seen[2].counts.tolist() == [14]
    assert np.isfinite(thermometer.read()["gradient_noise"])


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"gradient_noise": True}, "batch_size must be given with gradient_noise=True: None"),
        ({"batch_size": 8}, "batch_size needs gradient_noise=True: 8"),
        ({**NOISE, "every": 2}, "every must be >= 4 with gradient_noise=True: 2"),
        ({**NOISE, "all_weights": True}, "all_weights must be False with gradient_noise=True"),
        ({"readings": ["critical_batch_size"]}, "readings must be one of"),
    ],
)
def test_arguments_are_checked_when_it_is_made(settings, error):
    """In one line with name, rule and value."""
    with pytest.raises(ValueError, match=f"^{error}"):
        Thermometer(**settings)


def test_without_it_nothing_is_kept():
    """No momenta, and no sums of them."""
    thermometer = Thermometer(4, 4)
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(thermometer._meter and thermometer._meter.noise)

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(SGD(1e-6, momentum=0.9), "mse", jit_compile=BACKEND == "jax")
    model.fit(X, Y, batch_size=4, verbose=0, callbacks=[thermometer, Look()])
    assert thermometer._meter is not None
    assert seen[1:] == [None] * len(seen[1:])
