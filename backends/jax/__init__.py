"""CoolMomentum as an optax gradient transformation, and the readings of its state."""

try:
    import jax as _jax  # noqa: F401  # only to say which extra is missing
    import optax as _optax  # noqa: F401  # the same
except ModuleNotFoundError as error:
    if error.name not in ("jax", "optax"):
        raise
    raise ImportError(
        'coolmomentum.jax needs JAX and optax: pip install "coolmomentum[jax]"'
    ) from None

from coolmomentum.jax._cooldown import CooldownState, cooldown, start_cooldown, stop_cooldown
from coolmomentum.jax._meter import NoisyThermometerState, ThermometerState
from coolmomentum.jax._noise import GradientNoiseState
from coolmomentum.jax._portable import export_state, import_state
from coolmomentum.jax._state_readings import (
    per_leaf,
    rescaled_temperature,
    rho,
    step_size,
    temperature,
)
from coolmomentum.jax._thermal import ThermalNoiseState, add_thermal_noise, langevin
from coolmomentum.jax._thermometer import (
    AdamThermometerState,
    adam_thermometer,
    gradient_thermometer,
    read,
    reset,
    thermometer,
)
from coolmomentum.jax._transform import CoolMomentumState, cool_momentum

__all__ = [
    "AdamThermometerState",
    "CoolMomentumState",
    "CooldownState",
    "GradientNoiseState",
    "NoisyThermometerState",
    "ThermalNoiseState",
    "ThermometerState",
    "adam_thermometer",
    "add_thermal_noise",
    "cool_momentum",
    "cooldown",
    "export_state",
    "gradient_thermometer",
    "import_state",
    "langevin",
    "per_leaf",
    "read",
    "rescaled_temperature",
    "reset",
    "rho",
    "start_cooldown",
    "step_size",
    "stop_cooldown",
    "temperature",
    "thermometer",
]
