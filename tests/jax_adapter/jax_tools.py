"""Running JAX optimizers in tests: double precision for a while, and whole trajectories."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

from coolmomentum.jax import CoolMomentumState


@contextlib.contextmanager
def double() -> Iterator[None]:
    """With jax_enable_x64; also a decorator."""
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


def walk(tx: Any, params: Any, gradients: Any, *, jit: bool = True) -> list[tuple[Any, Any]]:
    """Parameters and state before the first step and after each; a gradient for each step."""

    def step(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step) if jit else step
    states = [(params, tx.init(params))]
    for gradient in gradients:
        states.append(step(*states[-1], gradient))
    return states


def cool_states(opt_state: Any) -> list[CoolMomentumState]:
    """The CoolMomentum states in a state, found without the code under test."""
    if isinstance(opt_state, CoolMomentumState):
        return [opt_state]
    children = opt_state.values() if isinstance(opt_state, dict) else opt_state
    if not isinstance(opt_state, tuple | list | dict):
        return []
    return [state for child in children for state in cool_states(child)]


def same(a: Any, b: Any) -> bool:
    """Whether two pytrees are equal to the last bit, dtypes included."""
    (left, structure), (right, other) = jax.tree.flatten(a), jax.tree.flatten(b)
    return structure == other and all(
        np.asarray(x).dtype == np.asarray(y).dtype
        and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(left, right, strict=True)
    )
