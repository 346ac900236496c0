"""How far a run in floating point may be from the float64 reference: a running error bound.

Everything here follows from the number of operations of a step and from the formats of the numbers;
nothing is fitted. Of an elementary function we assume what exact.py does: a few ulp.
"""

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from coolmomentum import CoolingSchedule
from coolmomentum.schedules import TemperatureSchedule

U64 = 2.0**-53

# Roundings in rho, as a relative error in units of the unit roundoff u. The laws make at most 9,
# and rho0 is rounded (exact.py counts them).
RHO = 10
# Absolute error, in the same units, where a schedule takes differences: (tau - 1) / (tau + 1) with
# tau good to 4 roundings has 4 tau / (tau + 1) < 4 of them and as many of its own.
RHO_OF_TAU = 8
# Roundings in eta = lr (1 + rho) / 2 beside the error of rho: lr, sum, product, the result where it
# was made in float64, and 1 - eta, which the fused kernel is told where that costs less than one.
ETA = 5


@dataclass(frozen=True)
class Format:
    """A binary floating-point format."""

    digits: int  # of the significand, the hidden one among them
    low: int  # exponent of the smallest normal number
    high: int  # the largest number is just below 2**high

    @property
    def u(self) -> float:
        """Unit roundoff: the largest relative error of rounding to nearest."""
        return 2.0**-self.digits

    @property
    def tiny(self) -> float:
        """The smallest normal number."""
        return 2.0**self.low

    @property
    def subnormal(self) -> float:
        """The smallest subnormal number; half of it bounds the error of gradual underflow."""
        return 2.0 ** (self.low + 1 - self.digits)

    @property
    def largest(self) -> float:
        """The largest number."""
        return (2.0 - 2.0 ** (1 - self.digits)) * 2.0 ** (self.high - 1)


FORMATS = {
    "float64": Format(53, -1022, 1024),
    "float32": Format(24, -126, 128),
    "bfloat16": Format(8, -126, 128),
    "float16": Format(11, -14, 16),
}


@dataclass(frozen=True)
class Precision:
    """In what a path computes, in what it stores, and what it does with subnormal numbers."""

    dtype: str  # of the parameters
    displacement_dtype: str  # of the displacements
    flushes: bool = False  # subnormal operands and results of arithmetic become 0
    decay_dtype: str = ""  # what weight decay is computed in, if not in what the rest is
    rho_roundings: int = RHO
    schedule_dtype: str = ""  # what a callable schedule computes in, if not in what the path does

    @property
    def arithmetic(self) -> Format:
        """Float32 at least."""
        return FORMATS["float64" if self.dtype == "float64" else "float32"]

    def underflow(self, dtype: str) -> float:
        """Absolute error of an operation whose exact result is below the normal numbers.

        XLA and TensorFlow on the CPU flush. Conversions to float16 do not, whatever the mode: its
        subnormal numbers are normal ones of float32, and the hardware converts them so.
        """
        form = FORMATS[dtype]
        return form.tiny if self.flushes and dtype != "float16" else form.subnormal

    def storage(self, dtype: str) -> tuple[float, float]:
        """Relative and absolute error of storing a result; none where it was computed in that."""
        form = FORMATS[dtype]
        if form.digits >= self.arithmetic.digits:
            return 0.0, 0.0
        return form.u, self.underflow(dtype)

    @property
    def absolute(self) -> float:
        """Underflow error of one operation of the arithmetic."""
        return self.underflow("float64" if self.dtype == "float64" else "float32")

    def gamma(self, roundings: int, u: float | None = None) -> float:
        """Relative error of so many successive roundings, in the run and in the reference."""
        total = roundings * ((self.arithmetic.u if u is None else u) + U64)
        return total / (1 - total)

    def rho_error(self, schedule: Any, rho: float) -> float:
        """Absolute error of rho in a step, as the run computes it."""
        u = self.arithmetic.u
        if not isinstance(schedule, CoolingSchedule) and self.schedule_dtype:
            u = max(u, FORMATS[self.schedule_dtype].u)
        error = self.gamma(self.rho_roundings, u) * abs(rho) + 3 * self.absolute
        return error + (RHO_OF_TAU * u if isinstance(schedule, TemperatureSchedule) else 0.0)


@dataclass
class RunningBound:
    r"""Bounds on the errors of one parameter and its displacement, after every step.

    One step is ``g' = g + w x``, ``dx' = rho dx - eta g'``, ``x' = x + dx'``. Let u be the unit
    roundoff of the arithmetic, s that of the dtype a result is stored in (0 if the same), a and b
    the absolute errors of underflow in the two, and gamma(k) = k U / (1 - k U) with U = u + 2**-53,
    for the reference rounds as well, in float64. Then the distances e from the reference obey

        e_eta <= lr / 2 e_rho + gamma(5) eta + a                        (ETA above)
        e_g'  <= w e_x + gamma(3) (|g| + w (|x| + e_x)) + (3 + w) a     w, product, sum
        e_dx' <= |rho| e_dx + e_rho (|dx| + e_dx) + eta e_g' + e_eta |g'|
                 + gamma(2) (|rho dx| + eta |g'|) + (4 + eta) a         product, difference
                 + s (|dx'| + e) + b                                    stored
        e_x'  <= e_x + e_dx' + gamma(1) (|x'| + e) + a                  sum
                 + s (|dx'| + e) + s (|x'| + e) + 2 b                   optax rounds the update too

    where each magnitude is that of the reference plus its own e, so that nothing is of first order
    only. ``|g'|`` stands for ``|g| + w |x|``, as the terms are rounded before they cancel. The
    coefficients of a count operands that are flushed to 0 as well. A fused multiply-add (XLA, the
    fused kernel of PyTorch) makes fewer roundings, and so does XLA where it keeps float32 between
    two half-precision operations. Weight decay that the framework does and not the adapter (optax,
    Keras) may be computed in less than the arithmetic of the step: then that dtype's u and a stand
    in its terms. Decoupled it is ``x (1 - lr w)`` before the step: 4 roundings of ``lr w x``, 2 of
    the result.
    """

    precision: Precision
    x: np.ndarray | float = 0.0
    dx: np.ndarray | float = 0.0
    scale: np.ndarray | float = field(default=0.0)  # the largest that each coordinate has been

    def start(self, x):
        """The reference starts from numbers that the dtype holds, so there is no error yet."""
        self.x, self.dx, self.scale = np.zeros_like(x), np.zeros_like(x), np.abs(x)

    def step(self, x, dx, g, lr, rho, decay, rho_error=None, decoupled=False):
        """Follow one step from the reference's ``x`` and ``dx``; ``g`` is exact in both."""
        p, a = self.precision, self.precision.absolute
        e_x, e_dx = self.x, self.dx
        e_rho = p.gamma(RHO) * abs(rho) + 3 * a if rho_error is None else rho_error
        eta = lr * (1 + rho) / 2
        e_eta = lr / 2 * e_rho + p.gamma(ETA) * eta + a
        u_decay, a_decay = p.arithmetic.u, a
        if p.decay_dtype:
            u_decay, a_decay = FORMATS[p.decay_dtype].u, max(a, p.underflow(p.decay_dtype))
        if decoupled:
            size = np.abs(x) + e_x
            kept = abs(1 - lr * decay)
            new = p.gamma(4, u_decay) * lr * decay + p.gamma(2, u_decay) * kept
            e_x = kept * e_x + (new * size + 5 * a_decay if decay else 0.0)
            x, decay = (1 - lr * decay) * x, 0.0
        force = np.abs(g) + decay * (np.abs(x) + e_x)
        e_force = decay * e_x + (3 + decay) * a
        if decay:
            e_force = e_force + p.gamma(3, u_decay) * force + 3 * a_decay
        force = force + e_force
        moved = rho * dx - eta * (g + decay * x)
        e_moved = abs(rho) * e_dx + e_rho * (np.abs(dx) + e_dx) + eta * e_force + e_eta * force
        size = (abs(rho) + e_rho) * (np.abs(dx) + e_dx) + (eta + e_eta) * force
        e_moved = e_moved + p.gamma(2) * size + (4 + eta) * a
        self.dx = self._stored(moved, e_moved, p.displacement_dtype)
        e_sum = e_x + self._stored(moved, e_moved, p.dtype)
        if decoupled and p.decay_dtype:  # optax adds the decay to the update, and rounds the sum
            e_sum = e_sum + p.gamma(1, u_decay) * (np.abs(moved) + e_moved)
        e_sum = e_sum + p.gamma(1) * (np.abs(x + moved) + e_sum) + a
        self.x = self._stored(x + moved, e_sum, p.dtype)
        self.scale = np.maximum(self.scale, np.abs(x + moved))

    def skip(self):
        """Follow a step that is not taken: optax adds an update of 0, which flushes too."""
        if self.precision.flushes:
            self.x = self.x + self.precision.absolute

    def _stored(self, exact, error, dtype):
        s, b = self.precision.storage(dtype)
        return error + s * (np.abs(exact) + error) + b


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """``values`` as numbers that the dtype holds, in float64."""
    return np.asarray(values).astype(numpy_dtype(dtype)).astype(np.float64)


def numpy_dtype(dtype: str) -> np.dtype:
    """That of NumPy, which knows bfloat16 through ml_dtypes."""
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def coolings() -> list[CoolingSchedule]:
    """Every law, with and without warm-ups of both clocks."""
    return [
        CoolingSchedule(10, 0.9, "paper"),
        CoolingSchedule(10, 0.99, "linear"),
        CoolingSchedule(10, 0.9, "exponential", warmup_steps=3),
        CoolingSchedule(10, 0.9, "paper", warmup_steps=4, warmup_clock="hold"),
        CoolingSchedule(10, 0.9, "constant"),
    ]
