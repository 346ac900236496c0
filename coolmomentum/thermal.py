"""A heat bath of one's own: the random force of Eq. 17, for any step.

With it the step of Eq. 14 samples ``exp(-U / temperature)``, at a temperature that may change from
step to step. Equation numbers are those of Borysenko and Byshkin, Scientific Reports 11, 10705
(2021).

Every coordinate has one unit normal number ``xi`` a step. With ``noise="averaged"`` step n feels
``(xi_n + xi_{n+1}) / 2``, so that every number serves two steps: a quadratic loss is then sampled
exactly for every stable step (Gronbech-Jensen and Farago, Mol. Phys. 111, 983 (2013)). With
``noise="white"`` it feels ``xi_{n+1}``, which is Eq. 17 as it stands; there ``k <x**2>`` is
``temperature / (1 - k dt**2 / 4)``.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

from coolmomentum import _check
from coolmomentum._arrays import (
    Array,
    Scalar,
    computable,
    is_checkable,
    is_number,
    namespace,
    upcast,
)
from coolmomentum.langevin import step_size

__all__ = ["Noise", "draw_key", "random_force", "random_force_scale"]

Noise = Literal["averaged", "white"]


def random_force_scale(
    temperature: Scalar,
    learning_rate: Scalar,
    rho: Scalar,
    last_learning_rate: Scalar | None = None,
    *,
    xp: Any = None,
) -> Scalar:
    """Standard deviation of the random force of one coordinate: the root of Eq. 17.

    ``2 / (1 + rho) sqrt(temperature (1 - rho**2 last / learning_rate) / learning_rate)``, which is
    ``sqrt(2 temperature friction / dt)`` where the learning rate is constant. A displacement is not
    rescaled when the learning rate changes; the quotient makes up for that in the mean. Where the
    learning rate falls faster than friction cools, and at a learning rate of 0, there is no force.

    Parameters
    ----------
    temperature : of the bath in this step, an energy, >= 0.
    learning_rate : base learning rate ``dt**2`` of this step, >= 0.
    rho : momentum coefficient of this step, in (-1, 1).
    last_learning_rate : that of the step before; by default the same.
    xp : array namespace, if it is not to be found out.

    Returns
    -------
    scale of the force, in the unit of the gradient

    Raises
    ------
    ValueError
        If a Python number is out of range.

    Examples
    --------
    >>> random_force_scale(1.0, learning_rate=0.25, rho=0.6)
    2.0
    """
    last = learning_rate if last_learning_rate is None else last_learning_rate
    for name, value in (
        ("temperature", temperature),
        ("learning_rate", learning_rate),
        ("last_learning_rate", last),
    ):
        if is_checkable(value):
            _check.non_negative(name, value)
    if is_checkable(rho) and not -1 < _check.real("rho", rho) < 1:
        raise ValueError(f"rho must be in (-1, 1): {rho!r}")
    temperature, learning_rate, rho, last, rounded = computable(
        temperature, learning_rate, rho, last
    )
    eta = step_size(learning_rate, rho)
    lost = learning_rate - rho * rho * last
    # The variance of the displacement, temperature * max(0, lost), is 0 at a learning rate of 0.
    displacement = (temperature * (abs(lost) + lost) / 2) ** 0.5
    if is_number(eta):
        return rounded(displacement / (eta or 1.0))
    xp = xp or namespace(eta)
    return rounded(displacement / xp.where(eta == 0, xp.ones_like(eta), eta))


def random_force(
    normals: Array,
    next_normals: Array,
    scale: Scalar,
    *,
    noise: Noise = "averaged",
    xp: Any = None,
) -> Array:
    """Random force of step n, to be subtracted from the gradient.

    ``scale (xi_n + xi_{n+1}) / 2``, or ``scale xi_{n+1}`` of white noise.

    Parameters
    ----------
    normals : unit normal numbers ``xi_n``, an array in the shape of the parameter; zeros before the
        first step. White noise does not look at them.
    next_normals : those of the next step, ``xi_{n+1}``.
    scale : see :func:`random_force_scale`.
    noise : "averaged" or "white".
    xp : array namespace, if it is not to be found out.

    Returns
    -------
    the force on each coordinate, float32 or better

    Raises
    ------
    ValueError
        If ``noise`` is neither of the two.

    Examples
    --------
    >>> random_force(0.5, 1.5, 3.0), random_force(0.5, 1.5, 3.0, noise="white")
    (3.0, 4.5)
    """
    _check.one_of("noise", noise, get_args(Noise))
    xp = xp or namespace(normals, next_normals)
    xi = upcast(next_normals, xp)
    if noise == "white":
        return scale * xi
    return (
        scale / 2 * (upcast(normals, xp) + xi)
    )  # two passes; the number is halved, which is exact


def bath_temperature(temperature: float | Callable[[int], float], step: int) -> float:
    """Temperature of a bath in a step, which a function of the step may give.

    Parameters
    ----------
    temperature : a number, which was checked, or a function of the step.
    step : the steps already taken.

    Returns
    -------
    the temperature

    Raises
    ------
    ValueError
        If the function gives one that is negative or not finite.

    Examples
    --------
    >>> bath_temperature(lambda step: 1 / (1 + step), 3)
    0.25
    """
    if not callable(temperature):
        return temperature
    return _check.non_negative(f"temperature({step})", temperature(step))


def draw_key(seed: int, parameter: int, step: int) -> int:
    """Seed of the normal numbers of one parameter in one step, for generators on the host.

    Nothing but the number of the step need be saved for a run that goes on with the same numbers.

    Parameters
    ----------
    seed, parameter, step : integers >= 0; the parameter by its index.

    Returns
    -------
    integer in [0, 2**63), a hash of the three (Steele, Lea and Flood's SplitMix64)

    Examples
    --------
    >>> draw_key(0, 0, 0) == draw_key(0, 0, 1), draw_key(0, 1, 0) == draw_key(1, 0, 0)
    (False, False)
    """
    key = 0
    for number in (seed, parameter, step):
        key = _mixed(key ^ _mixed(number))
    return key >> 1


def _mixed(z: int) -> int:
    """The output function of SplitMix64, a bijection of 64-bit integers."""
    z = (z + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31
