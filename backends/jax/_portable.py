"""The state of the transformation in no framework's terms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from coolmomentum.jax._readings import states_of
from coolmomentum.jax._transform import CoolMomentumState, walks
from coolmomentum.portable import PortableState, unique
from coolmomentum.schedules import CoolingSchedule


def export_state(
    opt_state: optax.OptState, learning_rate: optax.ScalarOrSchedule, schedule: CoolingSchedule
) -> PortableState:
    """The state in a form that every adapter reads.

    A parameter is named by its path in the tree: ``{"dense": {"kernel": ...}}`` has a
    ``"dense.kernel"``. Integer leaves, and those that are masked, are left out; so is the state of
    every other transformation around this one.

    Parameters
    ----------
    opt_state : state of the optimizer, with :func:`coolmomentum.jax.cool_momentum` anywhere in it.
    learning_rate : of the optimizer: a number, an array or an optax schedule.
    schedule : the :class:`coolmomentum.CoolingSchedule` of the optimizer.

    Raises
    ------
    TypeError
        If the schedule is a function of the step.
    ValueError
        If there is no CoolMomentum state in ``opt_state``, or there are two with different clocks
        or with the same parameter, or a displacement is complex.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from coolmomentum import CoolingSchedule
    >>> from coolmomentum.jax import cool_momentum, import_state, export_state
    >>> cooling = CoolingSchedule(total_steps=2, rho0=0.75)
    >>> tx = cool_momentum(0.25, schedule=cooling)
    >>> params = {"layer": {"w": jnp.array([1.0])}}
    >>> _, opt_state = tx.update(params, tx.init(params))
    >>> saved = export_state(opt_state, 0.25, cooling)
    >>> saved.clock, saved.displacements
    (1, {'layer.w': array([-0.21875], dtype=float32)})
    >>> import_state(tx.init(params), saved)
    CoolMomentumState(count=Array(1, dtype=int32), displacement={'layer': {'w': Array([-0.21875]...
    """
    found = states_of(opt_state)
    clocks = sorted({int(state.count) for state in found})
    if len(clocks) > 1:
        raise ValueError(f"the CoolMomentum states in opt_state must have one clock: {clocks}")
    (clock,) = clocks
    return PortableState(
        clock=clock,
        cooling=schedule,
        learning_rate=_at(learning_rate, clock),
        last_learning_rate=_at(learning_rate, max(clock - 1, 0)),
        displacements={name: np.asarray(dx) for name, dx in _named(found).items()},
    )


def import_state(opt_state: optax.OptState, saved: PortableState) -> optax.OptState:
    """A state that goes on where another run stood, of whatever adapter.

    Clock and displacements of every CoolMomentum state in it are replaced. The state of other
    transformations stays; of those that have a clock of their own, as ``inject_hyperparams`` and
    ``scale_by_schedule``, that clock too.

    Parameters
    ----------
    opt_state : a state for the parameters, say ``tx.init(params)``, of an optimizer with
        ``schedule=saved.cooling``, which it does not know and therefore cannot check.
    saved : the other state, its parameters named by their paths as in :func:`export_state`.

    Returns
    -------
    the new state, of the dtypes and shardings of the old

    Raises
    ------
    ValueError
        If there is no CoolMomentum state in ``opt_state``, or names or shapes differ.
    """
    shapes = {name: dx.shape for name, dx in _named(states_of(opt_state)).items()}
    loaded = saved.displacements_for(shapes)

    def replaced(node: Any) -> Any:
        if not isinstance(node, CoolMomentumState):
            return node
        leaves, structure = jax.tree.flatten_with_path(node.displacement)
        new = [_like(dx, loaded[_name(path)]) if walks(dx) else dx for path, dx in leaves]
        return CoolMomentumState(_like(node.count, saved.clock), jax.tree.unflatten(structure, new))

    return jax.tree.map(replaced, opt_state, is_leaf=lambda x: isinstance(x, CoolMomentumState))


def _named(found: list[CoolMomentumState]) -> dict[str, jax.Array]:
    """The displacements that move, of all states, by name."""
    named = [
        (_name(path), dx)
        for state in found
        for path, dx in jax.tree.leaves_with_path(state.displacement)
        if walks(dx)
    ]
    unique([name for name, _ in named])
    return dict(named)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _at(learning_rate: optax.ScalarOrSchedule, clock: int) -> float:
    return float(learning_rate(clock) if callable(learning_rate) else learning_rate)


def _like(leaf: jax.Array, value: Any) -> jax.Array:
    """``value`` where and as ``leaf`` is, so that the next step is not compiled anew."""
    new = jnp.asarray(value, leaf.dtype)
    return jax.device_put(new, leaf.sharding) if leaf.committed else new
