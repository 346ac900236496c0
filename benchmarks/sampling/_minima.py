"""Annealing of a cluster and of two test functions, beside SciPy's global optimizers.

Every method has the same number of gradients; SciPy's get the function's value with each. Ours and
multistart have 400 more, ours for a last descent by L-BFGS. The two numbers of an anneal, its first
temperature and its learning rate, are chosen on 16 starts of their own.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice, product
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import basinhopping, dual_annealing, minimize

from benchmarks.sampling._tables import Cell, Measured, Part, Table
from benchmarks.sampling._walks import Bathed, Walk

__all__ = ["LANDSCAPES", "measure"]

Array = Any  # a float64 NumPy array
RHO, STARTS, TUNING, OTHERS, POLISH = 0.99, 64, 16, 24, 400


class Landscape(NamedTuple):
    """A function to be minimised, over arrays of shape (..., coordinates)."""

    name: str
    value_and_gradient: Callable[[Array], tuple[Array, Array]]
    minimum: float
    bound: float  # starts are uniform in a cube of this half side
    coordinates: int
    budget: int  # gradients
    temperatures: tuple[float, ...]  # the first ones that are tried
    rates: tuple[float, ...]  # learning rates, dt**2
    wall: float = math.inf  # a spring holds the atoms within this distance of the centre


def _cluster(x: Array) -> tuple[Array, Array]:
    """Lennard-Jones; nearer than 0.9 the energy goes on as a straight line.

    Random starts overlap, and no step would be stable at the curvature there. The closest atoms of
    the minima are 1.07 apart.
    """
    atoms = x.reshape(*x.shape[:-1], -1, 3)
    apart = atoms[..., :, None, :] - atoms[..., None, :, :]
    squared = np.sum(apart * apart, axis=-1)
    diagonal = np.arange(atoms.shape[-2])
    squared[..., diagonal, diagonal] = 1e6
    distance = np.sqrt(np.maximum(squared, 1e-12))
    near = np.maximum(distance, 0.9)
    s6 = near**-6
    slope = (24 * s6 - 48 * s6 * s6) / near
    energy = 4 * (s6 * s6 - s6) + slope * (distance - near)
    force = (slope / distance)[..., None] * apart
    return energy.sum(axis=(-2, -1)) / 2, force.sum(axis=-2).reshape(x.shape)


def _rastrigin(x: Array) -> tuple[Array, Array]:
    z = 2 * np.pi * x
    return np.sum(x * x + 10 * (1 - np.cos(z)), axis=-1), 2 * x + 20 * np.pi * np.sin(z)


def _levy(x: Array) -> tuple[Array, Array]:
    w = 1 + (x - 1) / 4
    first, inner, last = w[..., :1], w[..., :-1], w[..., -1:]
    a, b = np.pi * inner + 1, 2 * np.pi * last
    value = np.sin(np.pi * first) ** 2 + (last - 1) ** 2 * (1 + np.sin(b) ** 2)
    value = value[..., 0] + np.sum((inner - 1) ** 2 * (1 + 10 * np.sin(a) ** 2), axis=-1)
    gradient = np.zeros_like(x)
    gradient[..., :1] += np.pi * np.sin(2 * np.pi * first)
    gradient[..., :-1] += 2 * (inner - 1) * (1 + 10 * np.sin(a) ** 2)
    gradient[..., :-1] += (inner - 1) ** 2 * 10 * np.pi * np.sin(2 * a)
    gradient[..., -1:] += 2 * (last - 1) * (1 + np.sin(b) ** 2)
    gradient[..., -1:] += (last - 1) ** 2 * 2 * np.pi * np.sin(2 * b)
    return value, gradient / 4


LANDSCAPES = (
    Landscape(
        "LJ13", _cluster, -44.326801, 1.6, 39, 4000,
        (0.25, 0.35, 0.5), (2.5e-4, 5e-4, 1e-3), 2.5,
    ),
    Landscape(
        "Rastrigin-10", _rastrigin, 0.0, 5.12, 10, 5000,
        (2.5, 5.0, 10.0, 20.0), (2e-4, 1e-3, 4e-3),
    ),
    Landscape("Levy-10", _levy, 0.0, 10.0, 10, 5000, (0.25, 1.0, 4.0), (1e-3, 5e-3, 2e-2)),
)  # fmt: skip


def measure(walk: Walk, *, quick: bool) -> Part:
    """A table for each landscape."""
    starts, tuning, others = (4, 2, 1) if quick else (STARTS, TUNING, OTHERS)
    tables = []
    for land in LANDSCAPES:
        if quick:
            land = land._replace(
                budget=60, temperatures=land.temperatures[:1], rates=land.rates[:1]
            )
        random = np.random.default_rng(6)
        trials = {
            (t, rate): _anneal(walk, land, _starts(land, random, tuning), t, rate, seed=60)
            for t, rate in product(land.temperatures, land.rates)
        }
        score = {key: (np.mean(_found(land, x)), -np.median(x)) for key, x in trials.items()}
        t, rate = max(score, key=lambda key: score[key])
        found = {
            "ours, T linear to 0": _anneal(
                walk, land, _starts(land, random, starts), t, rate, seed=6
            )
        }
        for name, method in METHODS.items():
            values = [method(land, x, seed) for seed, x in enumerate(_starts(land, random, others))]
            found[name] = np.array(values)
        edge = t in (land.temperatures[0], land.temperatures[-1]) or rate in (
            land.rates[0],
            land.rates[-1],
        )
        rows: dict[str, dict[str, Cell]] = {
            name: {
                "starts": Measured(len(values)),
                "found the minimum": _share(_found(land, values)),
                "median": Measured(float(np.median(values))),
                "best": Measured(float(np.min(values))),
            }
            for name, values in found.items()
        }
        note = (
            f"Minimum {land.minimum:g}; {land.budget} gradients each. Ours: rho {RHO:g}, "
            f"T0 = {t:g}, dt² = {rate:g}, chosen among {len(trials)} on {TUNING} starts of their "
            f"own{', at the edge of the grid' if edge else ''}."
        )
        tables.append(Table(f"Minima of {land.name}", rows, (note,)))
    return Part(tables, partial(_draw, tables))


def _starts(land: Landscape, random: Any, number: int) -> Array:
    return random.uniform(-land.bound, land.bound, (number, land.coordinates))


def _found(land: Landscape, values: Array) -> Array:
    return np.asarray(values) < land.minimum + 1e-3


def _share(found: Array) -> Cell:
    """With the standard error of a share."""
    p = float(np.mean(found))
    return Measured(p, math.sqrt(p * (1 - p) / len(found)))


def _anneal(
    walk: Walk, land: Landscape, starts: Array, temperature: float, rate: float, seed: int
) -> Array:
    """The values that each start comes to, polished; the wall holds until the polish."""

    def gradient(x: Array) -> Array:
        force = land.value_and_gradient(x)[1]
        if land.wall < math.inf:
            atoms = x.reshape(len(x), -1, 3)
            far = np.linalg.norm(atoms, axis=-1, keepdims=True)
            force = force + (20 * atoms * np.maximum(1 - land.wall / far, 0)).reshape(x.shape)
        return force

    how = Bathed(rate, RHO, lambda n: max(0.0, temperature * (1 - n / land.budget)), seed=seed)
    with np.errstate(all="ignore"):
        *_, x = islice(walk(gradient, starts, how), land.budget)
    return np.array([_polished(land, row)[0] if np.isfinite(row).all() else np.inf for row in x])


def _polished(land: Landscape, x: Array, calls: int = POLISH) -> tuple[float, int]:
    done = minimize(
        land.value_and_gradient, x, jac=True, method="L-BFGS-B", options={"maxfun": calls}
    )
    return float(done.fun), int(done.nfev)


class _SpentError(Exception):
    """The gradients are used up."""


class _Budget:
    """A landscape that ends with its budget; value and gradient of one place count once."""

    def __init__(self, land: Landscape) -> None:
        self.land, self.left, self.lowest = land, land.budget, math.inf
        self.at: Array = None

    def both(self, x: Array) -> tuple[float, Array]:
        if self.at is None or not np.array_equal(x, self.at):
            if not self.left:
                raise _SpentError
            self.left -= 1
            value, self.gradient = self.land.value_and_gradient(x)
            self.at, self.value = np.array(x), float(value)
            self.lowest = min(self.lowest, self.value)
        return self.value, self.gradient

    def spent(self, method: Callable[..., object], *given: Any, **settings: Any) -> float:
        """The lowest value that a method has had when it had to stop."""
        with suppress(_SpentError):
            method(*given, **settings)
        return self.lowest


def _basinhopping(land: Landscape, x: Array, seed: int) -> float:
    budget = _Budget(land)
    options = {"method": "L-BFGS-B", "jac": True}
    settings = {"niter": 10**6, "minimizer_kwargs": options, "rng": seed}
    return budget.spent(basinhopping, budget.both, x, **settings)


def _dual_annealing(land: Landscape, x: Array, seed: int) -> float:
    budget, bounds = _Budget(land), [(-land.bound, land.bound)] * land.coordinates
    options = {"method": "L-BFGS-B", "jac": lambda x: budget.both(x)[1], "bounds": bounds}
    settings = {"x0": x, "maxiter": 10**6, "maxfun": 10**7, "minimizer_kwargs": options}
    return budget.spent(dual_annealing, lambda x: budget.both(x)[0], bounds, rng=seed, **settings)


def _multistart(land: Landscape, x: Array, seed: int) -> float:
    """L-BFGS from one random start after another, until the budget is spent."""
    random, left, lowest = np.random.default_rng(600 + seed), land.budget + POLISH, math.inf
    while left > 0:
        value, used = _polished(land, x, min(left, 15000))
        lowest, left = min(lowest, value), left - used
        x = _starts(land, random, 1)[0]
    return lowest


METHODS = {
    "scipy dual_annealing": _dual_annealing,
    "scipy basinhopping": _basinhopping,
    "multistart L-BFGS": _multistart,
}


def _draw(tables: list[Table]) -> Figure:
    """The share of starts that found the minimum, with its standard error."""
    figure = Figure(figsize=(9, 2.4), layout="constrained")
    for axes, table in zip(figure.subplots(1, len(tables), sharey=True), tables, strict=True):
        for at, (name, row) in enumerate(table.rows.items()):
            cell = row["found the minimum"]
            if isinstance(cell, Measured):
                colour = "#004488" if name.startswith("ours") else "#BB5566"
                axes.barh(at, cell.value, xerr=cell.error, color=colour, height=0.6, capsize=3)
        axes.set_yticks(range(len(table.rows)), list(table.rows))
        axes.set(title=table.title.removeprefix("Minima of "), xlim=(0, 1.05))
        axes.set_xlabel("share that found it")
    figure.axes[0].invert_yaxis()
    return figure
