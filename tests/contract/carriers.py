"""How the runs of the drivers are carried from one adapter to another, as neutral states.

The parameters of a run are called 0, 1, ... in its neutral state.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from drivers import Arrays, Driver, Run
from frameworks import framework

from coolmomentum import numpy as cool_numpy
from coolmomentum.checkpoint import NeutralState

jax, cool_jax = framework("jax"), framework("coolmomentum.jax")
cool_torch = framework("coolmomentum.torch")


@dataclass
class Carrier:
    """A driver whose runs can leave and arrive."""

    driver: Driver

    def leave(self, run: Any) -> NeutralState:
        """The state of a run."""
        raise NotImplementedError

    def enter(self, run: Any, neutral: NeutralState) -> None:
        """Let a run go on from there."""
        raise NotImplementedError

    def arrive(self, params: Arrays, neutral: NeutralState, decay: float) -> Run:
        """A fresh run that goes on from there."""
        run = self.driver.make(params, neutral.learning_rate, neutral.cooling, decay)
        self.enter(run, neutral)
        return run


class NumpyCarrier(Carrier):
    """Carries runs of the reference optimizer."""

    def leave(self, run):
        """See Carrier."""
        return cool_numpy.neutral_state(run.optimizer(), run.state, _names(run.xs))

    def enter(self, run, neutral):
        """See Carrier."""
        names = _names(run.xs)
        run.state = cool_numpy.load_neutral_state(run.optimizer(), run.state, names, neutral)
        run.last_lr = neutral.last_learning_rate


class TorchCarrier(Carrier):
    """Carries runs of a path of the torch adapter."""

    def leave(self, run):
        """See Carrier."""
        return cool_torch.neutral_state(run.optimizer, self._named(run))

    def enter(self, run, neutral):
        """See Carrier."""
        cool_torch.load_neutral_state(run.optimizer, self._named(run), neutral)

    def _named(self, run):
        return zip(_names(run.tensors), run.tensors, strict=True)


class JaxCarrier(Carrier):
    """Carries runs of the optax transformation."""

    def leave(self, run):
        """See Carrier."""
        return cool_jax.neutral_state(run.state, run.lr, run.cooling)

    def enter(self, run, neutral):
        """See Carrier."""
        with jax.enable_x64(self.driver.dtype == "float64"):
            run.state = cool_jax.load_neutral_state(run.state, neutral)
        run.last_lr = neutral.last_learning_rate


class KerasCarrier(Carrier):
    """Carries runs of a path of the Keras adapter, whose variables have names of their own."""

    def leave(self, run):
        """See Carrier."""
        from coolmomentum import keras as cool_keras

        with self.driver.x64():
            neutral = cool_keras.neutral_state(run.optimizer)
        return renamed(neutral, dict(zip(self._paths(run), _names(run.params()), strict=True)))

    def enter(self, run, neutral):
        """See Carrier."""
        from coolmomentum import keras as cool_keras

        neutral = renamed(neutral, dict(zip(_names(run.params()), self._paths(run), strict=True)))
        with self.driver.x64():
            cool_keras.load_neutral_state(run.optimizer, neutral)

    def _paths(self, run):
        return [variable.path for variable in run.program.variables]


_KINDS = {"numpy": NumpyCarrier, "torch": TorchCarrier, "jax": JaxCarrier, "keras": KerasCarrier}


def carrier(name: str, driver: Driver) -> Carrier:
    """The carrier for a driver of DRIVERS, by the adapter that its name begins with."""
    return _KINDS[name.replace(",", " ").split()[0]](driver)


def renamed(neutral: NeutralState, names: dict[str, str]) -> NeutralState:
    """The same state with some other names."""
    displacements = {names.get(name, name): dx for name, dx in neutral.displacements.items()}
    return dataclasses.replace(neutral, displacements=displacements)


def _names(params: Any) -> list[str]:
    return [str(i) for i, _ in enumerate(params)]
