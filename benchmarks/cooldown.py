"""Held and cooled against cosines that were planned, on digits: ``python -m`` this module.

A network of one hidden layer on scikit-learn's digits, by SGD with momentum 0.9. A cosine needs a
run of its own for each horizon, and has the best of six learning rates at each. One run that is
held serves all horizons, with one learning rate for all: a copy of it at 80 % of each horizon cools
over the rest. CoolMomentum does the same with rho, from rho0 = 0.9, where it is that SGD as long as
it holds, and from 0.99, with the learning rate that matches.
Learning rates are chosen on seeds of their own. The minibatches of a seed are the same in every
run, so the differences of the held-out losses are paired.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

from coolmomentum import learning_rate_share, reduced_temperature
from coolmomentum.numpy import CoolMomentum

HORIZONS = 300, 600, 1200, 2400
RATES = 0.05, 0.1, 0.2, 0.4, 0.8, 1.6
MOMENTUM, WEIGHT_DECAY, FRACTION = 0.9, 5e-4, 0.2
TUNING, SEEDS, HIDDEN, BATCH, TRAINED = range(100, 108), range(16), 32, 32, 1200

Arrays = list[np.ndarray]


def main() -> None:
    """Choose the learning rates, then measure and print a table."""
    tuned = {rate: {way: run(rate, TUNING) for way, run in WAYS.items()} for rate in RATES}
    best = {
        "cosine": {s: min(RATES, key=lambda r: tuned[r]["cosine"][s].mean()) for s in HORIZONS},
        **{
            way: dict.fromkeys(
                HORIZONS, min(RATES, key=lambda r: sum(x.mean() for x in tuned[r][way].values()))
            )
            for way in WAYS
            if way != "cosine"
        },
    }
    chosen = {rate for of_way in best.values() for rate in of_way.values()}
    measured = {rate: {way: run(rate, SEEDS) for way, run in WAYS.items()} for rate in chosen}
    losses = {way: {s: measured[best[way][s]][way][s] for s in HORIZONS} for way in WAYS}
    table = Table("steps", "cosine (learning rate)", *[f"{way} - cosine" for way in WAYS][1:])
    for s in HORIZONS:
        cosine = losses["cosine"][s]
        row = [f"{cosine.mean():.4f} ({best['cosine'][s]})"]
        for way in list(WAYS)[1:]:
            worse = losses[way][s] - cosine
            error = worse.std(ddof=1) / math.sqrt(len(worse))
            row.append(f"{worse.mean():+.4f} ± {error:.4f} ({best[way][s]})")
        table.add_row(f"{s:,}", *row)
    Console(width=120).print(table)


class Digits:
    """The network, as many times as there are seeds: every array has the seeds in front."""

    def __init__(self, seeds: range) -> None:
        images, self.labels = load_digits(return_X_y=True)
        self.images = np.hstack([images / 16, np.ones((len(images), 1))])
        self.rngs = [np.random.default_rng(seed) for seed in seeds]
        self.order = np.stack([rng.permutation(len(images)) for rng in self.rngs])
        width = self.images.shape[1]
        self.params = [
            np.stack([rng.normal(size=(width, HIDDEN)) / 8 for rng in self.rngs]),
            np.stack([rng.normal(size=(HIDDEN, 10)) / math.sqrt(HIDDEN) for rng in self.rngs]),
        ]

    def forward(self, params: Arrays, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hidden layer and log-probabilities."""
        hidden = np.tanh(self.images[chosen] @ params[0])
        scores = hidden @ params[1]
        scores = scores - scores.max(-1, keepdims=True)
        return hidden, scores - np.log(np.exp(scores).sum(-1, keepdims=True))

    def gradients(self, params: Arrays) -> Arrays:
        """Of the mean cross-entropy over the next minibatch."""
        places = np.stack([rng.integers(0, TRAINED, BATCH) for rng in self.rngs])
        chosen = np.take_along_axis(self.order, places, 1)
        hidden, logs = self.forward(params, chosen)
        error = (np.exp(logs) - np.eye(10)[self.labels[chosen]]) / BATCH
        back = error @ params[1].swapaxes(1, 2) * (1 - hidden**2)
        return [self.images[chosen].swapaxes(1, 2) @ back, hidden.swapaxes(1, 2) @ error]

    def loss(self, params: Arrays) -> np.ndarray:
        """Mean cross-entropy over the images held out, for each seed."""
        held_out = self.order[:, TRAINED:]
        _, logs = self.forward(params, held_out)
        picked = np.take_along_axis(logs, self.labels[held_out][..., None], -1)
        return np.asarray(-picked.mean((1, 2)))


class Sgd:
    """SGD with momentum as PyTorch has it, by a schedule of the learning rate."""

    def __init__(self, digits: Digits) -> None:
        self.digits, self.params = digits, digits.params
        self.moved = [np.zeros_like(x) for x in digits.params]

    def step(self, rate: float) -> None:
        """One step with coupled weight decay."""
        slopes = self.digits.gradients(self.params)
        self.moved = [
            MOMENTUM * v + g + WEIGHT_DECAY * x
            for v, g, x in zip(self.moved, slopes, self.params, strict=True)
        ]
        self.params = [x - rate * v for x, v in zip(self.params, self.moved, strict=True)]

    def loss(self) -> np.ndarray:
        """Of each seed."""
        return self.digits.loss(self.params)


class Cool:
    """CoolMomentum with the effective learning rate of that SGD, as long as it holds."""

    def __init__(self, digits: Digits, rate: float, rho0: float) -> None:
        self.digits, self.params, self.rho0 = digits, digits.params, rho0
        self.rate = 2 * rate / ((1 - MOMENTUM) * reduced_temperature(rho0))
        self.optimizer = self.told(law="constant")
        self.state = self.optimizer.init(self.params)

    def told(self, **settings: Any) -> CoolMomentum:
        """The optimizer with other settings of the cooling."""
        return CoolMomentum(self.rate, rho0=self.rho0, weight_decay=WEIGHT_DECAY, **settings)

    def step(self) -> None:
        """One step."""
        slopes = self.digits.gradients(self.params)
        self.params, self.state = self.optimizer.step(self.params, slopes, self.state)

    def loss(self) -> np.ndarray:
        """Of each seed."""
        return self.digits.loss(self.params)


def cosine(rate: float, seeds: range) -> dict[int, np.ndarray]:
    """A run for each horizon, from the learning rate to 0."""
    losses = {}
    for horizon in HORIZONS:
        run = Sgd(Digits(seeds))
        for n in range(horizon):
            run.step(rate * (1 + math.cos(math.pi * n / horizon)) / 2)
        losses[horizon] = run.loss()
    return losses


def held_sgd(rate: float, seeds: range) -> dict[int, np.ndarray]:
    """One run, and branches of it whose learning rate cools."""
    run, losses = Sgd(Digits(seeds)), {}
    for start, horizon in _branches(lambda: run.step(rate)):
        branch = copy.deepcopy(run)
        for n in range(start, horizon):
            branch.step(rate * learning_rate_share(n, start, horizon))
        losses[horizon] = branch.loss()
    return losses


def held_coolmomentum(rho0: float, rate: float, seeds: range) -> dict[int, np.ndarray]:
    """One run, and branches of it whose rho cools."""
    run, losses = Cool(Digits(seeds), rate, rho0), {}
    for start, horizon in _branches(run.step):
        branch = copy.deepcopy(run)
        branch.optimizer = branch.told(law="linear", hold_steps=start, total_steps=horizon)
        for _ in range(start, horizon):
            branch.step()
        losses[horizon] = branch.loss()
    return losses


def _branches(step: Any) -> Iterator[tuple[int, int]]:
    """Where to branch for each horizon, after the steps of the held run up to there."""
    taken = 0
    for horizon in HORIZONS:
        start = round((1 - FRACTION) * horizon)
        for _ in range(taken, start):
            step()
        taken = start
        yield start, horizon


WAYS: dict[str, Callable[[float, range], dict[int, np.ndarray]]] = {
    "cosine": cosine,
    "SGD": held_sgd,
    "CoolMomentum, 0.9": functools.partial(held_coolmomentum, 0.9),
    "CoolMomentum, 0.99": functools.partial(held_coolmomentum, 0.99),
}

if __name__ == "__main__":
    main()
