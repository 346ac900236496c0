"""What the state of the optimizer tells: rho, step size, and the temperature of the last step.

The temperature of a window of steps is a thermometer's, in ``_thermometer``; the temperature of a
heat bath is a setting, in ``_thermal``.

Each function takes the state of any optimizer with :func:`coolmomentum.jax.cool_momentum` somewhere
in it (``chain``, ``masked``, ``partition``, ``inject_hyperparams``, ``MultiSteps``, ... or a whole
``TrainState``), on the host or under ``jit``, and costs nothing where it is not called. The state
holds no settings, so the learning rate and the schedule are passed as they were to the optimizer.

If there are several CoolMomentum states, as one for each group of ``partition``, a reading is the
mean over all their coordinates. Where the groups have different settings, read the state of each.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from coolmomentum import step_size as step_size_of
from coolmomentum._arrays import DType
from coolmomentum.jax import _common as common
from coolmomentum.jax._common import AxisName, RhoSchedule
from coolmomentum.jax._transform import CoolMomentumState
from coolmomentum.jax._tree import one_level, unboxed

Reading = Callable[[CoolMomentumState], jax.Array]


def rho(opt_state: optax.OptState, schedule: RhoSchedule) -> jax.Array:
    """Momentum coefficient that the next step will use.

    It reads only the step count, so one of several processes may call it alone.

    Parameters
    ----------
    opt_state : state of the optimizer.
    schedule : the :class:`coolmomentum.CoolingSchedule` of the optimizer, or its callable.

    Returns
    -------
    rho in [-1, 1), a 0-d array in float32, or float64 for float64 parameters

    Raises
    ------
    TypeError
        If the schedule is a law or a number of steps, neither of which says enough.
    ValueError
        If there is no CoolMomentum state in ``opt_state``.

    Examples
    --------
    >>> from coolmomentum import CoolingSchedule
    >>> from coolmomentum.jax import cool_momentum
    >>> cooling = CoolingSchedule(total_steps=100, rho0=0.75)
    >>> opt_state = cool_momentum(0.1, schedule=cooling).init(jnp.zeros(3))
    >>> float(rho(opt_state, cooling))
    0.75
    """
    return _pooled(opt_state, functools.partial(_rho, schedule))


def step_size(
    opt_state: optax.OptState, learning_rate: optax.ScalarOrSchedule, schedule: RhoSchedule
) -> jax.Array:
    """What the next step will multiply the gradient with, Eq. 16.

    Parameters
    ----------
    opt_state : state of the optimizer.
    learning_rate : of the optimizer: a number, an array or an optax schedule.
    schedule : the :class:`coolmomentum.CoolingSchedule` of the optimizer, or its callable.

    Returns
    -------
    step size eta, a 0-d array in float32, or float64 for float64 parameters

    Raises
    ------
    TypeError, ValueError
        As :func:`rho`.

    Examples
    --------
    >>> from coolmomentum import CoolingSchedule
    >>> from coolmomentum.jax import cool_momentum
    >>> cooling = CoolingSchedule(total_steps=100, rho0=0.5)
    >>> opt_state = cool_momentum(0.25, schedule=cooling).init(jnp.zeros(3))
    >>> float(step_size(opt_state, 0.25, cooling))
    0.1875
    """

    def read(state: CoolMomentumState) -> jax.Array:
        rate = common.value_at(learning_rate, state.count, _precision(state))
        return jnp.asarray(step_size_of(rate, _rho(schedule, state)))

    return _pooled(opt_state, read)


def temperature(
    opt_state: optax.OptState,
    learning_rate: optax.ScalarOrSchedule,
    *,
    axis_name: AxisName | None = None,
) -> jax.Array:
    """Temperature of the last step, Eq. 22: the mean squared displacement over the learning rate.

    It follows the thermostat, not the landscape: it shows that the walk cools, not that it found
    its minimum. 0 before the first step. A parameter without a gradient (None) did not move, but
    the state does not tell: it counts with its last displacement. Of one step it is noisy where
    there are few parameters: :func:`thermometer` averages over a window of steps, and :func:`read`
    gives what it measured.

    Where several processes share the arrays, all of them have to call it, and
    :func:`rescaled_temperature` and :func:`per_leaf` of both; one alone would wait for ever.

    Parameters
    ----------
    opt_state : state of the optimizer.
    learning_rate : of the optimizer: a number, an array or an optax schedule, which is asked
        for the learning rate of the last step.
    axis_name : see :func:`rescaled_temperature`.

    Returns
    -------
    temperature, an energy: a 0-d array, float32 or better; infinite if something moved in a step
    with a learning rate of 0

    Raises
    ------
    ValueError
        If there is no CoolMomentum state in ``opt_state``.

    Examples
    --------
    >>> state = CoolMomentumState(jnp.asarray(1), {"w": jnp.array([0.25, -0.75])})
    >>> float(temperature(state, learning_rate=0.5))
    0.625
    """

    def read(state: CoolMomentumState) -> jax.Array:
        last = jnp.maximum(state.count - 1, 0)
        rate = common.value_at(learning_rate, last, _precision(state))
        reading = _rescaled(state, axis_name)
        return reading / jnp.where(reading == 0, 1, rate)  # a warm-up may begin with a rate of 0

    return _pooled(opt_state, read, axis_name)


def rescaled_temperature(
    opt_state: optax.OptState, *, axis_name: AxisName | None = None
) -> jax.Array:
    """Mean squared displacement of the last step, ``T dt**2``, over all parameters that move.

    Under ``jit`` with sharded arrays it is the global one. So it is under ``shard_map``, where it
    sums over the mesh axes along which each displacement varies; only with ``check_vma=False``, and
    under ``pmap``, nothing tells which those are, and ``axis_name`` has to.

    Parameters
    ----------
    opt_state : state of the optimizer.
    axis_name : mapped axis, or axes, along which all displacements are split.

    Returns
    -------
    rescaled temperature, in the unit of a squared parameter: a 0-d array, float32 or better; 0 if
    no parameter moves

    Raises
    ------
    ValueError
        If there is no CoolMomentum state in ``opt_state``.

    Examples
    --------
    >>> state = CoolMomentumState(jnp.asarray(1), {"w": jnp.array([3.0, 4.0]), "b": jnp.array(0.0)})
    >>> round(float(rescaled_temperature(state)), 5)
    8.33333
    """
    return _pooled(opt_state, lambda state: _rescaled(state, axis_name), axis_name)


def per_leaf(
    reading: Callable[..., jax.Array], opt_state: optax.OptState, *args: Any, **options: Any
) -> Any:
    """A reading of each parameter instead of all of them together.

    Parameters
    ----------
    reading : one of the functions of this module.
    opt_state : state of the optimizer.
    *args, **options : what else the function takes.

    Returns
    -------
    a pytree like the parameters with the reading of each; its paths are the names in
    :func:`export_state`. :class:`optax.MaskedNode`, which is no leaf, stands where CoolMomentum
    moves nothing: masked and integer parameters, PRNG keys

    Raises
    ------
    ValueError
        If there is no CoolMomentum state in ``opt_state``, or two of them move one parameter or
        belong to different parameter trees.

    Examples
    --------
    >>> state = CoolMomentumState(jnp.asarray(1), {"b": jnp.array([1.0]), "w": jnp.array([3.0])})
    >>> jax.tree.map(float, per_leaf(temperature, state, 0.5))
    {'b': 2.0, 'w': 18.0}
    """

    def read(count: jax.Array, displacement: jax.Array) -> Any:
        if not common.is_trainable(displacement):
            return optax.MaskedNode()
        return reading(CoolMomentumState(count, displacement), *args, **options)

    trees = [
        jax.tree.map(functools.partial(read, state.count), state.displacement)
        for state in states_of(opt_state)
    ]
    try:
        return functools.reduce(_overlaid, trees)
    except ValueError as error:
        raise ValueError(
            "opt_state must hold each parameter of one parameter tree once: "
            "read its CoolMomentum states one by one"
        ) from error


def states_of(opt_state: optax.OptState) -> list[CoolMomentumState]:
    """Every CoolMomentum state in the state of an optimizer, of which there is one at least."""
    found = common.states_in(opt_state, CoolMomentumState)
    if not found:
        raise ValueError(
            "opt_state must have the state of a cool_momentum in it: "
            f"{type(opt_state).__name__} has none"
        )
    return [state._replace(count=unboxed(state.count)) for state in found]


def _pooled(
    opt_state: optax.OptState, read: Reading, axis_name: AxisName | None = None
) -> jax.Array:
    """Mean of the readings of the states, each weighted by its coordinates."""
    states = states_of(opt_state)
    with common.promoting():
        first, *others = map(read, states)
        sizes = [_coordinates(state, axis_name) for state in states]
        # As differences, so that the mean of equal readings is that reading to the last bit.
        shares = [
            (reading - first) * (size / max(sum(sizes), 1))
            for reading, size in zip(others, sizes[1:], strict=True)
        ]
        return functools.reduce(jnp.add, shares, first)


def _rescaled(state: CoolMomentumState, axis_name: AxisName | None) -> jax.Array:
    squares = [common.global_product(dx, dx, axis_name) for dx in _trainable(state)]
    mean = sum(squares) / float(max(_coordinates(state, axis_name), 1))
    return jnp.asarray(mean, _precision(state))


def _coordinates(state: CoolMomentumState, axis_name: AxisName | None) -> int:
    return sum(common.global_coordinates(dx, axis_name) for dx in _trainable(state))


def _trainable(state: CoolMomentumState) -> list[jax.Array]:
    return [dx for dx in jax.tree.leaves(state.displacement) if common.is_trainable(dx)]


def _precision(state: CoolMomentumState) -> DType:
    return common.precision(*_trainable(state))


def _rho(schedule: RhoSchedule, state: CoolMomentumState) -> jax.Array:
    if not callable(schedule):
        raise TypeError(
            "schedule must be a CoolingSchedule or a function of the step, "
            f"as a law or a number of steps alone is none: {schedule!r}"
        )
    return common.rho_at(schedule, state.count, _precision(state))


def _overlaid(a: Any, b: Any) -> Any:
    """Two trees merged: where one is masked, a leaf or a whole branch, the other is taken."""
    if isinstance(a, optax.MaskedNode):
        return b
    if isinstance(b, optax.MaskedNode):
        return a
    (branches, structure), (others, other) = one_level(a), one_level(b)
    if structure != other or any(branch is a for branch in branches):
        raise ValueError("not the branches of one tree")
    return jax.tree.unflatten(structure, map(_overlaid, branches, others))
