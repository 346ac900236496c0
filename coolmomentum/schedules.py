"""How the momentum coefficient cools from rho0 to 0 over total_steps: the laws, or any curve.

Equation numbers are those of Borysenko and Byshkin, Scientific Reports 11, 10705 (2021).

Nothing here forms ``alpha**n``. In float32 that power is wrong by 0.006 in the paper's own CIFAR-10
run (312,400 steps) and never reaches 0 in a run of a million; the closed forms below are wrong by
less than 1e-6 at any length, and exactly 0 at the last step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args, overload

from array_api_compat import is_array_api_obj

from coolmomentum import _check, _defaults
from coolmomentum._arrays import (
    DType,
    Scalar,
    as_array,
    astype,
    bits,
    is_checkable,
    is_kind,
    is_number,
    namespace,
    real_dtype,
    wide_dtype,
)
from coolmomentum.langevin import rho_from_reduced_temperature

__all__ = [
    "CoolingSchedule",
    "Law",
    "Schedule",
    "TemperatureSchedule",
    "WarmupClock",
    "check_schedule",
    "cooled_rho",
    "from_temperature",
    "resolve_schedule",
]

Law = Literal["paper", "linear", "exponential", "constant"]
COOLING_LAWS: tuple[Law, ...] = tuple(law for law in get_args(Law) if law != "constant")
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
        self-similar: a law that begins at step n from the rho there, over the ``S - n`` steps that
        are left, is the rest of the law.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range. Arrays (0-d), which may be traced, are taken unchecked for
        total_steps, rho0, warmup_steps and hold_steps. When called, if the steps are no number and
        no array of numbers; a masked array is refused.

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
        if self.total_steps is not None and is_checkable(self.total_steps):
            self._set("total_steps", _check.integer("total_steps", self.total_steps, 1))
        if is_checkable(self.rho0):
            self._set("rho0", _check.half_open("rho0", self.rho0))
        for name in ("warmup_steps", "hold_steps"):
            if is_checkable(steps := getattr(self, name)):
                self._set(name, steps := _check.integer(name, steps, 0))
                total = self.total_steps
                if total is not None and is_checkable(total) and steps >= total:
                    raise ValueError(f"{name} must be < total_steps = {total}: {steps}")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # it is frozen

    @overload
    def __call__(self, step: float) -> float: ...
    @overload
    def __call__(self, step: Scalar, *, dtype: DType = None, xp: Any = None) -> Scalar: ...
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
    def of(cls, rho0: Scalar, xp: Any = math) -> "LawNumbers":
        """Those of a number, or of an array of the namespace."""
        log1p = math.log1p if is_number(rho0) else xp.log1p
        log_complement = log1p(-rho0)
        return cls(rho0, 1 - rho0, log_complement, (log1p(rho0) - log_complement) / 2)


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
        :class:`CoolingSchedule`, unchecked. For rho0 a ``LawNumbers`` will do, beside an
        ``xp`` that is given.
    dtype : floating dtype of the result for an array of integers; the namespace's default if None.
        float32 is good to 1e-6 at any total_steps; ask for float64 where the parameters have it.
        Half precision is computed in float32 and rounded once.
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
    if xp is math:
        dtype = None
    else:
        step = as_array(step, xp) if is_number(step) else step
        dtype = real_dtype(step, dtype, xp)
    work = wide_dtype(dtype, xp)
    step, total_steps, warmup_steps, hold_steps = _counts(
        [step, total_steps, warmup_steps, hold_steps], work, xp
    )
    numbers = _law_numbers(rho0, work, xp)
    holds, warms = not _is_zero(hold_steps), not _is_zero(warmup_steps)
    start = warmup_steps if warmup_clock == "hold" else 0
    start = _later(start, hold_steps, xp) if holds else start
    span = total_steps - start
    n = _clamp(step - start, span, xp)
    remaining, n, span = (_as_float(x, work, xp) for x in (span - n, n, span))
    rho = _LAWS[law](remaining, n, span, numbers, xp)
    if holds:  # a law at n = 0 may differ from rho0 in the last digit
        rho = _where(step < start, numbers.rho0, rho, xp)
    if warms:
        rho = _where(step < warmup_steps, 0.0, rho, xp)
    return rho if dtype == work else astype(rho, dtype, xp)


def _is_zero(count: Scalar) -> bool:
    """Whether it is known to be 0, which an array, perhaps traced, is not."""
    return is_number(count) and count == 0


def _law_numbers(rho0: "Scalar | LawNumbers", work: DType, xp: Any) -> LawNumbers:
    """The numbers of the laws in the dtype to compute in."""
    if not isinstance(rho0, LawNumbers):
        rho0 = LawNumbers.of(rho0 if is_number(rho0) else astype(rho0, work, xp), xp)
    return LawNumbers(*(x if is_number(x) else astype(x, work, xp) for x in rho0))


def _counts(counts: list[Scalar], work: DType, xp: Any) -> list[Scalar]:
    """The step and other counts as integers of 32 bits or more.

    As floats where one of them is, or where it is beyond the integers of another.
    """
    arrays = [x for x in counts if not is_number(x)]
    if xp is math:
        return counts
    if not all(is_kind(x, "integral") or is_kind(x, "real floating") for x in arrays):
        dtypes = ", ".join(str(x.dtype) for x in arrays)
        raise TypeError(f"steps must be integers or floats: {dtypes}")
    largest = 2 ** (max(32, min(bits(x.dtype) for x in arrays)) - 1) - 1
    if all(x <= largest if is_number(x) else is_kind(x, "integral") for x in counts):
        # A short integer would wrap; its namespace refuses a longer Python one.
        int32 = getattr(xp, "int32", "int32")
        return [x if is_number(x) or bits(x.dtype) >= 32 else astype(x, int32, xp) for x in counts]
    step = counts[0]
    dtype = wide_dtype(step.dtype, xp) if is_kind(step, "real floating") else work
    return [_as_float(x, dtype, xp) for x in counts]


# Each law: (steps left, steps gone, all of them, numbers of rho0) -> rho. The steps left are formed
# in integers: exact, and 0 at the end. The numbers are float64 of the host, unless rho0 or S is an
# array (which may be traced). coolmomentum.cooldown has each law again, for a learning rate.


def _paper(left: Scalar, gone: Scalar, span: Scalar, numbers: LawNumbers, xp: Any) -> Scalar:
    return -xp.expm1(left / span * numbers.log_complement)


def _linear(left: Scalar, gone: Scalar, span: Scalar, numbers: LawNumbers, xp: Any) -> Scalar:
    return numbers.rho0 * left / (left + numbers.complement * gone)


def _exponential(left: Scalar, gone: Scalar, span: Scalar, numbers: LawNumbers, xp: Any) -> Scalar:
    return xp.tanh(left / span * numbers.artanh)


def _constant(left: Scalar, gone: Scalar, span: Scalar, numbers: LawNumbers, xp: Any) -> Scalar:
    return left * 0 + numbers.rho0


_LAWS = {
    "paper": _paper,
    "linear": _linear,
    "exponential": _exponential,
    "constant": _constant,
}


def _clamp(n: Scalar, span: Scalar, xp: Any) -> Scalar:
    """``n`` in [0, span]: a clock that wrapped or ran on must not reach the laws."""
    return min(max(n, 0), span) if xp is math else xp.clip(n, 0, span)


def _later(a: Scalar, b: Scalar, xp: Any) -> Scalar:
    if is_number(a) and is_number(b):
        return max(a, b)
    arrays = [xp.zeros_like(y) + x if is_number(x) else x for x, y in ((a, b), (b, a))]
    return xp.maximum(*arrays)


def _where(condition: Any, value: Scalar, rho: Scalar, xp: Any) -> Scalar:
    """``value`` where the condition holds, in the dtype and shape of ``rho``."""
    if xp is math:
        return value if condition else rho
    return xp.where(condition, xp.zeros_like(rho) + value, rho)


def _as_float(x: Scalar, dtype: DType, xp: Any) -> Scalar:
    return float(x) if is_number(x) else astype(x, dtype, xp)


# --- any curve ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TemperatureSchedule:
    """Schedule that follows a curve of the reduced temperature; see :func:`from_temperature`.

    Parameters
    ----------
    tau : function of the steps already taken that gives T / T(rho=0).
    total_steps : the last step of the curve, whose value is held after it.

    Examples
    --------
    >>> TemperatureSchedule(lambda step: 3.0)(0)
    0.5
    """

    tau: Callable[[Any], Any]
    total_steps: int | None = None

    def __call__(self, step: Scalar) -> Scalar:
        """Rho for the next step when ``step`` steps have been taken; the shape is that of step."""
        step = _signed(step)
        if self.total_steps is not None:
            step = _at_most(step, self.total_steps)
        if is_number(step):
            return rho_from_reduced_temperature(self.tau(step))
        try:
            tau = self.tau(step)
        except (TypeError, ValueError, RuntimeError) as error:
            # A curve of Python numbers: math.cos, int(n), n < 3 and 1 or 2, whatever the library.
            raise TypeError(
                f"tau must take an array of steps, by functions of its library: {error}"
            ) from error
        rho = rho_from_reduced_temperature(tau)
        if is_number(rho) and is_array_api_obj(step):  # a constant curve
            xp = namespace(step)
            rho = astype(xp.zeros_like(step), wide_dtype(real_dtype(step, None, xp), xp), xp) + rho
        return rho


def _signed(step: Scalar) -> Scalar:
    """Short and unsigned integers as ones that a curve can subtract and multiply."""
    if is_number(step) or not is_array_api_obj(step) or not is_kind(step, "integral"):
        return step
    xp, dtype = namespace(step), getattr(step, "dtype", None)
    unsigned = "uint" in str(dtype)
    if bits(dtype) < 32:
        return astype(step, xp.int32, xp)
    return astype(step, as_array(2**31 - 1, xp).dtype, xp) if unsigned else step


def _at_most(step: Scalar, last: int) -> Scalar:
    """The step, or the last one after it; of tensors whose library is not known, by operators."""
    if is_number(step):
        return min(step, last)
    if not is_array_api_obj(step):
        late = step - last
        return step - (late + abs(late)) / 2
    xp = namespace(step)
    step, last = _counts([step, last], wide_dtype(real_dtype(step, None, xp), xp), xp)
    return xp.where(step < last, step, xp.zeros_like(step) + last)


def from_temperature(
    tau: Callable[[Any], Any], total_steps: int | None = None
) -> TemperatureSchedule:
    """Schedule whose reduced temperature is ``tau(step)``: any curve may be cooled along.

    Parameters
    ----------
    tau : function of the steps already taken that gives T / T(rho=0), finite and >= 0; 1 means
        rho = 0. Below 1 rho is negative: successive displacements are anticorrelated, and the walk
        is colder than plain SGD. No law asks for that, only a curve or a schedule of your own. The
        steps are a Python int, or in a compiled step a 0-d array (as float in Keras): a curve made
        of operators and functions of the array's library takes both, and arrays of steps too. One
        for Python ints alone will do where nothing is compiled.
    total_steps : the last step of the curve, an integer >= 1: ``tau(total_steps)`` is held after
        it. By default tau is asked for any step.

    Returns
    -------
    a callable ``step -> rho``, which every adapter takes as its ``schedule``

    Raises
    ------
    TypeError
        If tau is not callable; from the schedule, if tau cannot take the array it is given.
    ValueError
        If total_steps is out of range; from the schedule, if tau gives a Python number that is
        negative or not finite.

    Examples
    --------
    >>> schedule = from_temperature(lambda step: 1 + 2 * 0.5**step)
    >>> schedule(0), round(schedule(1), 12)
    (0.5, 0.333333333333)
    >>> parabola = from_temperature(lambda step: 1 + (10 - step) ** 2, total_steps=10)
    >>> parabola(10), parabola(20)  # without total_steps it would heat again
    (0.0, 0.0)
    """
    if not callable(tau):
        raise TypeError(f"tau must be a function of the step: {tau!r}")
    if total_steps is not None:
        total_steps = _check.integer("total_steps", total_steps, 1)
    return TemperatureSchedule(tau, total_steps)


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
    settings = {
        "total_steps": total_steps,
        "rho0": rho0,
        "law": law,
        "warmup_steps": warmup_steps,
        "warmup_clock": warmup_clock,
        "hold_steps": hold_steps,
    }
    given: dict[str, Any] = {x: value for x, value in settings.items() if value is not None}
    if schedule is None:
        return CoolingSchedule(given.pop("total_steps", None), **given)
    if not callable(schedule):
        raise TypeError(
            "schedule must be a CoolingSchedule or a function of the step "
            f"(law names a law): {schedule!r}"
        )
    if total_steps is not None and not isinstance(schedule, CoolingSchedule):
        del given["total_steps"]
        if is_checkable(total_steps):
            _check.integer("total_steps", total_steps, 1)
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
