"""CoolMomentum over any array-API namespace: the reference that the other adapters are held to."""

from coolmomentum.numpy._neutral import load_neutral_state, neutral_state
from coolmomentum.numpy._optimizer import CoolMomentum, State
from coolmomentum.numpy._thermometer import Thermometer, ThermometerState

__all__ = [
    "CoolMomentum",
    "State",
    "Thermometer",
    "ThermometerState",
    "load_neutral_state",
    "neutral_state",
]
