"""The gradient noise of optax's chains, from momenta or gradients of successive steps."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import export

from coolmomentum import thermometer as core
from coolmomentum._arrays import DType, bits
from coolmomentum.jax import _common as common
from coolmomentum.jax._common import AxisName
from coolmomentum.jax._kept import layout_of, run_if_in_place
from coolmomentum.thermometer.layout import spread

UNKNOWN = 2.0  # no rho; a NaN would stop those who look for NaN


class GradientNoiseState(NamedTuple):
    """What is remembered of the gradients."""

    # tuple.count is hidden on purpose: optax calls every clock so
    count: jax.Array  # type: ignore[assignment]  # shape (), int32: the steps seen
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
        arrays, structure = jax.tree.flatten(self.noise)  # perhaps in boxes
        noise = core.GradientNoise(*map(jnp.asarray, arrays)).next()
        return self._replace(begun=self.count, noise=jax.tree.unflatten(structure, noise))


for _state in (GradientNoiseState, core.GradientNoise):
    with contextlib.suppress(ValueError):
        export.register_namedtuple_serialization(
            _state, serialized_name=f"coolmomentum.jax.{_state.__name__}"
        )


@dataclass(frozen=True)
class Momenta:
    """What passes a transformation in each step, or lies in the state of an optimizer."""

    rule: Callable[[jax.Array, DType], core.Momentum]  # by the steps taken before the step
    waits: bool = False  # they are displacements, the momentum times the learning rate
    are_gradients: bool = False  # of an optimizer whose momentum has this rule


@dataclass(frozen=True)
class NoiseMeter:
    """What measures the gradients of three successive steps, from what was kept of them."""

    sampling: core.Sampling
    momenta: Momenta
    batch_size: int
    axis_name: AxisName | None

    def init(self, like: Any, lags: tuple[int, ...]) -> GradientNoiseState:
        """The state for such leaves, which keeps those of so many steps before a measured one."""
        kept = tuple(jax.tree.map(jnp.zeros_like, like) for _ in lags)  # all can be donated
        columns, dtype = len(layout_of(like)), common.precision(*jax.tree.leaves(like))
        rows = core.GradientNoise.empty(np.zeros(columns), 1).sums.shape[0]
        noise = core.GradientNoise(
            jnp.zeros((rows, columns), dtype),
            jnp.zeros(1, jnp.int32),
            jnp.asarray(self.batch_size, jnp.int32),
        )
        zero, other = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32)
        return GradientNoiseState(zero, other, noise, kept)

    def step(
        self,
        n: jax.Array,
        state: GradientNoiseState,
        now: list[jax.Array],
        lags: tuple[int, ...],
        recent: Mapping[int, list[jax.Array]] | None = None,
    ) -> tuple[Any, GradientNoiseState]:
        """The state after step n, and a flag that is True once all is measured.

        ``recent`` has what is kept elsewhere of so many steps before.
        """
        state = state._replace(count=n)
        if not now:
            return True, state
        ahead = self.sampling.steps_to_noise(n)
        kept = {i: jax.tree.leaves(tree) for i, tree in zip(lags, state.lags, strict=True)}
        steps = {0: now, **(recent or {}), **kept}
        layout = layout_of(state.lags[0])
        done, noise = run_if_in_place(
            ahead == 0,
            lambda noise: self._measured(noise, n, [steps[i] for i in sorted(steps)], layout),
            state.noise,
        )
        trees = []
        for i, tree in zip(lags, state.lags, strict=True):
            done, leaves = run_if_in_place((ahead == i) & done, lambda _: now, kept[i])
            trees.append(jax.tree.unflatten(jax.tree.structure(tree), leaves))
        return done, state._replace(noise=noise, lags=tuple(trees))

    def _measured(
        self,
        noise: core.GradientNoise,
        n: jax.Array,
        steps: list[list[jax.Array]],
        layout: core.Layout,
    ) -> core.GradientNoise:
        dtype, applied = noise.sums.dtype, jnp.asarray(True)

        def dot(x: jax.Array, y: jax.Array) -> jax.Array:
            return common.global_product(x, y, self.axis_name).astype(dtype)

        with common.promoting():
            rules = [self.momenta.rule(n - 1 - i, dtype) for i in range(len(steps))]
            rho = rules[0].rho
            told = spread(
                [UNKNOWN if _is_half(x) else rho for x in steps[0]], noise.sums[0, 0], jnp
            )
            if self.momenta.are_gradients:
                table = core.noise_moments(zip(*steps, strict=True), dot=dot, xp=jnp)
                return noise.add(table, layout, told, xp=jnp)
            if self.momenta.waits:
                steps = [
                    [x * (1 / rule._scale(jnp)).astype(x.dtype) for x in step]
                    for step, rule in zip(steps, rules, strict=True)
                ]
            for rule in rules:
                applied = applied & rule.shows()
            if self.momenta.waits:
                rules = [rule._replace(scale=1.0) for rule in rules]
            each = [[rule] * len(steps[0]) for rule in rules[:3]]
            table = core.momenta_moments(steps, each, dot=dot, xp=jnp)
            return noise.add(table, layout, told, applied=applied, xp=jnp)


def _is_half(x: jax.Array) -> bool:
    return bits(x.dtype) < 32
