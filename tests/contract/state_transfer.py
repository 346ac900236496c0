"""How the runs of the drivers move from one adapter to another, as portable states.

The parameters of a run are called 0, 1, ... in its portable state.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from drivers import Arrays, Driver, Run
from frameworks import framework

from coolmomentum import numpy as cool_numpy
from coolmomentum.portable import PortableState

jax, cool_jax = framework("jax"), framework("coolmomentum.jax")
cool_torch = framework("coolmomentum.torch")


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


class NumpyTransfer(Transfer):
    """Moves runs of the reference optimizer."""

    def export(self, run):
        """See Transfer."""
        return cool_numpy.export_state(run.optimizer(), run.state, _names(run.xs))

    def load(self, run, saved):
        """See Transfer."""
        names = _names(run.xs)
        run.state = cool_numpy.import_state(run.optimizer(), run.state, names, saved)
        run.last_lr = saved.last_learning_rate


class TorchTransfer(Transfer):
    """Moves runs of a path of the torch adapter."""

    def export(self, run):
        """See Transfer."""
        return cool_torch.export_state(run.optimizer, self._named(run))

    def load(self, run, saved):
        """See Transfer."""
        cool_torch.import_state(run.optimizer, self._named(run), saved)

    def _named(self, run):
        return zip(_names(run.tensors), run.tensors, strict=True)


class JaxTransfer(Transfer):
    """Moves runs of the optax transformation."""

    def export(self, run):
        """See Transfer."""
        return cool_jax.export_state(run.state, run.lr, run.cooling)

    def load(self, run, saved):
        """See Transfer."""
        with jax.enable_x64(self.driver.dtype == "float64"):
            run.state = cool_jax.import_state(run.state, saved)
        run.last_lr = saved.last_learning_rate


class KerasTransfer(Transfer):
    """Moves runs of a path of the Keras adapter, whose variables have names of their own."""

    def export(self, run):
        """See Transfer."""
        from coolmomentum import keras as cool_keras

        with self.driver.x64():
            saved = cool_keras.export_state(run.optimizer)
        return renamed(saved, dict(zip(self._paths(run), _names(run.params()), strict=True)))

    def load(self, run, saved):
        """See Transfer."""
        from coolmomentum import keras as cool_keras

        saved = renamed(saved, dict(zip(_names(run.params()), self._paths(run), strict=True)))
        with self.driver.x64():
            cool_keras.import_state(run.optimizer, saved)

    def _paths(self, run):
        return [variable.path for variable in run.program.variables]


_KINDS = {
    "numpy": NumpyTransfer,
    "torch": TorchTransfer,
    "jax": JaxTransfer,
    "keras": KerasTransfer,
}


def transfer(name: str, driver: Driver) -> Transfer:
    """The transfer of a driver of DRIVERS, by the adapter that its name begins with."""
    return _KINDS[name.replace(",", " ").split()[0]](driver)


def renamed(saved: PortableState, names: dict[str, str]) -> PortableState:
    """The same state with some other names."""
    displacements = {names.get(name, name): dx for name, dx in saved.displacements.items()}
    return dataclasses.replace(saved, displacements=displacements)


def _names(params: Any) -> list[str]:
    return [str(i) for i, _ in enumerate(params)]
