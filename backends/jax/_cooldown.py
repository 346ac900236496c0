"""Hold hot, cool when told: the event is in the state, so nothing is compiled again."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from coolmomentum import _check
from coolmomentum._arrays import DType, upcast
from coolmomentum.cooldown import COLDEST, HELD, learning_rate_share
from coolmomentum.jax import _common as common
from coolmomentum.jax._transform import CoolMomentumState
from coolmomentum.jax._tree import Leaf
from coolmomentum.schedules import COOLING_LAWS, Law, cooled_rho


@common.exportable
class CooldownState(NamedTuple):
    """What :func:`cooldown` needs; :func:`start_cooldown` changes the last three."""

    # Shape (), int32: the steps already taken.
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as the clocks of optax do
    share: jax.Array  # shape (), floating: of the held learning rate, in the next step
    held: jax.Array  # shape (), floating: the share until hold_steps
    hold_steps: jax.Array  # shape (), int32
    total_steps: jax.Array  # shape (), int32


def cooldown(law: Law = "linear") -> optax.GradientTransformation:
    """Transformation that holds the updates until it is told to cool them to 1/199.

    Put it last in a chain. The updates are multiplied by 1, to the last bit, until
    :func:`start_cooldown` has written into the state when to cool; then by
    :func:`coolmomentum.learning_rate_share`, along the temperature that the law gives from rho0 =
    0.99. Held and then cooled is a run whose learning rate decays; it buys no accuracy over one
    that was planned. It is for runs whose end is not known: a held state can be cooled as often as
    you like, and trained on.

    CoolMomentum does not need it: see :func:`start_cooldown`.

    Parameters
    ----------
    law : "linear", "exponential" or "paper".

    Returns
    -------
    the transformation, whose state is a :class:`CooldownState`

    Raises
    ------
    TypeError, ValueError
        If the law is none of these.

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> from coolmomentum.jax import cooldown, start_cooldown
    >>> tx = optax.chain(optax.sgd(0.5), cooldown())
    >>> state = tx.init(jnp.ones(()))
    >>> state = start_cooldown(state, steps=2)
    >>> for _ in range(3):
    ...     update, state = tx.update(jnp.ones(()), state)
    ...     print(round(float(update), 4))
    -0.5
    -0.2513
    -0.0025
    """
    _check.one_of("law", law, COOLING_LAWS)

    def init_fn(params: optax.Params) -> CooldownState:
        one = jnp.ones([], jnp.result_type(float))
        held, end = (jnp.asarray(n, jnp.int32) for n in HELD.values())
        return CooldownState(jnp.zeros([], jnp.int32), one, one, held, end)

    def share_at(count: jax.Array, state: CooldownState, dtype: DType) -> jax.Array:
        event = state.hold_steps, state.total_steps
        share: jax.Array = learning_rate_share(
            count, *event, law, state.held.astype(dtype), dtype=dtype, xp=jnp
        )
        return share

    def update_fn(updates: Any, state: CooldownState, params: Any = None) -> Any:
        def cooled(u: Leaf) -> Any:
            if not common.is_trainable(u):
                return u
            wide = upcast(jnp.asarray(u), jnp)
            share = share_at(state.count, state, common.precision(wide))
            return (wide * share).astype(jnp.result_type(u))

        with common.promoting():
            count = optax.safe_increment(state.count)
            share = share_at(count, state, state.share.dtype)
            return jax.tree.map(cooled, updates), state._replace(count=count, share=share)

    return optax.GradientTransformation(init_fn, update_fn)


def start_cooldown(opt_state: Any, steps: int, *, law: Law | None = None) -> Any:
    """The state that cools from now on, over some steps; again, to extend what is left.

    It changes numbers in the state, so that a compiled step is not compiled again: those of
    :func:`cooldown`, and the hyperparameters of
    ``optax.inject_hyperparams(cool_momentum)(learning_rate, rho0=..., law=..., **HELD)`` with
    :data:`coolmomentum.HELD`. Both are found in chains, ``optax.MultiSteps``, ``optax.masked``, a
    TrainState and any other tree. Call it outside of compiled functions: it reads the clock.

    Parameters
    ----------
    opt_state : the state of an optimizer, or a tree that has it.
    steps : the steps of the optimizer over which to cool, an integer >= 1.
    law : of cool_momentum, whose state does not say it; only to start where it cools already.

    Returns
    -------
    the tree with other numbers, of the same dtypes and weak types

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, there is nothing to cool, or it has cooled already.

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> from coolmomentum import HELD
    >>> from coolmomentum.jax import cool_momentum
    >>> tx = optax.inject_hyperparams(cool_momentum)(0.1, rho0=0.9, law="linear", **HELD)
    >>> state = start_cooldown(tx.init(jnp.ones(3)), steps=2000)
    >>> int(state.hyperparams["hold_steps"]), int(state.hyperparams["total_steps"])
    (0, 2000)
    """
    steps = _check.integer("steps", steps, 1)

    def event(count: int) -> dict[str, int]:
        if count + steps > HELD["hold_steps"]:
            raise ValueError(f"steps must end below 2**31 - 2, at {count} steps taken: {steps}")
        return {"hold_steps": count, "total_steps": count + steps}

    return _told(opt_state, event, law)


def stop_cooldown(opt_state: Any, *, law: Law | None = None) -> Any:
    """The state that holds the temperature that there is, until it is started again.

    Parameters
    ----------
    opt_state, law : as in :func:`start_cooldown`.

    Returns
    -------
    the tree with other numbers, of the same dtypes and weak types

    Raises
    ------
    TypeError, ValueError
        As :func:`start_cooldown`.

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> tx = optax.chain(optax.sgd(0.5), cooldown())
    >>> state = stop_cooldown(start_cooldown(tx.init(jnp.ones(())), steps=2))
    >>> int(state[1].hold_steps)
    2147483646
    """
    return _told(opt_state, lambda count: dict(HELD), law)


def _told(tree: Any, event: Callable[[int], dict[str, int]], law: Law | None) -> Any:
    kinds = (CooldownState, *_INJECTED)
    found = []

    def told(node: Any) -> Any:
        if isinstance(node, CooldownState):
            found.append(node)
            return _cool_updates(node, event)
        if isinstance(node, _INJECTED):
            if clocks := common.states_in(node.inner_state, CoolMomentumState):
                found.append(node)
                return node._replace(hyperparams=_cool_rho(node, clocks[0], event, law))
            return node._replace(inner_state=descend(node.inner_state))
        return node

    def descend(tree: Any) -> Any:
        return jax.tree.map(told, tree, is_leaf=lambda node: isinstance(node, kinds))

    new = descend(tree)
    if not found:
        raise ValueError(
            "opt_state must have the state of coolmomentum.jax.cooldown, or of "
            f"optax.inject_hyperparams(cool_momentum): {type(tree).__name__}"
        )
    return new


def _cool_updates(state: CooldownState, event: Callable[[int], dict[str, int]]) -> CooldownState:
    numbers = event(_one(state.count))
    # Not the share of the next step as such, which a float32 state has rounded where it holds.
    holds = _one(state.count) <= _one(state.hold_steps)
    held = state.held if holds else state.share
    if _one(held) <= COLDEST * (1 + 2**-22) and numbers != HELD:
        raise ValueError(f"{_COOLED}: the updates are 1/199 of what they were")
    written = {name: _written(getattr(state, name), n) for name, n in numbers.items()}
    return state._replace(held=_copy(held), **written)


def _cool_rho(
    state: Any, clock: CoolMomentumState, event: Callable[[int], dict[str, int]], law: Law | None
) -> dict[str, Any]:
    hyperparams = dict(state.hyperparams)
    if missing := {*HELD, "rho0"} - hyperparams.keys():
        raise ValueError(
            "inject_hyperparams(cool_momentum) must be given rho0 and **coolmomentum.HELD as "
            f"numbers, to be told: {', '.join(sorted(missing))} missing"
        )
    count, hold, end = _one(clock.count), *(_one(hyperparams[name]) for name in HELD)
    numbers: dict[str, float] = dict(event(count))
    rho = float(_one(hyperparams["rho0"]))
    if count > hold:
        if law is None:
            raise TypeError(f"law must be given where cool_momentum cools already: {law!r}")
        rho = numbers["rho0"] = float(cooled_rho(count, end, rho, law, hold_steps=hold))
    if rho == 0 and numbers["hold_steps"] == count:
        raise ValueError(f"{_COOLED}: rho is 0")
    return hyperparams | {name: _written(hyperparams[name], n) for name, n in numbers.items()}


_COOLED = "it has cooled already, take a held state"
_INJECTED = (optax.InjectHyperparamsState, optax.InjectStatefulHyperparamsState)


def _one(x: Any) -> Any:
    """The number in an array, the same in all replicas; a box is opened."""
    (leaf,) = jax.tree.leaves(x)
    return jax.device_get(leaf).reshape(-1)[0].item()


def _written(old: Any, value: float) -> Any:
    """An array of a value with the old one's dtype, weak type, shape, sharding and box."""
    return jax.tree.map(lambda x: x * 0 + value, old)


def _copy(x: Any) -> Any:
    """A copy, so that both may be donated."""
    return jax.tree.map(lambda y: y + 0, x)
