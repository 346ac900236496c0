"""One step of CoolMomentum for one array: Eqs 14 and 16, the oracle of every adapter.

Equation numbers are those of Borysenko and Byshkin, Scientific Reports 11, 10705 (2021).
"""

import math
from typing import Any

from coolmomentum._arrays import Array, Scalar, astype, is_kind, is_number, namespace, upcast
from coolmomentum.langevin import step_size

__all__ = ["langevin_step", "next_displacement"]


def next_displacement(
    displacement: Array, gradient: Array, *, rho: Scalar, step_size: Scalar, xp: Any = None
) -> Array:
    """The next displacement, Eq. 14: ``rho displacement - step_size gradient``.

    Parameters
    ----------
    displacement : the last change of the parameter, ``x_n - x_{n-1}``; zeros before the first step.
    gradient : gradient of the loss at ``x_n``, of the same shape.
    rho : momentum coefficient in [-1, 1).
    step_size : eta of Eq. 16, see :func:`coolmomentum.step_size`.
    xp : namespace whose functions are to be used where the arrays have no operators: ``keras.ops``
        for a sparse gradient.

    Returns
    -------
    ``x_{n+1} - x_n``, of the shape of the arguments

    Examples
    --------
    >>> next_displacement(0.5, 2.0, rho=0.5, step_size=0.25)
    -0.25
    """
    if xp is None:
        return rho * displacement - step_size * gradient
    return xp.subtract(xp.multiply(displacement, rho), xp.multiply(gradient, step_size))


def langevin_step(
    x: Array,
    displacement: Array,
    gradient: Array,
    *,
    learning_rate: Scalar,
    rho: Scalar,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    xp: Any = None,
) -> tuple[Array, Array]:
    """One step of one parameter: Eq. 14 with the step size of Eq. 16.

    ``g = gradient + weight_decay x``, ``dx = rho displacement - learning_rate (1 + rho) / 2 g``,
    ``x = x + dx``. The learning rate acts inside the displacement, so that the displacement is the
    change of the parameter whatever the learning rate does. The arithmetic is done in float32 at
    least; each result is rounded once, to the dtype it is stored in.

    Parameters
    ----------
    x : the parameter, real or complex floating, of any shape.
    displacement : its last change, of the same shape; zeros before the first step.
    gradient : gradient of the loss at ``x``, of the same shape.
    learning_rate : base learning rate ``dt**2``, >= 0.
    rho : momentum coefficient in [-1, 1).
    weight_decay : coefficient of the L2 term, >= 0, added to the gradient (coupled, as in SGD).
    decoupled_weight_decay : instead, shrink the parameter by ``1 - learning_rate weight_decay``
        before the step (as in AdamW); that is no displacement.
    maximize : go up the gradient. The L2 term still shrinks the parameter.
    xp : array namespace of ``x``, if it is not to be found out.

    Returns
    -------
    the new parameter and the new displacement, in the dtypes of ``x`` and ``displacement``

    Raises
    ------
    TypeError
        If ``x`` or ``displacement`` is an array of integers, which cannot hold the result.

    Examples
    --------
    >>> langevin_step(1.0, 0.0, 1.0, learning_rate=0.25, rho=0.75)
    (0.78125, -0.21875)
    """
    xp = xp or namespace(x, displacement, gradient)
    position, velocity, slope = upcast(x, xp), upcast(displacement, xp), upcast(gradient, xp)
    slope = -slope if maximize else slope
    if weight_decay and decoupled_weight_decay:
        position = position * (1 - learning_rate * weight_decay)
    elif weight_decay:
        slope = slope + weight_decay * position
    moved = next_displacement(velocity, slope, rho=rho, step_size=step_size(learning_rate, rho))
    return _stored(position + moved, x, xp), _stored(moved, displacement, xp)


def _stored(value: Array, like: Array, xp: Any) -> Array:
    """``value`` in the dtype in which ``like`` is kept."""
    if xp is math or is_number(like) or value.dtype == like.dtype:
        return value
    if is_kind(like, "integral", xp):
        raise TypeError(f"parameters and displacements must be floating: {like.dtype}")
    return astype(value, like.dtype, xp)
