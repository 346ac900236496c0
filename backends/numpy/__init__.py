"""CoolMomentum over any array-API namespace: the reference that the other adapters are held to."""

from coolmomentum.numpy._neutral import load_neutral_state, neutral_state
from coolmomentum.numpy._optimizer import CoolMomentum, State

__all__ = ["CoolMomentum", "State", "load_neutral_state", "neutral_state"]
