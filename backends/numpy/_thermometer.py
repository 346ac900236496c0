"""The thermometer over lists of arrays, for any optimizer that gives back parameters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

from array_api_compat import array_namespace

from coolmomentum import _check
from coolmomentum._arrays import wide
from coolmomentum.temperature import coordinates, inner_product, squared_norm
from coolmomentum.thermometer import EVERY, SPAN, Rows, Window, check_intervals, pair_sums

Array = Any  # an array of any array-API namespace


class ThermometerState(NamedTuple):
    """What a thermometer remembers of a run."""

    window: Window
    rows: Rows
    params: tuple[Array, ...]  # after the last step
    displacements: tuple[Array, ...] | None  # of the last step
    start: tuple[Array, ...]  # the parameters where the span began


@dataclass(frozen=True)
class Thermometer:
    """Temperatures of the walk of lists of arrays, read from their displacements.

    As :class:`coolmomentum.numpy.CoolMomentum` it holds the settings, a state what changes, and
    nothing passed in is changed.

    Parameters
    ----------
    every : measure one step in this many.
    span : steps over which the freeze-out meter follows the parameters, a multiple of ``every``.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from coolmomentum.numpy import CoolMomentum, Thermometer
    >>> optimizer = CoolMomentum(learning_rate=0.1, schedule=lambda step: 0.5)
    >>> thermometer, random = Thermometer(), np.random.default_rng(0)
    >>> params = [np.zeros(1000)]
    >>> state, seen = optimizer.init(params), thermometer.init(params)
    >>> for _ in range(1000):
    ...     rho = optimizer.rho(state)
    ...     gradients = [x + random.standard_normal(1000) for x in params]  # of x**2 / 2, and noise
    ...     params, state = optimizer.step(params, gradients, state)
    ...     seen = thermometer.update(seen, params, rho=rho, learning_rate=optimizer.learning_rate)
    >>> reading = thermometer.read(seen)
    >>> round(reading["three_point_temperature"], 3)  # Eq. 19: 0.1 * 1.5 / (4 * 0.5)
    0.075
    """

    every: int = EVERY
    span: int = SPAN

    def __post_init__(self) -> None:
        every, span = check_intervals(self.every, self.span)
        object.__setattr__(self, "every", every)
        object.__setattr__(self, "span", span)

    def init(self, params: Sequence[Array]) -> ThermometerState:
        """State before the first step; at least one parameter, floating arrays."""
        rows = Rows(tuple(coordinates(x) for x in params))
        xp = array_namespace(*params)
        zeros = xp.stack([0 * squared_norm(x) for x in params])
        copies = tuple(xp.asarray(x, copy=True) for x in params)
        empty = Window.empty(xp.concat([zeros, zeros[:1]]))
        return ThermometerState(empty, rows, copies, None, copies)

    def update(
        self,
        state: ThermometerState,
        params: Sequence[Array],
        *,
        rho: float = math.nan,
        learning_rate: float = math.nan,
    ) -> ThermometerState:
        """The state after one more step.

        Parameters
        ----------
        state : from :meth:`init` or the update before.
        params : the parameters after the step.
        rho : momentum coefficient of the step; NaN where it is not known.
        learning_rate : its squared time step ``dt**2``, the base learning rate of CoolMomentum and
            :func:`coolmomentum.learning_rate_from_sgd` of others; likewise.

        Returns
        -------
        the new state, with copies of the parameters

        Raises
        ------
        ValueError
            If the number of parameters has changed.
        """
        xp = array_namespace(*params)
        rho, learning_rate = float(rho), float(learning_rate)
        rows, window = state.rows, state.window.step()
        looks = window.span_steps % self.every in (0, self.every - 1)
        if not (looks or (window.span_steps + 2) % self.every == 0):
            return state._replace(window=window, displacements=None)
        now = None
        if looks:
            pairs = zip(params, state.params, strict=True)
            now = tuple(wide(x, xp) - wide(before, xp) for x, before in pairs)
        start = state.start
        if now and window.span_steps % self.every == 0:
            before, paired = state.displacements or now, int(state.displacements is not None)
            sums = pair_sums(before, now)
            window = window.add(sums, rows, rho=rho, dt2=learning_rate, paired=paired)
            if window.span_steps == self.span:
                ways = [wide(x, xp) - wide(y, xp) for x, y in zip(params, start, strict=True)]
                distance = xp.stack([squared_norm(y) for y in ways])
                pairs = zip(ways, now, strict=True)
                overlap = xp.stack([inner_product(y, dx) for y, dx in pairs])
                window = window.end_span(distance, overlap, rows, rho=rho)
                start = tuple(xp.asarray(x, copy=True) for x in params)
        copies = tuple(xp.asarray(x, copy=True) for x in params)
        return ThermometerState(window, rows, copies, now, start)

    @overload
    def read(self, state: ThermometerState, by: Literal["all"] = "all") -> dict[str, float]: ...
    @overload
    def read(self, state: ThermometerState, by: Literal["parameter"]) -> list[dict[str, float]]: ...

    def read(self, state: ThermometerState, by: Literal["all", "parameter"] = "all") -> Any:
        """The readings of the window.

        Parameters
        ----------
        state : from :meth:`update`.
        by : "all" to pool the parameters, "parameter" for a list with each apart.

        Returns
        -------
        dict of floats with "steps" and :data:`coolmomentum.thermometer.READINGS`, which
        :meth:`coolmomentum.thermometer.Window.read` describes; NaN where something is not known
        """
        _check.one_of("by", by, ("all", "parameter"))
        readings = state.window.read(state.rows)
        rows = [
            {"steps": state.window.steps} | {name: float(x[i]) for name, x in readings.items()}
            for i in range(len(state.rows))
        ]
        return rows[-1] if by == "all" else rows[:-1]

    def close(self, state: ThermometerState) -> ThermometerState:
        """The state with a new window, after a reading; the span that has begun goes on."""
        return state._replace(window=state.window.closed())
