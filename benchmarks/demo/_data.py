"""What each framework is given (images, weights, batches) and gives back (records), in NumPy.

Everything random is drawn here, once and for all frameworks and optimizers, so that runs of one
seed start from the same weights and see the same batches in the same order.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

__all__ = [
    "BATCH",
    "LAYERS",
    "PARTS",
    "STEPS_PER_EPOCH",
    "Digits",
    "Epoch",
    "Images",
    "Settings",
    "Start",
    "digits",
    "start",
]

BATCH = 32
LAYERS = (64, 64, 10)  # pixels, hidden units (tanh), classes
PARTS = {"training": 1024, "validation": 323, "test": 450}  # images; all 1,797 of the set
STEPS_PER_EPOCH = PARTS["training"] // BATCH
NOISE_PAIRS = 8  # estimates of the gradient noise in an epoch


class Images(NamedTuple):
    """Some of the digits."""

    pixels: NDArray[np.float32]  # (images, 64) in [0, 1]
    labels: NDArray[np.int64]  # (images,) in [0, 10)


class Digits(NamedTuple):
    """The three parts of the set; which image is in which never changes."""

    training: Images
    validation: Images
    test: Images


class Start(NamedTuple):
    """What a seed decides."""

    weights: tuple[NDArray[np.float32], ...]  # kernel (inputs, outputs) and bias of each layer
    batches: NDArray[np.int64]  # (epochs, steps, BATCH) indices of training images
    noise_batches: NDArray[np.int64]  # (epochs, NOISE_PAIRS, BATCH), independent of the batches


class Settings(NamedTuple):
    """One contender: an optimizer and what it is set to."""

    optimizer: str  # "CoolMomentum", "SGD" or "Adam"
    lr: float  # learning rate: constant for CoolMomentum, annealed by a cosine for the others
    rho0: float  # initial momentum coefficient of CoolMomentum; the others have their own


class Epoch(NamedTuple):
    """One line of ``runs.csv``: a run after some epochs, epoch 0 being before the first step."""

    epoch: int
    step: int  # optimizer steps taken
    training_loss: float  # mean cross-entropy of the whole training set, in nats
    loss: float  # the same of the images held out
    accuracy: float  # share of the images held out that are classified right
    temperature: float = np.nan  # rescaled: mean squared change of a parameter in a step
    predicted_temperature: float = np.nan  # the same by Eq. 19, for CoolMomentum only
    rho: float = np.nan  # coefficient that the next step will use, for CoolMomentum only


def digits() -> Digits:
    """The 8x8 digits that come with scikit-learn, in stratified random parts."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels / 16).astype(np.float32)
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=PARTS["test"], stratify=labels, random_state=0
    )
    training, validation = train_test_split(
        rest, test_size=PARTS["validation"], stratify=labels[rest], random_state=0
    )
    return Digits(*(Images(pixels[part], labels[part]) for part in (training, validation, test)))


def start(seed: int, epochs: int) -> Start:
    """Initial weights (Glorot uniform, biases 0) and batches (each image once an epoch)."""
    random = np.random.default_rng(seed)
    weights: list[NDArray[np.float32]] = []
    for inputs, outputs in pairwise(LAYERS):
        limit = np.sqrt(6 / (inputs + outputs))
        kernel = random.uniform(-limit, limit, (inputs, outputs))
        weights += [kernel.astype(np.float32), np.zeros(outputs, np.float32)]
    images = PARTS["training"]
    batches = [random.permutation(images).reshape(-1, BATCH) for _ in range(epochs)]
    noise_batches = [
        [random.choice(images, BATCH, replace=False) for _ in range(NOISE_PAIRS)]
        for _ in range(epochs)
    ]
    return Start(tuple(weights), np.asarray(batches), np.asarray(noise_batches))
