"""One training run in JAX, measured before the first and after every epoch."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.demo._data import Epoch, Images, Settings, Start
from benchmarks.training._noise import predicted_rescaled_temperature
from coolmomentum import CoolingSchedule, rescaled_temperature
from coolmomentum.jax import cool_momentum, rho

__all__ = ["train"]

Weights = tuple[jax.Array, ...]  # kernel (inputs, outputs) and bias of each layer


def train(settings: Settings, start: Start, training: Images, held_out: Images) -> Iterator[Epoch]:
    """Train on one set, be measured on both, and yield a record of every epoch."""
    epochs, steps, _ = start.batches.shape
    cooling = CoolingSchedule(epochs * steps, settings.rho0)
    weights = tuple(jnp.asarray(weight) for weight in start.weights)
    state = _transformation(settings.optimizer, settings.lr, cooling).init(weights)

    def now() -> float:
        cools = settings.optimizer == "CoolMomentum"
        return float(rho(state, cooling)) if cools else np.nan

    yield Epoch(0, 0, *_losses_and_accuracy(weights, training, held_out), rho=now())
    for epoch in range(epochs):
        weights, state, temperature, predicted = _epoch(
            weights,
            state,
            settings.lr,
            training,
            start.batches[epoch],
            start.noise_batches[epoch],
            optimizer=settings.optimizer,
            cooling=cooling,
        )
        yield Epoch(
            epoch + 1,
            (epoch + 1) * steps,
            *_losses_and_accuracy(weights, training, held_out),
            temperature=float(temperature),
            predicted_temperature=float(predicted),
            rho=now(),
        )


@partial(jax.jit, static_argnames=("optimizer", "cooling"))
def _epoch(
    weights: Weights,
    state: optax.OptState,
    lr: jax.Array,
    training: Images,
    batches: jax.Array,
    noise_batches: jax.Array,
    *,
    optimizer: str,
    cooling: CoolingSchedule,
) -> tuple[Weights, optax.OptState, jax.Array, jax.Array]:
    """The steps of an epoch; its mean rescaled temperature and that which Eq. 19 predicts."""
    transformation = _transformation(optimizer, lr, cooling)
    pixels, labels = jnp.asarray(training.pixels), jnp.asarray(training.labels)

    def gradient(weights: Weights, batch: jax.Array) -> Any:
        return jax.grad(_loss)(weights, pixels[batch], labels[batch])

    def step(carry: Any, batch: jax.Array) -> Any:
        weights, state = carry
        updates, state = transformation.update(gradient(weights, batch), state, weights)
        moved = optax.apply_updates(weights, updates)
        # From the parameters, as for any optimizer; CoolMomentum alone could be asked.
        return (moved, state), rescaled_temperature(jax.tree.map(jnp.subtract, moved, weights))

    def stretch(carry: Any, batches_and_noise: Any) -> Any:
        """Some steps, and before the first of them an estimate of the gradient noise."""
        batches, noise_batch = batches_and_noise
        weights, state = carry
        predicted: Any = jnp.nan
        if optimizer == "CoolMomentum":
            one, other = (_vector(gradient(weights, b)) for b in (batches[0], noise_batch))
            predicted = predicted_rescaled_temperature(one, other, lr, rho(state, cooling))
        carry, temperatures = jax.lax.scan(step, carry, batches)
        return carry, (temperatures.mean(), predicted)

    stretches = batches.reshape(len(noise_batches), -1, batches.shape[-1])
    (weights, state), (temperatures, predicted) = jax.lax.scan(
        stretch, (weights, state), (stretches, noise_batches)
    )
    return weights, state, temperatures.mean(), predicted.mean()


def _transformation(
    optimizer: str, lr: jax.Array | float, cooling: CoolingSchedule
) -> optax.GradientTransformation:
    """The optimizer with what anneals its learning rate (CoolMomentum anneals by itself)."""
    if optimizer == "CoolMomentum":
        return cool_momentum(lr, schedule=cooling)
    cosine = optax.cosine_decay_schedule(lr, cooling.total_steps)
    return optax.sgd(cosine, momentum=0.9) if optimizer == "SGD" else optax.adam(cosine)


def _logits(weights: Weights, pixels: jax.Array) -> jax.Array:
    kernel, bias, last_kernel, last_bias = weights
    return jnp.tanh(pixels @ kernel + bias) @ last_kernel + last_bias


def _loss(weights: Weights, pixels: jax.Array, labels: jax.Array) -> jax.Array:
    logits = _logits(weights, pixels)
    losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()


def _vector(weights: Weights) -> jax.Array:
    return jnp.concatenate([weight.ravel() for weight in weights])


def _losses_and_accuracy(
    weights: Weights, training: Images, held_out: Images
) -> tuple[float, float, float]:
    training_loss = _loss(weights, jnp.asarray(training.pixels), jnp.asarray(training.labels))
    pixels, labels = jnp.asarray(held_out.pixels), jnp.asarray(held_out.labels)
    # A mean of float32 would round the accuracy; the frameworks are to give the same number.
    right = np.asarray(_logits(weights, pixels).argmax(1) == labels)
    return float(training_loss), float(_loss(weights, pixels, labels)), float(right.mean())
