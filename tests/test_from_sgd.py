"""The table of docs/choosing.md for who comes from SGD: what it says, and each row trained."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from coolmomentum import settings_from_sgd
from coolmomentum.numpy import CoolMomentum

PAGE = Path(__file__).parent.parent / "docs" / "choosing.md"
ROWS = [
    tuple(map(float, row))
    for row in re.findall(
        r"^\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| ([-+][\d.]+) ± ([\d.]+) \|$",
        PAGE.read_text(encoding="utf-8").replace(",", ""),
        re.MULTILINE,
    )
]
SGD = {"lr": 0.1, "momentum": 0.9}
SEEDS, HIDDEN, BATCH, WEIGHT_DECAY, TRAINED = 8, 32, 32, 5e-4, 1200


def test_there_are_three_rows():
    """A short run, one between and a long one."""
    assert [row[0] for row in ROWS] == [300, 1000, 3000]


@pytest.mark.parametrize(("total_steps", "lr", "rho0", "worse", "spread"), ROWS)
def test_the_settings_of_a_row(total_steps, lr, rho0, worse, spread):
    """They are those of settings_from_sgd, rounded."""
    settings = settings_from_sgd(**SGD, total_steps=int(total_steps))
    assert (round(settings["lr"], 4), round(settings["rho0"], 4)) == (lr, rho0)


class Digits:
    """A network of one hidden layer on scikit-learn's digits, as many times as there are seeds.

    Every array has the seeds in front: each has its own split, start and minibatches.
    """

    def __init__(self):
        images, self.labels = load_digits(return_X_y=True)
        self.images = np.hstack([images / 16, np.ones((len(images), 1))])
        self.rngs = [np.random.default_rng(seed) for seed in range(SEEDS)]
        self.order = np.stack([rng.permutation(len(images)) for rng in self.rngs])
        width = self.images.shape[1]
        self.params = [
            np.stack([rng.normal(size=(width, HIDDEN)) / 8 for rng in self.rngs]),
            np.stack([rng.normal(size=(HIDDEN, 10)) / math.sqrt(HIDDEN) for rng in self.rngs]),
        ]

    def minibatch(self):
        """Indices of images to train by."""
        chosen = np.stack([rng.integers(0, TRAINED, BATCH) for rng in self.rngs])
        return np.take_along_axis(self.order, chosen, 1)

    def forward(self, params, chosen):
        """Hidden layer and log-probabilities."""
        hidden = np.tanh(self.images[chosen] @ params[0])
        scores = hidden @ params[1]
        scores = scores - scores.max(-1, keepdims=True)
        return hidden, scores - np.log(np.exp(scores).sum(-1, keepdims=True))

    def gradients(self, params):
        """Of the mean cross-entropy over the next minibatch."""
        chosen = self.minibatch()
        hidden, logs = self.forward(params, chosen)
        error = (np.exp(logs) - np.eye(10)[self.labels[chosen]]) / BATCH
        back = error @ params[1].swapaxes(1, 2) * (1 - hidden**2)
        return [self.images[chosen].swapaxes(1, 2) @ back, hidden.swapaxes(1, 2) @ error]

    def loss(self, params):
        """Mean cross-entropy over the images held out, for each seed."""
        held_out = self.order[:, TRAINED:]
        _, logs = self.forward(params, held_out)
        return -np.take_along_axis(logs, self.labels[held_out][..., None], -1).mean((1, 2))


def trained_by_sgd(total_steps):
    """Held-out losses of SGD with momentum and a cosine from lr to 0, as PyTorch has them."""
    digits = Digits()
    params, moved = digits.params, [0.0, 0.0]
    for n in range(total_steps):
        lr = SGD["lr"] * (1 + math.cos(math.pi * n / total_steps)) / 2
        slopes = [
            g + WEIGHT_DECAY * x for g, x in zip(digits.gradients(params), params, strict=True)
        ]
        moved = [SGD["momentum"] * v + g for v, g in zip(moved, slopes, strict=True)]
        params = [x - lr * v for x, v in zip(params, moved, strict=True)]
    return digits.loss(params)


def trained_by_coolmomentum(total_steps):
    """Held-out losses of CoolMomentum with the settings for that SGD, on the same minibatches."""
    digits, settings = Digits(), settings_from_sgd(**SGD, total_steps=total_steps)
    learning_rate = settings.pop("lr")
    optimizer = CoolMomentum(
        learning_rate, total_steps=total_steps, weight_decay=WEIGHT_DECAY, **settings
    )
    params, state = digits.params, optimizer.init(digits.params)
    for _ in range(total_steps):
        params, state = optimizer.step(params, digits.gradients(params), state)
    return digits.loss(params)


@pytest.mark.parametrize(("total_steps", "lr", "rho0", "worse", "spread"), ROWS)
def test_a_row_trains_as_well_as_the_sgd_it_comes_from(total_steps, lr, rho0, worse, spread):
    """The mean difference of paired held-out losses is within its 95 % interval, as printed."""
    difference = trained_by_coolmomentum(int(total_steps)) - trained_by_sgd(int(total_steps))
    mean = difference.mean()
    half = stats.t.ppf(0.975, SEEDS - 1) * difference.std(ddof=1) / math.sqrt(SEEDS)
    assert mean <= half
    assert (mean, half) == pytest.approx((worse, spread), rel=0, abs=6e-4)  # as printed
