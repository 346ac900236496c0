"""Training in JAX, with flax and optax: an epoch is one compiled scan."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import serialization
from numpy.typing import NDArray

from benchmarks.training._jax_networks import build, variables
from benchmarks.training._networks import Weights, penalty_of
from benchmarks.training._noise import predicted_rescaled_temperature
from benchmarks.training._problem import Batch, Epoch, Problem, augmented
from benchmarks.training._rules import EPSILON, RULES, Settings
from benchmarks.training._trainer import Measured, Trained
from coolmomentum import CoolingSchedule, rescaled_temperature
from coolmomentum.jax import cool_momentum

__all__ = ["JaxTrainer"]

CHUNK = 1000  # images that are measured at a time


_NO_COOLING = CoolingSchedule(1, 0.0)  # one for all others, for which nothing is compiled anew


class Static(NamedTuple):
    """What an epoch is compiled for."""

    network: nn.Module
    decay: float  # what multiplies the sum of the squares of the convolutions' kernels
    augment: bool
    optimizer: str
    cooling: CoolingSchedule  # used by CoolMomentum only


class JaxTrainer:
    """A network, an optimizer and the images, on JAX' default device."""

    def __init__(self, problem: Problem, settings: Settings) -> None:
        self._settings = settings
        self._training = jax.tree.map(jnp.asarray, tuple(problem.training))
        self._held_out = jax.tree.map(jnp.asarray, tuple(problem.held_out))
        self._measured = problem.measured or len(problem.training.labels)
        rule = RULES[settings.rule]
        self._static = Static(
            build(problem.network, problem.classes),
            penalty_of(problem.network),
            problem.augment,
            rule.optimizer,
            CoolingSchedule(problem.epochs * problem.steps, settings.momentum, rule.law)
            if rule.optimizer == "coolmomentum"
            else _NO_COOLING,
        )

    def start(self, weights: Weights) -> None:
        """Begin a run from those weights."""
        parameters, statistics = variables(weights)
        transformation = _transformation(self._static, *self._settings[1:])
        self._run = parameters, statistics, transformation.init(parameters)

    def train(
        self, epoch: Epoch, learning_rates: NDArray[np.float64], momenta: NDArray[np.float64]
    ) -> Trained:
        """Make the steps of an epoch; learning rates and momenta are one for each."""
        numbers = np.stack([learning_rates, momenta], axis=1).astype(np.float32)
        cools = self._static.optimizer == "coolmomentum"
        noise = epoch.noise_batches if cools else Batch(*(x[:0] for x in epoch.noise_batches))
        self._run, trained = _epoch(
            self._run,
            self._training,
            epoch.batches,
            noise,
            numbers,
            self._settings.weight_decay,
            static=self._static,
        )
        return Trained(*map(float, jax.device_get(trained)))

    def measure(self) -> Measured:
        """Measure the network as it is."""
        training = [x[: self._measured] for x in self._training]
        numbers = _measure(self._run[:2], training, self._held_out, static=self._static)
        training_loss, _, penalty, loss, right = map(float, jax.device_get(numbers))
        held_out = len(self._held_out[1])
        return Measured(training_loss / self._measured, penalty, loss / held_out, right / held_out)

    def state(self) -> bytes:
        """What a run that is interrupted now needs to go on."""
        return serialization.to_bytes(self._run)

    def restore(self, state: bytes) -> None:
        """Go on from there, after ``start``."""
        self._run = jax.tree.map(jnp.asarray, serialization.from_bytes(self._run, state))


@partial(jax.jit, static_argnames="static", donate_argnums=0)
def _epoch(
    run: Any,
    training: Any,
    batches: Batch,
    noise_batches: Batch,
    numbers: jax.Array,
    weight_decay: jax.Array,
    *,
    static: Static,
) -> Any:
    """The steps of an epoch, in as many stretches as there are estimates of the noise."""

    def gradient(parameters: Any, statistics: Any, batch: Batch) -> Any:
        return jax.grad(_loss, has_aux=True)(parameters, statistics, training, batch, static)

    def step(run: Any, its: Any) -> Any:
        batch, (lr, momentum) = its
        parameters, statistics, state = run
        gradients, (loss, new_statistics) = gradient(parameters, statistics, batch)
        transformation = _transformation(static, lr, momentum, weight_decay)
        updates, state = transformation.update(gradients, state, parameters)
        moved = optax.apply_updates(parameters, updates)
        # From the parameters, as for any optimizer.
        changes = jax.tree.leaves(jax.tree.map(jnp.subtract, moved, parameters))
        others = jax.tree.leaves(jax.tree.map(jnp.subtract, new_statistics, statistics))
        seen = loss, rescaled_temperature(changes), rescaled_temperature(changes + others)
        return (moved, new_statistics, state), jnp.stack(seen)

    def stretch(run: Any, its: Any) -> Any:
        """Some steps, and before the first of them an estimate of the gradient noise."""
        (batches, numbers), noise_batch = its
        parameters, statistics, _ = run
        predicted: Any = jnp.nan
        if noise_batch is not None:
            first = jax.tree.map(lambda x: x[0], batches)
            one, other = (
                _vector(gradient(parameters, statistics, b)[0]) for b in (first, noise_batch)
            )
            predicted = predicted_rescaled_temperature(one, other, *numbers[0])
        run, seen = jax.lax.scan(step, run, (batches, numbers))
        return run, (seen.mean(axis=0), predicted)

    estimates = len(noise_batches.indices)
    stretches = max(estimates, 1)
    steps = jax.tree.map(lambda x: x.reshape(stretches, -1, *x.shape[1:]), (batches, numbers))
    run, (seen, predicted) = jax.lax.scan(
        stretch, run, (steps, noise_batches if estimates else None)
    )
    return run, (*seen.mean(axis=0), predicted.mean())


def _transformation(
    static: Static, lr: Any, momentum: Any, weight_decay: Any
) -> optax.GradientTransformation:
    """The optimizer with the numbers of one step."""
    match static.optimizer:
        case "coolmomentum":
            return cool_momentum(lr, schedule=static.cooling)
        case "sgd":
            return optax.sgd(lr, momentum)
        case "adam":
            return optax.adam(lr, momentum, 0.999, EPSILON)
        case "adamw":
            return optax.adamw(lr, momentum, 0.999, EPSILON, weight_decay=weight_decay)
        case _:
            return optax.rmsprop(lr, 0.9, EPSILON, eps_in_sqrt=False, momentum=momentum)


def _loss(
    parameters: Any, statistics: Any, training: Any, batch: Batch, static: Static
) -> tuple[jax.Array, Any]:
    """The loss of a minibatch; the same again, and the statistics after it."""
    pixels, labels = (x[batch.indices] for x in training)
    if static.augment:
        pixels = augmented(pixels, batch, jnp)
    everything = {"params": parameters, "batch_stats": statistics}
    logits, new = static.network.apply(everything, pixels, True, mutable=["batch_stats"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    loss = losses.mean() + _penalty(parameters, static)
    return loss, (loss, new.get("batch_stats", statistics))


def _penalty(parameters: Any, static: Static) -> Any:
    if not static.decay:
        return 0.0
    kernels = [x for x in jax.tree.leaves(parameters) if x.ndim == 4]
    return static.decay * sum(jnp.sum(jnp.square(x)) for x in kernels)


def _vector(gradients: Any) -> jax.Array:
    return jnp.concatenate([x.ravel() for x in jax.tree.leaves(gradients)])


@partial(jax.jit, static_argnames="static")
def _measure(network: Any, training: Any, held_out: Any, *, static: Static) -> Any:
    """Sum of losses and images classified right, of both sets, with the penalty between them."""
    parameters, statistics = network
    everything = {"params": parameters, "batch_stats": statistics}

    def chunk(images: Any) -> Any:
        pixels, labels = images
        logits: Any = static.network.apply(everything, pixels, False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.sum(), jnp.sum(logits.argmax(axis=1) == labels)

    def whole(images: Any) -> Any:
        size = len(images[1]) // CHUNK * CHUNK
        chunks = jax.tree.map(lambda x: x[:size].reshape(-1, CHUNK, *x.shape[1:]), images)
        rest = chunk(jax.tree.map(lambda x: x[size:], images))
        return [x.sum() + y for x, y in zip(jax.lax.map(chunk, chunks), rest, strict=True)]

    return *whole(training), _penalty(parameters, static), *whole(held_out)
