"""Who competes, and over which learning rates each of them is tuned."""

from typing import NamedTuple

__all__ = ["CONTENDERS", "Contender", "learning_rates"]


class Contender(NamedTuple):
    """An optimizer, how it anneals, and where the grid of its learning rates has its middle."""

    optimizer: str
    annealing: str
    middle: float


CONTENDERS = (
    Contender("CoolMomentum", "rho from {rho0:.3g} to 0 by the paper's law, lr constant", 0.01),
    Contender("SGD", "momentum 0.9, lr to 0 by a cosine", 0.1),
    Contender("Adam", "betas 0.9 and 0.999, lr to 0 by a cosine", 0.01),
)


def learning_rates(contender: Contender, size: int) -> list[float]:
    """The grid: ``size`` values, half a decade apart, around the middle, to two digits.

    Examples
    --------
    >>> learning_rates(CONTENDERS[0], 3)
    [0.0032, 0.01, 0.032]
    """
    exponents = [(k - (size - 1) / 2) / 2 for k in range(size)]
    return [float(f"{contender.middle * 10**exponent:.2g}") for exponent in exponents]
