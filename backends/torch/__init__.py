"""CoolMomentum for PyTorch, as a ``torch.optim.Optimizer``."""

try:
    import torch as _torch  # noqa: F401  # only to say which extra is missing
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError(
        'coolmomentum.torch needs PyTorch: pip install "coolmomentum[torch]"'
    ) from None

from coolmomentum.torch._neutral import load_neutral_state, neutral_state
from coolmomentum.torch._optimizer import CoolMomentum

__all__ = ["CoolMomentum", "load_neutral_state", "neutral_state"]
