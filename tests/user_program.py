"""What a user's editor says: mypy and basedpyright check these types, nothing runs them.

``make lint`` has both. A number in gives a number out; of an array the library's own type is not
known to the core, and Any stands for it.
"""

from typing import Any, assert_type

import numpy as np

from coolmomentum import (
    CoolingSchedule,
    adiabatic_rho0,
    cooling_rate,
    effective_learning_rate,
    friction_from_rho,
    learning_rate_from_sgd,
    noise_temperature,
    step_size,
)


def of_the_core() -> None:
    """Numbers give floats, arrays Any."""
    schedule = CoolingSchedule(total_steps=100, rho0=0.9, law="linear")
    assert_type(schedule(3), float)
    assert_type(schedule(np.arange(3)), Any)
    assert_type(step_size(0.1, schedule(3)), float)
    assert_type(step_size(np.ones(3), 0.5), Any)
    assert_type(friction_from_rho(0.9, dt=0.1), float)
    assert_type(learning_rate_from_sgd(0.1, momentum=0.9), float)
    assert_type(effective_learning_rate(0.1, 0.5), float)
    assert_type(noise_temperature(1.0, 0.1, rho=0.9), float)
    assert_type(cooling_rate(0.99, total_steps=1000), float)
    assert_type(adiabatic_rho0(1000), float)
    CoolingSchedule(100, law="cold")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    step_size(0.1, "0.5")


def of_torch() -> None:
    """Readings are tensors, a state a dict, a thermometer's readings a dict."""
    import torch

    from coolmomentum.torch import Cooldown, CoolMomentum, ThermalNoise, Thermometer

    model = torch.nn.Linear(2, 2)
    optimizer = CoolMomentum(model.parameters(), lr=0.1, total_steps=100, rho0=0.9)
    assert_type(optimizer.rho, float | list[float])  # of several groups
    assert_type(optimizer.temperature(), torch.Tensor)
    assert_type(optimizer.temperatures(), dict[str | int, torch.Tensor])
    with Thermometer(optimizer) as thermometer, ThermalNoise(optimizer, 1.0, noise="white"):
        assert_type(thermometer.read(), dict[Any, Any])
    scheduler: torch.optim.lr_scheduler.LRScheduler = Cooldown(optimizer)
    assert_type(scheduler.get_last_lr(), list[float | torch.Tensor])
    CoolMomentum(model.parameters(), total_steps="100")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def of_jax() -> None:
    """Transformations are those of optax; readings are arrays."""
    import jax
    import jax.numpy as jnp

    from coolmomentum.jax import cool_momentum, read, rho, temperature

    cooling = CoolingSchedule(100)
    transformation = cool_momentum(0.1, schedule=cooling)
    state = transformation.init(jnp.ones(3))
    assert_type(rho(state, cooling), jax.Array)
    assert_type(temperature(state, 0.1), jax.Array)
    assert_type(read(state), dict[str, Any])
    cool_momentum(0.1, 100, law="cold")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def of_numpy() -> None:
    """A list of arrays and a named tuple."""
    from coolmomentum.numpy import CoolMomentum, State

    optimizer = CoolMomentum(learning_rate=0.1, total_steps=100)
    params, state = optimizer.step([np.ones(3)], [np.ones(3)], optimizer.init([np.ones(3)]))
    assert_type(params, list[Any])
    assert_type(state, State)
    assert_type(optimizer.rho(state), float)


def of_keras() -> None:
    """Readings are floats; Keras' own methods are Keras' affair."""
    from coolmomentum.keras import CoolMomentum, Langevin

    optimizer = CoolMomentum(0.1, total_steps=100, weight_decay=0.01)
    assert_type(optimizer.rho, float)
    assert_type(optimizer.temperature(), float)
    assert_type(optimizer.temperatures(), dict[str, float])
    Langevin(0.1, rho0=0.9, law="constant", temperature=1.0)
