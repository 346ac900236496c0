"""Export and import of the transformation's state, independent of the framework."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from coolmomentum.jax._common import is_trainable, map_states
from coolmomentum.jax._state_readings import states_of
from coolmomentum.jax._transform import CoolMomentumState
from coolmomentum.jax._tree import Leaf, named_leaves, unboxed
from coolmomentum.portable import PortableState, unique
from coolmomentum.schedules import CoolingSchedule


def export_state(
    opt_state: optax.OptState, learning_rate: optax.ScalarOrSchedule, schedule: CoolingSchedule
) -> PortableState:
    """The state in a form that every adapter reads.

    Its path in the tree names a parameter: ``{"dense": {"kernel": ...}}`` has a
    ``"dense.kernel"``, also where a Variable of ``flax.nnx`` or a Partitioned of ``flax.linen``
    holds it. Integer leaves, PRNG keys and masked leaves are left out, and so is the state of other
    transformations. It reads values, so it does not work under ``jit``.

    Parameters
    ----------
    opt_state : state of the optimizer, with :func:`coolmomentum.jax.cool_momentum` anywhere in it.
    learning_rate : of the optimizer: a number, an array or an optax schedule.
    schedule : the :class:`coolmomentum.CoolingSchedule` of the optimizer.

    Returns
    -------
    the clock, the schedule, the learning rate, and a displacement for each name

    Raises
    ------
    TypeError
        If the schedule is a function of the step.
    ValueError
        If there is no CoolMomentum state in ``opt_state``, two of them have different step counts
        or the same parameter, two paths give one name, a displacement is complex, or other
        processes hold a part of it: then gather the state first, on every process, by
        ``jax.experimental.multihost_utils.process_allgather(opt_state, tiled=True)``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from coolmomentum import CoolingSchedule
    >>> from coolmomentum.jax import cool_momentum, export_state
    >>> cooling = CoolingSchedule(total_steps=2, rho0=0.75)
    >>> tx = cool_momentum(0.25, schedule=cooling)
    >>> params = {"layer": {"w": jnp.array([1.0])}}
    >>> _, opt_state = tx.update(params, tx.init(params))
    >>> saved = export_state(opt_state, 0.25, cooling)
    >>> saved.clock, saved.displacements
    (1, {'layer.w': array([-0.21875], dtype=float32)})
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
        displacements={name: _on_host(name, dx) for name, dx in _named(found).items()},
    )


def import_state(opt_state: optax.OptState, saved: PortableState) -> optax.OptState:
    """A state that continues another run, from any adapter.

    Clock and displacements of every CoolMomentum state in it are replaced. The state of other
    transformations stays, also the count that some have, as ``inject_hyperparams`` and
    ``scale_by_schedule``.

    Parameters
    ----------
    opt_state : a state for the parameters, say ``tx.init(params)``, of an optimizer with
        ``schedule=saved.cooling``, which it does not know and therefore cannot check. It may be
        abstract (from ``jax.eval_shape``), traced, or on the host (NumPy arrays).
    saved : the other state, its parameters named by their paths as in :func:`export_state`.

    Returns
    -------
    the new state, with the structure, the dtypes and the shardings of the old, Variables and
    Partitioneds included; NumPy arrays where those were, else arrays of JAX

    Raises
    ------
    ValueError
        If there is no CoolMomentum state in ``opt_state``, or names or shapes differ.

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
    >>> import_state(tx.init(params), saved)
    CoolMomentumState(count=Array(1, dtype=int32), displacement={'layer': {'w': Array([-0.21875]...
    """
    shapes = {name: dx.shape for name, dx in _named(states_of(opt_state)).items()}
    loaded = saved.displacements_for(shapes)
    if saved.clock > (largest := np.iinfo(np.int32).max):
        raise ValueError(f"clock must be <= {largest}, the int32 of the state: {saved.clock}")

    def replaced(state: CoolMomentumState) -> CoolMomentumState:
        count = jax.tree.map(lambda count: _like(count, saved.clock), state.count)
        new = [
            _like(dx, loaded[name]) if is_trainable(dx) else _at_rest(dx)
            for name, dx in named_leaves(state.displacement)
        ]
        structure = jax.tree.structure(state.displacement)
        return CoolMomentumState(count, jax.tree.unflatten(structure, new))

    return map_states(replaced, opt_state, CoolMomentumState)


def _named(found: list[CoolMomentumState]) -> dict[str, Leaf]:
    """The displacements that move, of all states, by name."""
    leaves = [leaf for state in found for leaf in named_leaves(state.displacement)]
    named = [(name, dx) for name, dx in leaves if is_trainable(dx)]
    unique([name for name, _ in named])
    return dict(named)


def _at(learning_rate: optax.ScalarOrSchedule, clock: int) -> float:
    rate = unboxed(learning_rate)
    return float(rate(clock) if callable(rate) else rate)


def _on_host(name: str, displacement: Leaf) -> np.ndarray:
    if isinstance(displacement, jax.Array) and not (
        displacement.is_fully_addressable or displacement.is_fully_replicated
    ):
        raise ValueError(
            f"the displacement of {name!r} must be whole on this process: first gather "
            "the state by jax.experimental.multihost_utils.process_allgather(..., tiled=True)"
        )
    return np.asarray(displacement)


def _at_rest(leaf: Leaf) -> Leaf:
    """A leaf that does not move, unchanged; zeros if it is only a shape."""
    return jnp.zeros_like(leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


def _like(leaf: Leaf, value: Any) -> Leaf:
    """``value`` with the dtype and sharding of ``leaf``, so that no step is compiled again."""
    new = np.asarray(value, leaf.dtype)
    if isinstance(leaf, np.ndarray | np.generic):
        return new
    if isinstance(leaf, jax.core.Tracer):
        return jnp.where(True, new, leaf)  # the leaf tells the compiler where to place it
    if not getattr(leaf, "committed", True):
        return jnp.asarray(new)
    return jax.device_put(new, leaf.sharding)
