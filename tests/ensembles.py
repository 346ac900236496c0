"""Walks on k x**2 / 2 at rest: exact moments of their displacements, and points that have them.

The numbers are those of the Lyapunov equation, which ``stationary`` solves by SciPy.
"""

import math
from fractions import Fraction as F  # noqa: N817  # stands in every other expression

import numpy as np
from frameworks import framework

linalg = framework("scipy.linalg")

# White noise of Eq. 17: (rho, dt**2, k, T) -> T by Eq. 22, correlation of successive displacements.
WHITE = [
    ((1 / 2, 1, 1, 1), F(4, 3), F(1, 8)),
    ((9 / 10, 1 / 4, 2, 3 / 2), F(12, 7), F(53, 80)),
    ((0, 1 / 10, 3, 1), F(40, 37), F(-3, 40)),
    ((99 / 100, 1 / 100, 5, 1), F(80, 79), F(7721, 8000)),
]
# Noise averaged over two steps, as in BAOAB: the same, and T by the central difference.
AVERAGED = [
    ((1 / 2, 1, 1, 1), F(3, 4), F(3, 8), F(33, 64)),
    ((9 / 10, 1 / 4, 2, 3 / 2), F(57, 40), F(57, 80), F(7809, 6400)),
    ((0, 1 / 10, 3, 1), F(1, 2), F(17, 40), F(57, 160)),
    ((99 / 100, 1 / 100, 5, 1), F(199, 200), F(7761, 8000), F(3136439, 3200000)),
]
# White noise: (rho, eta, k, variance of the noise) -> variance of a displacement.
VARIANCES = [
    ((F(9, 10), F(19, 200), 1, 1), F(19, 390)),
    ((F(1, 2), F(3, 4), 1, F(4, 3)), F(4, 3)),
    ((0, F(1, 10), 2, 1), F(1, 90)),
    ((F(99, 100), F(199, 20000), 3, F(1, 2)), F(199, 79400)),
]


def stationary(matrix, noise):
    """Covariance of ``z -> matrix z + noise xi`` at rest, by SciPy's Lyapunov solver."""
    return linalg.solve_discrete_lyapunov(np.array(matrix), np.outer(noise, noise))


def two_points(variance, covariance):
    """Successive displacements of two coordinates that have exactly these moments on the average.

    Sigma points: the columns of a root of the matrix [[variance, covariance], [covariance,
    variance]], times the root of their number.
    """
    root = np.linalg.cholesky([[variance, covariance], [covariance, variance]]) * math.sqrt(2)
    return root[0], root[1]


def squares_and_products(now, before, product):
    """The table of parameters whose masses are 1."""
    return np.array([now, before, product] * 2, dtype=np.asarray(now).dtype)
