"""One training run in PyTorch, measured before the first and after every epoch."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from benchmarks.demo._data import LAYERS, Epoch, Images, Settings, Start
from benchmarks.training._noise import predicted_rescaled_temperature
from coolmomentum import DisplacementSum
from coolmomentum.torch import CoolMomentum

__all__ = ["train"]


def train(settings: Settings, start: Start, training: Images, held_out: Images) -> Iterator[Epoch]:
    """Train on one set, be measured on both, and yield a record of every epoch."""
    torch.set_num_threads(1)  # the matrices are so small that more threads only wait
    epochs, steps, _ = start.batches.shape
    noise_batches = torch.from_numpy(start.noise_batches)
    steps_per_estimate = steps // noise_batches.shape[1]
    pixels, labels = _tensors(training)
    model = _model(start)
    optimizer, scheduler = _optimizer(model, settings, epochs * steps)
    position = _position(model)
    yield Epoch(0, 0, *_losses_and_accuracy(model, training, held_out), rho=_rho(optimizer))

    for epoch, batches in enumerate(torch.from_numpy(start.batches)):
        displacements = DisplacementSum()
        predictions = []
        for step, batch in enumerate(batches):
            noise_gradient = None
            if settings.optimizer == "CoolMomentum" and step % steps_per_estimate == 0:
                other = noise_batches[epoch, step // steps_per_estimate]
                noise_gradient = _gradient(model, pixels[other], labels[other])
            gradient = _gradient(model, pixels[batch], labels[batch])
            if noise_gradient is not None:
                predicted = predicted_rescaled_temperature(
                    gradient, noise_gradient, settings.lr, _rho(optimizer)
                )
                predictions.append(float(predicted))
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            # From the parameters, as for any optimizer; CoolMomentum alone could be asked.
            before, position = position, _position(model)
            displacements = displacements.add(position - before)
        yield Epoch(
            epoch + 1,
            (epoch + 1) * steps,
            *_losses_and_accuracy(model, training, held_out),
            temperature=float(displacements.read()),
            predicted_temperature=float(np.mean(predictions)) if predictions else np.nan,
            rho=_rho(optimizer),
        )


def _tensors(images: Images) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images.pixels), torch.from_numpy(images.labels)


def _model(start: Start) -> nn.Module:
    inputs, hidden, outputs = LAYERS
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))
    with torch.no_grad():
        for parameter, weight in zip(model.parameters(), start.weights, strict=True):
            parameter.copy_(torch.from_numpy(weight.T))  # a kernel is (outputs, inputs) here
    return model


def _optimizer(
    model: nn.Module, settings: Settings, total_steps: int
) -> tuple[Optimizer, LRScheduler | None]:
    """The optimizer and what anneals its learning rate (CoolMomentum anneals by itself)."""
    parameters = model.parameters()
    if settings.optimizer == "CoolMomentum":
        cool = CoolMomentum(
            parameters, settings.lr, total_steps=total_steps, rho0=settings.rho0, law="paper"
        )
        return cool, None
    optimizer: Optimizer
    if settings.optimizer == "SGD":
        optimizer = SGD(parameters, settings.lr, momentum=0.9)
    else:
        optimizer = Adam(parameters, settings.lr)
    return optimizer, CosineAnnealingLR(optimizer, total_steps)


def _gradient(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """Leave the gradient of a minibatch's loss in the model and return it as one vector."""
    model.zero_grad()
    cross_entropy(model(pixels), labels).backward()  # type: ignore[no-untyped-call]
    return parameters_to_vector(p.grad for p in model.parameters() if p.grad is not None)


def _position(model: nn.Module) -> Tensor:
    return parameters_to_vector(model.parameters()).detach()


def _rho(optimizer: Optimizer) -> float:
    """The momentum coefficient that the next step will use, of CoolMomentum only."""
    return float(optimizer.param_groups[0].get("rho", np.nan))


@torch.inference_mode()
def _losses_and_accuracy(
    model: nn.Module, training: Images, held_out: Images
) -> tuple[float, float, float]:
    pixels, labels = _tensors(training)
    training_loss = cross_entropy(model(pixels), labels)
    pixels, labels = _tensors(held_out)
    logits = model(pixels)
    accuracy = (logits.argmax(dim=1) == labels).double().mean()
    return float(training_loss), float(cross_entropy(logits, labels)), float(accuracy)
