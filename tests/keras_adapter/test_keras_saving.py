"""Config, model files and resumed runs: what is saved continues bit for bit."""

import json
import pickle
import re

import keras
import numpy as np
import pytest
from keras import ops
from keras_tools import follow, gradients, numpy, variables

from coolmomentum import CoolingSchedule, from_temperature
from coolmomentum.keras import CoolMomentum

X = np.random.default_rng(0).standard_normal((32, 3)).astype("float32")
Y = X[:, :1] - X[:, 1:2]
EVERYTHING = {
    "learning_rate": 0.125,
    "total_steps": 30,
    "rho0": 0.75,
    "law": "linear",
    "warmup_steps": 3,
    "warmup_clock": "hold",
    "hold_steps": 7,
    "weight_decay": 0.25,
    "clipnorm": 1.5,
    "global_clipnorm": None,
    "clipvalue": None,
    "use_ema": True,
    "ema_momentum": 0.75,
    "ema_overwrite_frequency": 5,
    "loss_scale_factor": 4.0,
    "gradient_accumulation_steps": 2,
    "name": "cold",
}


@keras.saving.register_keras_serializable(package="test")
def sinking(step):
    """A schedule that Keras can save: a registered function."""
    return 0.5 / (1 + step)


@keras.saving.register_keras_serializable(package="test")
class Sinking:
    """A schedule that Keras can save: an object of a registered class."""

    def __init__(self, rho0):
        self.rho0 = rho0

    def __call__(self, step):
        """Rho of the next step."""
        return self.rho0 / (1 + step)

    def get_config(self):
        """What the constructor takes."""
        return {"rho0": self.rho0}

    @classmethod
    def from_config(cls, config):
        """What Keras asks for."""
        return cls(**config)


def network(optimizer):
    """A small network, always of the same weights."""
    keras.utils.set_random_seed(1)
    layers = [keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(optimizer, "mse")
    return model


def train(model, epochs, **options):
    """Some more epochs of the same four batches."""
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, **options)


def state(model):
    """Weights and optimizer variables as arrays."""
    return [numpy(x).copy() for x in model.weights + model.optimizer.variables]


def assert_same(one, other):
    """Bit for bit."""
    for x, y in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, y)


# --- config ---------------------------------------------------------------------------------------


def test_the_config_has_every_argument():
    """It goes through JSON, and gives an optimizer of the same config."""
    optimizer = CoolMomentum(**EVERYTHING)
    config = json.loads(json.dumps(optimizer.get_config()))
    assert config == EVERYTHING | {"schedule": None}
    before = dict(config)
    again = CoolMomentum.from_config(config)
    assert config == before  # it was not used up
    assert again.get_config() == config
    assert again.schedule == optimizer.schedule == CoolingSchedule(30, 0.75, "linear", 3, "hold", 7)


def test_keras_serializes_it_under_its_public_name():
    """The file names coolmomentum.keras, so that Keras finds it without an import before."""
    optimizer = CoolMomentum(total_steps=5)
    serialized = keras.optimizers.serialize(optimizer)
    assert serialized["module"] == "coolmomentum.keras"
    assert serialized["registered_name"] == "coolmomentum>CoolMomentum"
    again = keras.optimizers.deserialize(json.loads(json.dumps(serialized)))
    assert isinstance(again, CoolMomentum)
    assert again.get_config() == optimizer.get_config()


def test_a_learning_rate_schedule_is_saved():
    """As for every optimizer of Keras."""
    decay = keras.optimizers.schedules.CosineDecay(0.5, 10)
    config = CoolMomentum(decay, 5).get_config()
    again = CoolMomentum.from_config(json.loads(json.dumps(config)))
    assert float(again.learning_rate) == 0.5
    assert again.get_config() == config


@pytest.mark.parametrize("schedule", [sinking, Sinking(0.5)], ids=["function", "object"])
def test_a_registered_schedule_is_saved(schedule):
    """A callable goes through Keras' registry."""
    config = json.loads(json.dumps(CoolMomentum(0.1, 7, schedule=schedule).get_config()))
    again = CoolMomentum.from_config(config)
    assert type(again.schedule) is type(schedule)
    assert [again.schedule(n) for n in range(3)] == [0.5, 0.25, 0.5 / 3]
    assert again.get_config() == config


@pytest.mark.parametrize(
    "schedule",
    [lambda n: 0.5, from_temperature(lambda n: 2.0), Sinking(0.5).__call__],
    ids=["lambda", "object", "method"],
)
def test_another_callable_is_refused(schedule):
    """A schedule that could not be read back fails when it is saved, with the way out."""
    optimizer = CoolMomentum(0.1, schedule=schedule)
    message = (
        "schedule must be a CoolingSchedule, or registered with "
        f"keras.saving.register_keras_serializable, to be saved: {schedule!r}"
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        optimizer.get_config()


# --- model files and resumed runs -----------------------------------------------------------------


@pytest.mark.parametrize("done", [1, 5])
@pytest.mark.parametrize(
    "settings",
    [
        {"total_steps": 16, "rho0": 0.9},
        {"total_steps": 16, "law": "linear", "warmup_steps": 6, "weight_decay": 0.01},
        {"total_steps": 8, "gradient_accumulation_steps": 2},
        {"schedule": Sinking(0.5)},
        {"total_steps": 16, "learning_rate": keras.optimizers.schedules.CosineDecay(0.1, 24)},
    ],
    ids=["plain", "warm-up", "accumulation", "schedule", "learning rate"],
)
def test_a_model_file_resumes_bit_for_bit(tmp_path, done, settings):
    """Six epochs are some epochs, a .keras file, and the rest; past S too."""
    whole = network(CoolMomentum(**settings))
    train(whole, 6)
    part = network(CoolMomentum(**settings))
    train(part, done)
    part.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(again.optimizer, CoolMomentum)
    assert_same(state(again), state(part))
    assert again.optimizer.rho == part.optimizer.rho
    train(again, 6 - done)
    assert_same(state(again), state(whole))


def test_a_pickled_model_resumes_bit_for_bit():
    """Keras pickles a model as such a file."""
    whole, part = (network(CoolMomentum(0.01, 16)) for _ in "ab")
    train(whole, 4)
    train(part, 2)
    again = pickle.loads(pickle.dumps(part))
    train(again, 2)
    assert_same(state(again), state(whole))


def test_backup_and_restore_resumes_bit_for_bit(tmp_path):
    """A run that dies in its fourth epoch and is started again ends as one that did not."""

    class Dies(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise InterruptedError

    whole = network(CoolMomentum(0.01, 16))
    train(whole, 6)
    options = {"callbacks": [keras.callbacks.BackupAndRestore(tmp_path / "backup"), Dies()]}
    with pytest.raises(InterruptedError):
        train(network(CoolMomentum(0.01, 16)), 6, **options)
    again = network(CoolMomentum(0.01, 16))
    train(again, 6, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup")])
    assert_same(state(again), state(whole))
    assert int(again.optimizer.iterations) == 24


def test_weights_of_the_optimizer_are_set():
    """set_weights and save_own_variables carry everything over."""
    (x,) = variables([np.ones(3)])
    one, other = CoolMomentum(0.1, 9), CoolMomentum(0.1, 9)
    follow(one, [x], gradients(4, [(3,)]))
    other.build([x])
    other.set_weights([numpy(v) for v in one.variables])
    assert (other.rho, other.temperature()) == (one.rho, one.temperature())
    store = {}
    one.save_own_variables(store)
    third = CoolMomentum(0.1, 9)
    third.build([x])
    third.load_own_variables(store)
    assert_same([numpy(v) for v in third.variables], [numpy(v) for v in one.variables])


def test_the_number_of_variables_does_not_depend_on_settings():
    """Keras loads by position, and loads nothing if the counts differ: laws may be exchanged."""
    counts = set()
    for settings in (
        {"total_steps": 5},
        {"total_steps": 5, "law": "constant", "rho0": 0.0},
        {"schedule": sinking},
        {"total_steps": 5, "warmup_steps": 2},
    ):
        optimizer = CoolMomentum(0.1, **settings)
        optimizer.build([keras.Variable(ops.ones(2))])
        counts.add(len(optimizer.variables))
    assert counts == {7}
