"""How the optimizers move that a thermometer knows: rho, dt**2 and masses from their settings.

The settings are numbers or 0-d arrays, which may be traced.
"""

from typing import NamedTuple

from coolmomentum._arrays import Array, Scalar, is_number
from coolmomentum.langevin import learning_rate_from_adam, learning_rate_from_sgd
from coolmomentum.thermal import Noise


class Bath(NamedTuple):
    """The random force that the optimizer added to the gradient: :mod:`coolmomentum.thermal`."""

    temperature: Scalar  # of the bath in this step, >= 0
    noise: Noise = "averaged"


class Dynamics(NamedTuple):
    """How the optimizer moved in one step, for all parameters or an array with one of each.

    None or NaN is not known. At ``dt2 = 0`` only parameters at rest have a temperature, which is 0.
    """

    rho: Scalar | None = None  # momentum coefficient, in (-1, 1)
    dt2: Scalar | None = None  # squared time step
    bath: Bath | None = None  # a random force of its own, if there is one


def sgd(learning_rate: Scalar, momentum: Scalar = 0.0, dampening: Scalar = 0.0) -> Dynamics:
    """SGD: ``dx = momentum dx - learning_rate (1 - dampening) g``, not Nesterov's.

    Parameters
    ----------
    learning_rate : >= 0.
    momentum : in [0, 1); of a number outside nothing is known.
    dampening : is ignored if the momentum is 0, as in PyTorch.

    Returns
    -------
    its rho and dt**2

    Examples
    --------
    >>> sgd(0.75, momentum=0.5)
    Dynamics(rho=0.5, dt2=1.0, bath=None)
    """
    if is_number(momentum):
        if not 0 <= momentum < 1:
            return Dynamics()
        dampening = dampening if momentum else 0.0
    return Dynamics(momentum, learning_rate_from_sgd(learning_rate * (1 - dampening), momentum))


def adam(learning_rate: Scalar, beta1: Scalar) -> Dynamics:
    """Adam and AdamW, with the masses of :func:`coolmomentum.adam_mass`.

    Parameters
    ----------
    learning_rate : >= 0.
    beta1 : in [0, 1); of a number outside nothing is known.

    Returns
    -------
    its rho and dt**2

    Examples
    --------
    >>> adam(0.125, beta1=0.0)
    Dynamics(rho=0.0, dt2=0.25, bath=None)
    """
    if is_number(beta1) and not 0 <= beta1 < 1:
        return Dynamics()
    return Dynamics(beta1, learning_rate_from_adam(learning_rate, beta1))


def rmsprop(learning_rate: Scalar, momentum: Scalar = 0.0) -> Dynamics:
    """RMSprop, with the masses of :func:`rms_mass`.

    Parameters
    ----------
    learning_rate, momentum : as of :func:`sgd`.

    Returns
    -------
    its rho and dt**2

    Examples
    --------
    >>> rmsprop(0.75, momentum=0.5) == sgd(0.75, momentum=0.5)
    True
    """
    return sgd(learning_rate, momentum)


def adagrad(learning_rate: Scalar) -> Dynamics:
    """Adagrad, with the masses of :func:`rms_mass` of the sum of squared gradients.

    Parameters
    ----------
    learning_rate : >= 0.

    Returns
    -------
    its rho, which is 0, and dt**2

    Examples
    --------
    >>> adagrad(0.5)
    Dynamics(rho=0.0, dt2=1.0, bath=None)
    """
    return sgd(learning_rate)


def rms_mass(square: Array, epsilon: Scalar = 0.0, mean: Array | None = None) -> Array:
    """Mass of a coordinate where the gradient is divided by its root mean square.

    Parameters
    ----------
    square : mean, or sum, of squared gradients. Keras adds its epsilon to this.
    epsilon : what is added to the root.
    mean : mean gradient, if the square is centered.

    Returns
    -------
    array of the shape of ``square``

    Examples
    --------
    >>> rms_mass(25.0, 1.0, mean=3.0)
    5.0
    """
    variance = square if mean is None else square - mean * mean
    return variance**0.5 + epsilon
