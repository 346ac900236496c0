"""The two rules as Keras optimizers: RMSProp as TensorFlow 1 had it, and CoolMomentum.

TensorFlow 1 differs from ``keras.optimizers.RMSprop`` in one number: its mean square begins at one.
That the learning rate is inside the momentum, and epsilon inside the root, they share; PyTorch's
RMSprop shares neither.
"""

import math
from typing import Any

import keras
from keras import ops

from benchmarks.imagenet.recipe import DECAY, RHO0, RmspropRate, Timing, cooling
from coolmomentum.keras import CoolMomentum

__all__ = [
    "RATES",
    "RMSpropFromOnes",
    "StaircaseRate",
    "cool_momentum",
    "rescaled_temperature",
    "rmsprop",
]

RATES = {"rho": 0.9, "momentum": 0.9, "epsilon": 1e-3}  # Google's build_optimizer


@keras.saving.register_keras_serializable(package="coolmomentum_imagenet")
class RMSpropFromOnes(keras.optimizers.RMSprop):  # type: ignore[misc]  # Keras is not typed
    """``tf.compat.v1.train.RMSPropOptimizer``: Keras' own with a mean square that begins at one.

    From zeros, as in Keras, the first steps are larger: the root is that of a tenth of the first
    squared gradient.
    """

    def add_optimizer_variables(
        self, trainable_variables: list[Any], name: str, initializer: Any = "zeros"
    ) -> Any:
        """Called by Keras for each kind of state."""
        begin = "ones" if name == "velocity" else initializer  # Keras' name of the mean square
        return super().add_optimizer_variables(trainable_variables, name, begin)


@keras.saving.register_keras_serializable(package="coolmomentum_imagenet")
class StaircaseRate(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """:class:`benchmarks.imagenet.recipe.RmspropRate` in a compiled step, to the last bit.

    Keras asks it for the rate of a minibatch, and counts those that are accumulated as well:
    ``accumulated`` minibatches are one step.
    """

    def __init__(
        self, peak: float, total_steps: int, epoch_steps: float, accumulated: int = 1
    ) -> None:
        self.peak, self.total_steps, self.epoch_steps = peak, total_steps, epoch_steps
        self.accumulated = accumulated
        timing = Timing(total_steps, epoch_steps)
        self._rate = RmspropRate(peak, timing)
        # The first step of each stair: in float32, floor(step / decay_steps) is late at some.
        number = int(total_steps / timing.decay_steps) + 1
        self._stairs = [math.ceil(i * timing.decay_steps) for i in range(number + 1)]

    def __call__(self, minibatch: Any) -> Any:
        """The learning rate of a minibatch, of its shape, in float32."""
        timing, step = self._rate.timing, ops.floor_divide(minibatch, self.accumulated)
        begun = ops.expand_dims(step, -1) >= ops.convert_to_tensor(self._stairs, dtype=step.dtype)
        stair = ops.sum(ops.cast(begun, "int32"), -1) - 1
        stairs = [self.peak * DECAY**i for i in range(len(self._stairs))]
        decayed = ops.take(ops.convert_to_tensor(stairs, dtype="float32"), stair)
        rising = self.peak / max(timing.warmup_steps, 1) * ops.cast(step, "float32")
        return ops.where(step < timing.warmup_steps, rising, decayed)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        names = ("peak", "total_steps", "epoch_steps", "accumulated")
        return {name: getattr(self, name) for name in names}


def rmsprop(rate: RmspropRate, accumulated: int = 1) -> Any:
    """The RMSProp of the recipe; with 2 or more, gradients of so many minibatches make a step."""
    timing = rate.timing
    schedule = StaircaseRate(rate.peak, timing.total_steps, timing.epoch_steps, accumulated)
    return RMSpropFromOnes(schedule, **RATES, **_accumulating(accumulated))


def cool_momentum(lr: float, timing: Timing, rho0: float = RHO0, accumulated: int = 1) -> Any:
    """CoolMomentum as in the authors' script."""
    return CoolMomentum(lr, schedule=cooling(timing, rho0), **_accumulating(accumulated))


def rescaled_temperature(optimizer: Any) -> float:
    """Mean squared change of a parameter in the last step, ``T dt**2``, of either rule."""
    if isinstance(optimizer, CoolMomentum):
        return float(optimizer.rescaled_temperature())
    moved = [ops.convert_to_numpy(v) for v in optimizer.variables if v.path.endswith("momentum")]
    squares = sum(float((x.astype("float64") ** 2).sum()) for x in moved)
    return float(squares / sum(x.size for x in moved))


def _accumulating(minibatches: int) -> dict[str, Any]:
    """Keras refuses an accumulation of one."""
    return {"gradient_accumulation_steps": minibatches} if minibatches > 1 else {}
