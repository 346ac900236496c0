"""The physics of one setting: friction, momentum, noise and temperature (Eqs 15-19).

Equation numbers are those of Borysenko and Byshkin, Scientific Reports 11, 10705 (2021).
Units: the mass is 1, ``learning_rate`` is the squared time step ``dt**2``, and a temperature is an
energy (Boltzmann's constant is 1), so it has the unit of the loss.

Every function takes Python numbers or arrays of one array-API namespace, which broadcast, and gives
back the same kind; the dtype is that of the array arguments. Half precision is computed in float32
and rounded once, integers give the namespace's default float. Numbers, NumPy's scalars too, are
checked (``ValueError``, ``TypeError``); arrays, which may be traced, are not.
"""

from typing import Literal, get_args, overload

from coolmomentum import _check
from coolmomentum._arrays import Scalar, computable, is_checkable

__all__ = [
    "adam_mass",
    "adiabaticity",
    "effective_learning_rate",
    "friction_from_rho",
    "learning_rate_from_adam",
    "learning_rate_from_sgd",
    "lr_for_batch",
    "matched_sgd_learning_rate",
    "noise_temperature",
    "noise_variance",
    "noise_variance_at",
    "reduced_temperature",
    "rho_from_friction",
    "rho_from_reduced_temperature",
    "step_size",
    "temperature_from_noise",
]

BatchRule = Literal["sgd", "adam"]  # what the temperature goes with: the noise, or its root


@overload
def rho_from_friction(friction: float, dt: float) -> float: ...
@overload
def rho_from_friction(friction: Scalar, dt: Scalar) -> Scalar: ...
def rho_from_friction(friction: Scalar, dt: Scalar) -> Scalar:
    """Momentum coefficient of a friction, Eq. 15.

    ``rho = (1 - friction dt / 2) / (1 + friction dt / 2)``

    Parameters
    ----------
    friction : friction coefficient gamma in 1/time, >= 0; ``2 / dt`` gives rho = 0.
    dt : time step, > 0.

    Returns
    -------
    rho in (-1, 1]

    Raises
    ------
    ValueError
        If a Python number is negative or not finite, or dt is 0.

    Examples
    --------
    >>> rho_from_friction(20.0, 0.1)
    0.0
    """
    _positive("dt", dt)
    _non_negative("friction", friction)
    friction, dt, rounded = computable(friction, dt)
    half = friction * dt / 2
    return rounded((1 - half) / (1 + half))


@overload
def friction_from_rho(rho: float, dt: float) -> float: ...
@overload
def friction_from_rho(rho: Scalar, dt: Scalar) -> Scalar: ...
def friction_from_rho(rho: Scalar, dt: Scalar) -> Scalar:
    """Friction of a momentum coefficient, Eq. 18, the inverse of Eq. 15.

    ``friction = (2 / dt) (1 - rho) / (1 + rho)``

    Parameters
    ----------
    rho : momentum coefficient in (-1, 1].
    dt : time step, > 0.

    Returns
    -------
    friction in 1/time

    Raises
    ------
    ValueError
        If a Python number is out of range.

    Examples
    --------
    >>> friction_from_rho(0.0, 0.1)
    20.0
    """
    if is_checkable(rho) and not -1 < _check.real("rho", rho) <= 1:
        raise ValueError(f"rho must be in (-1, 1]: {rho!r}")
    _positive("dt", dt)
    rho, dt, rounded = computable(rho, dt)
    return rounded(2 / dt * (1 - rho) / (1 + rho))


@overload
def step_size(learning_rate: float, rho: float) -> float: ...
@overload
def step_size(learning_rate: Scalar, rho: Scalar) -> Scalar: ...
def step_size(learning_rate: Scalar, rho: Scalar) -> Scalar:
    """What multiplies the gradient in Eq. 14: Eq. 16.

    ``step_size = learning_rate (1 + rho) / 2``, from ``dt**2`` at rho = 1 down to half of it at 0.

    Parameters
    ----------
    learning_rate : base learning rate ``dt**2``, >= 0.
    rho : momentum coefficient in [-1, 1].

    Returns
    -------
    step size eta, in the unit of the learning rate

    Examples
    --------
    >>> step_size(0.1, 0.9)
    0.095
    """
    # Without `computable`, because every step asks: no intermediate result can overflow.
    return learning_rate * ((1 + rho) / 2)


@overload
def noise_variance(temperature: float, friction: float, dt: float) -> float: ...
@overload
def noise_variance(temperature: Scalar, friction: Scalar, dt: Scalar) -> Scalar: ...
def noise_variance(temperature: Scalar, friction: Scalar, dt: Scalar) -> Scalar:
    """Variance of the random force that keeps a temperature, Eq. 17.

    ``<R_n R_m> = (2 temperature friction / dt) delta_nm``, for each coordinate.

    Parameters
    ----------
    temperature : energy, >= 0.
    friction : in 1/time, >= 0.
    dt : time step, > 0.

    Returns
    -------
    variance of one coordinate of the random force (of the gradient noise)

    Raises
    ------
    ValueError
        If a Python number is negative or not finite, or dt is 0.

    Examples
    --------
    >>> noise_variance(0.5, friction=2.0, dt=0.1)
    20.0
    """
    _non_negative("temperature", temperature)
    _non_negative("friction", friction)
    _positive("dt", dt)
    temperature, friction, dt, rounded = computable(temperature, friction, dt)
    return rounded(2 * temperature * friction / dt)


@overload
def temperature_from_noise(variance: float, friction: float, dt: float) -> float: ...
@overload
def temperature_from_noise(variance: Scalar, friction: Scalar, dt: Scalar) -> Scalar: ...
def temperature_from_noise(variance: Scalar, friction: Scalar, dt: Scalar) -> Scalar:
    """Temperature that a random force keeps, Eq. 17 solved for the temperature.

    ``temperature = variance dt / (2 friction)``

    Parameters
    ----------
    variance : variance of one coordinate of the gradient noise, >= 0.
    friction : in 1/time, > 0.
    dt : time step, > 0.

    Returns
    -------
    temperature, an energy

    Raises
    ------
    ValueError
        If a Python number is out of range.

    Examples
    --------
    >>> temperature_from_noise(20.0, friction=2.0, dt=0.1)
    0.5
    """
    _non_negative("variance", variance)
    _positive("friction", friction)
    _positive("dt", dt)
    variance, friction, dt, rounded = computable(variance, friction, dt)
    return rounded(variance * dt / (2 * friction))


@overload
def noise_temperature(variance: float, learning_rate: float, rho: float) -> float: ...
@overload
def noise_temperature(variance: Scalar, learning_rate: Scalar, rho: Scalar) -> Scalar: ...
def noise_temperature(variance: Scalar, learning_rate: Scalar, rho: Scalar) -> Scalar:
    """Temperature at which gradient noise and friction balance, Eq. 19.

    ``T = variance learning_rate (1 + rho) / (4 (1 - rho))``: with constant noise the temperature
    falls with rho, which is the cooling of CoolMomentum. Multiply by ``learning_rate`` for the
    rescaled temperature.

    Parameters
    ----------
    variance : variance <R**2> of one coordinate of the gradient noise, >= 0.
    learning_rate : base learning rate ``dt**2``, >= 0.
    rho : momentum coefficient in [-1, 1).

    Returns
    -------
    temperature, an energy

    Raises
    ------
    ValueError
        If a Python number is out of range.

    Examples
    --------
    >>> round(noise_temperature(1.0, learning_rate=0.01, rho=0.99), 12)
    0.4975
    """
    _non_negative("variance", variance)
    variance, learning_rate, rho, rounded = computable(variance, learning_rate, rho)
    return rounded(variance * learning_rate / 4 * reduced_temperature(rho))


@overload
def noise_variance_at(temperature: float, learning_rate: float, rho: float) -> float: ...
@overload
def noise_variance_at(temperature: Scalar, learning_rate: Scalar, rho: Scalar) -> Scalar: ...
def noise_variance_at(temperature: Scalar, learning_rate: Scalar, rho: Scalar) -> Scalar:
    """Gradient noise that balances friction at a temperature, Eq. 19 solved for the noise.

    ``variance = 4 temperature (1 - rho) / (learning_rate (1 + rho))``

    Parameters
    ----------
    temperature : energy, >= 0.
    learning_rate : base learning rate ``dt**2``, > 0.
    rho : momentum coefficient in (-1, 1).

    Returns
    -------
    variance of one coordinate of the gradient noise

    Raises
    ------
    ValueError
        If a Python number is out of range.

    Examples
    --------
    >>> noise_variance_at(0.5, learning_rate=0.5, rho=0.0)
    4.0
    """
    _open("rho", rho)
    _non_negative("temperature", temperature)
    _positive("learning_rate", learning_rate)
    temperature, learning_rate, rho, rounded = computable(temperature, learning_rate, rho)
    return rounded(4 * temperature / learning_rate * (1 - rho) / (1 + rho))


@overload
def reduced_temperature(rho: float) -> float: ...
@overload
def reduced_temperature(rho: Scalar) -> Scalar: ...
def reduced_temperature(rho: Scalar) -> Scalar:
    """Temperature over that of rho = 0 under the same noise, from Eq. 19.

    ``tau = (1 + rho) / (1 - rho)``: 199 at rho = 0.99, 1 at the end of the cooling.

    Parameters
    ----------
    rho : momentum coefficient in [-1, 1).

    Returns
    -------
    reduced temperature tau >= 0, no unit

    Raises
    ------
    ValueError
        If rho is a Python number outside [-1, 1).

    Examples
    --------
    >>> reduced_temperature(0.5)
    3.0
    """
    _half_open("rho", rho, low=-1)
    rho, rounded = computable(rho)
    return rounded((1 + rho) / (1 - rho))


@overload
def rho_from_reduced_temperature(tau: float) -> float: ...
@overload
def rho_from_reduced_temperature(tau: Scalar) -> Scalar: ...
def rho_from_reduced_temperature(tau: Scalar) -> Scalar:
    """Momentum coefficient of a reduced temperature, from Eq. 19.

    ``rho = (tau - 1) / (tau + 1)``

    Parameters
    ----------
    tau : reduced temperature T / T(rho=0), finite and >= 0.

    Returns
    -------
    rho in [-1, 1)

    Raises
    ------
    ValueError
        If tau is a Python number that is negative or not finite.

    Examples
    --------
    >>> rho_from_reduced_temperature(199)
    0.99
    """
    _non_negative("tau", tau)
    tau, rounded = computable(tau)
    return rounded((tau - 1) / (tau + 1))


@overload
def effective_learning_rate(learning_rate: float, rho: float) -> float: ...
@overload
def effective_learning_rate(learning_rate: Scalar, rho: Scalar) -> Scalar: ...
def effective_learning_rate(learning_rate: Scalar, rho: Scalar) -> Scalar:
    """Distance travelled per unit of a constant gradient and step, once the momentum has built up.

    ``learning_rate (1 + rho) / (2 (1 - rho))``, the step size of Eq. 16 over ``1 - rho``. Plain SGD
    with this learning rate is the control experiment for CoolMomentum.

    Parameters
    ----------
    learning_rate : base learning rate ``dt**2``, >= 0.
    rho : momentum coefficient in [-1, 1).

    Returns
    -------
    effective learning rate, in the unit of the learning rate

    Raises
    ------
    ValueError
        If rho is a Python number outside [-1, 1).

    Examples
    --------
    >>> effective_learning_rate(0.5, 0.5)
    0.75
    """
    learning_rate, rho, rounded = computable(learning_rate, rho)
    return rounded(learning_rate / 2 * reduced_temperature(rho))


@overload
def learning_rate_from_sgd(learning_rate: float, momentum: float) -> float: ...
@overload
def learning_rate_from_sgd(learning_rate: Scalar, momentum: Scalar) -> Scalar: ...
def learning_rate_from_sgd(learning_rate: Scalar, momentum: Scalar) -> Scalar:
    """For the constant law only: the base learning rate with which it is a given momentum SGD.

    ``2 learning_rate / (1 + momentum)``, Eq. 16 solved for ``dt**2``, at rho0 = momentum. With it a
    law that cools from a higher rho0 starts too hot, from 0.99 ten times: for such a run see
    :func:`coolmomentum.settings_from_sgd`.

    Parameters
    ----------
    learning_rate : learning rate of SGD (the factor of the gradient), >= 0.
    momentum : its momentum in [0, 1).

    Returns
    -------
    base learning rate ``dt**2`` of CoolMomentum

    Raises
    ------
    ValueError
        If momentum is a Python number outside [0, 1).

    Examples
    --------
    >>> learning_rate_from_sgd(0.75, momentum=0.5)
    1.0
    """
    _half_open("momentum", momentum)
    learning_rate, momentum, rounded = computable(learning_rate, momentum)
    return rounded(2 * learning_rate / (1 + momentum))


@overload
def learning_rate_from_adam(learning_rate: float, beta1: float) -> float: ...
@overload
def learning_rate_from_adam(learning_rate: Scalar, beta1: Scalar) -> Scalar: ...
def learning_rate_from_adam(learning_rate: Scalar, beta1: Scalar) -> Scalar:
    """Squared time step of Adam, whose coordinates have the masses of :func:`adam_mass`.

    ``dt**2 = 2 learning_rate (1 - beta1) / (1 + beta1)``: times its mass a displacement obeys
    Eq. 14 with rho = beta1 and step size ``learning_rate (1 - beta1)``. The correction of the bias
    of the first moment, which is over after some ``1 / (1 - beta1)`` steps, is left out.

    Parameters
    ----------
    learning_rate : learning rate of Adam, >= 0.
    beta1 : its decay of the first moment, in [0, 1).

    Returns
    -------
    squared time step ``dt**2``

    Raises
    ------
    ValueError
        If beta1 is a Python number outside [0, 1).

    Examples
    --------
    >>> learning_rate_from_adam(0.75, beta1=0.5)
    0.5
    """
    _half_open("beta1", beta1)
    learning_rate, beta1, rounded = computable(learning_rate, beta1)
    return rounded(learning_rate_from_sgd(learning_rate * (1 - beta1), beta1))


@overload
def adam_mass(second_moment: float, beta2: float, steps: float, epsilon: float) -> float: ...
@overload
def adam_mass(second_moment: Scalar, beta2: Scalar, steps: Scalar, epsilon: Scalar) -> Scalar: ...
def adam_mass(second_moment: Scalar, beta2: Scalar, steps: Scalar, epsilon: Scalar) -> Scalar:
    """Mass of a coordinate in Adam: what its update divides the first moment by.

    ``mass = sqrt(second_moment / (1 - beta2**steps)) + epsilon``. With it, and ``dt**2`` of
    :func:`learning_rate_from_adam`, ``mass <dx**2> / dt**2`` is the temperature of Eq. 22. It is
    ``learning_rate sigma / 2`` where noise of standard deviation sigma dominates the gradient.

    Parameters
    ----------
    second_moment : decaying mean of the squared gradient, its bias not corrected, >= 0.
    beta2 : decay of the second moment, in [0, 1).
    steps : steps taken, > 0; of arrays the dtype is also that of ``beta2**steps``.
    epsilon : of Adam, added to the root of the corrected moment, >= 0.

    Returns
    -------
    mass, in the unit of a gradient

    Raises
    ------
    ValueError
        If a Python number is out of range.

    Examples
    --------
    After one step with a gradient of 3:

    >>> adam_mass(0.25 * 9.0, beta2=0.75, steps=1, epsilon=0.0)
    3.0
    """
    _non_negative("second_moment", second_moment)
    _half_open("beta2", beta2)
    _positive("steps", steps)
    _non_negative("epsilon", epsilon)
    second_moment, beta2, steps, epsilon, rounded = computable(second_moment, beta2, steps, epsilon)
    unbiased = second_moment / (1 - beta2**steps)
    return rounded(unbiased**0.5 + epsilon)


@overload
def matched_sgd_learning_rate(learning_rate: float, rho: float, momentum: float = ...) -> float: ...
@overload
def matched_sgd_learning_rate(
    learning_rate: Scalar, rho: Scalar, momentum: Scalar = 0.0
) -> Scalar: ...
def matched_sgd_learning_rate(learning_rate: Scalar, rho: Scalar, momentum: Scalar = 0.0) -> Scalar:
    """Learning rate with which SGD has the effective learning rate of CoolMomentum at this rho.

    ``(1 - momentum) learning_rate (1 + rho) / (2 (1 - rho))``. Along a cooling schedule it is
    the learning-rate schedule of the control experiment: the same travel, no cooling of rho.

    Parameters
    ----------
    learning_rate : base learning rate ``dt**2`` of CoolMomentum, >= 0.
    rho : its momentum coefficient in [-1, 1).
    momentum : momentum of the SGD that is to match, in [0, 1).

    Returns
    -------
    learning rate for SGD

    Raises
    ------
    ValueError
        If rho or momentum is a Python number out of range.

    Examples
    --------
    >>> matched_sgd_learning_rate(0.5, rho=0.5, momentum=0.5)
    0.375
    """
    _half_open("momentum", momentum)
    learning_rate, rho, momentum, rounded = computable(learning_rate, rho, momentum)
    return rounded((1 - momentum) * effective_learning_rate(learning_rate, rho))


def lr_for_batch(
    learning_rate: Scalar,
    batch_size: Scalar,
    new_batch_size: Scalar,
    rule: BatchRule = "sgd",
) -> Scalar:
    """Learning rate that keeps the temperature at another batch size.

    The variance of the gradient noise goes as ``1 / batch_size``. The temperature of Eq. 19 is
    proportional to it and to the learning rate: ``learning_rate new_batch_size / batch_size``. That
    of Adam, whose masses are proportional to the noise, goes with its root:
    ``learning_rate sqrt(new_batch_size / batch_size)``.

    Parameters
    ----------
    learning_rate : at ``batch_size``, >= 0; of CoolMomentum or SGD, or of Adam or RMSprop.
    batch_size, new_batch_size : examples in a step, > 0.
    rule : "sgd" or "adam".

    Returns
    -------
    learning rate at ``new_batch_size``

    Raises
    ------
    TypeError, ValueError
        If the rule is none of the two, or a Python number is out of range.

    Examples
    --------
    >>> lr_for_batch(0.1, 64, 256)
    0.4
    >>> lr_for_batch(0.1, 64, 256, rule="adam")
    0.2
    """
    _check.one_of("rule", rule, get_args(BatchRule))
    _non_negative("learning_rate", learning_rate)
    _positive("batch_size", batch_size)
    _positive("new_batch_size", new_batch_size)
    learning_rate, batch_size, new_batch_size, rounded = computable(
        learning_rate, batch_size, new_batch_size
    )
    ratio = new_batch_size / batch_size
    return rounded(learning_rate * (ratio if rule == "sgd" else ratio**0.5))


@overload
def adiabaticity(cooling_speed: float, rho: float) -> float: ...
@overload
def adiabaticity(cooling_speed: Scalar, rho: Scalar) -> Scalar: ...
def adiabaticity(cooling_speed: Scalar, rho: Scalar) -> Scalar:
    """Fraction by which the temperature falls while the displacements relax once.

    ``cooling_speed / (1 - rho**2)``: in a flat direction the squared displacement forgets its past
    as ``rho**(2 n)``, within some ``1 / (1 - rho**2)`` steps. Well below 1 the measured temperature
    (Eq. 22) can follow the one aimed at (Eq. 19); above 1 the run is a quench.

    Parameters
    ----------
    cooling_speed : ``|d ln T / dn|``, the relative fall of the temperature in one step, >= 0.
    rho : momentum coefficient in (-1, 1).

    Returns
    -------
    adiabaticity number, no unit

    Raises
    ------
    ValueError
        If a Python number is out of range.

    Examples
    --------
    >>> adiabaticity(0.001, rho=0.0)
    0.001
    """
    _open("rho", rho)
    _non_negative("cooling_speed", cooling_speed)
    cooling_speed, rho, rounded = computable(cooling_speed, rho)
    return rounded(cooling_speed / ((1 - rho) * (1 + rho)))


def _non_negative(name: str, value: Scalar) -> None:
    if is_checkable(value):
        _check.non_negative(name, value)


def _positive(name: str, value: Scalar) -> None:
    if is_checkable(value):
        _check.positive(name, value)


def _half_open(name: str, value: Scalar, low: float = 0.0) -> None:
    if is_checkable(value):
        _check.half_open(name, value, low)


def _open(name: str, value: Scalar) -> None:
    if is_checkable(value) and not -1 < _check.real(name, value) < 1:
        raise ValueError(f"{name} must be in (-1, 1): {value!r}")
