"""Which cooling takes how long: Eqs 20 and 21, their inverses, and how hot a run may start.

Equation numbers are those of Borysenko and Byshkin, Scientific Reports 11, 10705 (2021).
"""

import math
from typing import Any, overload

from coolmomentum import _check, _defaults
from coolmomentum._arrays import Scalar, computable, is_checkable, namespace
from coolmomentum.langevin import adiabaticity, reduced_temperature
from coolmomentum.schedules import COOLING_LAWS, CoolingSchedule, Law

__all__ = [
    "adiabatic_rho0",
    "cooling_rate",
    "cooling_speed",
    "largest_adiabaticity",
    "rho0_for_cooling_rate",
    "rho_at",
    "settings_from_sgd",
    "steps_for_cooling_rate",
]


# --- the alpha solver ---------------------------------------------------------------------------


@overload
def rho_at(step: float, rho0: float, alpha: float) -> float: ...
@overload
def rho_at(step: Scalar, rho0: Scalar, alpha: Scalar) -> Scalar: ...
def rho_at(step: Scalar, rho0: Scalar, alpha: Scalar) -> Scalar:
    """Momentum coefficient, Eq. 20 as printed: ``1 - (1 - rho0) / alpha**step``.

    For the record and for tests. It is not clamped, goes below 0 after the last step, and is wrong
    in the third digit for long runs in float32: use :class:`CoolingSchedule`.

    Parameters
    ----------
    step : n, steps already taken, >= 0.
    rho0 : initial momentum coefficient in [0, 1).
    alpha : cooling rate in (0, 1], see :func:`cooling_rate`.

    Returns
    -------
    rho, of the type of the arguments

    Examples
    --------
    >>> rho_at(1, rho0=0.75, alpha=0.5)
    0.5
    """
    step, rho0, alpha, rounded = computable(step, rho0, alpha)
    return rounded(1 - (1 - rho0) / alpha**step)


@overload
def cooling_rate(rho0: float, total_steps: float, final_rho: float = 0.0) -> float: ...
@overload
def cooling_rate(rho0: Scalar, total_steps: Scalar, final_rho: Scalar = 0.0) -> Scalar: ...
def cooling_rate(rho0: Scalar, total_steps: Scalar, final_rho: Scalar = 0.0) -> Scalar:
    """Cooling rate alpha that takes rho from rho0 to final_rho in total_steps, Eq. 21.

    ``alpha = ((1 - rho0) / (1 - final_rho))**(1 / total_steps)``; Eq. 21 has final_rho = 0.

    Parameters
    ----------
    rho0 : initial momentum coefficient in [0, 1).
    total_steps : S, an integer >= 1.
    final_rho : momentum coefficient at step S, in [0, rho0].

    Returns
    -------
    alpha in (0, 1], no unit, of the type of the arguments

    Raises
    ------
    TypeError, ValueError
        If a Python number is out of range.

    Examples
    --------
    >>> round(cooling_rate(0.99, 312_400), 15)
    0.999985258846853
    """
    _check_settings(total_steps=total_steps, rho0=rho0, final_rho=final_rho)
    rho0, total_steps, final_rho, rounded = computable(rho0, total_steps, final_rho)
    return rounded(((1 - rho0) / (1 - final_rho)) ** (1 / total_steps))


@overload
def steps_for_cooling_rate(alpha: float, rho0: float, final_rho: float = 0.0) -> float: ...
@overload
def steps_for_cooling_rate(alpha: Scalar, rho0: Scalar, final_rho: Scalar = 0.0) -> Scalar: ...
def steps_for_cooling_rate(alpha: Scalar, rho0: Scalar, final_rho: Scalar = 0.0) -> Scalar:
    """Steps after which a cooling rate has taken rho from rho0 to final_rho: Eq. 21 solved for S.

    Parameters
    ----------
    alpha : cooling rate in (0, 1).
    rho0 : initial momentum coefficient in [0, 1).
    final_rho : momentum coefficient to reach, in [0, rho0].

    Returns
    -------
    number of steps, not rounded, of the type of the arguments

    Raises
    ------
    TypeError, ValueError
        If a Python number is out of range.

    Examples
    --------
    >>> steps_for_cooling_rate(0.5, rho0=0.75)
    2.0
    """
    _check_settings(rho0=rho0, final_rho=final_rho, alpha=alpha)
    alpha, rho0, final_rho, rounded = computable(alpha, rho0, final_rho)
    return rounded((_log1p(-rho0) - _log1p(-final_rho)) / _log(alpha))


@overload
def rho0_for_cooling_rate(alpha: float, total_steps: float, final_rho: float = ...) -> float: ...
@overload
def rho0_for_cooling_rate(
    alpha: Scalar, total_steps: Scalar, final_rho: Scalar = 0.0
) -> Scalar: ...
def rho0_for_cooling_rate(alpha: Scalar, total_steps: Scalar, final_rho: Scalar = 0.0) -> Scalar:
    """Initial rho that a cooling rate takes to final_rho in total_steps: Eq. 21 solved for rho0.

    ``rho0 = 1 - (1 - final_rho) alpha**total_steps``

    Parameters
    ----------
    alpha : cooling rate in (0, 1).
    total_steps : S, an integer >= 1.
    final_rho : momentum coefficient at step S, in [0, 1).

    Returns
    -------
    rho0 in [0, 1), of the type of the arguments

    Raises
    ------
    TypeError, ValueError
        If a Python number is out of range.

    Examples
    --------
    >>> rho0_for_cooling_rate(0.5, total_steps=2)
    0.75
    """
    _check_settings(total_steps=total_steps, final_rho=final_rho, alpha=alpha)
    alpha, total_steps, final_rho, rounded = computable(alpha, total_steps, final_rho)
    exponent = total_steps * _log(alpha) + _log1p(-final_rho)
    return rounded(-namespace(exponent).expm1(exponent))


def _check_settings(**settings: Scalar) -> None:
    """The settings of a cooling, as far as they are no arrays, which may be traced."""
    known = {name: value for name, value in settings.items() if is_checkable(value)}
    for name, value in known.items():
        if name == "total_steps":
            _check.integer(name, value, 1)
        elif name == "alpha":
            if not 0 < _check.real(name, value) < 1:
                raise ValueError(f"alpha must be in (0, 1): {value!r}")
        else:
            _check.half_open(name, value)
    if known.keys() >= {"rho0", "final_rho"} and known["final_rho"] > known["rho0"]:
        raise ValueError(f"final_rho must be <= rho0 = {known['rho0']}: {known['final_rho']!r}")


def _log(x: Scalar) -> Scalar:
    return namespace(x).log(x)


def _log1p(x: Scalar) -> Scalar:
    return namespace(x).log1p(x)


# --- how hot may a run start --------------------------------------------------------------------


def cooling_speed(rho: float, total_steps: int, rho0: float, law: Law = _defaults.LAW) -> float:
    """Relative fall of the temperature in one step, ``|d ln T / dn|``, where a law is at rho.

    Parameters
    ----------
    rho : where on the schedule, in [0, rho0].
    total_steps, rho0, law : as in :class:`CoolingSchedule`.

    Returns
    -------
    fraction per step, >= 0

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    >>> cooling_speed(0.0, total_steps=1000, rho0=0.5, law="linear")
    0.002
    """
    rho0 = CoolingSchedule(total_steps, rho0, law).rho0  # checked, as a Python float
    rho = _check.half_open("rho", rho)
    if law == "paper":
        return -2 * math.log1p(-rho0) / (total_steps * (1 + rho))
    if law == "linear":
        return float((reduced_temperature(rho0) - 1) / (reduced_temperature(rho) * total_steps))
    if law == "exponential":
        return 2 * math.atanh(rho0) / total_steps
    assert law == "constant"
    return 0.0


def largest_adiabaticity(schedule: CoolingSchedule) -> float:
    """Largest adiabaticity number on the way from rho0 to 0; for every law it is at an end.

    Parameters
    ----------
    schedule : the schedule, with a total_steps; from where its law begins.

    Returns
    -------
    the number of :func:`adiabaticity`, >= 0: below some 0.1 the temperature
    follows the schedule, above 1 the run is a quench

    Examples
    --------
    >>> round(largest_adiabaticity(CoolingSchedule(300)), 2)
    0.78
    """
    if schedule.total_steps is None:
        return 0.0
    held = schedule.warmup_steps if schedule.warmup_clock == "hold" else 0
    start = max(schedule.hold_steps, held)
    steps = schedule.total_steps - start
    return max(
        float(adiabaticity(cooling_speed(rho, steps, schedule.rho0, schedule.law), rho))
        for rho in (schedule(max(schedule.warmup_steps, start)), 0.0)
    )


def adiabatic_rho0(total_steps: int, bound: float = 0.1, law: Law = _defaults.LAW) -> float:
    """Largest rho0 whose cooling over total_steps stays below an adiabaticity number.

    The default rho0 = 0.99 is too hot for short runs: what has not relaxed when it freezes is not
    annealed but quenched.

    Parameters
    ----------
    total_steps : S, an integer >= 1; where rho0 is held first, the steps after that.
    bound : largest adiabaticity number allowed, > 0.
    law : as in :class:`CoolingSchedule`; "constant" has no largest rho0.

    Returns
    -------
    rho0 in [0, 1), to 12 digits

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    >>> round(adiabatic_rho0(2400), 3), round(adiabatic_rho0(300), 3)
    (0.99, 0.948)
    """
    _check.integer("total_steps", total_steps, 1)
    _check.positive("bound", bound)
    _check.one_of("law", law, COOLING_LAWS)
    cool, hot = 0.0, 1.0
    while hot - cool > 1e-12:
        middle = (cool + hot) / 2
        if largest_adiabaticity(CoolingSchedule(total_steps, middle, law)) < bound:
            cool = middle
        else:
            hot = middle
    return cool


# --- from SGD -----------------------------------------------------------------------------------


def settings_from_sgd(lr: float, momentum: float, total_steps: int) -> dict[str, Any]:
    """Settings with which CoolMomentum takes over from a momentum SGD, cooling by the linear law.

    rho0 is 0.99, or the largest that is adiabatic over so few steps (:func:`adiabatic_rho0`), but
    not below the momentum. ``lr = 2 lr_of_SGD / ((1 - momentum) tau0)`` with ``tau0 = (1 + rho0) /
    (1 - rho0)``: the first effective learning rate is SGD's, ``lr_of_SGD / (1 - momentum)``, and lr
    is at most that of the constant law, ``2 lr_of_SGD / (1 + momentum)``, so that the run is as
    stable. The cooling takes the place of a decay of SGD's learning rate: leave that out.

    Parameters
    ----------
    lr : SGD's highest learning rate (the factor of the gradient), > 0.
    momentum : its momentum in [0, 1).
    total_steps : optimizer steps of the run, an integer >= 1; less those for which rho0 is held.

    Returns
    -------
    ``{"lr": ..., "rho0": ..., "law": "linear"}``: the keyword arguments of PyTorch's optimizer. The
    learning rate is the first argument of JAX's, Keras' and NumPy's, who call it ``learning_rate``.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    >>> settings = settings_from_sgd(lr=0.1, momentum=0.9, total_steps=1000)
    >>> round(settings["lr"], 4), round(settings["rho0"], 4), settings["law"]
    (0.0198, 0.9804, 'linear')

    PyTorch takes all: ``CoolMomentum(params, total_steps=1000, **settings)``. The others
    take the learning rate as their first argument:

    >>> learning_rate = settings.pop("lr")
    >>> from coolmomentum.numpy import CoolMomentum
    >>> CoolMomentum(learning_rate, total_steps=1000, **settings).law
    'linear'
    """
    lr = _check.positive("lr", lr)
    momentum = _check.half_open("momentum", momentum)
    rho0 = max(momentum, min(_defaults.RHO0, adiabatic_rho0(total_steps, law="linear")))
    lr = 2 * lr / ((1 - momentum) * reduced_temperature(rho0))
    return {"lr": _check.positive("the matched lr", lr), "rho0": rho0, "law": "linear"}
