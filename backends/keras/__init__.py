"""CoolMomentum for Keras 3 on its TensorFlow, JAX and PyTorch backends."""

try:
    import keras as _keras  # noqa: F401  # only to say what is missing
except ModuleNotFoundError as error:
    if error.name == "keras":
        raise ImportError(
            'coolmomentum.keras needs Keras 3: pip install "coolmomentum[keras]"'
        ) from None
    if error.name in ("tensorflow", "jax", "torch"):
        raise ImportError(
            f"Keras is set to its {error.name} backend, which is not installed: install it, or set "
            "KERAS_BACKEND to one of tensorflow, jax, torch that is"
        ) from None
    raise

from coolmomentum.keras._cooldown import Cooldown
from coolmomentum.keras._langevin import Langevin
from coolmomentum.keras._optimizer import CoolMomentum
from coolmomentum.keras._portable import export_state, import_state
from coolmomentum.keras._thermometer import Thermometer

__all__ = ["CoolMomentum", "Cooldown", "Langevin", "Thermometer", "export_state", "import_state"]
# What a saved model names: not a private module.
CoolMomentum.__module__ = Langevin.__module__ = __name__
