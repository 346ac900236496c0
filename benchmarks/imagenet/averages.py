"""A model that carries the ramped averages of its weights, by which the recipe evaluates.

Keras' own ``use_ema`` is another average: it has no ramp, leaves the statistics of batch
normalisation out, and every ``fit`` ends by putting it in the place of the weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from benchmarks.imagenet.recipe import AVERAGE_DECAY

__all__ = ["AveragedModel"]

STATISTICS = ("moving_mean", "moving_variance")  # of batch normalisation; Google's names too


@keras.saving.register_keras_serializable(package="coolmomentum_imagenet")
class AveragedModel(keras.Model):  # type: ignore[misc]  # Keras is not typed
    """``keras.Model(inputs, outputs)`` whose weights are averaged at each step of ``fit``.

    After a step, n having been taken with it, each average moves to its weight by ``1 - decay``,
    where ``decay = min(.9999, (1 + n) / (10 + n))``. Averaged are all that is trained and the
    moving statistics of batch normalisation. A minibatch whose gradient is only accumulated is no
    step.

    The averages are weights that are not trained: they go into weight files, and on JAX they are
    sharded like the others.
    """

    def __init__(self, inputs: Any, outputs: Any, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(inputs, outputs, name=name, **kwargs)
        self._averaged = [
            *self.trainable_variables,
            *(v for v in self.non_trainable_variables if v.name in STATISTICS),
        ]
        self._averages = [
            self.add_weight(
                shape=v.shape,
                dtype=v.dtype,
                initializer=_Copy(v),
                trainable=False,
                autocast=False,
                name=f"average_{i}",
            )
            for i, v in enumerate(self._averaged)
        ]

    def train_step(self, *arguments: Any) -> Any:
        """Called by ``fit``: with a minibatch, or on JAX with the state before it."""
        if keras.backend.backend() != "jax":
            before = ops.copy(self.optimizer.iterations)
            logs = super().train_step(*arguments)
            _same_in_replicas(self._averaged[len(self.trainable_variables) :])
            self._average(before)
            return logs
        state, data = arguments
        with self._in_scope(state):
            before = self.optimizer.iterations + 0
        logs, state = super().train_step(state, data)
        with self._in_scope(state) as scope:
            self._average(before)
        trained, _, *others = state
        rest = [scope.get_current_value(v) for v in self.non_trainable_variables]
        return logs, (trained, rest, *others)

    @contextmanager
    def averages_in_place(self) -> Iterator[None]:
        """Within it the weights are the averages, for ``evaluate``; after it they are as before."""
        weights = [np.array(v) for v in self._averaged]
        try:
            self._assign([np.array(v) for v in self._averages])
            yield
        finally:
            self._assign(weights)

    def _average(self, before: Any) -> None:
        """Move the averages, if steps were made since there were ``before`` of them."""
        taken = self.optimizer.iterations
        n = ops.cast(taken, "float32")
        decay = ops.minimum(AVERAGE_DECAY, (1 + n) / (10 + n))
        share = ops.where(ops.equal(taken, before), 0.0, 1.0 - decay)
        for average, variable in zip(self._averages, self._averaged, strict=True):
            average.assign(average + ops.cast(share, average.dtype) * (variable - average))

    def _in_scope(self, state: Any) -> keras.StatelessScope:
        """Where the variables have the values of a state."""
        trained, rest, optimizer, _ = state
        return keras.StatelessScope(
            [
                *zip(self.trainable_variables, trained, strict=True),
                *zip(self.non_trainable_variables, rest, strict=True),
                *zip(self.optimizer.variables, optimizer, strict=True),
            ]
        )

    def _assign(self, values: list[Any]) -> None:
        for variable, value in zip(self._averaged, values, strict=True):
            variable.assign(value)


def _same_in_replicas(statistics: list[Any]) -> None:
    """Their mean over the replicas of ``tf.distribute``, each of which has moved its own.

    Else those of the first alone would be read, saved and gone on with.
    """
    if keras.backend.backend() != "tensorflow" or not statistics:
        return
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    if replica.num_replicas_in_sync > 1:
        flat = tf.concat([tf.reshape(v, [-1]) for v in statistics], 0)
        sizes = [v.shape.num_elements() for v in statistics]
        means = tf.split(replica.all_reduce("MEAN", flat), sizes)  # in one message
        for variable, mean in zip(statistics, means, strict=True):
            variable.assign(tf.reshape(mean, variable.shape))


class _Copy:
    """An initializer: a copy, as JAX must not give two variables one buffer."""

    def __init__(self, variable: Any) -> None:
        self._value = np.array(variable)

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        return ops.convert_to_tensor(self._value, dtype=dtype)
