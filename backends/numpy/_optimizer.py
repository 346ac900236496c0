"""The reference optimizer: the core's update rule over lists of arrays, and nothing else."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, NamedTuple

from array_api_compat import array_namespace, is_array_api_obj

from coolmomentum import _check, _defaults
from coolmomentum._arrays import is_kind
from coolmomentum.schedules import (
    CoolingSchedule,
    Law,
    Schedule,
    WarmupClock,
    check_schedule,
    resolve_schedule,
)
from coolmomentum.temperature import rescaled_temperature, temperature
from coolmomentum.update import langevin_step

Array = Any  # an array of any array-API namespace


class State(NamedTuple):
    """What the next step needs."""

    step: int  # clock: the steps already taken
    displacements: tuple[Array, ...]  # last change of each parameter, of its shape and dtype


@dataclass(frozen=True)
class CoolMomentum:
    """CoolMomentum for lists of arrays of NumPy or any other array-API namespace.

    The optimizer holds the settings, :class:`State` what changes, and nothing passed in is changed.
    One step with ``n = state.step`` is ``rho = schedule(n)``;
    ``dx = rho dx - learning_rate (1 + rho) / 2 g``;
    ``x = x + dx``; ``n = n + 1``.

    Parameters
    ----------
    learning_rate : base learning rate, the squared time step ``dt**2``; finite and >= 0.
    total_steps, rho0, law, warmup_steps, warmup_clock, hold_steps : the cooling, as in
        :class:`coolmomentum.CoolingSchedule`. total_steps is required unless a schedule is given or
        the law is constant. The numbers are stored as Python's own.
    schedule : a :class:`coolmomentum.CoolingSchedule`, or any callable ``step -> rho`` in [-1, 1),
        in place of those.
    weight_decay : coefficient of the L2 term, finite and >= 0; added to the gradient.
    decoupled_weight_decay : instead, shrink the parameters by ``1 - learning_rate weight_decay``,
        as AdamW.
    maximize : go up the gradient.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> optimizer = CoolMomentum(learning_rate=0.25, total_steps=2, rho0=0.75)
    >>> params = [np.asarray([1.0])]
    >>> state = optimizer.init(params)
    >>> for _ in range(2):
    ...     gradients = [x for x in params]  # of the loss x**2 / 2
    ...     params, state = optimizer.step(params, gradients, state)
    >>> params[0], optimizer.rho(state)
    (array([0.52539062]), 0.0)
    >>> round(float(optimizer.temperature(state)), 9)
    0.261856079
    """

    learning_rate: float = _defaults.LEARNING_RATE
    _: KW_ONLY
    total_steps: int | None = None
    rho0: float | None = None
    law: Law | None = None
    warmup_steps: int | None = None
    warmup_clock: WarmupClock | None = None
    hold_steps: int | None = None
    schedule: Schedule | None = None
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False
    maximize: bool = False
    _schedule: Schedule = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Plain numbers: with one of NumPy the arrays of other libraries do not multiply.
        for name in ("learning_rate", "weight_decay"):
            self._set(name, _check.non_negative(name, getattr(self, name)))
        _check.flag("decoupled_weight_decay", self.decoupled_weight_decay)
        _check.flag("maximize", self.maximize)
        settings = {x.name: getattr(self, x.name) for x in fields(CoolingSchedule)}
        schedule = resolve_schedule(self.schedule, **settings)
        if self.schedule is None:
            for name in [name for name in settings if settings[name] is not None]:
                self._set(name, getattr(schedule, name))
        elif not isinstance(schedule, CoolingSchedule):
            check_schedule(schedule, self.total_steps or 1)
        self._set("_schedule", schedule)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # it is frozen

    def init(self, params: Sequence[Array]) -> State:
        """State at rest: clock 0 and displacements of zeros like ``params``.

        Raises
        ------
        TypeError
            If ``params`` is not a list or tuple of real or complex floating arrays.
        """
        if not isinstance(params, list | tuple):
            raise TypeError(f"params must be a list of arrays: {params!r}")
        for i, x in enumerate(params):
            if not _floating(x):
                raise TypeError(f"params[{i}] must be a floating array: {x!r}")
        return State(0, tuple(array_namespace(x).zeros_like(x) for x in params))

    def step(
        self, params: Sequence[Array], gradients: Sequence[Array | None], state: State
    ) -> tuple[list[Array], State]:
        """One step.

        Parameters
        ----------
        params : the parameters, real or complex floating arrays.
        gradients : the gradient of each, of its shape; None leaves the parameter untouched.
        state : from :meth:`init` or the step before.

        Returns
        -------
        the new parameters and the new state, in the dtypes of the old; if no parameter has a
        gradient, they are the old ones and the clock stands still

        Raises
        ------
        TypeError
            If a gradient is no floating array.
        ValueError
            If the three differ in length, or in the shape of an array.
        """
        displacements = list(state.displacements)
        _check_step(params, displacements, gradients)
        names = ("learning_rate", "weight_decay", "decoupled_weight_decay", "maximize")
        settings = {"rho": self.rho(state)} | {name: getattr(self, name) for name in names}
        params = list(params)
        for i, g in enumerate(gradients):
            if g is not None:
                step = langevin_step(params[i], displacements[i], g, **settings)
                params[i], displacements[i] = step
        applied = any(g is not None for g in gradients)
        return params, State(state.step + applied, tuple(displacements))

    def rho(self, state: State) -> float:
        """Momentum coefficient that the next step will use.

        Raises
        ------
        ValueError
            If a schedule of your own gives one outside [-1, 1).
        """
        return _check.half_open(f"schedule({state.step})", self._schedule(state.step), low=-1)

    def temperature(self, state: State) -> Array:
        """Temperature of the last step (Eq. 22), all coordinates pooled: a 0-d array.

        0 before the first step. A parameter without a gradient counts with its last displacement.

        Raises
        ------
        ValueError
            If the learning rate is 0: then a step has no temperature.
        """
        return temperature(state.displacements, self._unit(state))

    def temperatures(self, state: State) -> dict[int, Array]:
        """:meth:`temperature` of each parameter by itself, by its index.

        Examples
        --------
        >>> import numpy as np
        >>> optimizer = CoolMomentum(learning_rate=0.5, total_steps=2)
        >>> state = State(1, (np.asarray([0.25, -0.75]), np.asarray([1.0])))
        >>> {i: float(t) for i, t in optimizer.temperatures(state).items()}
        {0: 0.625, 1: 2.0}
        """
        unit = self._unit(state)
        return {i: temperature(dx, unit) for i, dx in enumerate(state.displacements)}

    def _unit(self, state: State) -> float:
        return self.learning_rate or float(state.step == 0)

    def rescaled_temperature(self, state: State) -> Array:
        """Mean squared displacement of the last step, ``T dt**2``, pooled: a 0-d array."""
        return rescaled_temperature(state.displacements)


def _check_step(
    params: Sequence[Array], displacements: Sequence[Array], gradients: Sequence[Array | None]
) -> None:
    if len({len(params), len(displacements), len(gradients)}) > 1:
        raise ValueError(
            "params, gradients and displacements must be equally many: "
            f"{len(params)}, {len(gradients)} and {len(displacements)}"
        )
    for i, (x, dx, g) in enumerate(zip(params, displacements, gradients, strict=True)):
        if g is not None and not _floating(g):
            raise TypeError(f"gradients[{i}] must be a floating array or None: {g!r}")
        if g is not None and _complex(g) and not _complex(x):
            raise TypeError(f"gradients[{i}] must be real, as params[{i}] is: {g.dtype}")
        for name, other in (("displacements", dx), ("gradients", g)):
            if other is not None and other.shape != x.shape:
                raise ValueError(f"{name}[{i}] must have the shape {x.shape}: {other.shape}")


def _complex(x: Array) -> bool:
    return is_kind(x, "complex floating")


def _floating(x: object) -> bool:
    return is_array_api_obj(x) and (is_kind(x, "real floating") or _complex(x))
