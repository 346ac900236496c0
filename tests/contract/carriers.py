"""How the runs of the drivers are carried from one adapter to another, as neutral states.

The parameters of a run are called 0, 1, ... in its neutral state.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import jax
from drivers import Arrays, Driver, JaxRun, Oracle, Run, TorchRun

from coolmomentum import CoolingSchedule, temperature
from coolmomentum import jax as cool_jax
from coolmomentum import numpy as cool_numpy
from coolmomentum import torch as cool_torch
from coolmomentum.checkpoint import NeutralState


class Carrier(Protocol):
    """A driver whose runs can leave and arrive."""

    driver: Driver

    def leave(self, run: Any) -> NeutralState:
        """The state of a run."""

    def enter(self, run: Any, neutral: NeutralState) -> None:
        """Let a run go on from there."""


class NumpyRun(Oracle):
    """The reference with the face of a run; one carrier is the reference itself."""

    def set_lr(self, lr):
        """Use another learning rate from now on."""
        self.lr = lr

    def params(self):
        """The parameters."""
        return self.xs

    def displacements(self):
        """The last change of each."""
        return list(self.state.displacements)

    def clock(self):
        """Steps taken."""
        return self.state.step

    def rho(self):
        """Momentum coefficient that the next step will use."""
        return self.optimizer().rho(self.state)

    def temperature(self):
        """Of the last step, pooled."""
        return float(temperature(self.state.displacements, self.lr))


class _Numpy:
    """Makes them."""

    dtype = "float64"

    def make(self, params: Arrays, lr: float, cooling: CoolingSchedule, decay: float) -> NumpyRun:
        """See Driver."""
        return NumpyRun(params, lr, cooling, decay)


class NumpyCarrier:
    """Carries runs of the reference."""

    driver = _Numpy()

    def leave(self, run):
        """See Carrier."""
        return cool_numpy.neutral_state(run.optimizer(), run.state, _names(run.xs))

    def enter(self, run, neutral):
        """See Carrier."""
        names = _names(run.xs)
        run.state = cool_numpy.load_neutral_state(run.optimizer(), run.state, names, neutral)


@dataclass
class TorchCarrier:
    """Carries runs of a path of the torch adapter."""

    driver: Driver

    def leave(self, run):
        """See Carrier."""
        return cool_torch.neutral_state(run.optimizer, _named(run))

    def enter(self, run, neutral):
        """See Carrier."""
        cool_torch.load_neutral_state(run.optimizer, _named(run), neutral)


@dataclass
class JaxCarrier:
    """Carries runs of the optax transformation."""

    driver: Driver

    def leave(self, run: JaxRun):
        """See Carrier."""
        return cool_jax.neutral_state(run.state, run.lr, run.cooling)

    def enter(self, run, neutral):
        """See Carrier."""
        with jax.enable_x64(self.driver.dtype == "float64"):
            run.state = cool_jax.load_neutral_state(run.state, neutral)
        run.last_lr = neutral.last_learning_rate


@dataclass
class KerasCarrier:
    """Carries runs of a path of the Keras adapter, whose variables have names of their own."""

    driver: Driver

    def leave(self, run):
        """See Carrier."""
        from coolmomentum import keras as cool_keras

        paths = dict(zip([v.path for v in run.variables], _names(run.variables), strict=True))
        return renamed(cool_keras.neutral_state(run.optimizer), paths)

    def enter(self, run, neutral):
        """See Carrier."""
        from coolmomentum import keras as cool_keras

        paths = dict(zip(_names(run.variables), [v.path for v in run.variables], strict=True))
        cool_keras.load_neutral_state(run.optimizer, renamed(neutral, paths))


def arrived(carrier: Carrier, params: Arrays, neutral: NeutralState, decay: float) -> Run:
    """A fresh run that goes on from there."""
    run = carrier.driver.make(params, neutral.learning_rate, neutral.cooling, decay)
    carrier.enter(run, neutral)
    return run


def carrier(name: str, driver: Driver) -> Carrier:
    """The carrier for a driver of DRIVERS, by the adapter that its name begins with."""
    kinds = {"torch": TorchCarrier, "jax": JaxCarrier, "keras": KerasCarrier}
    return kinds[name.replace(",", " ").split()[0]](driver)


def renamed(neutral: NeutralState, names: dict[str, str]) -> NeutralState:
    """The same state with some other names."""
    displacements = {names.get(name, name): dx for name, dx in neutral.displacements.items()}
    return dataclasses.replace(neutral, displacements=displacements)


def _names(params: Any) -> list[str]:
    return [str(i) for i, _ in enumerate(params)]


def _named(run: TorchRun) -> Any:
    return zip(_names(run.tensors), run.tensors, strict=True)
