"""The defaults of every adapter."""

from typing import Final

LEARNING_RATE: Final = 0.01  # Table 2 of the paper; it is the squared time step dt^2
RHO0: Final = 0.99  # Table 2 of the paper; too hot for short runs, see `adiabatic_rho0`
LAW: Final = "paper"
WARMUP_CLOCK: Final = "run"
