"""A heat bath: the random force of the core, added to the gradients of a pytree."""

import functools
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from coolmomentum import _check
from coolmomentum._arrays import DType, upcast
from coolmomentum.jax import _common as common
from coolmomentum.jax._common import RhoSchedule
from coolmomentum.jax._transform import cool_momentum
from coolmomentum.jax._tree import Leaf
from coolmomentum.thermal import Noise, random_force, random_force_scale

_check_seed = functools.partial(_check.integer, least=-(2**63))  # JAX takes negative ones


class ThermalNoiseState(NamedTuple):
    """What the next step needs."""

    # Shape (), int32: the steps already taken.
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as the clocks of optax do
    key: jax.Array  # typed PRNG key; no step changes it
    learning_rate: jax.Array  # shape (), of the last step
    normals: optax.Params  # xi_n of each parameter, float32 or better; of white noise empty


def add_thermal_noise(
    learning_rate: optax.ScalarOrSchedule,
    rho: RhoSchedule | float,
    temperature: optax.ScalarOrSchedule,
    key: jax.Array | int,
    *,
    noise: Noise = "averaged",
) -> optax.GradientTransformationExtraArgs:
    r"""Add the random force of a heat bath to the gradients, for :func:`cool_momentum` after it.

    The walk then samples :math:`\exp(-U / T)` for the loss :math:`U`. With the default noise every
    normal number serves two steps, and a quadratic loss is sampled exactly for every stable step;
    see :func:`coolmomentum.random_force_scale`.

    The numbers of a step depend on the key, on the number of the step and on the place of the
    parameter. A state that is saved and restored goes on with the same numbers. Under ``jit`` each
    device draws its part of a sharded parameter; replicas draw the same. Inside ``shard_map`` the
    shards of one parameter would draw the same as well: fold ``lax.axis_index`` into the key there.
    With ``vmap`` over keys, around ``init`` and ``update``, each chain has numbers of its own.

    Parameters
    ----------
    learning_rate, rho : those of :func:`cool_momentum`: numbers, arrays or schedules.
    temperature : of the bath, an energy in the unit of the loss, >= 0; or a schedule. For a loss
        that is a mean over n data the posterior is at 1 / n. What the walk has :func:`temperature`
        and :func:`thermometer` measure.
    key : PRNG key, ``jax.random.key(0)`` or an old ``jax.random.PRNGKey(0)``; or a seed.
    noise : "averaged" over two steps, or "white", Eq. 17 of the paper as it stands.

    Returns
    -------
    the transformation, whose state is a :class:`ThermalNoiseState`; gradients in half precision
    come out in float32

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range. Arrays, which may be traced, are taken unchecked.

    Examples
    --------
    Two temperatures, one of them cooling to 0:

    >>> import jax, jax.numpy as jnp, optax
    >>> from coolmomentum.jax import add_thermal_noise, cool_momentum
    >>> temperature = optax.linear_schedule(1.0, 0.0, transition_steps=1000)
    >>> tx = optax.chain(
    ...     add_thermal_noise(0.1, 0.9, temperature, jax.random.key(0)),
    ...     cool_momentum(0.1, schedule=lambda step: 0.9),
    ... )
    >>> state = tx.init(jnp.zeros(3))
    >>> updates, state = tx.update(jnp.zeros(3), state)
    >>> bool(jnp.all(updates != 0))
    True
    """
    common.check_setting("learning_rate", learning_rate, _check.non_negative)
    common.check_setting("temperature", temperature, _check.non_negative)
    common.check_setting("rho", rho, common.check_rho)
    common.check_setting("key", key, _check_seed)
    _check.one_of("noise", noise, get_args(Noise))

    def init_fn(params: optax.Params) -> ThermalNoiseState:
        return _start(params, key, noise)

    def update_fn(updates: Any, state: ThermalNoiseState, params: Any = None, **_: Any) -> Any:
        n, dtype = state.count, state.learning_rate.dtype
        with common.promoting():
            rate = common.value_at(learning_rate, n, dtype)
            bath, now = common.value_at(temperature, n, dtype), common.rho_at(rho, n, dtype)
            last = jnp.where(n == 0, rate, state.learning_rate)
            scale = random_force_scale(bath, rate, now, last, xp=jnp)
            forced, normals = _draw(updates, state, scale, noise)
        return forced, ThermalNoiseState(optax.safe_increment(n), state.key, rate, normals)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def langevin(
    learning_rate: optax.ScalarOrSchedule,
    temperature: optax.ScalarOrSchedule,
    rho: RhoSchedule | float = 0.9,
    *,
    key: jax.Array | int,
    noise: Noise = "averaged",
) -> optax.GradientTransformationExtraArgs:
    """Langevin dynamics at a temperature: :func:`add_thermal_noise` before :func:`cool_momentum`.

    Parameters
    ----------
    learning_rate : squared time step ``dt**2``; the walk is stable below 4 / curvature.
    temperature : of the bath, see :func:`add_thermal_noise`.
    rho : momentum coefficient, or a schedule of it: 0 is overdamped, near 1 there is little
        friction.
    key, noise : see :func:`add_thermal_noise`.

    Returns
    -------
    the transformation

    Examples
    --------
    100,000 walkers on ``k x**2 / 2`` with k = 4: the mean of ``k x**2`` is the temperature.

    >>> import jax, jax.numpy as jnp, optax
    >>> from coolmomentum.jax import langevin
    >>> tx = langevin(learning_rate=0.5, temperature=2.0, key=0)
    >>> def step(carry, _):
    ...     x, state = carry
    ...     updates, state = tx.update(4 * x, state, x)
    ...     return (optax.apply_updates(x, updates), state), None
    >>> x = jnp.zeros(100_000)
    >>> (x, _), _ = jax.lax.scan(step, (x, tx.init(x)), length=100)
    >>> round(float(jnp.mean(4 * x**2)), 1)
    2.0
    """
    schedule: Any = rho if callable(rho) or common.is_array(rho) else lambda step: rho
    return optax.chain(
        add_thermal_noise(learning_rate, rho, temperature, key, noise=noise),
        cool_momentum(learning_rate, schedule=schedule),
    )


def _start(params: optax.Params, key: jax.Array | int, noise: Noise) -> ThermalNoiseState:
    """The state before the first step."""
    leaves = [x for x in jax.tree.leaves(params) if common.is_trainable(x)]
    rate = jnp.zeros([], common.precision(*map(jnp.asarray, leaves)))
    normals = () if noise == "white" else jax.tree.map(_zeros, params)
    return ThermalNoiseState(jnp.zeros([], jnp.int32), _typed(key), rate, normals)


def _typed(key: Any) -> jax.Array:
    typed: jax.Array = key
    if not common.is_key(key):
        is_old = jnp.ndim(key) == 1 and jnp.result_type(key) == jnp.uint32
        typed = jax.random.wrap_key_data(jnp.asarray(key)) if is_old else jax.random.key(key)
    return typed


def _draw(
    updates: optax.Updates, state: ThermalNoiseState, scale: jax.Array, noise: Noise
) -> tuple[optax.Updates, optax.Params]:
    """The gradients less their random force, and the normal numbers that the next step needs."""
    gradients, tree = jax.tree.flatten(updates, is_leaf=_is_none)
    white = noise == "white"
    old = gradients if white else jax.tree.leaves(state.normals, is_leaf=_is_none)
    keys = jax.random.split(jax.random.fold_in(state.key, state.count), len(old))
    new = [_drawn(*pair) for pair in zip(keys, old, strict=True)]
    forced = [_forced(*triple, scale, noise) for triple in zip(gradients, old, new, strict=True)]
    return jax.tree.unflatten(tree, forced), () if white else jax.tree.unflatten(tree, new)


def _is_none(x: Any) -> bool:
    """A None is a leaf: a parameter without a gradient."""
    return x is None


def _zeros(x: Leaf) -> jax.Array:
    """xi_0 of a parameter; a placeholder for a leaf that does not move."""
    if not common.is_trainable(x):
        return jnp.zeros([], bool)
    return jnp.zeros_like(upcast(jnp.asarray(x), jnp))


def _drawn(key: jax.Array, like: Leaf) -> Leaf:
    """Unit normal numbers; for complex parameters in both parts."""
    if like is None or not common.is_trainable(like):
        return like
    dtype: DType = upcast(jnp.asarray(like), jnp).dtype
    unit = 2**0.5 if jnp.issubdtype(dtype, jnp.complexfloating) else 1
    return unit * jax.random.normal(key, jnp.shape(like), dtype)


def _forced(gradient: Leaf, old: Leaf, new: Leaf, scale: jax.Array, noise: Noise) -> Leaf:
    if gradient is None or not common.is_trainable(gradient):
        return gradient
    g = upcast(jnp.asarray(gradient), jnp)
    force = random_force(old, new, scale.astype(common.precision(g)), noise=noise, xp=jnp)
    return g - force
