"""coolmomentum.jax in the contract suite."""

import functools
import io
import pickle
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bounds import RHO as RHO_ROUNDINGS
from drivers import DTYPES, HALF, Driver
from exact import U32
from roles import BATH_SHAPES, BathRun, BathWalk, Transfer

from coolmomentum import CoolingSchedule
from coolmomentum import jax as cool_jax

UNIT = U32  # of the thermometer


@dataclass
class Jax(Driver):
    """The optax transformation; float64 under jax_enable_x64.

    Eagerly the settings are Python numbers. Jitted they are traced, as inject_hyperparams has them,
    so that one program serves all of a law.
    """

    dtype: str
    jitted: bool
    displacement_dtype: str = ""
    flushes: ClassVar = True

    def __post_init__(self):
        self.max_compilations, self.cost = (3, 4) if self.jitted else (0, 2)
        if self.jitted and self.dtype == "float64":
            # XLA's log1p of a traced -rho0, measured: up to 241 u, towards 1 - sqrt(2), where it
            # changes its method. In float32 it is within 4 u.
            self.rho_roundings = RHO_ROUNDINGS + 241

    @property
    def decay_dtype(self):
        return self.dtype  # by optax.add_decayed_weights

    @property
    def unsupported(self):
        return {"add": "a state of optax belongs to one tree of parameters"}

    def make(self, params, lr, cooling, decay, decoupled=False, maximize=False):
        traced: dict[str, Any] = {}
        if self.jitted and isinstance(cooling, CoolingSchedule):
            names = ("total_steps", "rho0") + ("warmup_steps",) * bool(cooling.warmup_steps)
            traced = {name: getattr(cooling, name) for name in names}
        fixed = _Fixed(
            cooling if not traced else (cooling.law, cooling.warmup_clock),
            bool(decay),
            decoupled,
            maximize,
            self.displacement_dtype or None,
        )
        with jax.enable_x64(self.dtype == "float64"):
            weights = [jnp.asarray(x, self.dtype) for x in params]
            state = fixed.transformation(lr, decay, traced).init(weights)
        return JaxRun(self, fixed, traced, weights, state, lr, cooling, decay)

    def momentum_sgd(self, params, gradients, lr, momentum, decay):
        with jax.enable_x64(self.dtype == "float64"):
            weights = [jnp.asarray(x, self.dtype) for x in params]
            sgd = optax.chain(optax.add_decayed_weights(decay), optax.sgd(lr, momentum))
            state, update = sgd.init(weights), jax.jit(sgd.update) if self.jitted else sgd.update
            for step in gradients:
                step = [jnp.asarray(g, self.dtype) for g in step]
                updates, state = update(step, state, weights)
                weights = optax.apply_updates(weights, updates)
            return [np.asarray(x, np.float64) for x in weights]


@dataclass(frozen=True)
class _Fixed:
    """What a program is compiled for; the settings are its arguments."""

    cooling: Any  # law and warm-up clock, or the schedule
    decays: bool
    decoupled: bool
    maximize: bool
    accumulator_dtype: str | None

    def transformation(self, lr: Any, decay: Any, traced: dict[str, Any]) -> Any:
        """The optimizer as a user of optax builds it."""
        cooling = self.cooling
        if traced:
            law, clock = cooling
            cooling = CoolingSchedule(**traced, law=law, warmup_clock=clock)
        core = cool_jax.cool_momentum(
            lr, schedule=cooling, accumulator_dtype=self.accumulator_dtype
        )
        parts = [core]
        if self.decays and self.decoupled:
            parts = [core, optax.add_decayed_weights(-lr * decay)]
        elif self.decays:
            parts = [optax.add_decayed_weights(decay), core]
        if self.maximize:
            parts = [optax.scale(-1.0), *parts]
        return optax.chain(*parts)


def _update(fixed, weights, state, gradients, lr, decay, traced):
    updates, state = fixed.transformation(lr, decay, traced).update(gradients, state, weights)
    return optax.apply_updates(weights, updates), state


def _update_if_finite(fixed, weights, state, gradients, lr, decay, traced):
    careful = optax.apply_if_finite(fixed.transformation(lr, decay, traced), 1000)
    outer = careful.init(weights)._replace(inner_state=state)
    updates, outer = careful.update(gradients, outer, weights)
    return optax.apply_updates(weights, updates), outer.inner_state


@functools.cache
def _jitted(update):
    return jax.jit(update, static_argnums=0)


@dataclass
class JaxRun:
    """A run of cool_momentum for JAX."""

    driver: Jax
    fixed: _Fixed
    traced: dict[str, Any]
    weights: list[Any]
    state: Any
    lr: float
    cooling: Any
    decay: float
    last_lr: float = 1.0

    def step(self, gradients):
        self._feed(_jitted(_update) if self.driver.jitted else _update, gradients)
        self.last_lr = self.lr

    def skip(self):
        # Jitted for the eager path too: it is a lax.cond, which compiles at every call.
        self._feed(_jitted(_update_if_finite), [np.full(x.shape, np.inf) for x in self.weights])

    def _feed(self, update, gradients):
        with jax.enable_x64(self.driver.dtype == "float64"):
            gradients = [jnp.asarray(g, self.driver.dtype) for g in gradients]
            self.weights, self.state = update(
                self.fixed, self.weights, self.state, gradients, self.lr, self.decay, self.traced
            )

    def set_lr(self, lr):
        self.lr = lr

    def params(self):
        return [np.asarray(x).astype(np.float64) for x in self.weights]

    def displacements(self):
        return [np.asarray(x).astype(np.float64) for x in self._own_state().displacement]

    def clock(self):
        return int(self._own_state().count)

    def rho(self):
        with jax.enable_x64(self.driver.dtype == "float64"):
            return float(cool_jax.rho(self.state, self.cooling))

    def temperature(self):
        with jax.enable_x64(self.driver.dtype == "float64"):
            return float(cool_jax.temperature(self.state, self.last_lr))

    def reloaded(self):
        leaves, structure = jax.tree.flatten((self.weights, self.state))
        file = io.BytesIO()
        pickle.dump([np.asarray(leaf) for leaf in leaves], file)  # np.savez has no bfloat16
        file.seek(0)
        with jax.enable_x64(self.driver.dtype == "float64"):
            leaves = [jnp.asarray(leaf) for leaf in pickle.load(file)]
        weights, state = jax.tree.unflatten(structure, leaves)
        own = (self.lr, self.cooling, self.decay, self.last_lr)
        return JaxRun(self.driver, self.fixed, self.traced, weights, state, *own)

    def _own_state(self):
        return next(s for s in self.state if isinstance(s, cool_jax.CoolMomentumState))


DRIVERS = {
    **{
        f"jax, {'jitted' if jitted else 'eager'}, {dtype}": Jax(dtype, jitted)
        for dtype in DTYPES
        for jitted in (False, True)
    },
    **{
        f"jax, jitted, {dtype}, float32 displacements": Jax(dtype, True, "float32")
        for dtype in HALF
    },
}


class Moves(Transfer):
    """Moves runs of the optax transformation."""

    def export(self, run):
        """See Transfer."""
        return cool_jax.export_state(run.state, run.lr, run.cooling)

    def load(self, run, saved):
        """See Transfer."""
        with jax.enable_x64(self.driver.dtype == "float64"):
            run.state = cool_jax.import_state(run.state, saved)
        run.last_lr = saved.last_learning_rate


def rho(**settings):
    """The same of coolmomentum.jax, from its first update, -(1 + rho) / 2."""
    optimizer = cool_jax.cool_momentum(1.0, **settings)
    x = jnp.zeros(1)
    updates, _ = optimizer.update(jnp.ones(1), optimizer.init(x), x)
    return -2 * float(updates[0]) - 1


RHO = {"jax": rho}


def read_walk(walk):
    """Last in a chain."""
    tx = optax.chain(
        cool_jax.cool_momentum(walk.dt2, schedule=walk.cooling),
        cool_jax.thermometer(walk.dt2, walk.cooling, every=walk.every, span=walk.every),
    )
    params = [jnp.asarray(x, jnp.float32) for x in walk.start]
    state = tx.init(params)
    for gradients in walk.gradients:
        given = [jnp.asarray(x, jnp.float32) for x in gradients]
        updates, state = tx.update(given, state, params)
        params = optax.apply_updates(params, updates)
    return cool_jax.read(state), list(cool_jax.read(state, "parameter").values())


def walk_in_bath(run: BathRun, *, jit: bool = True, seed: int = 0) -> BathWalk:
    """A transformation before cool_momentum; its draws are made again from its state."""
    bath = cool_jax.add_thermal_noise(
        run.learning_rate, run.cooling, run.temperature, seed, noise=run.noise
    )
    tx = optax.chain(bath, cool_jax.cool_momentum(run.learning_rate, schedule=run.cooling))
    step = jax.jit(tx.update) if jit else tx.update
    params = [jnp.zeros(shape, jnp.float32) for shape in BATH_SHAPES]
    state, positions, normals = tx.init(params), [], []
    for gradients in run.gradients:
        given = [jnp.asarray(g, jnp.float32) for g in gradients]
        key = jax.random.fold_in(state[0].key, state[0].count)
        updates, state = step(given, state, params)
        params = optax.apply_updates(params, updates)
        keys = jax.random.split(key, len(BATH_SHAPES))
        drawn = [jax.random.normal(*pair) for pair in zip(keys, BATH_SHAPES, strict=True)]
        positions.append([np.asarray(x) for x in params])
        normals.append([np.asarray(x) for x in drawn])
    return BathWalk(positions, normals)
