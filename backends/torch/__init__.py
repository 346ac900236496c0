"""CoolMomentum for PyTorch, as a ``torch.optim.Optimizer``, and a thermometer for any of them."""

try:
    import torch as _torch  # noqa: F401  # only to say which extra is missing
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError(
        'coolmomentum.torch needs PyTorch: pip install "coolmomentum[torch]"'
    ) from None

from coolmomentum.torch._cooldown import Cooldown
from coolmomentum.torch._optimizer import CoolMomentum
from coolmomentum.torch._portable import export_state, import_state
from coolmomentum.torch._thermal import ThermalNoise
from coolmomentum.torch._thermometer import Thermometer

__all__ = [
    "CoolMomentum",
    "Cooldown",
    "ThermalNoise",
    "Thermometer",
    "export_state",
    "import_state",
]
