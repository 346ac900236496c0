"""CoolMomentum over any array-API namespace: the reference that the other adapters are held to."""

from coolmomentum.numpy._optimizer import CoolMomentum, State
from coolmomentum.numpy._portable import export_state, import_state
from coolmomentum.numpy._thermal import ThermalNoise
from coolmomentum.numpy._thermometer import Thermometer, ThermometerState

__all__ = [
    "CoolMomentum",
    "State",
    "ThermalNoise",
    "Thermometer",
    "ThermometerState",
    "export_state",
    "import_state",
]
