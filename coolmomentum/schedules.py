"""How the momentum coefficient cools from rho0 to 0 over total_steps: the laws and Eqs 20 and 21.

Equation numbers are those of Borysenko and Byshkin, Scientific Reports 11, 10705 (2021).

Nothing here forms ``alpha**n``. In float32 that power is wrong by 0.006 in the paper's own CIFAR-10
run (312,400 steps) and never reaches 0 in a run of a million; the closed forms below are wrong by
less than 1e-6 at any length, and exactly 0 at the last step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from coolmomentum import _check, _defaults
from coolmomentum._arrays import (
    DType,
    Scalar,
    as_array,
    astype,
    is_kind,
    is_number,
    namespace,
    real_dtype,
)
from coolmomentum.langevin import adiabaticity, reduced_temperature, rho_from_reduced_temperature

__all__ = [
    "CoolingSchedule",
    "Law",
    "Schedule",
    "TemperatureSchedule",
    "WarmupClock",
    "adiabatic_rho0",
    "check_schedule",
    "cooled_rho",
    "cooling_rate",
    "cooling_speed",
    "from_temperature",
    "largest_adiabaticity",
    "resolve_schedule",
    "rho0_for_cooling_rate",
    "rho_at",
    "steps_for_cooling_rate",
]

Law = Literal["paper", "linear", "exponential", "constant"]
WarmupClock = Literal["run", "hold"]
Schedule = Callable[[Any], Any]  # step (a Python int or a 0-d array) -> rho in [-1, 1)


# --- the laws -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CoolingSchedule:
    """Momentum coefficient as a function of the step.

    With ``n`` the steps already taken, ``S = total_steps`` and tau the reduced temperature
    ``(1 + rho) / (1 - rho)``, which falls from tau0 to 1, the laws are

    =============  =================================  ==========================================
    law            rho                                what falls how
    =============  =================================  ==========================================
    paper          ``1 - (1 - rho0)**(1 - n/S)``      ``1 - rho`` grows exponentially (Eqs 20, 21)
    linear         ``rho0 (S-n) / (S - rho0 n)``      tau falls linearly (the rule of Demon)
    exponential    ``tanh((1 - n/S) artanh(rho0))``   tau falls exponentially
    constant       ``rho0``                           nothing: momentum SGD, the control
    =============  =================================  ==========================================

    rho is rho0 at step 0 and exactly 0 from step S on; only ``constant`` stays at rho0 for ever.

    Parameters
    ----------
    total_steps : S, the optimizer steps over which rho cools to 0; an integer >= 1. None will do
        for the constant law, which has no end.
    rho0 : initial momentum coefficient in [0, 1).
    law : "paper", "linear", "exponential" or "constant".
    warmup_steps : steps at the start with rho = 0; an integer in [0, total_steps).
    warmup_clock : "run" lets the cooling clock run on during the warm-up, as the paper's ImageNet
        run does; "hold" starts the cooling after it, from rho0. Both reach 0 at step S.
    hold_steps : steps at the start with rho = rho0, the warm-up included, before the law begins; an
        integer in [0, total_steps). The law then cools over the steps that remain. All laws are
        self-similar: one that starts anew at step n from the rho it has there goes on as it would.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range. Arrays (0-d), which may be traced, are taken unchecked for
        total_steps, rho0, warmup_steps and hold_steps.

    Examples
    --------
    >>> schedule = CoolingSchedule(total_steps=100)
    >>> round(schedule(0), 12), round(schedule(50), 12), schedule(100), schedule(1000)
    (0.99, 0.9, 0.0, 0.0)
    >>> import numpy as np
    >>> CoolingSchedule(4, rho0=0.5, law="linear")(np.arange(6))
    array([0.5       , 0.42857143, 0.33333333, 0.2       , 0.        ,
           0.        ])
    >>> [round(CoolingSchedule(4, 0.5, "linear", hold_steps=2)(n), 3) for n in range(5)]
    [0.5, 0.5, 0.5, 0.333, 0.0]
    """

    total_steps: int | None
    rho0: float = _defaults.RHO0
    law: Law = _defaults.LAW
    warmup_steps: int = 0
    warmup_clock: WarmupClock = _defaults.WARMUP_CLOCK
    hold_steps: int = 0

    def __post_init__(self) -> None:
        # Plain strings and numbers, so that a checkpoint can hold them.
        self._set("law", str(_check.one_of("law", self.law, get_args(Law))))
        clocks = get_args(WarmupClock)
        self._set("warmup_clock", str(_check.one_of("warmup_clock", self.warmup_clock, clocks)))
        if self.total_steps is None and self.law != "constant":
            raise TypeError(
                "total_steps is required: the optimizer steps over which rho cools to 0 "
                "(or pass a schedule)"
            )
        if self.total_steps is not None and _is_checkable(self.total_steps):
            self._set("total_steps", _check.whole("total_steps", self.total_steps, 1))
        if _is_checkable(self.rho0):
            self._set("rho0", _check.half_open("rho0", self.rho0))
        for name in ("warmup_steps", "hold_steps"):
            if _is_checkable(steps := getattr(self, name)):
                self._set(name, steps := _check.whole(name, steps, 0))
                total = self.total_steps
                if total is not None and _is_checkable(total) and steps >= total:
                    raise ValueError(f"{name} must be < total_steps = {total}: {steps}")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # it is frozen

    def __call__(self, step: Scalar, *, dtype: DType = None, xp: Any = None) -> Scalar:
        """Rho for the next step when ``step`` steps have been taken; see :func:`cooled_rho`."""
        return cooled_rho(
            step,
            self.total_steps,
            self.rho0,
            self.law,
            self.warmup_steps,
            self.warmup_clock,
            self.hold_steps,
            dtype=dtype,
            xp=xp,
        )


class LawNumbers(NamedTuple):
    """rho0 and what the laws make of it, so that a compiled step can read them from its state.

    Each is rounded once, from float64 of the host. Formed of rho0 in float32 they would be wrong by
    more, because ``1 - rho0`` cancels.
    """

    rho0: Scalar
    complement: Scalar  # 1 - rho0
    log_complement: Scalar  # log(1 - rho0)
    artanh: Scalar  # artanh(rho0)

    @classmethod
    def of(cls, rho0: float) -> "LawNumbers":
        """Those of a float."""
        return cls(rho0, _complement(rho0), _log_complement(rho0, math), _artanh(rho0, math))


def cooled_rho(
    step: Scalar,
    total_steps: Scalar,
    rho0: "Scalar | LawNumbers" = _defaults.RHO0,
    law: Law = _defaults.LAW,
    warmup_steps: Scalar = 0,
    warmup_clock: WarmupClock = _defaults.WARMUP_CLOCK,
    hold_steps: Scalar = 0,
    *,
    dtype: DType = None,
    xp: Any = None,
) -> Scalar:
    """Momentum coefficient of a :class:`CoolingSchedule`, as a pure function of everything.

    Parameters
    ----------
    step : n, the steps already taken: a Python number, or an array of integers (or floats) of any
        shape, concrete or traced.
    total_steps, rho0, law, warmup_steps, warmup_clock, hold_steps : as in
        :class:`CoolingSchedule`, unchecked. For rho0 a :class:`LawNumbers` will do, beside an
        ``xp`` that is given.
    dtype : floating dtype of the result for an array of integers; the namespace's default if None.
        float32 is good to 1e-6 at any total_steps; ask for float64 where the parameters have it.
    xp : array namespace of ``step`` if it is not to be found out (``keras.ops`` will do).

    Returns
    -------
    rho : a Python float for a Python number, else an array of the type and shape of ``step``

    Examples
    --------
    >>> round(cooled_rho(156_200, 312_400), 12)
    0.9
    """
    if law == "constant":  # it has neither a beginning nor an end
        hold_steps, total_steps = 0, 1 if total_steps is None else total_steps
    xp = xp or namespace(step, total_steps, rho0, warmup_steps, hold_steps)
    if xp is not math and is_number(step):
        step = as_array(step, xp)  # a number beside arrays
    if xp is not math and is_number(total_steps) and total_steps > _largest(step, xp):
        # Then the integers of the step do not reach the end, and JAX refuses a longer Python one.
        step, total_steps = _as_float(step, dtype, xp), float(total_steps)
        warmup_steps, hold_steps = (
            float(x) if is_number(x) else x for x in (warmup_steps, hold_steps)
        )
    holds = not (is_number(hold_steps) and hold_steps == 0)
    start = warmup_steps if warmup_clock == "hold" else 0
    start = _later(start, hold_steps, xp) if holds else start
    span = total_steps - start
    n = _clamp(step - start, span, xp)
    left, n = _as_float(span - n, dtype, xp), _as_float(n, dtype, xp)
    span = float(span) if is_number(span) else astype(span, left.dtype, xp)
    rho = _LAWS[law](left, n, span, rho0, xp)
    if holds:  # a law at n = 0 may differ from rho0 in the last digit
        rho = _where(step < start, _value(rho0), rho, xp)
    if is_number(warmup_steps) and warmup_steps == 0:
        return rho
    return _where(step < warmup_steps, 0.0, rho, xp)


# Each law: (S - n, n, S, rho0) -> rho. S - n is formed in integers: it is exact, and 0 at the end.
# The coefficients are float64 of the host, unless rho0 or S is an array (which may be traced).


def _paper(left: Scalar, n: Scalar, span: Scalar, rho0: Scalar, xp: Any) -> Scalar:
    return -xp.expm1(left / span * _log_complement(rho0, xp))


def _linear(left: Scalar, n: Scalar, span: Scalar, rho0: Scalar, xp: Any) -> Scalar:
    return _value(rho0) * left / (left + _complement(rho0) * n)


def _exponential(left: Scalar, n: Scalar, span: Scalar, rho0: Scalar, xp: Any) -> Scalar:
    return xp.tanh(left / span * _artanh(rho0, xp))


def _constant(left: Scalar, n: Scalar, span: Scalar, rho0: Scalar, xp: Any) -> Scalar:
    return left * 0 + _value(rho0)


_LAWS = {
    "paper": _paper,
    "linear": _linear,
    "exponential": _exponential,
    "constant": _constant,
}


def _value(rho0: "Scalar | LawNumbers") -> Scalar:
    return rho0.rho0 if isinstance(rho0, LawNumbers) else rho0


def _complement(rho0: "Scalar | LawNumbers") -> Scalar:
    return rho0.complement if isinstance(rho0, LawNumbers) else 1 - rho0


def _log_complement(rho0: "Scalar | LawNumbers", xp: Any) -> Scalar:
    return rho0.log_complement if isinstance(rho0, LawNumbers) else _log1p(-rho0, xp)


def _artanh(rho0: "Scalar | LawNumbers", xp: Any) -> Scalar:
    if isinstance(rho0, LawNumbers):
        return rho0.artanh
    return (_log1p(rho0, xp) - _log1p(-rho0, xp)) / 2


def _log1p(x: Scalar, xp: Any) -> Scalar:
    return math.log1p(x) if is_number(x) else xp.log1p(x)


def _clamp(n: Scalar, span: Scalar, xp: Any) -> Scalar:
    """``n`` in [0, span]: a clock that wrapped or ran on must not reach the laws."""
    return min(max(n, 0), span) if xp is math else xp.clip(n, 0, span)


def _later(a: Scalar, b: Scalar, xp: Any) -> Scalar:
    if is_number(a) and is_number(b):
        return max(a, b)
    return xp.maximum(*(as_array(x, xp) if is_number(x) else x for x in (a, b)))


def _where(condition: Any, value: Scalar, rho: Scalar, xp: Any) -> Scalar:
    """``value`` where the condition holds, in the dtype and shape of ``rho``."""
    if xp is math:
        return value if condition else rho
    return xp.where(condition, xp.zeros_like(rho) + value, rho)


def _largest(n: Scalar, xp: Any) -> int:
    """The largest integer that the dtype of ``n`` holds, 2**31 - 1 where it cannot be asked."""
    if is_number(n) or not hasattr(xp, "iinfo") or not is_kind(n, "integral", xp):
        return 2**31 - 1
    return int(xp.iinfo(n.dtype).max)


def _as_float(x: Scalar, dtype: DType, xp: Any) -> Scalar:
    return float(x) if xp is math else astype(x, real_dtype(x, dtype, xp), xp)


# --- any curve ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TemperatureSchedule:
    """Schedule that follows a curve of the reduced temperature; see :func:`from_temperature`."""

    tau: Callable[[Any], Any]

    def __call__(self, step: Scalar) -> Scalar:
        """Rho for the next step when ``step`` steps have been taken."""
        return rho_from_reduced_temperature(self.tau(step))


def from_temperature(tau: Callable[[Any], Any]) -> TemperatureSchedule:
    """Schedule whose reduced temperature is ``tau(step)``: any curve may be cooled along.

    Parameters
    ----------
    tau : function of the steps already taken (a Python int, or a 0-d array inside a compiled step)
        that gives T / T(rho=0), finite and >= 0; 1 means rho = 0.

    Returns
    -------
    a callable ``step -> rho``, which every adapter takes as its ``schedule``

    Raises
    ------
    TypeError
        If tau is not callable.
    ValueError
        From the schedule, if tau gives a Python number that is negative or not finite.

    Examples
    --------
    >>> schedule = from_temperature(lambda step: 1 + 2 * 0.5**step)
    >>> schedule(0), round(schedule(1), 12)
    (0.5, 0.333333333333)
    """
    if not callable(tau):
        raise TypeError(f"tau must be a function of the step: {tau!r}")
    return TemperatureSchedule(tau)


def resolve_schedule(
    schedule: Schedule | None = None,
    *,
    total_steps: int | None = None,
    rho0: float | None = None,
    law: Law | None = None,
    warmup_steps: int | None = None,
    warmup_clock: WarmupClock | None = None,
    hold_steps: int | None = None,
) -> Schedule:
    """The schedule that the arguments of an optimizer mean; the same checks for every adapter.

    Parameters
    ----------
    schedule : a :class:`CoolingSchedule`, any callable ``step -> rho``, or None.
    total_steps, rho0, law, warmup_steps, warmup_clock, hold_steps : as in :class:`CoolingSchedule`,
        with its defaults for None. Beside a schedule they must not be given, but for total_steps
        beside a callable, which says how far to probe it.

    Returns
    -------
    a :class:`CoolingSchedule`, or the callable, which has not been called yet

    Raises
    ------
    TypeError
        If there is neither a schedule nor total_steps, or something has the wrong type.
    ValueError
        If a number is out of range, or given beside a schedule.

    Examples
    --------
    >>> resolve_schedule(total_steps=10, rho0=0.5, law="linear").rho0
    0.5
    >>> resolve_schedule(CoolingSchedule(10), rho0=0.5)
    Traceback (most recent call last):
        ...
    ValueError: rho0 must not be given beside a schedule: 0.5
    """
    settings: dict[str, Any] = {
        "total_steps": total_steps,
        "rho0": rho0,
        "law": law,
        "warmup_steps": warmup_steps,
        "warmup_clock": warmup_clock,
        "hold_steps": hold_steps,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    if schedule is None:
        return CoolingSchedule(**{"total_steps": None, **given})
    if not callable(schedule):
        raise TypeError(
            "schedule must be a CoolingSchedule or a function of the step "
            f"(law names a law): {schedule!r}"
        )
    if total_steps is not None and not isinstance(schedule, CoolingSchedule):
        del given["total_steps"]
        if _is_checkable(total_steps):
            _check.whole("total_steps", total_steps, 1)
    for name, value in given.items():
        raise ValueError(f"{name} must not be given beside a schedule: {value!r}")
    return schedule


def check_schedule(schedule: Schedule, total_steps: int = 1) -> Schedule:
    """Probe a schedule at the ends and in the middle, so that a bad one fails before the run.

    Parameters
    ----------
    schedule : callable ``step -> rho``.
    total_steps : length of the run, >= 1; where to probe.

    Returns
    -------
    the schedule

    Raises
    ------
    TypeError
        If it is not callable, or gives something that is not a number.
    ValueError
        If a rho is outside [-1, 1).

    Examples
    --------
    >>> check_schedule(lambda step: 1.5)
    Traceback (most recent call last):
        ...
    ValueError: schedule(0) must be in [-1, 1): 1.5
    """
    if not callable(schedule):
        raise TypeError(f"schedule must be a function of the step: {schedule!r}")
    for step in sorted({0, total_steps // 2, total_steps - 1, total_steps}):
        _check.half_open(f"schedule({step})", schedule(step), low=-1)
    return schedule


# --- the alpha solver ---------------------------------------------------------------------------


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
    return 1 - (1 - rho0) / alpha ** _real(step)


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
    if is_number(total_steps):
        _check.whole("total_steps", total_steps, 1)
    _check_order(rho0, final_rho)
    ratio = (1 - _momentum("rho0", rho0)) / (1 - _momentum("final_rho", final_rho))
    return ratio ** (1 / _real(total_steps))


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
    _check_order(rho0, final_rho)
    ratio = _log_remainder("rho0", rho0) - _log_remainder("final_rho", final_rho)
    return ratio / _log_alpha(alpha)


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
    if is_number(total_steps):
        _check.whole("total_steps", total_steps, 1)
    exponent = _real(total_steps) * _log_alpha(alpha) + _log_remainder("final_rho", final_rho)
    return -namespace(exponent).expm1(exponent)


def _check_order(rho0: Scalar, final_rho: Scalar) -> None:
    if is_number(rho0) and is_number(final_rho) and final_rho > rho0:
        raise ValueError(f"final_rho must be <= rho0 = {rho0}: {final_rho!r}")


def _log_remainder(name: str, rho: Scalar) -> Scalar:
    """The log of ``1 - rho``."""
    return namespace(rho).log1p(-_momentum(name, rho))


def _momentum(name: str, rho: Scalar) -> Scalar:
    return _check.half_open(name, rho) if is_number(rho) else rho


def _real(count: Scalar) -> Scalar:
    """A count as a number to compute with: arrays of integers do not mix with floats everywhere."""
    if is_number(count):
        return count
    xp = namespace(count)
    return astype(count, real_dtype(count, None, xp), xp)


def _log_alpha(alpha: Scalar) -> Scalar:
    if is_number(alpha) and not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1): {alpha!r}")
    return namespace(alpha).log(alpha)


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
    CoolingSchedule(total_steps, rho0, law)
    _check.half_open("rho", rho)
    if law == "paper":
        return -2 * math.log1p(-rho0) / (total_steps * (1 + rho))
    if law == "linear":
        return float((reduced_temperature(rho0) - 1) / (reduced_temperature(rho) * total_steps))
    if law == "exponential":
        return 2 * math.atanh(rho0) / total_steps
    return 0.0


def largest_adiabaticity(schedule: CoolingSchedule) -> float:
    """Largest adiabaticity number on the way from rho0 to 0; for every law it is at an end.

    Parameters
    ----------
    schedule : the schedule, with a total_steps; from where its law begins.

    Returns
    -------
    the number of :func:`coolmomentum.langevin.adiabaticity`, >= 0: below some 0.1 the temperature
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
    total_steps : S, an integer >= 1.
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
    _check.whole("total_steps", total_steps, 1)
    _check.positive("bound", bound)
    _check.one_of("law", law, ("paper", "linear", "exponential"))
    cool, hot = 0.0, 1.0
    while hot - cool > 1e-12:
        middle = (cool + hot) / 2
        if largest_adiabaticity(CoolingSchedule(total_steps, middle, law)) < bound:
            cool = middle
        else:
            hot = middle
    return cool


def _is_checkable(value: object) -> bool:
    """Whether ``value`` is a plain number or no number at all; arrays may be traced."""
    return not hasattr(value, "shape") or isinstance(value, np.generic)
