"""Training in Keras, on the backend that the process has: an epoch is one compiled loop.

What differs between the backends is how gradients are taken and how a loop is compiled; each has a
function below that makes the steps of an epoch.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's remarks on the machine
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # which would round differently each time

import io
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray
from scipy.special import logsumexp

from benchmarks.training._keras_networks import build, load
from benchmarks.training._networks import Weights, penalty_of
from benchmarks.training._noise import predicted_rescaled_temperature
from benchmarks.training._problem import Batch, Epoch, Problem, augmented
from benchmarks.training._rules import EPSILON, RULES, Settings
from benchmarks.training._trainer import Measured, Trained
from coolmomentum import rescaled_temperature
from coolmomentum.keras import CoolMomentum

__all__ = ["KerasTrainer"]

CHUNK = 1000  # images that are measured at a time


class KerasTrainer:
    """A network, an optimizer and the images, where the backend puts them."""

    def __init__(self, problem: Problem, settings: Settings) -> None:
        self.problem, self.settings = problem, settings
        keras.backend.clear_session()
        self._training, self._held_out = (
            tuple(ops.convert_to_tensor(x) for x in images)
            for images in (problem.training, problem.held_out)
        )
        self.model = build(problem.network, problem.shape, problem.classes)
        self.optimizer = _optimizer(problem, settings)
        self.optimizer.build(self.model.trainable_variables)
        self._new = [ops.convert_to_numpy(v).copy() for v in self.optimizer.variables]
        self._decay = penalty_of(problem.network)
        self._epoch, self._logits = _BACKENDS[keras.backend.backend()](self)

    def start(self, weights: Weights) -> None:
        """Begin a run from those weights."""
        load(self.model, weights)
        for variable, value in zip(self.optimizer.variables, self._new, strict=True):
            variable.assign(value)

    def train(
        self, epoch: Epoch, learning_rates: NDArray[np.float64], momenta: NDArray[np.float64]
    ) -> Trained:
        """Make the steps of an epoch; learning rates and momenta are one for each."""
        cools = RULES[self.settings.rule].optimizer == "coolmomentum"
        estimates = len(epoch.noise_batches.indices) if cools else 0
        stretches = max(estimates, 1)
        numbers = np.stack([learning_rates, momenta], axis=1).astype(np.float32)
        steps = [x.reshape(stretches, -1, *x.shape[1:]) for x in (*epoch.batches, numbers)]
        noise = [x[:estimates] for x in epoch.noise_batches]
        seen, predicted = self._epoch(
            Batch(*map(ops.convert_to_tensor, steps[:3])),
            ops.convert_to_tensor(steps[3]),
            Batch(*map(ops.convert_to_tensor, noise)) if estimates else None,
        )
        loss, own, with_statistics = map(float, ops.convert_to_numpy(seen))
        return Trained(loss, own, with_statistics, float(predicted) if estimates else np.nan)

    def measure(self) -> Measured:
        """Measure the network as it is."""
        measured = self.problem.measured or len(self._training[1])
        training_loss, _ = self._loss_and_accuracy(*(x[:measured] for x in self._training))
        penalty = float(self._penalty(self.model.trainable_variables))
        return Measured(training_loss, penalty, *self._loss_and_accuracy(*self._held_out))

    def state(self) -> bytes:
        """What a run that is interrupted now needs to go on."""
        file = io.BytesIO()
        np.savez(file, *map(ops.convert_to_numpy, self._variables()))
        return file.getvalue()

    def restore(self, state: bytes) -> None:
        """Go on from there, after ``start``."""
        with np.load(io.BytesIO(state)) as values:
            for variable, value in zip(self._variables(), values.values(), strict=True):
                variable.assign(value)

    def loss(self, logits: Any, labels: Any, variables: list[Any]) -> Any:
        """What the gradient is taken of."""
        losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        return ops.mean(losses) + self._penalty(variables)

    def images(self, batch: Batch) -> tuple[Any, Any]:
        """Images to train on, and their labels."""
        pixels, labels = (ops.take(x, batch.indices, axis=0) for x in self._training)
        return (augmented(pixels, batch, ops) if self.problem.augment else pixels), labels

    def _penalty(self, variables: list[Any]) -> Any:
        if not self._decay:
            return 0.0
        kernels = [v for v in variables if len(v.shape) == 4]
        return self._decay * sum(ops.sum(ops.square(kernel)) for kernel in kernels)

    def _variables(self) -> list[Any]:
        return [*self.model.variables, *self.optimizer.variables]

    def _loss_and_accuracy(self, pixels: Any, labels: Any) -> tuple[float, float]:
        chunks = [self._logits(pixels[i : i + CHUNK]) for i in range(0, len(labels), CHUNK)]
        logits = np.concatenate([ops.convert_to_numpy(c) for c in chunks]).astype(np.float64)
        labels = ops.convert_to_numpy(labels)
        losses = logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]
        return float(losses.mean()), float((logits.argmax(axis=1) == labels).mean())


def _optimizer(problem: Problem, settings: Settings) -> Any:
    lr, momentum, decay = settings.lr, settings.momentum, settings.weight_decay
    law = RULES[settings.rule].law
    match RULES[settings.rule].optimizer:
        case "coolmomentum":
            return CoolMomentum(lr, problem.epochs * problem.steps, momentum, law=law)
        case "sgd":
            return keras.optimizers.SGD(lr, momentum)
        case "adam":
            return keras.optimizers.Adam(lr, momentum, 0.999, EPSILON)
        case "adamw":
            return keras.optimizers.AdamW(lr, decay, momentum, 0.999, EPSILON)
        case _:
            return keras.optimizers.RMSprop(lr, 0.9, momentum, EPSILON)


def _predicted(one: Any, other: Any, numbers: Any) -> Any:
    """By Eq. 19, from two gradients, learning rate and rho."""
    first, second = (ops.concatenate([ops.reshape(x, (-1,)) for x in g]) for g in (one, other))
    return predicted_rescaled_temperature(first, second, numbers[0], numbers[1], xp=ops)


def _in_place(trainer: KerasTrainer, gradients: Callable[[Batch], tuple[Any, Any]]) -> Any:
    """One step, for the backends whose variables are written in place."""
    parameters = trainer.model.trainable_variables
    both = [*parameters, *trainer.model.non_trainable_variables]

    def step(batch: Batch, numbers: Any) -> Any:
        before = [ops.convert_to_tensor(v) * 1 for v in both]
        loss, its = gradients(batch)
        trainer.optimizer.learning_rate = numbers[0]
        trainer.optimizer.apply(its, parameters)
        # From the parameters, as for any optimizer.
        moved = [ops.convert_to_tensor(v) - old for v, old in zip(both, before, strict=True)]
        own = rescaled_temperature(moved[: len(parameters)], xp=ops)
        return ops.stack([loss, own, rescaled_temperature(moved, xp=ops)])

    return step


def _tensorflow(trainer: KerasTrainer) -> Any:
    import tensorflow as tf

    def gradients(batch: Batch) -> tuple[Any, Any]:
        parameters = trainer.model.trainable_variables
        pixels, labels = trainer.images(batch)
        with tf.GradientTape() as tape:
            loss = trainer.loss(trainer.model(pixels, training=True), labels, parameters)
        return loss, tape.gradient(loss, [v.value for v in parameters])

    step = _in_place(trainer, gradients)

    on_gpu = bool(tf.config.list_physical_devices("GPU"))

    @tf.function(jit_compile=on_gpu)  # type: ignore[untyped-decorator]  # TensorFlow is not typed
    def epoch(batches: Batch, numbers: Any, noise_batches: Batch | None) -> Any:
        seen, predicted = tf.zeros(3), tf.zeros(())
        stretches, steps = numbers.shape[:2]
        for i in tf.range(stretches):
            if noise_batches is not None:
                first = Batch(*(x[i, 0] for x in batches))
                other = Batch(*(x[i] for x in noise_batches))
                predicted += _predicted(gradients(first)[1], gradients(other)[1], numbers[i, 0])
            for j in tf.range(steps):
                seen += step(Batch(*(x[i, j] for x in batches)), numbers[i, j])
        return seen / (stretches * steps), predicted / stretches

    return epoch, tf.function(
        lambda pixels: trainer.model(pixels, training=False),
        input_signature=[tf.TensorSpec([None, *trainer.problem.shape])],
    )


def _torch(trainer: KerasTrainer) -> Any:
    import torch

    if trainer.problem.network == "mlp":
        torch.set_num_threads(1)  # matrices so small that more threads only wait

    def gradients(batch: Batch) -> tuple[Any, Any]:
        parameters = trainer.model.trainable_variables
        pixels, labels = trainer.images(batch)
        with torch.enable_grad():
            loss = trainer.loss(trainer.model(pixels, training=True), labels, parameters)
            return loss.detach(), torch.autograd.grad(loss, [v.value for v in parameters])

    step = _in_place(trainer, gradients)

    @torch.no_grad()
    def epoch(batches: Batch, numbers: Any, noise_batches: Batch | None) -> Any:
        seen, predicted = ops.zeros(3), ops.zeros(())  # where the variables are
        stretches, steps = numbers.shape[:2]
        for i in range(stretches):
            if noise_batches is not None:
                first = Batch(*(x[i, 0] for x in batches))
                other = Batch(*(x[i] for x in noise_batches))
                predicted += _predicted(gradients(first)[1], gradients(other)[1], numbers[i, 0])
            for j in range(steps):
                seen += step(Batch(*(x[i, j] for x in batches)), numbers[i, j])
        return seen / (stretches * steps), predicted / stretches

    return epoch, torch.no_grad()(lambda pixels: trainer.model(pixels, training=False))


def _jax(trainer: KerasTrainer) -> Any:
    import jax

    model, optimizer = trainer.model, trainer.optimizer
    variables = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    (lr_at,) = [i for i, v in enumerate(optimizer.variables) if v is optimizer._learning_rate]

    def gradients(parameters: Any, statistics: Any, batch: Batch) -> Any:
        def loss(parameters: Any) -> Any:
            pixels, labels = trainer.images(batch)
            logits, after = model.stateless_call(parameters, statistics, pixels, training=True)
            value = trainer.loss(logits, labels, parameters)
            return value, (value, after)

        return jax.grad(loss, has_aux=True)(parameters)

    def step(run: Any, its: Any) -> Any:
        batch, numbers = its
        parameters, statistics, state = run
        found, (loss, after) = gradients(parameters, statistics, batch)
        state = [numbers[0] if i == lr_at else value for i, value in enumerate(state)]
        moved, state = optimizer.stateless_apply(state, found, parameters)
        # From the parameters, as for any optimizer.
        changes = [new - old for new, old in zip(moved, parameters, strict=True)]
        others = [new - old for new, old in zip(after, statistics, strict=True)]
        seen = loss, rescaled_temperature(changes), rescaled_temperature(changes + others)
        return (moved, after, state), ops.stack(seen)

    def stretch(run: Any, its: Any) -> Any:
        batches, numbers, noise_batch = its
        predicted = np.nan
        if noise_batch is not None:
            first = Batch(*(x[0] for x in batches))
            one, other = (gradients(run[0], run[1], batch)[0] for batch in (first, noise_batch))
            predicted = _predicted(one, other, numbers[0])
        run, seen = jax.lax.scan(step, run, (batches, numbers))
        return run, (seen.mean(axis=0), predicted)

    @jax.jit
    def whole(run: Any, batches: Batch, numbers: Any, noise_batches: Batch | None) -> Any:
        run, (seen, predicted) = jax.lax.scan(stretch, run, (batches, numbers, noise_batches))
        return run, (seen.mean(axis=0), predicted.mean())

    def epoch(batches: Batch, numbers: Any, noise_batches: Batch | None) -> Any:
        run = tuple([v.value for v in some] for some in variables)
        run, seen = whole(run, batches, numbers, noise_batches)
        for some, values in zip(variables, run, strict=True):
            for variable, value in zip(some, values, strict=True):
                variable.assign(value)
        return seen

    @jax.jit
    def logits(parameters: Any, statistics: Any, pixels: Any) -> Any:
        return model.stateless_call(parameters, statistics, pixels, training=False)[0]

    return epoch, lambda x: logits(*([v.value for v in some] for some in variables[:2]), x)


_BACKENDS = {"tensorflow": _tensorflow, "torch": _torch, "jax": _jax}
