"""The audit of samplers at a quarter and at a fortieth of the largest stable step."""

import math
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from benchmarks.sampling._others import FRICTION, PACKAGES, Contender, contenders, installed
from benchmarks.sampling._tables import Cell, Measured, Part, Table
from benchmarks.sampling._walks import Walk
from coolmomentum.audit import PROBLEMS, audit

__all__ = ["measure"]

FRACTIONS = {"1/4": 0.25, "1/40": 0.025}
COLUMNS = {
    "modes k = 1, 10, 100": ("k = 1", "k = 10", "k = 100"),
    "double well": ("double well",),
    "posterior": ("slope", "offset"),
}
STEPS, BURN_IN, REPLICAS = 1500, 500, 1000


def measure(walk: Walk, *, quick: bool) -> Part:
    """A table for each step size."""
    versions = ", ".join(f"{name} {installed(name) or 'not installed'}" for name in PACKAGES)
    tables = []
    for title, fraction in FRACTIONS.items():
        rows = {
            contender.name: _row(contender, fraction, quick=quick) for contender in contenders(walk)
        }
        note = (
            f"`<x dU/dx> / T`, which is 1 where the sampler samples. T = 1, {REPLICAS} replicas, "
            f"{STEPS} gradients after {BURN_IN}, friction {FRICTION:g} where there is momentum; "
            "NaN or infinite: it has diverged. The largest stable dt² is 4 / curvature, and half "
            f"of that is the largest step of overdamped samplers. {versions}."
        )
        tables.append(Table(f"Audit at {title} of the largest stable step", rows, (note,)))
    return Part(tables, partial(_draw, tables))


def _row(contender: Contender, fraction: float, *, quick: bool) -> dict[str, Cell]:
    if contender.package and not installed(contender.package):
        return {"k = 1": "not installed"}
    steps, burn_in, replicas = (100, 50, 20) if quick else (STEPS, BURN_IN, REPLICAS)
    dynamics = contender.dynamics
    told = (lambda problem: dynamics(problem, fraction)) if dynamics else None
    with np.errstate(all="ignore"):
        found = audit(
            contender.make(fraction),
            steps=steps // contender.gradients,
            burn_in=burn_in // contender.gradients,
            replicas=replicas,
            dynamics=told,
        )
    row: dict[str, Cell] = {}
    for problem in PROBLEMS:
        outcome = found[problem]
        for column, ratio, error in zip(
            COLUMNS[problem], outcome.ratio, outcome.error, strict=True
        ):
            row[column] = Measured(float(ratio), float(error))
    if told:
        reading = found["modes k = 1, 10, 100"].reading["bath_ratio"]
        row["thermometer (modes)"] = Measured(reading)
    return row


def _draw(tables: list[Table]) -> Figure:
    """The ratios of the modes, on a scale that ends where nothing is right any more."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    low, high = 0.01, 100.0
    for axes, table in zip(figure.subplots(1, 2, sharey=True), tables, strict=True):
        for at, (name, row) in enumerate(table.rows.items()):
            for column, marker in zip(COLUMNS["modes k = 1, 10, 100"], "osD", strict=True):
                cell = row.get(column)
                if not isinstance(cell, Measured):
                    continue
                value = cell.value if math.isfinite(cell.value) else high
                colour = "#004488" if name.startswith("ours") else "#BB5566"
                inside = low < value < high
                axes.plot(
                    min(max(value, low), high),
                    at,
                    marker if inside else ">",
                    color=colour,
                    fillstyle="none",
                    label=column if at == 0 else None,
                )
        axes.axvline(1, color="black", lw=0.8, zorder=0)
        axes.set(xscale="log", xlim=(low, high * 1.3), title=table.title.removeprefix("Audit "))
        axes.set_xlabel("k <x²> / T (arrow: beyond, or not finite)")
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    names = list(tables[0].rows)
    figure.axes[0].set_yticks(range(len(names)), names)
    figure.axes[0].invert_yaxis()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
