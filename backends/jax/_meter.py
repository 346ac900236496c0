"""What a thermometer keeps of an optimizer's steps, and how it measures one.

:mod:`coolmomentum.thermometer` adds up and reads. The state holds its window, and two arrays of the
shape of each parameter, which are written only on the steps that need them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from coolmomentum import thermometer as core
from coolmomentum._arrays import upcast
from coolmomentum.jax import _common as common
from coolmomentum.jax._common import AxisName
from coolmomentum.jax._kept import layout_of, run_if_in_place, values_like, zeros_where_moving
from coolmomentum.jax._noise import DynamicsAt, GradientNoiseState, NoiseMeter
from coolmomentum.thermometer import Window

# The mass of each coordinate of each parameter, for parameters like those of a tree.
Masses = Callable[[optax.Updates], Iterable[jax.Array]]
common.exportable(Window)


@common.exportable
class ThermometerState(NamedTuple):
    """What the thermometer remembers."""

    # Shape (), int32: the steps seen.
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as the clocks of optax do
    window: Window  # of arrays of float32 or float64, and of int32
    previous: optax.Updates  # displacement of the step before a measured one
    start: optax.Params  # where the span that is going on began; when it ends, how far it came


@common.exportable
class NoisyThermometerState(NamedTuple):
    """The state of a thermometer that measures the gradient noise, too."""

    thermometer: ThermometerState
    noise: GradientNoiseState


@dataclass(frozen=True)
class Meter:
    """What a thermometer knows of the optimizer, and how it measures a step.

    It decides what the state is: with a noise meter that of both.
    """

    sampling: core.Sampling
    dynamics: DynamicsAt
    axis_name: AxisName | None
    noise: NoiseMeter | None = None

    def init(
        self, params: optax.Params, momenta: Any = None
    ) -> ThermometerState | NoisyThermometerState:
        """The state for such parameters, and momenta, if displacements do not serve for them."""
        previous, start = (zeros_where_moving(params) for _ in range(2))  # both can be donated
        columns, dtype = len(layout_of(previous)), common.precision(*jax.tree.leaves(previous))
        sums, counts = ((len(core.SUMS), columns), dtype), ((len(core.COUNTS),), jnp.int32)
        window = Window(jnp.zeros(*sums), jnp.zeros(*counts))
        seen = ThermometerState(jnp.zeros([], jnp.int32), window, previous, start)
        if self.noise is None:
            return seen
        if momenta is None:  # the thermometer keeps the displacements of the step before
            return NoisyThermometerState(seen, self.noise.init(previous, core.BLOCK - 2))
        return NoisyThermometerState(seen, self.noise.init(momenta, core.BLOCK - 1))

    def step(
        self,
        state: Any,
        updates: Any,
        params: Any,
        masses: Masses | None = None,
        momenta: Any = None,
    ) -> tuple[Any, Any]:
        """A flag that is True once all is measured, and the state after the step."""
        if self.noise is None:
            return self._step(state, updates, params, masses, True)
        seen, noise = state
        recent = (seen.previous,) if momenta is None else ()
        done, noise = self.noise.step(noise, updates if momenta is None else momenta, recent)
        done, seen = self._step(seen, updates, params, masses, done)
        return done, NoisyThermometerState(seen, noise)

    def _step(
        self, state: ThermometerState, updates: Any, params: Any, masses: Masses | None, done: Any
    ) -> tuple[Any, ThermometerState]:
        """As :meth:`step`; ``done`` is such a flag of something that reads the state before."""
        n, sampling = optax.safe_increment(state.count), self.sampling
        state = state._replace(count=n, window=state.window.step(xp=jnp))
        if not jax.tree.leaves(state.previous):
            return done, state
        now, start, path = values_like(updates, state.previous), state.start, None
        if params is not None:
            done, start = self._follow(state, now, params, done)
            path = jax.tree.leaves(start)
        done, window = run_if_in_place(
            sampling.measures(n) & done,
            lambda sums: self._measured(Window(*sums), state, now, path, masses),
            state.window,
        )
        done, previous = run_if_in_place(sampling.precedes(n) & done, lambda _: now, state.previous)
        return done, ThermometerState(n, window, previous, start)

    def _follow(
        self, state: ThermometerState, now: list[jax.Array], params: Any, done: Any
    ) -> tuple[Any, Any]:
        """Where the span began; in the step that ends it, how far it came."""
        n, sampling = state.count, self.sampling
        begins, ends = sampling.begins_span(n), sampling.ends_span(n)

        def follow(x0: jax.Array, x: jax.Array, dx: jax.Array) -> jax.Array:
            x0 = jnp.where(begins, x, x0)
            # In the memory of x0, which is done with: elsewhere every step would allocate it.
            path = upcast(x, jnp) - upcast(x0, jnp) + upcast(dx, jnp)
            return jnp.where(ends, path.astype(x0.dtype), x0)

        here = values_like(params, state.previous)
        wanted = begins | ends if done is True else (begins | ends) & done
        return run_if_in_place(wanted, lambda x0: list(map(follow, x0, here, now)), state.start)

    def _measured(
        self,
        window: Window,
        state: ThermometerState,
        now: list[jax.Array],
        path: list[jax.Array] | None,
        masses: Masses | None,
    ) -> Window:
        n, dtype, layout = state.count, window.sums.dtype, layout_of(state.previous)
        dot = common.product_in(dtype, self.axis_name)
        with common.promoting():
            how = self.dynamics(n - 1, dtype)
            mass = masses and masses(state.previous)
            table = core.moments(now, jax.tree.leaves(state.previous), mass, dot=dot, xp=jnp)
            weight = self.sampling.weight(n, xp=jnp)
            window = window.add(table, layout, how, weight=weight, paired=n > 1, xp=jnp)
            if path is None:
                return window

            def ended() -> Window:
                along = core.moments(now, path, dot=dot, xp=jnp)[1:3]  # squares, and with now
                return window.end_span(along, layout, how.rho, xp=jnp)

            closed: Window = lax.cond(self.sampling.ends_span(n), ended, lambda: window)
            return closed
