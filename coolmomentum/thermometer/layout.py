"""What the columns of a window stand for."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from array_api_compat import device

from coolmomentum._arrays import Array, Scalar, astype, concat, is_number

Label = Hashable  # a name, or an index


@dataclass(frozen=True)
class Layout:
    """Parameters, groups of them, and all together: the columns of a window, in this order.

    Labels are unique: an equal one gets a number, as in ``weight, weight#2``.

    Parameters
    ----------
    parameters : a label of each.
    sizes : coordinates of each.
    groups : a label of each group.
    members : for each group, the places of its parameters.

    Examples
    --------
    >>> layout = Layout.from_paths([("fc", "w"), ("out", "w"), ("fc", "b")], sizes=[6, 4, 3])
    >>> layout.parameters
    ('fc/w', 'out/w', 'fc/b')
    >>> layout.groups, layout.members
    (('fc', 'out'), ((0, 2), (1,)))
    """

    parameters: tuple[Label, ...]
    sizes: tuple[int, ...]
    groups: tuple[Label, ...] = ()
    members: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, names: Iterable[Label], sizes: Iterable[int]) -> "Layout":
        """Of parameters that are in no groups."""
        return cls(_unique(names), tuple(sizes))

    @classmethod
    def from_groups(cls, groups: Iterable[tuple[Label, Sequence[tuple[Label, int]]]]) -> "Layout":
        """Of groups, one after another, each with the names and sizes of its parameters.

        >>> Layout.from_groups([(0, [("w", 6), ("b", 3)]), ("head", [("w", 4)])]).parameters
        ('w', 'b', 'w#2')
        """
        groups = list(groups)
        parameters = [pair for _, pairs in groups for pair in pairs]
        members, start = [], 0
        for _, pairs in groups:
            members.append(tuple(range(start, start + len(pairs))))
            start += len(pairs)
        return cls(
            _unique(name for name, _ in parameters),
            tuple(size for _, size in parameters),
            _unique(label for label, _ in groups),
            tuple(members),
        )

    @classmethod
    def from_paths(cls, paths: Iterable[Sequence[str]], sizes: Iterable[int]) -> "Layout":
        """Of the paths of the parameters, whose groups are those of one parent.

        Where a whole path comes again, as in two nets with equal names, it is of another group.

        >>> Layout.from_paths([("fc", "w"), ("fc", "w")], [6, 4]).groups
        ('fc', 'fc#2')
        """
        members: dict[tuple[tuple[str, ...], int], list[int]] = {}
        seen: dict[tuple[str, ...], int] = {}
        whole = [tuple(path) for path in paths]
        for i, path in enumerate(whole):
            seen[path] = seen.get(path, 0) + 1
            members.setdefault((path[:-1], seen[path]), []).append(i)
        return cls(
            _unique("/".join(path) for path in whole),
            tuple(sizes),
            _unique("/".join(parent) for parent, _ in members),
            tuple(tuple(places) for places in members.values()),
        )

    def __len__(self) -> int:
        """Number of columns."""
        return len(self.parameters) + len(self.groups) + 1

    def pool(self, table: Array, xp: Any) -> Array:
        """A table of shape (k, parameters) with the sums over each group and over all after it."""
        order = [i for places in self.members for i in places]
        ordered = table
        if order != sorted(order):
            index = xp.asarray(order, device=device(table)) if hasattr(xp, "asarray") else order
            ordered = xp.take(table, index, axis=1)
        parts, start = [], 0
        for places in self.members:
            parts.append(ordered[:, start : start + len(places)])
            start += len(places)
        sums = xp.stack([xp.sum(part, axis=1) for part in (*parts, table)], axis=1)
        return concat([table, sums], xp, axis=1)

    def spread(self, values: Sequence[Scalar | None], like: Array, xp: Any) -> Scalar | None:
        """A value of each group for every parameter: one if all are equal, else an array.

        What is not known, None, is NaN there. The parameters are in the order of the groups.

        >>> import numpy as np
        >>> layout = Layout.from_groups([("a", [("w", 1), ("b", 1)]), ("c", [("w", 1)])])
        >>> layout.spread([0.5, None], np.array(0.0), np)
        array([0.5, 0.5, nan])
        """
        each = [x for x, members in zip(values, self.members, strict=True) for _ in members]
        return spread(each, like, xp) if each else None


def spread(values: Sequence[Scalar | None], like: Array, xp: Any) -> Scalar | None:
    """A value of each parameter as one, if all are equal numbers, else as an array.

    What is not known, None, is NaN there.
    """
    if all(value is None or is_number(value) for value in values) and len(set(values)) == 1:
        return values[0]
    zero, columns = xp.zeros_like(like), list[Array]()
    for value in values:
        value = float("nan") if value is None else value
        value = value if is_number(value) else astype(value, like.dtype, xp)
        columns.append(zero + value)
    return xp.stack(columns)


def _unique(labels: Iterable[Label]) -> tuple[Label, ...]:
    """The labels, the second and later ones of equal ones with a number."""
    labels = list(labels)
    given, times = set(labels), dict[Label, int]()
    unique = []
    for label in labels:
        n = times[label] = times.get(label, 0) + 1
        new = label
        while n > 1 and (new := f"{label}#{n}") in given:
            n += 1
        if n > 1:
            times[label] = n
            given.add(new)
        unique.append(new)
    return tuple(unique)
