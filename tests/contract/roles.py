"""What an adapter does for the suite beside its drivers: it moves runs, reads and heats walks.

The parameters of a run are called 0, 1, ... in its portable state.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from drivers import Arrays, Driver, Run

from coolmomentum import CoolingSchedule
from coolmomentum.portable import PortableState

BATH_SHAPES = ((3, 4), (5,), ())


@dataclass
class Transfer:
    """A driver whose runs can leave and arrive."""

    driver: Driver

    def export(self, run: Any) -> PortableState:
        """The state of a run."""
        raise NotImplementedError

    def load(self, run: Any, saved: PortableState) -> None:
        """Let a run go on from there."""
        raise NotImplementedError

    def resume(self, params: Arrays, saved: PortableState, decay: float) -> Run:
        """A fresh run that goes on from there."""
        run = self.driver.make(params, saved.learning_rate, saved.cooling, decay)
        self.load(run, saved)
        return run


def renamed(saved: PortableState, names: dict[str, str]) -> PortableState:
    """The same state with some other names."""
    displacements = {names.get(name, name): dx for name, dx in saved.displacements.items()}
    return dataclasses.replace(saved, displacements=displacements)


def names_of(params: Any) -> list[str]:
    """The names of the parameters of a run."""
    return [str(i) for i, _ in enumerate(params)]


class Walk(NamedTuple):
    """What an optimizer and its thermometer are told, and the gradients it meets in each step."""

    rho: float
    dt2: float
    every: int
    gradients: list[list[np.ndarray]]

    @property
    def cooling(self):
        """No cooling."""
        return CoolingSchedule(10, self.rho, "constant")

    @property
    def start(self):
        """All parameters at 0."""
        return [np.zeros_like(x) for x in self.gradients[0]]


class BathRun(NamedTuple):
    """What an optimizer and its bath are told, and the gradients it meets in each step."""

    cooling: CoolingSchedule
    learning_rate: float
    temperature: Any  # a number, or a function of the step
    noise: str
    steps: int = 12

    @property
    def gradients(self) -> list[list[np.ndarray]]:
        """Of order one, and the same for every run."""
        random = np.random.default_rng(7)
        return [[random.standard_normal(shape) for shape in BATH_SHAPES] for _ in range(self.steps)]

    def temperature_at(self, step: int) -> float:
        """In the step."""
        return self.temperature(step) if callable(self.temperature) else self.temperature


class BathWalk(NamedTuple):
    """What came out: for each step a list with an array for each parameter."""

    positions: list[list[np.ndarray]]
    normals: list[list[np.ndarray]]  # xi_{n+1} drawn in step n
