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
from coolmomentum.keras._optimizer import CoolMomentum
from coolmomentum.keras._portable import export_state, import_state
from coolmomentum.keras._thermometer import Thermometer

__all__ = ["CoolMomentum", "Cooldown", "Thermometer", "export_state", "import_state"]
CoolMomentum.__module__ = __name__  # what a saved model names: not a private module
