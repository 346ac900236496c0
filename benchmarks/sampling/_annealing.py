"""A bath that cools linearly: how far a quadratic lags behind it."""

from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.sampling._tables import Cell, Measured, Part, Table
from benchmarks.sampling._walks import Bathed, Walk
from coolmomentum import random_force_scale

__all__ = ["exact", "measure"]

Array = Any  # a float64 NumPy array
STEPS, RHO, STIFFNESS, COORDINATES = 2000, 0.9, 1.0, 200_000  # stiffness: k dt**2
AT = (100, 500, 1000, 1500, 1800, 1900)  # steps


def bath(step: int) -> float:
    """Its temperature, linear from 1 to 0."""
    return max(0.0, 1 - step / STEPS)


def exact() -> Array:
    """``k <x**2>`` after each step, by the recursion of the moments of (x, dx, xi)."""
    second, eta, found = np.diag([1.0, 0.0, 0.0]), (1 + RHO) / 2, []
    for n in range(STEPS):
        kick = eta * float(random_force_scale(bath(n), 1.0, RHO)) / 2
        step = np.array(
            [[1 - eta * STIFFNESS, RHO, kick], [-eta * STIFFNESS, RHO, kick], [0, 0, 0]]
        )
        fresh = np.array([kick, kick, 1.0])
        second = step @ second @ step.T + np.outer(fresh, fresh)
        found.append(STIFFNESS * second[0, 0])
    return np.array(found)


def measure(walk: Walk, *, quick: bool) -> Part:
    """Walk and recursion, beside the bath, from equilibrium at rest."""
    coordinates = 100 if quick else COORDINATES
    start = np.random.default_rng(4).standard_normal(coordinates)
    how = Bathed(1.0, RHO, bath, seed=4)
    squares = np.array(
        [
            [np.mean(x * x), np.std(x * x) / np.sqrt(coordinates)]
            for x in islice(walk(lambda x: STIFFNESS * x, start, how), STEPS)
        ]
    )
    of_recursion = exact()
    rows: dict[str, dict[str, Cell]] = {}
    for n in AT:
        value, error = squares[n - 1] / bath(n)
        rows[f"step {n}"] = {
            "T of the bath": Measured(bath(n)),
            "k <x²> / T": Measured(float(value), float(error)),
            "exactly": Measured(float(of_recursion[n - 1] / bath(n))),
        }
    note = (
        f"T linear from 1 to 0 over {STEPS} steps, rho {RHO:g}, k dt² = {STIFFNESS:g}; "
        f"{COORDINATES} coordinates. The lag is about 1 / (1 - rho) steps of the bath."
    )
    return Part([Table("Annealing", rows, (note,))], partial(_draw, squares[:, 0], of_recursion))


def _draw(measured: Array, of_recursion: Array) -> Figure:
    """Both over the temperature of the bath."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    steps = np.arange(1, STEPS)
    temperatures = np.array([bath(int(n)) for n in steps])
    axes.plot(steps, measured[:-1] / temperatures, color="#88AACC", lw=0.8, label="measured")
    axes.plot(steps, of_recursion[:-1] / temperatures, color="#004488", label="exactly")
    axes.axhline(1, color="black", lw=0.8)
    axes.set(ylim=(0.98, 1.2), xlabel="step", ylabel="k <x²> / T of the bath")
    axes.legend(frameon=False)
    return figure
