"""CoolMomentum: momentum SGD as Langevin dynamics that cools, for PyTorch, JAX, Keras, NumPy.

The optimizers are ``coolmomentum.torch.CoolMomentum``, ``coolmomentum.jax.cool_momentum``,
``coolmomentum.keras.CoolMomentum`` (``coolmomentum.tensorflow`` has the same) and
``coolmomentum.numpy.CoolMomentum``. This package holds what they share: the physics (``langevin``),
the schedules (``schedules``), the thermometer (``temperature``) and the update rule (``update``),
over any array-API namespace. Importing it loads no deep-learning framework.

Borysenko and Byshkin, "CoolMomentum: a method for stochastic optimization by Langevin dynamics with
simulated annealing", Scientific Reports 11, 10705 (2021).
"""

from coolmomentum.langevin import (
    adam_mass,
    adiabaticity,
    effective_learning_rate,
    friction_from_rho,
    learning_rate_from_adam,
    learning_rate_from_sgd,
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
    adiabatic_rho0,
    check_schedule,
    cooled_rho,
    cooling_rate,
    cooling_speed,
    from_temperature,
    largest_adiabaticity,
    resolve_schedule,
    rho0_for_cooling_rate,
    rho_at,
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
from coolmomentum.update import (
    langevin_step,
    next_displacement,
)

__version__ = "0.1.0"

__all__ = [
    "CoolingSchedule",
    "DisplacementSum",
    "Law",
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
    "matched_sgd_learning_rate",
    "next_displacement",
    "noise_temperature",
    "noise_variance",
    "noise_variance_at",
    "reduced_temperature",
    "rescaled_temperature",
    "resolve_schedule",
    "rho0_for_cooling_rate",
    "rho_at",
    "rho_from_friction",
    "rho_from_reduced_temperature",
    "squared_norm",
    "step_size",
    "steps_for_cooling_rate",
    "temperature",
    "temperature_from_noise",
    "three_point_temperature",
]
