"""The figures: the paper's Fig. 1 for each framework, what tuning saw, and times."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from benchmarks.training._tables import best_of_k, half_width, last_records, sensitivity

__all__ = ["figures"]

# Tol's bright and muted sets: told apart with any colour vision. CoolMomentum is always the first.
COLOURS = [
    *("#BB5566", "#004488", "#DDAA33", "#228833", "#AA3377", "#66CCEE", "#BBBBBB", "#332288"),
    *("#999933", "#882255", "#44AA99", "#77AADD", "#117733", "#000000", "#EE8866"),
]
RULES = 6  # at most so many on one axis: more lines cannot be told apart
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "grid.color": "0.9",
    "legend.frameon": False,
    "svg.fonttype": "none",  # letters remain letters
    "svg.hashsalt": "coolmomentum",  # the same numbers give the same file
}


def figures(runs: pd.DataFrame) -> Iterator[tuple[str, str, Figure]]:
    """All figures that the runs allow: name of the file, heading, figure."""
    rules = list(dict.fromkeys(["coolmomentum", *runs.rule]))
    colours = dict(zip(rules, COLOURS, strict=False))
    reported, tuning = (runs[runs.phase == phase] for phase in ("report", "tuning"))
    with rc_context(STYLE):
        for framework, own in reported.groupby("framework", sort=False):
            heading = f"Training in {framework}"
            yield f"training-{framework}", heading, _training(heading, own, colours)
            if own.penalty.any():  # and so normalisation, whose statistics move as well
                heading = f"Training in {framework}, logged as by the scripts of the paper"
                yield f"as-in-paper-{framework}", heading, _as_in_paper(heading, own, colours)
        yield "accuracy", "Test accuracy after the last epoch", _accuracy(reported, colours)
        if len(tuning):
            yield "tuning", "What the tuning saw", _tuning(tuning, colours)
        if reported.seconds.notna().any():
            yield "seconds", "Time of an epoch", _seconds(reported)


def _as_in_paper(heading: str, runs: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """To be laid beside Fig. 1, which puts unlike losses side by side, as far as its scripts tell.

    CoolMomentum: the training loss in inference mode, with the penalty. The others: the running
    loss. The temperature counts the moving statistics of batch normalisation.
    """
    cools = runs.rule.str.startswith("coolmomentum")
    logged = runs.assign(
        training_loss=(runs.training_loss + runs.penalty).where(cools, runs.running_loss),
        temperature=runs.temperature_with_statistics,
    )
    figure = _training(heading, logged, colours)
    for loss in figure.axes[::3]:
        loss.set(ylabel="cross-entropy and penalty (nats per image)")
    figure.axes[0].set(title="(a) Unlike losses")
    figure.axes[2].set(title="(c) With moving statistics")
    return figure


def _rows(rules: Iterable[Any]) -> list[list[str]]:
    """The rules of each row of panels: coolmomentum, if it is there, and a few others."""
    names = list(dict.fromkeys(map(str, rules)))
    first = [name for name in names if name == "coolmomentum"]
    others = [name for name in names if name not in first]
    size = RULES - len(first)
    starts = range(0, max(len(others), 1), size)
    return [first + others[start : start + size] for start in starts]


def _training(heading: str, runs: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Like Fig. 1: training loss, test accuracy, temperature."""
    rows = _rows(runs.rule)
    figure = Figure(figsize=(13, 0.6 + 3.7 * len(rows)), layout="constrained")
    bands = len(rows) == 1  # more would hide each other
    seeds = runs.groupby("rule").seed.nunique()
    many = f"{'' if seeds.nunique() == 1 else 'up to '}{seeds.max()} seeds"
    shown = f"{'mean and range' if bands else 'mean'} of {many}" if seeds.max() > 1 else "one seed"
    figure.suptitle(f"{heading}: {shown}")
    panels = figure.subplots(len(rows), 3, sharey="col", squeeze=False)
    for rules, row in zip(rows, panels, strict=True):
        _training_row(runs, rules, row, colours, bands=bands)
    loss, accuracy, temperature = panels[0]
    loss.set(title="(a) Training loss", yscale="log")
    accuracy.set(title="(b) Test accuracy")
    temperature.set(title="(c) Rescaled temperature", yscale="log")
    settled = runs[runs.epoch >= runs.epoch.max() / 20].accuracy
    low = max(settled.quantile(0.02) - 0.01, 0)
    accuracy.set_ylim(low, min(settled.max() + 0.01, 1))
    accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    for panel in panels[-1]:
        panel.set(xlabel="epoch")
    return figure


def _training_row(
    runs: pd.DataFrame,
    rules: list[str],
    row: Iterable[Axes],
    colours: dict[str, str],
    *,
    bands: bool,
) -> None:
    """Loss, accuracy and temperature of some rules, and their legend."""
    loss, accuracy, temperature = row
    for rule in rules:
        own = runs[runs.rule == rule]
        style = {"color": colours[rule], "label": rule}
        _line(loss, own, "training_loss", style, bands=bands)
        _line(accuracy, own, "accuracy", style, bands=bands)
        _line(temperature, own, "temperature", style, bands=bands)
    predicted = runs[runs.rule == "coolmomentum"].groupby("epoch").predicted_temperature
    curve = predicted.mean().dropna()
    if len(curve):
        label = "coolmomentum, by Eq. 19\nfrom measured noise"
        temperature.plot(curve.index, curve, color="black", lw=1.2, ls=(0, (3, 2)), label=label)
    loss.set(ylabel="cross-entropy (nats per image)")
    accuracy.set(ylabel="test images classified right")
    temperature.set_ylabel(r"$T\,\Delta t^2$ (squared change per step)")
    for panel in (loss, accuracy, temperature):
        panel.set(xlim=(0, runs.epoch.max()))
    temperature.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02))


def _line(
    axes: Axes, runs: pd.DataFrame, column: str, style: dict[str, Any], *, bands: bool
) -> None:
    """The mean of the seeds, and perhaps a band from the lowest to the highest of them."""
    curve = runs.groupby("epoch")[column].agg(["mean", "min", "max"]).dropna()
    axes.plot(curve.index, curve["mean"], **style)
    if bands:
        axes.fill_between(
            curve.index, curve["min"], curve["max"], color=style["color"], alpha=0.15, lw=0
        )


def _accuracy(runs: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Test accuracy after the last epoch: mean, 95 % t-interval, and every seed."""
    last = last_records(runs)
    groups = list(last.groupby(["rule", "framework"], sort=False))
    parts = [groups[start : start + RULES] for start in range(0, len(groups), RULES)]
    figure = Figure(figsize=(9, 1.2 + 0.3 * len(groups) + 0.2 * len(parts)), layout="constrained")
    heights = [len(part) for part in parts]
    panels = figure.subplots(len(parts), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, part in zip(panels, parts, strict=True):
        for at, ((rule, _), own) in enumerate(part):
            colour = colours[rule]
            axes.plot(own.accuracy, np.full(len(own), -at), "|", color=colour, alpha=0.5)
            error = half_width(own.accuracy)
            axes.errorbar(own.accuracy.mean(), -at, xerr=error, fmt="o", color=colour, capsize=3)
        names = [f"{rule}, {framework}" for (rule, framework), _ in part]
        axes.set_yticks([-at for at in range(len(part))], names)
        axes.set_ylim(0.6 - len(part), 0.6)
    axes.set(xlabel="test images classified right: mean, 95 % interval, every seed")
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=1))
    return figure


def _tuning(tuning: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """How accuracy depends on the learning rate, and on how much was tried."""
    cells = sensitivity(tuning)
    rows = _rows(cells.rule)
    figure = Figure(figsize=(12, 0.4 + 4 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 2, sharex="col", sharey="col", squeeze=False)
    lowest = top = cells.accuracy.max()
    for rules, (by_rate, by_budget) in zip(rows, panels, strict=True):
        for rule in rules:
            own, colour = cells[cells.rule == rule], colours[rule]
            seconds = own.groupby(["momentum", "weight_decay"])
            for style, (_, line) in zip(("-", "--", ":"), seconds, strict=False):
                # The first of the two numbers is drawn solid.
                line = line.sort_values("lr")
                by_rate.plot(line.lr, line.accuracy, style, marker=".", color=colour)
            best = best_of_k(list(own.accuracy))
            lowest = min(lowest, best[-1])
            by_budget.plot(range(1, len(best) + 1), best, marker=".", color=colour, label=rule)
        by_rate.set(ylabel="validation accuracy (mean over tuning seeds)")
        by_budget.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02))
    by_rate, by_budget = panels[0]
    second = cells.groupby("rule")[["momentum", "weight_decay"]].nunique().max(axis=None) > 1
    dashed = "; dashed: the higher second number" if second else ""
    by_rate.set(xscale="log", title=f"(a) Each cell{dashed}")
    by_budget.set(title="(b) Expected best of so many cells")
    by_budget.set_ylim(max(0, min(top - 0.15, lowest - 0.05)), top + 0.01)
    by_budget.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels[0]:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    for axes, label in zip(panels[-1], ("learning rate", "cells tried"), strict=True):
        axes.set(xlabel=label)
    return figure


def _seconds(runs: pd.DataFrame) -> Figure:
    """Median time of an epoch of CoolMomentum, or of what there is, in each framework."""
    own = runs[runs.rule == runs.rule.iloc[0]]
    times = own.groupby("framework", sort=False).seconds.median().dropna()[::-1]
    figure = Figure(figsize=(7, 1.2 + 0.35 * max(len(times), 1)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(times)), times, color="#004488", height=0.6)
    axes.set_yticks(range(len(times)), list(times.index))
    axes.set(xlabel=f"seconds for the steps of an epoch ({own.rule.iloc[0]}; median)")
    return figure
