"""CoolMomentum for TensorFlow: the Keras optimizer, where Keras runs on its TensorFlow backend."""

try:
    import keras as _keras
    import tensorflow as _tensorflow  # noqa: F401  # only to say which extra is missing
except ModuleNotFoundError as error:
    if error.name not in ("keras", "tensorflow"):
        raise
    raise ImportError(
        "coolmomentum.tensorflow needs TensorFlow and Keras 3: "
        'pip install "coolmomentum[tensorflow]"'
    ) from None

if _keras.backend.backend() != "tensorflow":
    raise ImportError(
        "coolmomentum.tensorflow needs Keras on its tensorflow backend, not on "
        f"{_keras.backend.backend()}: set KERAS_BACKEND=tensorflow before Keras is imported, or "
        "use coolmomentum.keras"
    )

from coolmomentum.keras import (
    Cooldown,
    CoolMomentum,
    Langevin,
    Thermometer,
    export_state,
    import_state,
)

__all__ = ["CoolMomentum", "Cooldown", "Langevin", "Thermometer", "export_state", "import_state"]
