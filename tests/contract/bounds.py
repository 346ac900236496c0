"""How far a run in floating point may be from the float64 reference: a running error bound."""

from dataclasses import dataclass

import numpy as np

from coolmomentum import CoolingSchedule

# Relative errors in units of the unit roundoff u of the run's dtype. A float32 run may compute rho
# in float32: the laws make at most 9 roundings, and rho0 is rounded (exact.py counts them).
RHO = 10
ETA = RHO + 5  # lr rounded, 1 + rho, product, eta rounded where it was made in float64; the fused
# kernel is told 1 - eta, and used only where that costs eta less than another rounding


@dataclass
class RunningBound:
    """Bounds on the errors of one parameter and its displacement, after every step.

    With ``dx' = rho dx - eta (g + w x)`` and ``x' = x + dx'``, to first order in u, the errors obey

        e_dx' <= |rho| e_dx + eta w e_x + u ((RHO + 2) |rho dx| + (ETA + 3) eta |g + w x|)
        e_x'  <= e_x + e_dx' + u |x'|

    where the first two terms carry the errors on, and the last count the roundings: of rho, of its
    product and of the difference; of eta, of ``w x`` and its sum with g, of the product and of the
    difference. A fused multiply-add makes fewer. ``|g + w x|`` is bounded by ``|g| + w |x|``,
    because its terms are rounded before they cancel.
    """

    u: float
    x: np.ndarray | float = 0.0
    dx: np.ndarray | float = 0.0

    def step(self, x, dx, g, lr, rho, decay):
        """Follow one step from the reference's ``x`` and ``dx``; ``g`` is exact in both."""
        eta = lr * (1 + rho) / 2
        force = np.abs(g) + decay * np.abs(x)
        new = rho * np.abs(dx) * (RHO + 2) + (ETA + 3) * eta * force
        self.dx = rho * self.dx + eta * decay * self.x + self.u * new
        moved = rho * dx - eta * (g + decay * x)
        self.x = self.x + self.dx + self.u * np.abs(x + moved)

    def start(self, x):
        """The reference starts from numbers that the dtype holds, so there is no error yet."""
        self.x, self.dx = np.zeros_like(x), np.zeros_like(x)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """``values`` as the nearest numbers of a dtype, in float64."""
    return values.astype(dtype).astype(np.float64)


def coolings() -> list[CoolingSchedule]:
    """Every law, with and without warm-ups of both clocks."""
    return [
        CoolingSchedule(10, 0.9, "paper"),
        CoolingSchedule(10, 0.99, "linear"),
        CoolingSchedule(10, 0.9, "exponential", warmup_steps=3),
        CoolingSchedule(10, 0.9, "paper", warmup_steps=4, warmup_clock="hold"),
        CoolingSchedule(10, 0.9, "constant"),
    ]
