"""The gradient noise of optax's chains, from momenta or gradients of successive steps."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from coolmomentum import thermometer as core
from coolmomentum._arrays import DType, bits
from coolmomentum.jax import _common as common
from coolmomentum.jax._common import AxisName
from coolmomentum.jax._kept import (
    layout_of,
    next_window,
    run_if_in_place,
    values_like,
    zeros_where_moving,
)
from coolmomentum.thermometer.layout import spread

UNKNOWN = 2.0  # no rho; a NaN would stop those who look for NaN
DynamicsAt = Callable[[jax.Array, DType], core.Dynamics]  # by the steps taken before the step
common.exportable(core.GradientNoise)


@common.exportable
class GradientNoiseState(NamedTuple):
    """What is remembered of the gradients."""

    # Shape (), int32: the steps seen.
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as the clocks of optax do
    begun: jax.Array  # shape (), int32: those of them before the window
    noise: core.GradientNoise  # of arrays of float32 or float64, and of int32
    lags: tuple[optax.Updates, ...]  # momenta or gradients of the steps before a measured one

    def on_host(self) -> core.GradientNoise:
        """What was measured, in NumPy."""
        return core.GradientNoise(*map(np.asarray, jax.tree.leaves(self.noise)))

    def reason(self) -> str:
        """Why a momentum is not known."""
        return "in 16 bits" if any(map(_is_half, jax.tree.leaves(self.lags))) else ""

    def next(self) -> "GradientNoiseState":
        """That of the next window."""
        return self._replace(begun=self.count, noise=next_window(self.noise))


@dataclass(frozen=True)
class NoiseMeter:
    """What measures the gradients of three successive steps, from what was kept of them.

    It keeps momenta, which pass a transformation or lie in the state of an optimizer, or gradients.
    """

    sampling: core.Sampling
    dynamics: DynamicsAt
    axis_name: AxisName | None
    rule: Callable[[core.Dynamics], core.Momentum]  # how the momentum of the optimizer goes on
    batch_size: int
    waits: bool = False  # what is kept are displacements, the momentum times the learning rate
    of_gradients: bool = False  # what is kept are the gradients themselves

    def init(self, like: Any, lags: int) -> GradientNoiseState:
        """The state for such momenta, which keeps those of so many steps before a measured one."""
        kept = tuple(zeros_where_moving(like) for _ in range(lags))  # all can be donated
        dtype = common.precision(*jax.tree.leaves(kept))
        empty = core.GradientNoise.empty(jnp.zeros(len(layout_of(kept[0])), dtype), 0, xp=jnp)
        noise = core.GradientNoise(
            empty.sums, jnp.zeros(1, jnp.int32), jnp.asarray(self.batch_size, jnp.int32)
        )
        zero, other = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32)
        return GradientNoiseState(zero, other, noise, kept)

    def step(
        self, state: GradientNoiseState, momenta: Any, recent: Sequence[Any] = ()
    ) -> tuple[Any, GradientNoiseState]:
        """A flag that is True once all is measured, and the state after the step.

        ``recent`` are the momenta of the last steps where something else keeps them, the newest
        first; the state has those before them.
        """
        state = state._replace(count=optax.safe_increment(state.count))
        now = values_like(momenta, state.lags[0])
        if not now:
            return True, state
        ahead = self.sampling.steps_to_noise(state.count)
        steps = [now, *map(jax.tree.leaves, (*recent, *state.lags))]
        done, noise = run_if_in_place(
            ahead == 0,
            lambda sums: self._measured(core.GradientNoise(*sums), state, steps),
            state.noise,
        )
        lags = []
        for lag, kept in enumerate(state.lags, 1 + len(recent)):
            done, kept = run_if_in_place((ahead == lag) & done, lambda _: now, kept)
            lags.append(kept)
        return done, state._replace(noise=noise, lags=tuple(lags))

    def _measured(
        self, noise: core.GradientNoise, state: GradientNoiseState, steps: list[list[jax.Array]]
    ) -> core.GradientNoise:
        n, dtype, layout = state.count, noise.sums.dtype, layout_of(state.lags[0])
        dot = common.product_in(dtype, self.axis_name)
        with common.promoting():
            rules = [self.rule(self.dynamics(n - 1 - i, dtype)) for i in range(len(steps))]
            known = [UNKNOWN if _is_half(x) else rules[0].rho for x in steps[0]]
            rho = spread(known, noise.sums[0, 0], jnp)
            applied = functools.reduce(jnp.logical_and, [rule.shows() for rule in rules])
            if self.waits:
                steps = list(map(_momentum, steps, rules))
                rules = [rule._replace(scale=1.0) for rule in rules]
            if self.of_gradients:
                table = core.noise_moments(zip(*steps, strict=True), dot=dot, xp=jnp)
            else:
                each = [[rule] * len(steps[0]) for rule in rules[:-1]]
                table = core.momenta_moments(steps, each, dot=dot, xp=jnp)
            return noise.add(table, layout, rho, applied=applied, xp=jnp)


def _momentum(displacements: list[jax.Array], rule: core.Momentum) -> list[jax.Array]:
    """The momentum, of displacements that are the momentum times the learning rate of the step."""
    return [x * (1 / rule._scale(jnp)).astype(x.dtype) for x in displacements]


def _is_half(x: jax.Array) -> bool:
    return bits(x.dtype) < 32
