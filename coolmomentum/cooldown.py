"""Hold hot, cool when told: the learning rate of an optimizer that has no rho to cool.

CoolMomentum cools its rho. The effective learning rate of another optimizer is its learning rate,
and is made to follow the temperature that the same law gives from rho0 = 0.99: from its full value,
a share of 1, down to 1/199. Held and then cooled, such a run is one that decays its learning rate.
"""

import math
from typing import Any, Final

from coolmomentum import _defaults
from coolmomentum._arrays import (
    DType,
    Scalar,
    as_array,
    astype,
    is_number,
    namespace,
    real_dtype,
    wide_dtype,
)
from coolmomentum.schedules import Law, _as_float, _clamp, _counts, _where

__all__ = ["HELD", "learning_rate_share"]

# What holds rho until it is told to cool: the largest counts of 32 bits.
HELD: Final = {"hold_steps": 2**31 - 2, "total_steps": 2**31 - 1}

# reduced_temperature, which would ask on import what kinds of arrays there are.
_HOTTEST = (1 + _defaults.RHO0) / (1 - _defaults.RHO0)
COLDEST: Final = 1 / _HOTTEST  # the share at the end of every law


def learning_rate_share(
    step: Scalar,
    hold_steps: Scalar,
    total_steps: Scalar,
    law: Law = "linear",
    held: Scalar = 1.0,
    *,
    dtype: DType = None,
    xp: Any = None,
) -> Scalar:
    """Share of its held learning rate that an optimizer without rho has on its way down a law.

    It is the reduced temperature of a :func:`cooled_rho` that starts from rho0 = 0.99, over that of
    rho0, but formed without ``1 - rho``: exact to the dtype, and exactly ``held`` while it holds.
    All laws are self-similar: one that begins anew from the share it has reached, over the steps
    that are left, is the rest of the law.

    Parameters
    ----------
    step : n, the steps already taken: a Python number, or an array of integers.
    hold_steps : the step at which the law begins.
    total_steps : the step at which it ends, > hold_steps.
    law : "linear", "exponential" or "paper", which say how the temperature falls; "constant" holds.
    held : the share until hold_steps, in [1/199, 1]; below 1 where an earlier cooling was stopped.
    dtype, xp : as in :func:`cooled_rho`.

    Returns
    -------
    share in [1/199, 1]: a Python float for a Python number, else an array of the shape of ``step``

    Examples
    --------
    >>> [round(learning_rate_share(n, 800, 1000), 6) for n in (0, 800, 900, 1000)]
    [1.0, 1.0, 0.502513, 0.005025]
    >>> last = learning_rate_share(999, 800, 1000)
    >>> round(last, 6)
    0.01
    """
    xp = xp or namespace(step, hold_steps, total_steps, held)
    step = as_array(step, xp) if is_number(step) and xp is not math else step
    dtype = None if xp is math else real_dtype(step, dtype, xp)
    work = wide_dtype(dtype, xp)
    step, hold_steps, total_steps = _counts([step, hold_steps, total_steps], work, xp)
    span = total_steps - hold_steps
    n = _clamp(step - hold_steps, span, xp)
    gone = _as_float(n, work, xp) / _as_float(span, work, xp)
    left = _as_float(span - n, work, xp) / _as_float(span, work, xp)
    share = _SHARES[law](left, gone, _as_float(held, work, xp), xp)
    share = _where(step <= hold_steps, held, share, xp)
    return share if dtype == work else astype(share, dtype, xp)


# Each law of coolmomentum.schedules: (fraction of the steps left, gone, share held) -> share. With
# tau = 199 share: linear in tau, linear in log tau, and paper's 1 - rho = 2 / (tau + 1) in its log.


def _linear(left: Scalar, gone: Scalar, held: Scalar, xp: Any) -> Scalar:
    return left * held + gone * COLDEST


def _exponential(left: Scalar, gone: Scalar, held: Scalar, xp: Any) -> Scalar:
    return _exp(left * _log(held * _HOTTEST, xp), xp) * COLDEST


def _paper(left: Scalar, gone: Scalar, held: Scalar, xp: Any) -> Scalar:
    return (2 * _exp(left * _log((held * _HOTTEST + 1) / 2, xp), xp) - 1) * COLDEST


def _constant(left: Scalar, gone: Scalar, held: Scalar, xp: Any) -> Scalar:
    return held + 0 * left


_SHARES = {
    "linear": _linear,
    "exponential": _exponential,
    "paper": _paper,
    "constant": _constant,
}


def _log(x: Scalar, xp: Any) -> Scalar:
    return math.log(x) if is_number(x) else xp.log(x)


def _exp(x: Scalar, xp: Any) -> Scalar:
    return math.exp(x) if is_number(x) else xp.exp(x)
