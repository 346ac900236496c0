"""The double well ``(x**2 - 1)**2``, where no step is exact, against quadrature."""

import math
from functools import partial
from typing import Any, get_args

import numpy as np
from matplotlib.figure import Figure

from benchmarks.sampling._tables import Cell, Measured, Part, Table, mean
from benchmarks.sampling._walks import Bathed, Walk, observed
from coolmomentum import rho_from_friction
from coolmomentum.thermal import Noise

__all__ = ["exact", "measure"]

Array = Any  # a float64 NumPy array
TEMPERATURE, FRICTION = 0.4, 1.0
STEPS = (0.1, 0.2, 0.3, 0.4)  # dt
WALKERS, TIME, BURN_IN = 4000, 1500.0, 30.0  # times in the unit of dt


def measure(walk: Walk, *, quick: bool) -> Part:
    """A row for each noise and time step."""
    walkers, time, burn_in = (50, 10.0, 3.0) if quick else (WALKERS, TIME, BURN_IN)
    start = np.random.default_rng(3).choice([-1.0, 1.0], walkers)
    virial, energy = exact()
    rows: dict[str, dict[str, Cell]] = {
        "exact": {"<x U'>": Measured(virial), "<U>": Measured(energy)}
    }
    for noise in get_args(Noise):
        for dt in STEPS:
            rho = float(rho_from_friction(FRICTION, dt))
            how = Bathed(dt**2, rho, TEMPERATURE, noise, seed=3)
            found, reading = observed(
                walk(_gradient, start, how),
                start,
                how,
                _both,
                round(time / dt),
                round(burn_in / dt),
            )
            rows[f"{noise}, dt = {dt:g}"] = {
                "<x U'>": mean(found[0]),
                "<U>": mean(found[1]),
                "thermometer": Measured(reading["temperature"]),
            }
    note = (
        f"U = (x² - 1)², T = {TEMPERATURE:g}, friction {FRICTION:g}; {WALKERS} walkers for a time "
        f"of {TIME:g}. NaN: a walker has diverged."
    )
    table = Table("Double well", rows, (note,))
    return Part([table], partial(_draw, table))


def exact() -> tuple[float, float]:
    """Mean virial and mean energy, by quadrature."""
    x = np.linspace(-4, 4, 100_001)
    u = (x * x - 1) ** 2
    weight = np.exp(-u / TEMPERATURE)
    weight = weight / weight.sum()
    return float(np.sum(weight * x * _gradient(x))), float(np.sum(weight * u))


def _gradient(x: Array) -> Array:
    return 4 * x * (x * x - 1)


def _both(x: Array) -> Array:
    return np.stack([x * _gradient(x), (x * x - 1) ** 2])


def _draw(table: Table) -> Figure:
    """The virial against the time step."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    for noise, colour in zip(get_args(Noise), ("#004488", "#BB5566"), strict=True):
        cells = [table.rows[f"{noise}, dt = {dt:g}"]["<x U'>"] for dt in STEPS]
        values = [x.value if isinstance(x, Measured) else math.nan for x in cells]
        axes.plot(STEPS, values, "o-", color=colour, label=f"{noise} noise")
    axes.axhline(TEMPERATURE, color="black", lw=0.8)
    axes.set(xlabel="dt (0.4: every walk has diverged)", ylabel="<x U'>", xlim=(0, 0.42))
    axes.legend(frameon=False)
    return figure
