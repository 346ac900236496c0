"""Training in PyTorch; on a GPU the gradient of a minibatch is one CUDA graph.

The optimizer's step is not in the graph: PyTorch's SGD has no capturable form (its momentum is a
number of Python, and that of Demon changes), and so that all rules are treated alike, none has it.
"""

import io
from collections.abc import Callable

import array_api_compat.torch as xp
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from benchmarks.training._data import Images
from benchmarks.training._networks import Weights, penalty_of
from benchmarks.training._noise import predicted_rescaled_temperature
from benchmarks.training._problem import Batch, Epoch, Problem, augmented
from benchmarks.training._rules import EPSILON, RULES, Settings
from benchmarks.training._torch_graph import recorded
from benchmarks.training._torch_networks import Network, load
from benchmarks.training._trainer import Measured, Trained
from coolmomentum import DisplacementSum
from coolmomentum.torch import CoolMomentum

__all__ = ["TorchTrainer"]

CHUNK = 1000  # images that are measured at a time


class TorchTrainer:
    """A network, an optimizer and the images, on the GPU if there is one.

    ``channels_last`` stores kernels in the order of the images, (out, height, width, in).
    ``autocast`` trains in mixed precision: convolutions and products in bfloat16, from parameters,
    to gradients, of float32. What is measured between epochs is measured in float32.
    """

    def __init__(
        self,
        problem: Problem,
        settings: Settings,
        device: str | None = None,
        *,
        channels_last: bool = False,
        autocast: bool = False,
    ) -> None:
        self._problem, self._settings = problem, settings
        self._autocast = autocast
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if problem.network == "mlp":
            torch.set_num_threads(1)  # matrices so small that more threads only wait
        self._training = self._to_device(problem.training)
        self._held_out = self._to_device(problem.held_out)
        self._model = Network(problem.network, problem.shape, problem.classes).to(self._device)
        if channels_last:
            self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._parameters = list(self._model.parameters())
        self._statistics = [b for b in self._model.buffers() if b.is_floating_point()]
        self._kernels = [m.weight for m in self._model.modules() if isinstance(m, torch.nn.Conv2d)]
        self._decay = penalty_of(problem.network)
        self._replay: Callable[..., Tensor] | None = None
        if self._device.type == "cuda":
            self._model.train()  # the statistics that this moves are put back by ``start``
            self._replay = recorded(self._backward, *self._like_a_batch())

    def start(self, weights: Weights) -> None:
        """Begin a run from those weights."""
        load(self._model, weights)
        self._optimizer = self._new_optimizer()

    def train(
        self, epoch: Epoch, learning_rates: NDArray[np.float64], momenta: NDArray[np.float64]
    ) -> Trained:
        """Make the steps of an epoch; learning rates and momenta are one for each."""
        return Trained(*self._steps(epoch, learning_rates, momenta).tolist())

    def _steps(
        self, epoch: Epoch, learning_rates: NDArray[np.float64], momenta: NDArray[np.float64]
    ) -> Tensor:
        """The same, without waiting for the device: what was seen, (4,) float64."""
        self._model.train()
        batches = self._split(epoch.batches)
        noise_batches = self._split(epoch.noise_batches)
        cools = isinstance(self._optimizer, CoolMomentum)
        stretch = len(batches) // max(len(noise_batches), 1)
        losses = torch.zeros((), dtype=torch.float64, device=self._device)
        parameters, both = DisplacementSum(), DisplacementSum()
        predictions = [] if cools and noise_batches else [torch.full_like(losses, torch.nan)]
        place = self._place()
        for step, batch in enumerate(batches):
            noise_gradient = None
            if cools and noise_batches and step % stretch == 0:
                self._gradient_of(*noise_batches[step // stretch])
                noise_gradient = self._gradient()
            losses += self._gradient_of(*batch)
            if noise_gradient is not None:
                predicted = predicted_rescaled_temperature(
                    self._gradient(), noise_gradient, learning_rates[step], momenta[step]
                )
                predictions.append(predicted)
            self._set(learning_rates[step], momenta[step])
            self._optimizer.step()
            before, place = place, self._place()
            moved = [new - old for new, old in zip(place, before, strict=True)]
            parameters, both = parameters.add(moved[:1]), both.add(moved)
        predicted = torch.stack(predictions).mean()
        seen = losses / len(batches), parameters.read(), both.read(), predicted
        return torch.stack([x.double() for x in seen])

    @torch.inference_mode()
    def measure(self) -> Measured:
        """Measure the network as it is."""
        self._model.eval()
        measured = self._problem.measured or len(self._training[1])
        training_loss, _ = self._loss_and_accuracy(*(x[:measured] for x in self._training))
        loss, accuracy = self._loss_and_accuracy(*self._held_out)
        return Measured(training_loss, float(self._penalty()), loss, accuracy)

    def state(self) -> bytes:
        """What a run that is interrupted now needs to go on."""
        file = io.BytesIO()
        torch.save([part.state_dict() for part in (self._model, self._optimizer)], file)
        return file.getvalue()

    def restore(self, state: bytes) -> None:
        """Go on from there, after ``start``."""
        # Each state knows its place, which for the steps of Adam is not the GPU.
        states = torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
        self._model.load_state_dict(states[0])
        self._optimizer.load_state_dict(states[1])

    def _to_device(self, images: Images) -> tuple[Tensor, Tensor]:
        pixels, labels = (torch.from_numpy(x).to(self._device) for x in images)
        return pixels, labels.long()

    def _split(self, batches: Batch) -> list[Batch]:
        """The minibatches of an epoch, which travel to the device at once."""
        on_device = (torch.from_numpy(x).to(self._device) for x in batches)
        return [Batch(*each) for each in zip(*on_device, strict=True)]

    def _new_optimizer(self) -> Optimizer:
        lr, momentum = self._settings.lr, self._settings.momentum
        parameters = self._parameters
        betas = (momentum, 0.999)
        match RULES[self._settings.rule].optimizer:
            case "coolmomentum":
                steps = self._problem.epochs * self._problem.steps
                law = RULES[self._settings.rule].law
                return CoolMomentum(parameters, lr, total_steps=steps, rho0=momentum, law=law)
            case "sgd":
                return SGD(parameters, lr, momentum=momentum)
            case "adam":
                return Adam(parameters, lr, betas, EPSILON)
            case "adamw":
                decay = self._settings.weight_decay
                return AdamW(parameters, lr, betas, EPSILON, weight_decay=decay)
            case _:
                return RMSprop(parameters, lr, alpha=0.9, eps=EPSILON, momentum=momentum)

    def _set(self, lr: float, momentum: float) -> None:
        (group,) = self._optimizer.param_groups
        group["lr"] = float(lr)
        if isinstance(self._optimizer, SGD):
            group["momentum"] = float(momentum)

    def _like_a_batch(self) -> Batch:
        """A minibatch of the size that all have, of nothing but the first image."""
        size = self._problem.batch
        zeros = np.zeros(size, np.int32), np.zeros((size, 2), np.float32), np.zeros(size, np.bool_)
        return Batch(*(torch.from_numpy(x).to(self._device) for x in zeros))

    def _gradient_of(self, *batch: Tensor) -> Tensor:
        """Leave the gradient of a minibatch in the parameters, and return its loss."""
        return self._replay(*batch) if self._replay else self._backward(*batch)

    def _backward(self, *batch: Tensor) -> Tensor:
        """The same, kernel by kernel."""
        self._model.zero_grad()
        drawn = Batch(*batch)
        pixels, labels = (x[drawn.indices] for x in self._training)
        if self._problem.augment:
            with self._device:  # where what is made in there belongs
                pixels = augmented(pixels, drawn, xp)
        loss = cross_entropy(self._logits(pixels), labels) + self._penalty()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _logits(self, pixels: Tensor) -> Tensor:
        if not self._autocast:
            return self._model(pixels)  # type: ignore[no-any-return]  # not typed in PyTorch
        with torch.autocast(self._device.type, torch.bfloat16):
            return self._model(pixels).float()  # type: ignore[no-any-return]

    def _penalty(self) -> Tensor | float:
        if not self._decay:
            return 0.0
        return self._decay * torch.stack([kernel.square().sum() for kernel in self._kernels]).sum()

    def _gradient(self) -> Tensor:
        return torch.cat([p.grad.flatten() for p in self._parameters if p.grad is not None])

    def _place(self) -> list[Tensor]:
        """All trainable parameters, and all moving statistics, as one vector each."""
        tensors = (self._parameters, self._statistics)
        return [torch.cat([x.detach().flatten() for x in some]) for some in tensors if some]

    def _loss_and_accuracy(self, pixels: Tensor, labels: Tensor) -> tuple[float, float]:
        loss = torch.zeros((), dtype=torch.float64, device=self._device)
        right = torch.zeros((), dtype=torch.int64, device=self._device)
        for some, theirs in zip(
            torch.split(pixels, CHUNK), torch.split(labels, CHUNK), strict=True
        ):
            logits = self._model(some)
            loss += cross_entropy(logits, theirs, reduction="sum")
            right += (logits.argmax(dim=1) == theirs).sum()
        return float(loss) / len(labels), int(right) / len(labels)
