"""What the constructor takes, and what it refuses: in one line, with name, rule and value."""

import json
import re

import keras
import numpy as np
import pytest
from exact import ONE_OF_LAWS
from keras_tools import follow, variables

from coolmomentum import CoolingSchedule
from coolmomentum.keras import CoolMomentum

STEPS = {"total_steps": 10}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, TypeError, "total_steps is required: the optimizer steps over which rho cools to 0"),
        ({"total_steps": 0}, ValueError, "total_steps must be >= 1: 0"),
        ({"total_steps": 2.5}, TypeError, "total_steps must be an integer: 2.5"),
        (
            {"learning_rate": -0.1, **STEPS},
            ValueError,
            "learning_rate must be finite and >= 0: -0.1",
        ),
        ({"learning_rate": float("inf"), **STEPS}, ValueError, "learning_rate must be finite"),
        (
            {"learning_rate": "fast", **STEPS},
            TypeError,
            "learning_rate must be a real number: 'fast'",
        ),
        ({"rho0": 1.0, **STEPS}, ValueError, "rho0 must be in [0, 1): 1.0"),
        ({"rho0": -0.5, **STEPS}, ValueError, "rho0 must be in [0, 1): -0.5"),
        ({"law": "cosine", **STEPS}, ValueError, ONE_OF_LAWS),
        ({"warmup_steps": 10, **STEPS}, ValueError, "warmup_steps must be < total_steps = 10: 10"),
        ({"warmup_steps": -1, **STEPS}, ValueError, "warmup_steps must be >= 0: -1"),
        ({"warmup_clock": "stop", **STEPS}, ValueError, "warmup_clock must be one of run, hold"),
        (
            {"schedule": 0.5},
            TypeError,
            "schedule must be a CoolingSchedule or a function of the step (law names a law): 0.5",
        ),
        ({"schedule": "linear", **STEPS}, TypeError, "(law names a law): 'linear'"),
        (
            {"schedule": CoolingSchedule(5, 0.5), "rho0": 0.5},
            ValueError,
            "rho0 must not be given beside a schedule: 0.5",
        ),
        ({"hold_steps": 10, **STEPS}, ValueError, "hold_steps must be < total_steps = 10: 10"),
        ({"schedule": lambda n: 1.5}, ValueError, "schedule(0) must be in [-1, 1): 1.5"),
        (
            {"schedule": lambda n: n / 10, **STEPS},
            ValueError,
            "schedule(10) must be in [-1, 1): 1.0",
        ),
        (
            {"schedule": CoolingSchedule(5), **STEPS},
            ValueError,
            "total_steps must not be given beside a schedule: 10",
        ),
        ({"momentum": 0.9, **STEPS}, ValueError, "Argument(s) not recognized: {'momentum': 0.9}"),
        ({"clipnorm": 1.0, "clipvalue": 1.0, **STEPS}, ValueError, "Only one of `clipnorm`"),
    ],
    ids=lambda x: re.sub(" at 0x[0-9a-f]+", "", str(x)),
)
def test_bad_arguments(settings, error, message):
    """They fail at construction."""
    with pytest.raises(error, match=re.escape(message)):
        CoolMomentum(**settings)


def test_whole_numbers_and_numpy_numbers_are_numbers():
    """learning_rate=1 is 1.0, though Keras' own base class wants a float."""
    optimizer = CoolMomentum(1, np.int64(10), np.float32(0.5))
    config = optimizer.get_config()
    assert (config["learning_rate"], config["total_steps"], config["rho0"]) == (1.0, 10, 0.5)
    assert [type(config[name]) for name in ("learning_rate", "total_steps", "rho0")] == [
        float,
        int,
        float,
    ]


def test_the_config_holds_plain_numbers():
    """Numbers of NumPy become Python's, so that JSON can hold them, whatever they are for."""
    numbers = {
        "weight_decay": np.float32(0.25),
        "ema_momentum": np.float64(0.5),
        "ema_overwrite_frequency": np.int64(3),
        "gradient_accumulation_steps": np.int32(2),
        "loss_scale_factor": np.float32(4),
        "clipnorm": np.float32(1),
        "use_ema": np.bool_(True),
        "rho0": np.float32(0.5),
        "warmup_steps": np.int64(2),
        "hold_steps": np.int16(3),
        "law": np.str_("linear"),
    }
    for optimizer in (
        CoolMomentum(np.float32(0.5), np.int64(10), **numbers),
        CoolMomentum(0.5, np.int64(10), schedule=keras.saving.register_keras_serializable()(zero)),
        CoolMomentum(0.5, schedule=CoolingSchedule(np.array(10), np.array(0.5))),
    ):
        config = json.loads(json.dumps(optimizer.get_config()))
        assert config["total_steps"] == 10
        assert CoolMomentum.from_config(config).get_config() == config


def zero(step):
    """A schedule of one's own."""
    return 0.0 * step


def test_defaults():
    """Those of Table 2 of the paper; the paper's law; no warm-up."""
    optimizer = CoolMomentum(total_steps=100)
    assert optimizer.schedule == CoolingSchedule(100, 0.99, "paper", 0, "run")
    assert float(optimizer.learning_rate) == pytest.approx(0.01, rel=1e-7)
    assert optimizer.name == "cool_momentum"
    assert optimizer.weight_decay is None


def test_a_cooling_schedule_is_its_numbers():
    """Given as a schedule it is the same optimizer as its fields given as arguments."""
    fields = {"rho0": 0.5, "law": "linear", "warmup_steps": 2, "warmup_clock": "hold"}
    one = CoolMomentum(0.1, schedule=CoolingSchedule(9, **fields))
    other = CoolMomentum(0.1, 9, **fields)
    assert one.schedule == other.schedule
    assert one.get_config() == other.get_config()


def test_the_schedule_is_not_changed_by_hand():
    """It is a property: a change in mid-run would re-heat without a word."""
    with pytest.raises(AttributeError):
        CoolMomentum(0.1, 9).schedule = CoolingSchedule(20)


def test_the_learning_rate_may_be_set():
    """As callbacks do: it acts on the next gradient only, not on the displacement."""
    (x,) = variables([np.zeros(1)])
    optimizer = CoolMomentum(1.0, 4, 0.5, law="constant")
    follow(optimizer, [x], [[np.full(1, 4.0)]])  # dx = -3
    optimizer.learning_rate = 0.5
    follow(optimizer, [x], [[np.full(1, 4.0)]])  # dx = -3/2 - 3/2
    assert float(x.numpy()[0]) == -6.0


def test_keras_finds_it_by_its_registered_name():
    """keras.optimizers.get makes it from a serialized config."""
    config = {"class_name": "coolmomentum>CoolMomentum", "config": {"total_steps": 5}}
    optimizer = keras.optimizers.get(config)
    assert isinstance(optimizer, CoolMomentum)
    assert optimizer.schedule.total_steps == 5
