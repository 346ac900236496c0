"""Arrays that a transformation keeps of the leaves of a tree, and writes where they lie."""

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import lax

from coolmomentum import thermometer as core
from coolmomentum.jax._common import is_trainable
from coolmomentum.jax._tree import paths
from coolmomentum.temperature import coordinates

Sums = TypeVar("Sums", core.Window, core.GradientNoise)


def zeros_where_moving(tree: Any) -> Any:
    """Of each leaf that moves, strongly typed, or the second step would compile again."""

    def zeros(x: Any) -> Any:
        return jnp.zeros_like(x, jnp.result_type(x)) if is_trainable(x) else optax.MaskedNode()

    return jax.tree.map(zeros, tree)


def run_if_in_place(
    wanted: jax.Array, f: Callable[[list[Any]], Any], tree: Any
) -> tuple[jax.Array, Any]:
    """The tree with the leaves of ``f(leaves)`` if it is wanted; and True, when it is there.

    XLA gives the result of a loop the buffers of its operand, where a conditional copies it.
    """
    leaves, structure = jax.tree.flatten(tree)

    def once(carry: tuple[jax.Array, list[Any]]) -> tuple[jax.Array, list[Any]]:
        return jnp.zeros_like(carry[0]), lax.stop_gradient(jax.tree.leaves(f(carry[1])))

    # A loop has no reverse-mode derivative, and this needs none.
    start = wanted, lax.stop_gradient(leaves)
    left, leaves = lax.while_loop(lambda carry: carry[0], once, start)
    return ~left, jax.tree.unflatten(structure, leaves)


def released(updates: optax.Updates, done: Any) -> optax.Updates:
    """The updates as they are, once all is measured.

    XLA would otherwise copy the parameters and the displacements on every step, because it may
    overwrite the first, which are donated, before they are measured. The choice costs no pass: it
    is part of adding the updates.
    """
    return jax.tree.map(lambda x: jnp.where(done, x, jnp.zeros_like(x)), updates)


# A choice, and what it was made of. Both by weak references: after a step that raises, the
# displacement holds its trace, which holds the choice.
_CHOSEN: dict[int, tuple[weakref.ref[Any], weakref.ref[Any]]] = {}


def chosen(x: jax.Array, always: jax.Array) -> jax.Array:
    """A traced array behind a choice that is always taken: it makes what is added to it faster.

    XLA has two emitters for loops on the CPU. A bare addition goes to the one that takes an eighth
    longer; a loop with a scalar in it goes to the other.
    """
    if not isinstance(x, jax.core.Tracer):
        return x
    choice = jnp.where(always, x, jnp.zeros_like(x))
    key = id(choice)
    _CHOSEN[key] = weakref.ref(choice, lambda _: _CHOSEN.pop(key, None)), weakref.ref(x)
    return choice


def _without_choice(x: Any) -> Any:
    """What :func:`chosen` was given, which the state holds.

    To hold the choice would take an array more, and three times as long; see docs/speed.md.
    """
    choice, before = _CHOSEN.get(id(x), (None, None))
    known = before() if choice and before and choice() is x else None
    return x if known is None else known


def is_masked(node: Any) -> bool:
    return node is None or isinstance(node, optax.MaskedNode)


def leaves_like(tree: Any, like: Any) -> list[Any]:
    """The leaves where ``like`` has leaves, in order: boxes do not matter, None is a leaf."""
    nodes, others = (jax.tree.leaves(x, is_leaf=is_masked) for x in (tree, like))
    if len(nodes) != len(others):
        raise ValueError(
            f"updates and params must have the leaves of init: {len(nodes)}, not {len(others)}"
        )
    return [node for node, x in zip(nodes, others, strict=True) if not is_masked(x)]


def values_like(tree: Any, like: Any) -> list[jax.Array]:
    """The leaves where ``like`` has leaves, in its dtypes; of None, which stands, zeros."""
    nodes = map(_without_choice, leaves_like(tree, like))
    return [
        jnp.zeros_like(x) if node is None else lax.stop_gradient(jnp.asarray(node, x.dtype))
        for node, x in zip(nodes, jax.tree.leaves(like), strict=True)
    ]


def next_window(sums: Sums) -> Sums:
    """The next window, in the same boxes: ``flax.nnx`` has arrays of a state in Variables."""
    arrays, boxes = jax.tree.flatten(sums)
    following: Sums = jax.tree.unflatten(boxes, type(sums)(*map(jnp.asarray, arrays)).next())
    return following


def layout_of(tree: Any) -> core.Layout:
    """The names and sizes of the leaves of a tree; groups are its nodes."""
    leaves = list(paths(tree))
    sizes = [coordinates(x, xp=jnp) for _, x in leaves]
    return core.Layout.from_paths([path for path, _ in leaves], sizes)
