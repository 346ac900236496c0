"""One training run in Keras on TensorFlow, measured before the first and after every epoch."""

import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's remarks on the machine
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # which would round differently each time

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from benchmarks.demo._data import Epoch, Images, Settings, Start
from benchmarks.training._noise import predicted_rescaled_temperature
from coolmomentum import rescaled_temperature
from coolmomentum.tensorflow import CoolMomentum

__all__ = ["train"]

Weights = list[Any]  # variables: kernel (inputs, outputs) and bias of each layer


def train(settings: Settings, start: Start, training: Images, held_out: Images) -> Iterator[Epoch]:
    """Train on one set, be measured on both, and yield a record of every epoch."""
    epochs, steps, _ = start.batches.shape
    weights = [keras.Variable(weight) for weight in start.weights]
    optimizer = _optimizer(settings, epochs * steps)
    optimizer.build(weights)
    run_epoch = _epoch_function(weights, optimizer, settings, training)

    def now() -> float:
        return float(optimizer.rho) if settings.optimizer == "CoolMomentum" else np.nan

    yield Epoch(0, 0, *_losses_and_accuracy(weights, training, held_out), rho=now())
    for epoch in range(epochs):
        pairs = start.noise_batches.shape[1]
        stretches = start.batches[epoch].reshape(pairs, steps // pairs, -1)
        temperature, predicted = run_epoch(
            tf.constant(stretches), tf.constant(start.noise_batches[epoch])
        )
        yield Epoch(
            epoch + 1,
            (epoch + 1) * steps,
            *_losses_and_accuracy(weights, training, held_out),
            temperature=float(temperature),
            predicted_temperature=float(predicted),
            rho=now(),
        )


def _epoch_function(weights: Weights, optimizer: Any, settings: Settings, training: Images) -> Any:
    """The steps of an epoch; its mean rescaled temperature and that which Eq. 19 predicts."""
    pixels, labels = tf.constant(training.pixels), tf.constant(training.labels)
    cools = settings.optimizer == "CoolMomentum"

    def gradients(batch: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = _loss(weights, tf.gather(pixels, batch), tf.gather(labels, batch))
        return tape.gradient(loss, [weight.value for weight in weights])

    def step(batch: Any) -> Any:
        before = [tf.identity(weight.value) for weight in weights]
        optimizer.apply(gradients(batch), weights)
        # From the parameters, as for any optimizer; CoolMomentum alone could be asked.
        moved = [weight.value - old for weight, old in zip(weights, before, strict=True)]
        return rescaled_temperature(moved, xp=ops)

    def predict(batch: Any, noise_batch: Any) -> Any:
        one, other = (_vector(gradients(b)) for b in (batch, noise_batch))
        rho = optimizer.rho_tensor()
        return predicted_rescaled_temperature(one, other, settings.lr, rho, xp=ops)

    @tf.function  # type: ignore[untyped-decorator]  # TensorFlow is not typed
    def run_epoch(stretches: Any, noise_batches: Any) -> Any:
        temperatures = tf.constant(0.0)
        predictions = tf.constant(0.0 if cools else np.nan)
        for i in tf.range(tf.shape(stretches)[0]):
            if cools:
                predictions += predict(stretches[i][0], noise_batches[i])
            for j in tf.range(tf.shape(stretches)[1]):
                temperatures += step(stretches[i][j])
        steps = tf.shape(stretches)[0] * tf.shape(stretches)[1]
        pairs = tf.shape(noise_batches)[0]
        return temperatures / tf.cast(steps, tf.float32), predictions / tf.cast(pairs, tf.float32)

    return run_epoch


def _optimizer(settings: Settings, total_steps: int) -> Any:
    """The optimizer with what anneals its learning rate (CoolMomentum anneals by itself)."""
    if settings.optimizer == "CoolMomentum":
        return CoolMomentum(settings.lr, total_steps, settings.rho0)
    cosine = keras.optimizers.schedules.CosineDecay(settings.lr, total_steps)
    if settings.optimizer == "SGD":
        return keras.optimizers.SGD(cosine, momentum=0.9)
    return keras.optimizers.Adam(cosine, epsilon=1e-8)  # that of PyTorch and optax


def _logits(weights: Weights, pixels: Any) -> Any:
    kernel, bias, last_kernel, last_bias = (weight.value for weight in weights)
    return tf.tanh(pixels @ kernel + bias) @ last_kernel + last_bias


def _loss(weights: Weights, pixels: Any, labels: Any) -> Any:
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, _logits(weights, pixels))
    return tf.reduce_mean(losses)


def _vector(gradients: Any) -> Any:
    return tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], 0)


def _losses_and_accuracy(
    weights: Weights, training: Images, held_out: Images
) -> tuple[float, float, float]:
    right = np.argmax(_logits(weights, held_out.pixels).numpy(), axis=1) == held_out.labels
    return (
        float(_loss(weights, training.pixels, training.labels)),
        float(_loss(weights, held_out.pixels, held_out.labels)),
        float(right.mean()),
    )
