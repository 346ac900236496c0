"""Leaves of a parameter tree and their names, which do not depend on the boxes around them."""

from collections.abc import Iterator
from typing import Any

import jax

Leaf = Any  # an array or a Python number, concrete, traced or abstract


def named_leaves(tree: Any, separator: str = ".") -> list[tuple[str, Leaf]]:
    """Each leaf with its name, in the order of ``jax.tree.leaves``: those of the pure tree."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator=separator), leaf)
        for path, leaf in _paths(tree)
    ]


def is_box(node: Any) -> bool:
    """Whether it is a Variable of ``flax.nnx`` or a Partitioned of ``flax.linen``, or its like."""
    kind = type(node)
    return hasattr(kind, "replace_boxed") or (
        hasattr(kind, "get_metadata") and hasattr(kind, "value")
    )


def unboxed(value: Any) -> Any:
    """What is in a box; anything else as it is."""
    if not is_box(value):
        return value
    (leaf,) = jax.tree.leaves(value)
    return leaf


def _paths(tree: Any) -> Iterator[tuple[tuple[Any, ...], Leaf]]:
    for path, node in jax.tree.leaves_with_path(tree, is_leaf=is_box):
        if not is_box(node):
            yield path, node
            continue
        for child in _children(node):
            yield from ((path + inner, leaf) for inner, leaf in _paths(child))


def _children(node: Any) -> list[Any]:
    return jax.tree.leaves(node, is_leaf=lambda x: x is not node)
