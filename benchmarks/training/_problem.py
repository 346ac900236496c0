"""What each framework is given: a problem, initial weights, and the batches of every epoch.

Everything random is drawn here by NumPy, for all frameworks and rules alike, from the seed and the
number of the epoch alone: an epoch can be repeated without those before it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.training._data import Images

__all__ = ["Batch", "Epoch", "Problem", "augmented", "epoch_of"]

LARGEST_SHIFT = 0.1  # of an image, as a share of its size: the paper's scripts
NOISE_PAIRS = 8  # estimates of the gradient noise in an epoch, at most


@dataclass(frozen=True, eq=False)
class Problem:
    """What is trained, on which images, for how long, and what it is measured on."""

    network: str  # "mlp", "convnet" or "resnet20"
    training: Images
    held_out: Images
    epochs: int
    batch: int  # images in a minibatch
    augment: bool = False  # shift and flip the images trained on
    measured: int = 0  # how many images of the training set are measured; 0: all

    def about(self) -> dict[str, Any]:
        """What is trained and for how long, in words and numbers."""
        return {"network": self.network, "epochs": self.epochs, "batch": self.batch}

    @property
    def classes(self) -> int:
        """The number of different labels."""
        return int(self.training.labels.max()) + 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        _, height, width, channels = self.training.pixels.shape
        return height, width, channels

    @property
    def steps(self) -> int:
        """Steps in an epoch; images that do not fill a minibatch wait for another epoch."""
        return len(self.training.labels) // self.batch

    @property
    def noise_pairs(self) -> int:
        """How often in an epoch the gradient noise is estimated: a divisor of its steps."""
        if self.network == "resnet20":  # there a minibatch moves statistics, too
            return 0
        return max(n for n in range(1, NOISE_PAIRS + 1) if self.steps % n == 0)


class Batch(NamedTuple):
    """Minibatches, with any number of axes before that of the images."""

    indices: Any  # (..., batch) int32, of training images
    shifts: Any  # (..., batch, 2) float32: pixels down and right
    flips: Any  # (..., batch) bool: left for right


class Epoch(NamedTuple):
    """What a seed decides about an epoch."""

    batches: Batch  # (steps, batch, ...)
    noise_batches: Batch  # (noise_pairs, batch, ...), independent of the batches


def epoch_of(problem: Problem, seed: int, epoch: int) -> Epoch:
    """The batches of an epoch: each image once, but for those that are left over."""
    random = np.random.default_rng([seed, epoch])
    images, batch = len(problem.training.labels), problem.batch
    order = random.permutation(images)[: problem.steps * batch].reshape(-1, batch)
    batches = _batch(random, problem, order)
    others = [random.choice(images, batch, replace=False) for _ in range(problem.noise_pairs)]
    return Epoch(batches, _batch(random, problem, np.reshape(others, (-1, batch))))


def _batch(random: np.random.Generator, problem: Problem, indices: NDArray[Any]) -> Batch:
    largest = LARGEST_SHIFT * np.asarray(problem.shape[:2])
    shifts = random.uniform(-largest, largest, (*indices.shape, 2))
    flips = random.random(indices.shape) < 0.5
    return Batch(indices.astype(np.int32), shifts.astype(np.float32), flips)


def augmented(pixels: Any, batch: Batch, xp: Any) -> Any:
    """Shift and flip images, (batch, height, width, channels), in any framework's namespace.

    Between pixels the images are interpolated linearly, and beyond the edge it goes on as at the
    edge: what the paper's scripts do. Interpolation is a product with a matrix for each image.
    """
    rows = _interpolation(batch.shifts[..., 0], pixels.shape[1], xp)
    columns = _interpolation(batch.shifts[..., 1], pixels.shape[2], xp)
    columns = xp.where(batch.flips[:, None, None], xp.flip(columns, axis=1), columns)
    return xp.einsum("nij,njlc->nilc", rows, xp.einsum("nij,nljc->nlic", columns, pixels))


def _interpolation(shifts: Any, size: int, xp: Any) -> Any:
    """Weights (batch, size, size) of the old pixels (last axis) in the new, along one direction."""
    places = xp.arange(size, dtype=shifts.dtype)
    sources = xp.clip(places - shifts[:, None], 0, size - 1)
    return xp.maximum(1 - xp.abs(sources[..., None] - places), xp.zeros_like(sources[..., None]))
