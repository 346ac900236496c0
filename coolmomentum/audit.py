"""Does a sampler sample? Problems whose exact answer is known, and what the thermometer reads.

Any sampler can be put to it, of this package or another: a function that yields positions.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from coolmomentum import _check
from coolmomentum.thermometer import Dynamics, Layout, Window, moments, report

__all__ = ["PROBLEMS", "Outcome", "Problem", "Sampler", "audit"]

Array = Any  # a float64 NumPy array
# From a problem, the start of each replica and the temperature to the positions after each step.
Sampler = Callable[["Problem", Array, float], Iterator[Array]]


class Problem(NamedTuple):
    """A loss U, by what a sampler may know of it."""

    gradient: Callable[[Array], Array]  # of positions of shape (replicas, coordinates)
    start: Array  # of shape (coordinates,)
    curvature: float  # the largest near the start: CoolMomentum is stable below dt**2 = 4 / this


class Outcome(NamedTuple):
    """What came out for one problem."""

    ratio: Array  # <x dU/dx> over the temperature in each coordinate: 1 if it is sampled exactly
    error: Array  # standard errors of the ratios, from the scatter between replicas
    reading: dict[str, float]  # of the thermometer, all coordinates together


_STIFFNESS = np.array([1.0, 10.0, 100.0])
_INPUTS = np.array([-1.5, -1.0, -0.6, -0.2, 0.1, 0.7, 1.1, 1.8])  # made up, as the labels
_LABELS = np.array([0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0])


def _modes(x: Array) -> Array:
    return _STIFFNESS * x


def _double_well(x: Array) -> Array:
    return 4 * x * (x * x - 1)


def _posterior(w: Array) -> Array:
    """Of slope and offset of a logistic regression with the prior N(0, 1)."""
    excess = 1 / (1 + np.exp(-(w[..., :1] * _INPUTS + w[..., 1:]))) - _LABELS
    return w + np.stack([excess @ _INPUTS, np.sum(excess, axis=-1)], axis=-1)


PROBLEMS = {
    "modes k = 1, 10, 100": Problem(_modes, np.zeros(3), 100.0),
    "double well": Problem(_double_well, np.ones(1), 8.0),
    "posterior": Problem(_posterior, np.zeros(2), 3.2),  # the prior, and a quarter of X'X
}


def audit(
    sampler: Sampler,
    temperature: float = 1.0,
    *,
    steps: int = 1500,
    burn_in: int = 500,
    replicas: int = 1000,
    dynamics: Callable[[Problem], Dynamics] | None = None,
) -> dict[str, Outcome]:
    """Run a sampler on every problem of :data:`coolmomentum.audit.PROBLEMS`.

    In equilibrium the mean of ``x dU/dx`` is the temperature in each coordinate of every loss that
    confines the walk; on ``k x**2 / 2`` that is ``k <x**2>``.

    Parameters
    ----------
    sampler : function of a :class:`Problem`, the positions at the start, an array of shape
        (replicas, coordinates), and the temperature. It yields an array of new positions for each
        step, for as long as it is asked; all its replicas are independent.
    temperature : to be sampled, > 0.
    steps : to be averaged over, >= 2.
    burn_in : steps before that, >= 1.
    replicas : >= 2.
    dynamics : what the thermometer is told of the sampler's steps, rho, dt**2 and bath; by default
        nothing, and it reads what needs none.

    Returns
    -------
    an :class:`Outcome` for each problem; what diverges is infinite or NaN

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    The reference of this package, at a quarter of the largest stable step:

    >>> import numpy as np
    >>> from coolmomentum.numpy import CoolMomentum, ThermalNoise
    >>> def langevin(problem, x, temperature):
    ...     rate = 1 / problem.curvature
    ...     optimizer = CoolMomentum(learning_rate=rate, law="constant", rho0=0.8)
    ...     bath, params, state = ThermalNoise(temperature), [x], optimizer.init([x])
    ...     while True:
    ...         gradients = bath.add([problem.gradient(params[0])], state, optimizer)
    ...         params, state = optimizer.step(params, gradients, state)
    ...         yield params[0]
    >>> outcome = audit(langevin, steps=500, burn_in=100)["modes k = 1, 10, 100"]
    >>> bool(np.all(abs(outcome.ratio - 1) < 4 * outcome.error))
    True
    """
    temperature = _check.positive("temperature", temperature)
    _check.integer("steps", steps, 2)
    _check.integer("burn_in", burn_in, 1)
    _check.integer("replicas", replicas, 2)
    return {
        name: _outcome(
            problem,
            sampler(problem, np.tile(problem.start, (replicas, 1)), temperature),
            temperature,
            (steps, burn_in),
            dynamics(problem) if dynamics else Dynamics(),
        )
        for name, problem in PROBLEMS.items()
    }


def _outcome(
    problem: Problem,
    positions: Iterator[Array],
    temperature: float,
    steps: tuple[int, int],
    dynamics: Dynamics,
) -> Outcome:
    x: Array = next(positions)
    virial, before = np.zeros_like(x), None
    layout = Layout.of(["x"], [x.size])
    window = Window.empty(np.zeros(len(layout)))
    with np.errstate(all="ignore"):
        for n in range(1 - steps[1], steps[0]):
            last, x = x, np.asarray(next(positions), np.float64)
            now = x - last
            if n >= 0:
                virial = virial + x * problem.gradient(x)
                window = window.step()
                if before is not None:
                    window = window.add(moments([now], [before]), layout, dynamics)
            before = now
        each = virial / (steps[0] * temperature)
        error = np.std(each, axis=0, ddof=1) / np.sqrt(len(each))
        return Outcome(np.mean(each, axis=0), error, report(window, layout))
