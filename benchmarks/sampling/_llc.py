"""The local learning coefficient of a deep linear network whose coefficient is known.

Two matrices of 10 by 10 whose product is to be a projection of rank 5, with whitened inputs and
without noise: the mean loss is half the squared distance of the product. For reduced-rank
regression the coefficient is known (Aoyagi and Watanabe, Neural Networks 18, 924 (2005)). The
estimate is ``n beta <loss>``, in which the walk is held near the solution by a spring, as is usual.
"""

import math
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.sampling._tables import Cell, Measured, Part, Table, mean
from benchmarks.sampling._walks import Bathed, Walk, observed

__all__ = ["THEORY", "measure"]

Array = Any  # a float64 NumPy array
SIZE, RANK = 10, 5
N_BETA, SPRING = 5000.0, 1.0  # inverse temperature of the mean loss; of the spring n beta is 1
CURVATURE = 2.0  # the largest at the solution
RHO, GRADIENTS, BURN_IN, CHAINS = 0.8, 1000, 250, 64


def aoyagi(inputs: int, hidden: int, outputs: int, rank: int) -> float:
    """The coefficient where no two of the sizes, with the rank, exceed the third by more."""
    s = hidden + rank
    even = (inputs + hidden + outputs + rank) % 2 == 0
    return (2 * s * (inputs + outputs) - (inputs - outputs) ** 2 - s**2 + (not even)) / 8


THEORY = aoyagi(SIZE, SIZE, SIZE, RANK)


def solution() -> Array:
    """Both matrices: the projection itself."""
    w = np.zeros((2, SIZE, SIZE))
    w[:, range(RANK), range(RANK)] = 1
    return w


def residual(w: Array) -> Array:
    """Of matrices of shape (..., 2, 10, 10)."""
    one = solution()
    return w[..., 1, :, :] @ w[..., 0, :, :] - one[1] @ one[0]


def estimate(w: Array) -> Array:
    """``n beta`` times the mean loss, of each chain."""
    return N_BETA * np.sum(residual(w) ** 2, axis=(-2, -1)) / 2


def gradient(w: Array) -> Array:
    """Of the mean loss, with the spring."""
    r = residual(w)
    first, second = w[..., 0, :, :], w[..., 1, :, :]
    of_loss = np.stack([second.swapaxes(-1, -2) @ r, r @ first.swapaxes(-1, -2)], axis=-3)
    return of_loss + SPRING / N_BETA * (w - solution())


def measure(walk: Walk, *, quick: bool) -> Part:
    """Estimates from 1,000 gradients of each of 64 chains, and from a long run."""
    chains, gradients, burn_in = (4, 40, 10) if quick else (CHAINS, GRADIENTS, BURN_IN)
    start = np.tile(solution(), (chains, 1, 1, 1))

    def ours(fraction: float, gradients: int, burn_in: int) -> tuple[dict[str, Cell], Array]:
        how = Bathed(4 * fraction / CURVATURE, RHO, 1 / N_BETA, seed=2)
        found, reading = observed(
            walk(gradient, start, how), start, how, estimate, gradients - burn_in, burn_in
        )
        return _row(found) | {"temperature over bath": Measured(reading["bath_ratio"])}, found

    long = 2 if quick else 20
    steps = long * gradients, long * burn_in
    runs: dict[str, tuple[dict[str, Cell], Array]] = {
        f"ours at 2 % of the limit, {long} times as many": ours(0.02, *steps),
        "ours at 5 %": ours(0.05, gradients, burn_in),
        "ours at 15 %": ours(0.15, gradients, burn_in),
    }
    for fraction in (0.05, 0.15):
        found = _mean(_sgld(fraction, start), gradients, burn_in)
        runs[f"SGLD at {100 * fraction:g} %"] = _row(found), found
    rows: dict[str, dict[str, Cell]] = {"theory, n -> infinity": {"estimate": Measured(THEORY)}}
    rows |= {name: row for name, (row, _) in runs.items()}
    note = (
        f"Deep linear network 10-10-10 of rank 5, n beta = {N_BETA:g}, spring {SPRING:g}, rho "
        f"{RHO:g}; {CHAINS} chains, {GRADIENTS} gradients each, the first {BURN_IN} left out. The "
        "spread is the standard deviation of the estimates of single chains."
    )
    values = {name: found for name, (_, found) in runs.items()}
    return Part([Table("Local learning coefficient", rows, (note,))], partial(_draw, values))


def _row(found: Array) -> dict[str, Cell]:
    with np.errstate(all="ignore"):
        return {"estimate": mean(found), "spread": Measured(float(np.std(found, ddof=1)))}


def _sgld(fraction: float, x: Array) -> Iterator[Array]:
    random, h = np.random.default_rng(2), 2 * fraction / CURVATURE
    while True:
        noise = math.sqrt(2 * h / N_BETA) * random.standard_normal(x.shape)
        x = x - h * gradient(x) + noise
        yield x


def _mean(walk: Iterator[Array], gradients: int, burn_in: int) -> Array:
    """Of the estimate over the steps after the burn-in."""
    with np.errstate(all="ignore"):
        steps = list(map(estimate, islice(walk, burn_in, gradients)))
        return np.mean(steps, axis=0)


def _draw(values: dict[str, Array]) -> Figure:
    """Each chain is a tick, and each mean a dot."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    for at, (name, found) in enumerate(values.items()):
        colour = "#004488" if name.startswith("ours") else "#BB5566"
        finite = found[np.isfinite(found)]
        axes.plot(np.clip(finite, 40, 60), np.full(len(finite), at), "|", color=colour, alpha=0.5)
        if len(finite) == len(found):
            axes.plot(min(found.mean(), 60), at, "o", color=colour)
        else:
            axes.text(60, at, f"{len(found) - len(finite)} diverged", ha="right", va="center")
    axes.axvline(THEORY, color="black", lw=0.8, zorder=0)
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.set(xlim=(40, 60.3), xlabel="local learning coefficient (line: theory; 60: and beyond)")
    return figure
