"""The thermometer: the temperature of a walk from its displacements, Eq. 22.

Equation numbers are those of Borysenko and Byshkin, Scientific Reports 11, 10705 (2021).

A displacement is the change of one parameter in one step. Only trainable parameters belong here: a
moving average of batch normalisation also changes, but it does not walk. A complex number counts as
two coordinates. Sums are made in float32 at least, by the library's own sum: dot and norm kernels
lose up to some per cent over 1e8 elements. Integers are summed in the library's default float;
booleans, objects and masked arrays are refused (``TypeError``).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from coolmomentum import _check
from coolmomentum._arrays import Array, Scalar, is_checkable, is_kind, is_number, namespace, upcast

__all__ = [
    "DisplacementSum",
    "coordinates",
    "inner_product",
    "rescaled_temperature",
    "squared_norm",
    "temperature",
    "three_point_temperature",
]

Displacements = Array | Sequence[Array]  # one array, or one for each parameter


class DisplacementSum(NamedTuple):
    """What a thermometer has to remember: sums over coordinates and steps.

    A tuple of numbers or 0-d arrays, so that it is a pytree, goes through jit, and is reduced over
    shards like any other state.

    Examples
    --------
    >>> first = DisplacementSum().add([0.1, -0.2, 0.3])
    >>> second = first.add([0.0, 0.1, -0.1])
    >>> round(second.read(), 12), second.coordinates, second.steps
    (0.026666666667, 3, 2)
    """

    sum_of_squares: Scalar = 0.0  # float32 or float64
    coordinates: Scalar = 0  # numbers in the displacements of one step
    steps: Scalar = 0  # how many steps were added

    def add(self, displacements: Displacements, *, xp: Any = None) -> "DisplacementSum":
        """With the displacements of one more step: an array, or a sequence with one a parameter.

        Raises
        ------
        ValueError
            If their number of coordinates is not that of the steps before (a traced one is not
            known, and so not checked).
        """
        arrays = _as_list(displacements)
        size = sum(coordinates(x, xp=xp) for x in arrays)
        if is_number(self.coordinates) and self.coordinates not in (0, size):
            raise ValueError(
                f"displacements must have {self.coordinates} coordinates as before: {size}"
            )
        total = sum((squared_norm(x, xp=xp) for x in arrays), self.sum_of_squares)
        return DisplacementSum(total, size, self.steps + 1)

    def merge(self, other: "DisplacementSum") -> "DisplacementSum":
        """Together with another shard, replica or group of parameters over the same steps.

        A sum to which nothing was added changes nothing.

        Raises
        ------
        ValueError
            If the numbers of steps are Python numbers and differ.
        """
        for empty, sums in ((self, other), (other, self)):
            if is_number(empty.steps) and empty.steps == 0:
                return sums
        if is_number(self.steps) and is_number(other.steps) and self.steps != other.steps:
            raise ValueError(f"steps must be {self.steps} in both sums: {other.steps}")
        return DisplacementSum(
            self.sum_of_squares + other.sum_of_squares,
            self.coordinates + other.coordinates,
            self.steps,
        )

    def read(self) -> Scalar:
        """Mean squared displacement of a coordinate in a step, the rescaled temperature T dt**2.

        Divide by the learning rate for the temperature of Eq. 22. 0 if nothing was added.
        """
        if is_number(self.coordinates) and is_number(self.steps):
            # As a float: JAX takes a Python integer for an int32.
            return self.sum_of_squares / float(max(self.coordinates * self.steps, 1))
        # One by one, because their product may be more than an int32 holds.
        return self.sum_of_squares / _at_least_one(self.coordinates) / _at_least_one(self.steps)


def rescaled_temperature(displacements: Displacements, *, xp: Any = None) -> Scalar:
    """Mean squared displacement per coordinate, ``T dt**2``: Eq. 22 before the division.

    What Fig. 1c of the paper shows; it needs no learning rate and so exists for every optimizer.

    Parameters
    ----------
    displacements : an array of any shape, or a sequence of arrays whose coordinates are pooled.
    xp : array namespace, if it is not to be found out.

    Returns
    -------
    rescaled temperature, in the unit of a squared parameter: a 0-d array, float32 or better (a
    Python float for Python numbers); 0 if there is no coordinate

    Examples
    --------
    >>> import numpy as np
    >>> float(rescaled_temperature([np.asarray([3.0, 4.0]), np.asarray(0.0)]).round(12))
    8.333333333333
    """
    return DisplacementSum().add(displacements, xp=xp).read()


def temperature(displacements: Displacements, learning_rate: Scalar, *, xp: Any = None) -> Scalar:
    """Temperature of the displacements, Eq. 22: ``<(x_n - x_{n-1})**2> / dt**2``.

    It follows the thermostat, not the landscape: it shows that the walk cools, not that it found
    its minimum.

    Parameters
    ----------
    displacements : an array of any shape, or a sequence of arrays whose coordinates are pooled.
    learning_rate : base learning rate ``dt**2``, > 0.
    xp : array namespace, if it is not to be found out.

    Returns
    -------
    temperature, an energy: a 0-d array, float32 or better (a Python float for Python numbers)

    Raises
    ------
    ValueError
        If the learning rate is a Python number that is not finite or not > 0.

    Examples
    --------
    >>> temperature([0.25, -0.75], learning_rate=0.5)
    0.625
    """
    _check_learning_rate(learning_rate)
    return rescaled_temperature(displacements, xp=xp) / learning_rate


def three_point_temperature(
    previous: Displacements,
    displacements: Displacements,
    learning_rate: Scalar,
    rho: Scalar,
    *,
    xp: Any = None,
) -> Scalar:
    """Temperature from two successive displacements, equal to Eq. 19 on any quadratic.

    ``2 / (1 + rho) <(x_{n+1} - x_{n-1})**2> / (4 dt**2)``. Eq. 22 exceeds Eq. 19 by
    ``1 / (1 - k dt**2 / 4)`` where the curvature is k; this one does not, for any white noise.

    Parameters
    ----------
    previous : the displacements of the step before, as for :func:`temperature`.
    displacements : those of the last step, of the same shapes.
    learning_rate : base learning rate ``dt**2``, > 0.
    rho : momentum coefficient of the last step, in (-1, 1).
    xp : array namespace, if it is not to be found out.

    Returns
    -------
    temperature, an energy: a 0-d array, float32 or better (a Python float for Python numbers)

    Raises
    ------
    ValueError
        If the learning rate is a Python number that is not finite or not > 0, or the two differ in
        the number of arrays.

    Examples
    --------
    >>> round(three_point_temperature([0.1, -0.2, 0.3], [0.0, 0.1, -0.1], 0.01, rho=0.5), 12)
    0.666666666667
    """
    _check_learning_rate(learning_rate)
    pairs = zip(_as_list(previous), _as_list(displacements), strict=True)
    both = [_sum(_wide(last, xp), _wide(this, xp)) for last, this in pairs]
    return rescaled_temperature(both, xp=xp) / three_point_scale(learning_rate, rho)


def _sum(last: Array, this: Array) -> Array:
    _check_shapes(last, this)
    return last + this


def _check_shapes(x: Array, y: Array) -> None:
    """Refuse arrays that would be broadcast: coordinates would count twice."""
    shapes = [tuple(z.shape) if hasattr(z, "shape") else () for z in (x, y)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the two must have one shape: {shapes[0]} and {shapes[1]}")


def three_point_scale(learning_rate: Scalar, rho: Scalar) -> Scalar:
    """What turns ``(x_{n+1} - x_{n-1})**2`` into a temperature: ``4 dt**2 (1 + rho) / 2``."""
    return 2 * learning_rate * (1 + rho)


def squared_norm(x: Array, *, xp: Any = None) -> Scalar:
    """Sum of the squared moduli of an array, accumulated in float32 at least.

    Parameters
    ----------
    x : real or complex array of any shape; integers are taken as floats.
    xp : array namespace, if it is not to be found out.

    Returns
    -------
    0-d array, float32 or better (a Python number for a Python number)

    Examples
    --------
    >>> squared_norm(-3.0)
    9.0
    """
    xp = xp or namespace(x)
    if xp is math:
        return x * x
    if _is_complex(x, xp):
        return xp.sum(xp.real(x) ** 2 + xp.imag(x) ** 2)
    x = upcast(x, xp)
    return xp.sum(x * x)


def inner_product(x: Array, y: Array, *, xp: Any = None) -> Scalar:
    """Sum of the products of coordinates of two arrays, accumulated as in :func:`squared_norm`.

    Parameters
    ----------
    x, y : real or complex arrays of the same shape; integers are taken as floats.
    xp : array namespace, if it is not to be found out.

    Returns
    -------
    0-d array, float32 or better (a Python float for Python numbers)

    Examples
    --------
    >>> inner_product(-3.0, 2.0)
    -6.0
    """
    xp = xp or namespace(x, y)
    _check_shapes(x, y)
    if xp is math:
        return x * y
    if _is_complex(x, xp):
        return xp.sum(xp.real(x) * xp.real(y) + xp.imag(x) * xp.imag(y))
    return xp.sum(upcast(x, xp) * upcast(y, xp))


def coordinates(x: Array, *, xp: Any = None) -> int:
    """How many real numbers an array has: a complex one counts as two.

    Parameters
    ----------
    x : array of any shape, or a number.
    xp : array namespace, if it is not to be found out.

    Returns
    -------
    a Python int, under jit too: it is known from shape and dtype

    Examples
    --------
    >>> import numpy as np
    >>> coordinates(np.zeros((2, 3), dtype=np.complex64))
    12
    """
    if is_number(x):
        return 1
    xp = xp or namespace(x)
    size: int = math.prod(x.shape)
    return 2 * size if _is_complex(x, xp) else size


def _at_least_one(count: Scalar) -> Scalar:
    return float(max(count, 1)) if is_number(count) else count + (count == 0)


def _as_list(displacements: Displacements) -> list[Array]:
    return list(displacements) if isinstance(displacements, list | tuple) else [displacements]


def _wide(x: Array, xp: Any) -> Array:
    return upcast(x, xp or namespace(x))


def _is_complex(x: Array, xp: Any) -> bool:
    return is_kind(x, "complex floating", xp)


def _check_learning_rate(learning_rate: Scalar) -> None:
    if is_checkable(learning_rate):
        _check.positive("learning_rate", learning_rate)
