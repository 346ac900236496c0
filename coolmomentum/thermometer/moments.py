"""A measured step as one table of sums over coordinates."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from coolmomentum._arrays import Array, Scalar, astype, is_number, namespace, upcast
from coolmomentum.temperature import inner_product


def moments(
    now: Sequence[Array],
    before: Sequence[Array],
    mass: Iterable[Array] | None = None,
    path: Iterable[Array] | None = None,
    *,
    dot: Callable[[Array, Array], Scalar] | None = None,
    xp: Any = None,
) -> Array:
    """Squares and products of the displacements of one step and of the step before.

    Parameters
    ----------
    now : displacements of the measured step, an array for each parameter; not empty.
    before : displacements of the step before it, of the same shapes.
    mass : mass of each coordinate of each parameter, in float32 or better, or a number for a
        parameter; 1 if not given.
        Both this and ``path`` are asked for one after the other, so a generator saves memory.
    path : at the end of a span, the way of each parameter from where the span began.
    dot : sum of the products of coordinates of two arrays, for instance over all shards; by default
        :func:`coolmomentum.inner_product`, which accumulates in float32 at least.
    xp : array namespace, if it is not to be found out.

    Returns
    -------
    array of shape (6, parameters), float32 or better, with the rows: squares of ``now``, squares of
    ``before``, products of the two, and these three times the mass. With ``path`` of shape
    (8, parameters): its squares, and its products with ``now``.

    Raises
    ------
    ValueError
        If the arguments differ in the number of parameters.

    Examples
    --------
    >>> import numpy as np
    >>> table = moments([np.array([1.0, 2.0])], [np.array([0.5, -1.0])], mass=[3.0])
    >>> table[:, 0].tolist()
    [5.0, 1.25, -1.5, 15.0, 3.75, -4.5]
    """
    xp = xp or namespace(*now, *before)
    dot = dot or partial(inner_product, xp=xp)
    masses = [None] * len(now) if mass is None else mass
    ways = [None] * len(now) if path is None else path
    columns = []
    for a, b, m, y in zip(now, before, masses, ways, strict=True):
        column = [dot(a, a), dot(b, b), dot(a, b)]
        if m is None:
            column += column
        else:
            ma, mb = _times(m, a, xp), _times(m, b, xp)
            column += [dot(ma, a), dot(mb, b), dot(ma, b)]
        if y is not None:
            column += [dot(y, y), dot(y, a)]
        columns.append(xp.stack(column))
    return xp.stack(columns, axis=1)


def _times(mass: Array, x: Array, xp: Any) -> Array:
    """``mass * x`` in float32 or better, whatever the dtype of the mass (a number, too)."""
    if not is_number(mass) and mass.dtype == x.dtype:
        return mass * x
    x = upcast(x, xp)
    return (mass if is_number(mass) else astype(mass, x.dtype, xp)) * x
