"""coolmomentum.numpy in the contract suite: the reference itself, in the dtypes that NumPy has."""

import pickle
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from drivers import Driver, Oracle
from exact import U64
from roles import Transfer, names_of

from coolmomentum import numpy as cool_numpy

UNIT = U64  # of the thermometer


class NumpyRun(Oracle):
    """A run of CoolMomentum for NumPy, in the dtype of its arrays."""

    last_lr = 1.0

    def step(self, gradients):
        super().step([g.astype(x.dtype) for g, x in zip(gradients, self.xs, strict=True)])
        self.last_lr = self.lr

    def skip(self):
        super().step([None for _ in self.xs])

    def set_lr(self, lr):
        self.lr = lr

    def add(self, params):
        super().add([x.astype(self.xs[0].dtype) for x in params])

    def params(self):
        return [x.astype(np.float64) for x in self.xs]

    def displacements(self):
        return [dx.astype(np.float64) for dx in self.state.displacements]

    def clock(self):
        return self.state.step

    def rho(self):
        return self.optimizer().rho(self.state)

    def temperature(self):
        with np.errstate(over="ignore"):
            return float(self.optimizer().rescaled_temperature(self.state)) / self.last_lr

    def reloaded(self):
        return pickle.loads(pickle.dumps(self))


@dataclass
class Numpy(Driver):
    """The reference itself, in the dtypes that NumPy has; it has no bfloat16."""

    dtype: str
    layouts: ClassVar = ("C", "F", "gaps")

    def make(self, params, lr, cooling, decay, decoupled=False, maximize=False):
        xs = [x.astype(self.dtype) for x in params]
        return NumpyRun(xs, lr, cooling, decay, decoupled, maximize)

    def momentum_sgd(self, params, gradients, lr, momentum, decay):
        xs = [x.astype(self.dtype) for x in params]
        buffers = [np.zeros_like(x) for x in xs]
        for step in gradients:
            grads = [g.astype(self.dtype) + decay * x for g, x in zip(step, xs, strict=True)]
            buffers = [momentum * b + g for b, g in zip(buffers, grads, strict=True)]
            xs = [x - lr * b for x, b in zip(xs, buffers, strict=True)]
        return [x.astype(np.float64) for x in xs]


DRIVERS = {f"numpy, {dtype}": Numpy(dtype) for dtype in ("float64", "float32", "float16")}


class Moves(Transfer):
    """Moves runs of the reference optimizer."""

    def export(self, run):
        """See Transfer."""
        return cool_numpy.export_state(run.optimizer(), run.state, names_of(run.xs))

    def load(self, run, saved):
        """See Transfer."""
        names = names_of(run.xs)
        run.state = cool_numpy.import_state(run.optimizer(), run.state, names, saved)
        run.last_lr = saved.last_learning_rate


def rho(**settings):
    """Rho of a new optimizer of coolmomentum.numpy."""
    optimizer = cool_numpy.CoolMomentum(**settings)
    return optimizer.rho(optimizer.init([]))


RHO = {"numpy": rho}


def read_walk(walk):
    """In float64."""
    optimizer = cool_numpy.CoolMomentum(learning_rate=walk.dt2, schedule=walk.cooling)
    thermometer = cool_numpy.Thermometer(walk.every, walk.every)
    params = walk.start
    state, seen = optimizer.init(params), thermometer.init(params)
    for gradients in walk.gradients:
        params, state = optimizer.step(params, gradients, state)
        seen = thermometer.update(seen, params, rho=walk.rho, learning_rate=walk.dt2)
    return thermometer.read(seen), list(thermometer.read(seen, "parameter").values())
