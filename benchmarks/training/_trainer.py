"""What the frameworks' trainers have in common: what they are asked, and what they give back."""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.training._networks import Weights
from benchmarks.training._problem import Epoch

__all__ = ["Measured", "Trained", "Trainer"]


class Trained(NamedTuple):
    """What was seen during the steps of an epoch."""

    running_loss: float  # mean over the minibatches as they were trained on, penalty included
    temperature: float  # rescaled: mean squared change of a trainable parameter in a step
    temperature_with_statistics: float  # the same if moving means and variances counted as well
    predicted_temperature: float  # rescaled, by Eq. 19; NaN for all but CoolMomentum


class Measured(NamedTuple):
    """What is measured between epochs: in inference mode, images as they are."""

    training_loss: float  # mean cross-entropy of the training set (or its first images), in nats
    penalty: float  # of the weights, which the gradient includes and training_loss does not
    loss: float  # mean cross-entropy of the images held out
    accuracy: float  # share of the images held out that are classified right


class Trainer(Protocol):
    """A network, an optimizer and the images, on a device; made for one problem and one setting."""

    def start(self, weights: Weights) -> None:
        """Begin a run from those weights."""

    def train(
        self, epoch: Epoch, learning_rates: NDArray[np.float64], momenta: NDArray[np.float64]
    ) -> Trained:
        """Make the steps of an epoch; learning rates and momenta are one for each."""

    def measure(self) -> Measured:
        """Measure the network as it is."""

    def state(self) -> bytes:
        """What a run that is interrupted now needs to go on."""

    def restore(self, state: bytes) -> None:
        """Go on from there, after ``start``."""
