"""Walks of CoolMomentum in a heat bath, by the adapter that makes them.

An adapter joins by a function of the kind of :data:`Walk`, and a name in :data:`ADAPTERS`.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from coolmomentum.numpy import CoolMomentum, ThermalNoise, Thermometer
from coolmomentum.thermal import Noise
from coolmomentum.thermometer import Bath

__all__ = ["ADAPTERS", "Bathed", "Walk", "observed"]

Array = Any  # a float64 NumPy array


class Bathed(NamedTuple):
    """Settings of a walk in a heat bath."""

    learning_rate: float  # dt**2
    rho: float
    temperature: float | Callable[[int], float]
    noise: Noise = "averaged"
    seed: int = 0


# From the gradient, the start and the settings to the positions after each step, without end.
Walk = Callable[[Callable[[Array], Array], Array, Bathed], Iterator[Array]]


def _numpy(gradient: Callable[[Array], Array], start: Array, settings: Bathed) -> Iterator[Array]:
    optimizer = CoolMomentum(settings.learning_rate, law="constant", rho0=settings.rho)
    bath = ThermalNoise(settings.temperature, noise=settings.noise, seed=settings.seed)
    params, state = [start], optimizer.init([start])
    while True:
        gradients = bath.add([gradient(params[0])], state, optimizer)
        params, state = optimizer.step(params, gradients, state)
        yield params[0]


ADAPTERS: dict[str, Walk] = {"numpy": _numpy}


def observed(
    walk: Iterator[Array],
    start: Array,
    settings: Bathed,
    measure: Callable[[Array], Array],
    steps: int,
    burn_in: int,
) -> tuple[Array, dict[str, float]]:
    """Mean of a function of the positions over the steps, and what the thermometer reads there."""
    thermometer, total = Thermometer(every=1, span=10), 0.0
    seen = thermometer.init([start])
    with np.errstate(all="ignore"):  # of a walk that diverges
        for n, x in enumerate(islice(walk, burn_in + steps)):
            t = settings.temperature
            seen = thermometer.update(
                seen,
                [x],
                rho=settings.rho,
                learning_rate=settings.learning_rate,
                bath=Bath(t(n) if callable(t) else t, settings.noise),
            )
            if n == burn_in - 1:
                seen = thermometer.reset(seen)
            if n >= burn_in:
                total = total + measure(x)
        return total / steps, thermometer.read(seen)
