"""Leaves of a parameter tree and their names, which do not depend on the boxes around them."""

from collections.abc import Iterator
from typing import Any

import jax

Leaf = Any  # an array or a Python number, concrete, traced or abstract


def paths(tree: Any) -> Iterator[tuple[tuple[str, ...], Leaf]]:
    """Each leaf with its path in the tree without boxes, in the order of ``jax.tree.leaves``."""
    for keys, node in jax.tree.leaves_with_path(tree, is_leaf=is_box):
        path = tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)
        if not is_box(node):
            yield path, node
            continue
        for child in one_level(node)[0]:
            yield from ((path + inner, leaf) for inner, leaf in paths(child))


def named_leaves(tree: Any) -> list[tuple[str, Leaf]]:
    """Each leaf with its path as a name."""
    return [(".".join(path), leaf) for path, leaf in paths(tree)]


def is_box(node: Any) -> bool:
    """Whether it is a Variable of ``flax.nnx`` or a Partitioned of ``flax.linen``, or its like."""
    kind = type(node)
    return hasattr(kind, "replace_boxed") or (
        hasattr(kind, "get_metadata") and hasattr(kind, "value")
    )


def unboxed(value: Any) -> Any:
    """The content of a box; any other value unchanged."""
    if not is_box(value):
        return value
    (leaf,) = jax.tree.leaves(value)
    return leaf


def one_level(tree: Any) -> tuple[list[Any], Any]:
    """The children of a node, and how to put them together."""
    return jax.tree.flatten(tree, is_leaf=lambda node: node is not tree)
