"""CoolMomentum: momentum SGD as Langevin dynamics that cools, for PyTorch, JAX, Keras, NumPy.

The optimizers are ``coolmomentum.torch.CoolMomentum``, ``coolmomentum.jax.cool_momentum``,
``coolmomentum.keras.CoolMomentum`` (``coolmomentum.tensorflow`` has the same) and
``coolmomentum.numpy.CoolMomentum``. This package holds what they share: the physics (``langevin``),
the schedules (``schedules``, ``solver``, ``cooldown``), the thermometer (``temperature``) and the
update rule (``update``), over any array-API namespace. Importing it loads no deep-learning
framework.

Borysenko and Byshkin, "CoolMomentum: a method for stochastic optimization by Langevin dynamics with
simulated annealing", Scientific Reports 11, 10705 (2021).
"""

import sys
from typing import TYPE_CHECKING

from coolmomentum.cooldown import HELD, learning_rate_share
from coolmomentum.langevin import (
    adam_mass,
    adiabaticity,
    effective_learning_rate,
    friction_from_rho,
    learning_rate_from_adam,
    learning_rate_from_sgd,
    lr_for_batch,
    matched_sgd_learning_rate,
    noise_temperature,
    noise_variance,
    noise_variance_at,
    reduced_temperature,
    rho_from_friction,
    rho_from_reduced_temperature,
    step_size,
    temperature_from_noise,
)
from coolmomentum.schedules import (
    CoolingSchedule,
    Law,
    Schedule,
    TemperatureSchedule,
    WarmupClock,
    check_schedule,
    cooled_rho,
    from_temperature,
    resolve_schedule,
)
from coolmomentum.solver import (
    adiabatic_rho0,
    cooling_rate,
    cooling_speed,
    largest_adiabaticity,
    rho0_for_cooling_rate,
    rho_at,
    settings_from_sgd,
    steps_for_cooling_rate,
)
from coolmomentum.temperature import (
    DisplacementSum,
    coordinates,
    inner_product,
    rescaled_temperature,
    squared_norm,
    temperature,
    three_point_temperature,
)
from coolmomentum.thermal import Noise, random_force, random_force_scale
from coolmomentum.update import (
    langevin_step,
    next_displacement,
)

__version__ = "0.1.0"

__all__ = [
    "HELD",
    "CoolingSchedule",
    "DisplacementSum",
    "Law",
    "Noise",
    "Schedule",
    "TemperatureSchedule",
    "WarmupClock",
    "__version__",
    "adam_mass",
    "adiabatic_rho0",
    "adiabaticity",
    "check_schedule",
    "cooled_rho",
    "cooling_rate",
    "cooling_speed",
    "coordinates",
    "effective_learning_rate",
    "friction_from_rho",
    "from_temperature",
    "inner_product",
    "langevin_step",
    "largest_adiabaticity",
    "learning_rate_from_adam",
    "learning_rate_from_sgd",
    "learning_rate_share",
    "lr_for_batch",
    "matched_sgd_learning_rate",
    "next_displacement",
    "noise_temperature",
    "noise_variance",
    "noise_variance_at",
    "random_force",
    "random_force_scale",
    "reduced_temperature",
    "rescaled_temperature",
    "resolve_schedule",
    "rho0_for_cooling_rate",
    "rho_at",
    "rho_from_friction",
    "rho_from_reduced_temperature",
    "settings_from_sgd",
    "squared_norm",
    "step_size",
    "steps_for_cooling_rate",
    "temperature",
    "temperature_from_noise",
    "three_point_temperature",
]

if not TYPE_CHECKING:  # to a type checker every name would then be there

    def __getattr__(name):
        """Say where the optimizers are to those who look for them here."""
        if name not in ("CoolMomentum", "cool_momentum", "Thermometer"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        message = (
            f"{name!r} is in the module of your framework: from coolmomentum.torch import "
            "CoolMomentum, from coolmomentum.jax import cool_momentum, from coolmomentum.keras "
            "(or coolmomentum.tensorflow) import CoolMomentum, from coolmomentum.numpy import "
            "CoolMomentum; Thermometer likewise"
        )
        # `from coolmomentum import name` asks by hasattr first, and would put a message of its own
        # in the place of an AttributeError's. All others see an attribute that is not there.
        asks = sys._getframe(1).f_code.co_name if hasattr(sys, "_getframe") else ""
        raise (ImportError if asks == "_handle_fromlist" else AttributeError)(message)
