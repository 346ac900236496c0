"""The paths of the Keras adapter for the contract suite, on the backend of this process."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from coolmomentum import CoolingSchedule
from coolmomentum.keras import CoolMomentum

BACKEND = keras.backend.backend()
if BACKEND == "tensorflow":
    import tensorflow as tf
if BACKEND == "jax":
    import jax


@dataclass
class Keras:
    """A path of the Keras adapter: eager, or compiled by the backend."""

    dtype: str
    lr_roundoff = 2.0**-24  # Keras keeps the learning rate in float32 whatever the variables
    compiled: str = ""  # how: "graph" or "xla" with TensorFlow, "jit" with JAX

    def make(self, params, lr: float, cooling: CoolingSchedule, decay: float) -> "KerasRun":
        """A run from ``params``; the driver adds coupled weight decay to the gradient."""
        return KerasRun(self, [_variable(x, self.dtype) for x in params], lr, cooling, decay)


def _variable(x, dtype):
    return keras.Variable(np.asarray(x, dtype), dtype=dtype)


class KerasRun:
    """A run of CoolMomentum for Keras, in the loss scaler that mixed precision puts around it."""

    def __init__(self, driver, variables, lr, cooling, decay):
        self.driver, self.variables, self.lr = driver, variables, lr
        self.cooling, self.decay = cooling, decay
        self.optimizer = CoolMomentum(lr, schedule=cooling)
        self.scaler = keras.optimizers.LossScaleOptimizer(self.optimizer, initial_scale=1.0)
        self.scaler.build(variables)
        self.apply: Any = self._compiled()

    def _compiled(self):
        if self.driver.compiled in ("graph", "xla"):
            return tf.function(
                lambda gradients: self.scaler.apply(gradients, self.variables),
                jit_compile=self.driver.compiled == "xla",
            )
        if self.driver.compiled == "jit":
            stateless = jax.jit(self.scaler.stateless_apply)

            def apply(gradients):
                own = self.scaler.variables
                values = [v.value for v in own], gradients, [v.value for v in self.variables]
                new, state = stateless(*values)
                for variable, value in zip([*self.variables, *own], [*new, *state], strict=True):
                    variable.assign(value)

            return apply
        return lambda gradients: self.scaler.apply(gradients, self.variables)

    def step(self, gradients):
        self.optimizer.learning_rate = self.lr
        self._feed(gradients)

    def skip(self):
        self._feed([np.full(tuple(v.shape), np.inf) for v in self.variables])

    def _feed(self, gradients):
        scale = float(self.scaler.dynamic_scale)  # a power of two: it falls when a step is skipped
        self.apply(
            [
                ops.convert_to_tensor(scale * (g + self.decay * x), dtype=self.driver.dtype)
                for g, x in zip(gradients, self.params(), strict=True)
            ]
        )

    def set_lr(self, lr):
        # Keras' optimizers know only the learning rate of now, and read the temperature with it;
        # so it is set when the next step needs it, as a callback does.
        self.lr = lr

    def params(self):
        return [ops.convert_to_numpy(v).astype(np.float64) for v in self.variables]

    def displacements(self):
        own = self.optimizer._displacements
        return [ops.convert_to_numpy(v).astype(np.float64) for v in own]

    def clock(self):
        return int(self.optimizer.iterations)

    def rho(self):
        return self.optimizer.rho

    def temperature(self):
        return self.optimizer.temperature()

    def reloaded(self):
        variables = [_variable(x, self.driver.dtype) for x in self.params()]
        again = KerasRun(self.driver, variables, self.lr, self.cooling, self.decay)
        saved: dict[str, Any] = {}
        self.optimizer.save_own_variables(saved)
        again.optimizer.load_own_variables(saved)
        return again


# JAX has float64 only with jax_enable_x64, which the other tests of this process do not set, and
# Keras' loss scaler does not run there outside a stateless step.
_PATHS = {
    "tensorflow": [Keras("float64"), Keras("float32", "graph"), Keras("float32", "xla")],
    "jax": [Keras("float32", "jit")],
    "torch": [Keras("float64"), Keras("float32")],
}
DRIVERS = {
    f"keras on {BACKEND}, {driver.compiled or 'eager'}, {driver.dtype}": driver
    for driver in _PATHS[BACKEND]
}
