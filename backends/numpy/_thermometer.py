"""The thermometer over lists of arrays, for any optimizer that gives back parameters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from array_api_compat import array_namespace

from coolmomentum import _check
from coolmomentum import thermometer as core
from coolmomentum._arrays import upcast
from coolmomentum.temperature import coordinates, squared_norm

Array = Any  # an array of any array-API namespace


class NoiseState(NamedTuple):
    """What a thermometer remembers of the gradients."""

    noise: core.GradientNoise
    steps: tuple[tuple[tuple[Array, ...], core.Momentum], ...]  # last ones, the newest first


class ThermometerState(NamedTuple):
    """What a thermometer remembers of a run."""

    steps: int  # seen since init
    window: core.Window
    layout: core.Layout
    params: tuple[Array, ...]  # after the last step that was looked at
    displacements: tuple[Array, ...] | None  # of the last step, if it was looked at
    start: tuple[Array, ...]  # the parameters where the span began
    noise: NoiseState | None = None  # if it is measured


@dataclass(frozen=True)
class Thermometer(core.Sampling):
    """Temperatures of the walk of lists of arrays, read from their displacements.

    As :class:`coolmomentum.numpy.CoolMomentum` it holds the settings, a state what changes, and
    nothing passed in is changed.

    Parameters
    ----------
    every : measure one step in this many, and each of the first ten.
    span : steps over which the freeze-out meter follows the parameters, a multiple of ``every``.
    gradient_noise : whether the critical batch size is read too, of CoolMomentum or SGD; ``every``
        is then 4 at least.
    batch_size : examples in a step, for that.

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

    gradient_noise: bool = False
    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        core.check_gradient_noise(self.gradient_noise, self.batch_size, self.every)

    def init(self, params: Sequence[Array], names: Sequence[str] = ()) -> ThermometerState:
        """State before the first step.

        Parameters
        ----------
        params : at least one parameter, floating arrays.
        names : of the parameters, for the readings; their places by default.
        """
        sizes = [coordinates(x) for x in params]
        layout = core.Layout.of(names or range(len(sizes)), sizes)
        zero = 0 * squared_norm(params[0])
        zeros = array_namespace(zero).stack([zero] * len(layout))
        noise = None
        if self.batch_size is not None:
            noise = NoiseState(core.GradientNoise.empty(zeros, self.batch_size), ())
        window, copies = core.Window.empty(zeros), (_copied(params), None, _copied(params))
        return ThermometerState(0, window, layout, *copies, noise)

    def update(
        self,
        state: ThermometerState,
        params: Sequence[Array],
        *,
        rho: float = math.nan,
        learning_rate: float = math.nan,
        bath: core.Bath | None = None,
    ) -> ThermometerState:
        """The state after one more step.

        Parameters
        ----------
        state : from :meth:`init` or the update before.
        params : the parameters after the step.
        rho : momentum coefficient of the step; NaN where it is not known.
        learning_rate : its squared time step ``dt**2``, the base learning rate of CoolMomentum and
            :func:`coolmomentum.learning_rate_from_sgd` of others; likewise.
        bath : its random force, if it added one: ``Bath(temperature, noise)``.

        Returns
        -------
        the new state, with copies of the parameters

        Raises
        ------
        ValueError
            If the number of parameters has changed.
        """
        n, window, now, start = state.steps + 1, state.window.step(), None, state.start
        how, noise = core.Dynamics(float(rho), float(learning_rate), bath), state.noise
        if self._looks_at(n):
            now = _differences(params, state.params)
        if now is not None and noise is not None:
            noise = self._measured(noise, n, now, core.Momentum.of_displacements(how), state.layout)
        if now is not None and self.measures(n):
            path = _differences(params, start) if self.ends_span(n) else None
            table = core.moments(now, state.displacements or now, path=path)
            weight, paired = self.weight(n), state.displacements is not None
            window = window.measure(table, state.layout, how, weight=weight, paired=paired)
            start = _copied(params) if path else start
        if self._looks_at(n + 1):
            state = state._replace(params=_copied(params))
        return state._replace(steps=n, window=window, displacements=now, start=start, noise=noise)

    def _looks_at(self, n: int) -> bool:
        noise = self.gradient_noise and self.steps_to_noise(n) < core.BLOCK
        return bool(self.measures(n) or self.precedes(n) or noise)

    def _measured(
        self,
        state: NoiseState,
        n: int,
        now: tuple[Array, ...],
        rule: core.Momentum,
        layout: core.Layout,
    ) -> NoiseState:
        """What is remembered of the gradients after step n."""
        steps = ((now, rule), *state.steps)[: core.BLOCK]
        momenta, rules = zip(*steps, strict=True)
        if self.steps_to_noise(n) > 0:
            return NoiseState(state.noise, steps)
        return NoiseState(state.noise.measure(momenta, rules[:-1], layout), ())

    def read(
        self, state: ThermometerState, by: Literal["all", "parameter"] = "all"
    ) -> dict[Any, Any]:
        """The readings of the window.

        Parameters
        ----------
        state : from :meth:`update`.
        by : "all" to pool the parameters, "parameter" for a dict with each apart, by the names of
            :meth:`init` or their places.

        Returns
        -------
        dict of floats with "steps" and :data:`coolmomentum.thermometer.READINGS`, which
        :meth:`coolmomentum.thermometer.Window.readings` describes; NaN where something is not
        known. With ``gradient_noise`` also :data:`coolmomentum.thermometer.NOISE_READINGS`, of
        :meth:`coolmomentum.thermometer.GradientNoise.readings`
        """
        _check.one_of("by", by, ("all", "parameter"))
        rows = _on_host(state.window.sums)
        noise = None if state.noise is None else state.noise.noise
        if noise is not None:
            noise = noise._replace(sums=_on_host(noise.sums))
        return core.report(state.window._replace(sums=rows), state.layout, by, noise)

    def reset(self, state: ThermometerState) -> ThermometerState:
        """The state with a new window, after a reading; the span that has begun goes on."""
        noise = state.noise and state.noise._replace(noise=state.noise.noise.next())
        return state._replace(window=state.window.next(), noise=noise)


def _differences(params: Sequence[Array], before: Sequence[Array]) -> tuple[Array, ...]:
    """What each parameter moved by, in float32 or better."""
    xp = array_namespace(*params)
    return tuple(upcast(x, xp) - upcast(y, xp) for x, y in zip(params, before, strict=True))


def _on_host(sums: Array) -> list[list[float]]:
    """The sums of a library that NumPy need not be able to read."""
    return [[float(sums[i, j]) for j in range(sums.shape[1])] for i in range(sums.shape[0])]


def _copied(params: Sequence[Array]) -> tuple[Array, ...]:
    xp = array_namespace(*params)
    return tuple(xp.asarray(x, copy=True) for x in params)
