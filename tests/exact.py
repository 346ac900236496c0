"""What the tests compare with: the laws in 50 digits and bounds on the error of a float run.

Nothing here comes from the package. ``u`` is the unit roundoff: one correctly rounded operation has
a relative error of at most u. Of libm we assume what glibc documents: log, log1p, exp and expm1
within 1 ulp (2 u), tanh within 2 ulp (4 u).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from fractions import Fraction

Number = float | str | Fraction | Decimal

U64 = 2.0**-53
U32 = 2.0**-24
COOLING_LAWS = ("paper", "linear", "exponential")
LAWS = (*COOLING_LAWS, "constant")
ONE_OF_LAWS = f"law must be one of {', '.join(LAWS)}"
ONE_OF_COOLING_LAWS = f"law must be one of {', '.join(COOLING_LAWS)}"
DIGITS = Context(prec=50)

# Relative error of rho in units of u, to first order, for a rho0 that is a float: its own rounding
# is not counted. A result is wrong by what goes into it, times the condition number, and by its own
# rounding. expm1 and tanh have a condition number <= 1 here, and no law subtracts numbers of like
# size; of a sum of two positive numbers the larger error counts.
#   paper        log1p 2, quotient 1, product 1, expm1 2
#   linear       rho0 left 1, 1 - rho0 1, product 1, sum 1, quotient 1
#   exponential  log1p 2, their difference 1, quotient 1, product 1, tanh 4
RHO_ROUNDINGS = {"paper": 6, "linear": 5, "exponential": 9, "constant": 0}


def decimal(value: Number) -> Decimal:
    """``value`` to 50 digits; of a float, its exact value; of a string, what it says."""
    if isinstance(value, Fraction):
        return DIGITS.divide(Decimal(value.numerator), Decimal(value.denominator))
    return Decimal(value)


def rho(law: str, step: int, total_steps: int, rho0: Number) -> Decimal:
    """Momentum coefficient by the textbook formula of each law."""
    with localcontext(DIGITS):
        t, r = Decimal(min(step, total_steps)) / total_steps, decimal(rho0)
        if law == "paper":
            return 1 - (1 - r) ** (1 - t) if t < 1 else Decimal(0)
        if law == "linear":  # Demon, Chen et al. 2019
            return r * (1 - t) / ((1 - r) + r * (1 - t))
        if law == "exponential":
            tau = ((1 + r) / (1 - r)) ** (1 - t)
            return (tau - 1) / (tau + 1)
        assert law == "constant"
        return r


def tau(law: str, step: int, total_steps: int, rho0: Number) -> Decimal:
    """Reduced temperature by what the law says of it."""
    with localcontext(DIGITS):
        t, r = Decimal(step) / total_steps, decimal(rho0)
        tau0 = (1 + r) / (1 - r)
        return {
            "paper": 2 * (1 - r) ** (t - 1) - 1,
            "linear": tau0 + (1 - tau0) * t,
            "exponential": tau0 ** (1 - t),
            "constant": tau0,
        }[law]


def alpha(rho0: Number, total_steps: int) -> Decimal:
    """Cooling rate, Eq. 21."""
    with localcontext(DIGITS):
        return (1 - decimal(rho0)) ** (Decimal(1) / total_steps)


def steps(alpha: Number, rho0: Number) -> Decimal:
    """Steps to rho = 0, Eq. 21 solved for S."""
    with localcontext(DIGITS):
        return (1 - decimal(rho0)).ln() / decimal(alpha).ln()


@dataclass(frozen=True)
class Truth:
    """A printed value of a function of one decimal argument, and what its float must agree with."""

    function: Callable[[Number], Decimal]
    argument: str
    printed: str

    def agrees(self, value: float, *, roundings: float, u: float = U64) -> bool:
        """Whether ``value``, which was computed from the nearest float of the argument, is right.

        It may differ by what the rounding of the argument makes of the exact function, and by the
        function's own roundings. The exact function must give the printed digits.
        """
        there, here = self.function(self.argument), self.function(float(self.argument))
        assert there.quantize(Decimal(self.printed)) == Decimal(self.printed)
        return abs(Decimal(value) - there) <= abs(here - there) + Decimal(roundings * u) * there


def trajectory_bounds(
    rhos: Sequence[Number],
    xs: Sequence[Number],
    *,
    learning_rate: float,
    slope: float,
    rho_errors: Sequence[float],
    u: float,
) -> list[float]:
    """Running bound on the error of x_1, x_2, ... for the loss ``slope x**2 / 2``, v_0 = 0.

    To first order: the errors so far go through the recursion, and each step adds its own, in units
    of u: 2 in rho v (rho is rounded to the dtype), 6 in eta g (eta: 3 and its rounding to the
    dtype; L2 term; product), 1 in each sum.
    """
    bounds, x_error, v_error = [], 0.0, 0.0
    floats = [float(x) for x in xs]
    before, v = floats[0], 0.0
    for r, x, rho_error in zip(map(float, rhos), floats[1:], rho_errors, strict=True):
        eta, v_new = learning_rate * (1 + r) / 2, x - before
        new = 2 * r * abs(v) + 6 * eta * slope * abs(before) + abs(v_new)
        by_rho = rho_error * (abs(v) + learning_rate / 2 * slope * abs(before))
        v_error = r * v_error + eta * slope * x_error + u * new + by_rho
        x_error = x_error + v_error + u * abs(x)
        bounds.append(x_error)
        before, v = x, v_new
    return bounds
