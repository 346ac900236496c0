"""A heat bath in Keras: in ``fit``, saved, with clipping, accumulation, and half precision."""

import keras
import numpy as np
import pytest
from keras import ops

from coolmomentum import random_force_scale
from coolmomentum.keras import CoolMomentum, Langevin, Thermometer

HOT = {"rho0": 0.9, "law": "constant"}


@keras.saving.register_keras_serializable(package="tests")
def falling(step):
    """A bath that cools."""
    return 2.0 / (1 + step)


def network(optimizer, **settings):
    """Compiled as ``fit`` would choose, with the same weights each time."""
    dense = keras.layers.Dense(3, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((4,)), dense, keras.layers.Dense(1)])
    for i, weight in enumerate(model.weights):
        weight.assign(np.random.default_rng(i).normal(size=weight.shape))
    model.compile(optimizer, "mse", **settings)
    return model


def trained(model, epochs):
    """Its weights after epochs of four batches."""
    random = np.random.default_rng(9)
    x, y = random.normal(size=(32, 4)), random.normal(size=(32, 1))
    model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return [w.copy() for w in model.get_weights()]


@pytest.mark.parametrize("noise", ["averaged", "white"])
def test_a_saved_run_goes_on_with_the_same_numbers(noise, tmp_path):
    """Two epochs, saved and loaded with config and state, and two more are four, bit for bit."""
    settings = {**HOT, "temperature": falling, "noise": noise, "seed": 3}
    whole = trained(network(Langevin(0.01, **settings)), 4)
    model = network(Langevin(0.01, **settings))
    half = trained(model, 2)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(again.optimizer, Langevin)
    for x, y in zip(trained(again, 2), whole, strict=True):
        np.testing.assert_array_equal(x, y)
    assert all((x != y).any() for x, y in zip(half, whole, strict=True))


def test_the_seed_decides():
    """And every step has numbers of its own: two epochs on zero gradients are no line."""
    one, two, other = (
        trained(network(Langevin(0.01, **HOT, temperature=1.0, seed=seed)), 1) for seed in (0, 0, 1)
    )
    for x, y, z in zip(one, two, other, strict=True):
        np.testing.assert_array_equal(x, y)
        assert (x != z).all()


def walk(optimizer, steps, gradient=0.0, dtype="float32"):
    """The positions of 50,000 coordinates."""
    x = keras.Variable(np.zeros(50_000), dtype=dtype)
    places = []
    for _ in range(steps):
        optimizer.apply([gradient * ops.convert_to_tensor(x)], [x])
        places.append(ops.convert_to_numpy(ops.cast(x, "float32")).copy())
    return np.array(places)


def test_the_force_comes_after_clipping():
    """Clipping to nothing leaves the force as it is."""
    settings = {**HOT, "temperature": 1.0, "noise": "white"}
    kick = walk(Langevin(0.1, clipvalue=1e-9, **settings), 1)[0]
    eta = 0.1 * 1.9 / 2
    expected = eta * random_force_scale(1.0, 0.1, 0.9)
    assert kick.std() == pytest.approx(expected, rel=5 * (1 / 1e5) ** 0.5)


def test_accumulated_gradients_make_one_step_with_one_force():
    """Of two batches: the second moves, as the first of a run without accumulation does."""
    settings = {**HOT, "temperature": 1.0}
    twice = walk(Langevin(0.1, gradient_accumulation_steps=2, **settings), 4)
    once = walk(Langevin(0.1, **settings), 2)
    np.testing.assert_array_equal(twice[0], 0)
    np.testing.assert_allclose(twice[[1, 3]], once, rtol=1e-5, atol=1e-6)


def test_half_precision_variables_walk_at_the_temperature():
    """bfloat16 on a quadratic with k dt**2 = 2.

    A displacement is rounded by 2**-9 of it, uniformly, so that the variance is off by some 1e-5;
    the mean of 1e6 squares, of which one in some ten is independent, has 4 standard errors of
    4 (2 / 1e5)**0.5 = 0.018.
    """
    optimizer = Langevin(0.5, rho0=0.5, law="constant", temperature=2.0)
    places = walk(optimizer, 60, 4.0, "bfloat16")
    assert np.mean(4 * places[40:] ** 2) == pytest.approx(2.0, rel=0.03)


def test_a_learning_rate_that_is_set_takes_off_what_the_displacement_brings():
    """By the rate that the last step used."""
    optimizer = Langevin(0.2, rho0=0.5, law="constant", temperature=1.0, noise="white")
    first = walk(optimizer, 1)[0]
    optimizer.learning_rate = 0.1
    (x,) = optimizer._trainable_variables
    optimizer.apply([ops.zeros(x.shape)], [x])
    kick = x.numpy() - 1.5 * first
    assert kick.var() == pytest.approx(0.1 - 0.25 * 0.2, rel=5 * (2 / 50_000) ** 0.5)


def test_a_bath_at_zero_is_cool_momentum():
    """Bit for bit; and a learning rate of 0 is no division by it."""
    for rate in (0.1, 0.0):
        ours, theirs = Langevin(rate, **HOT, temperature=0.0), CoolMomentum(rate, **HOT)
        x, y = keras.Variable(np.ones(5)), keras.Variable(np.ones(5))
        for _ in range(3):
            ours.apply([ops.convert_to_tensor(x)], [x])
            theirs.apply([ops.convert_to_tensor(y)], [y])
        np.testing.assert_array_equal(x.numpy(), y.numpy())


def test_the_config_has_the_bath():
    """A function of the step has to be registered, as a schedule has."""
    optimizer = Langevin(0.1, **HOT, temperature=falling, noise="white", seed=5)
    again = Langevin.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    assert again.noise == "white"
    with pytest.raises(TypeError, match="temperature must be registered"):
        Langevin(0.1, **HOT, temperature=lambda step: 1.0).get_config()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"temperature": -1.0}, ValueError, "temperature must be finite and >= 0: -1.0"),
        ({"temperature": "hot"}, TypeError, "temperature must be a real number: 'hot'"),
        ({"temperature": 1, "noise": "pink"}, ValueError, "noise must be one of averaged, white"),
        ({"temperature": 1, "seed": -1}, ValueError, "seed must be >= 0: -1"),
        ({}, TypeError, "temperature"),
    ],
    ids=str,
)
def test_bad_arguments(settings, error, message):
    """They fail at construction."""
    with pytest.raises(error, match=message):
        Langevin(0.1, **HOT, **settings)


class Walkers(keras.layers.Layer):
    """Coordinates, each in k x**2 / 2."""

    def __init__(self, k):
        super().__init__()
        self.k = k
        self.x = self.add_weight(shape=(5_000,), initializer="zeros")

    def call(self, noise):
        """The sum of their energies, and a force of mean 0 that is given."""
        return ops.sum(self.k * self.x**2 / 2 + noise * self.x, axis=-1, keepdims=True)


def reading(k, heat=0.0, **told):
    """Of the second of two epochs."""
    model = keras.Sequential([keras.Input((5_000,)), Walkers(k)])
    optimizer = Langevin(0.5, rho0=0.5, law="constant", temperature=2.0, **told)
    model.compile(optimizer, lambda _, out: ops.mean(out))
    thermometer = Thermometer(every=1, span=20)
    noise = heat * np.random.default_rng(0).normal(size=(100, 5_000)).astype("float32")
    data = {"x": noise, "y": np.zeros(100), "batch_size": 1, "shuffle": False}
    model.fit(**data, epochs=2, verbose=0, callbacks=[thermometer])
    return thermometer.read()


def test_the_thermometer_reads_the_bath():
    """The ratio is 1 and k dt**2 is 2, and nothing warns.

    Successive displacements do not correlate there, so 7 standard errors of 5e5 squares are 0.014.
    The curvature is -4 times their correlation, whose standard error is 0.0014, and three of the
    temperature's: 7 of all together are below 0.05.
    """
    found = reading(4.0)
    assert found["bath_ratio"] == pytest.approx(1, abs=0.015)
    assert found["curvature"] == pytest.approx(2, abs=0.05)


def test_it_warns_of_a_walk_hotter_than_its_bath():
    """Noise of the gradient heats it."""
    with pytest.warns(UserWarning, match="times as hot as its bath: minibatch gradients"):
        assert reading(4.0, heat=2.0)["bath_ratio"] > 1.2
