"""The figures: the paper's Fig. 1 for each framework, what tuning saw, and times."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.training._tables import best_of_k, half_width, last_records, sensitivity

__all__ = ["figures"]

# Tol's bright and muted sets: told apart with any colour vision. CoolMomentum is always the first.
COLOURS = [
    *("#BB5566", "#004488", "#DDAA33", "#228833", "#AA3377", "#66CCEE", "#BBBBBB", "#332288"),
    *("#999933", "#882255", "#44AA99", "#77AADD", "#117733", "#000000", "#EE8866"),
]
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
    loss, _, temperature = figure.axes
    loss.set(title="(a) Unlike losses", ylabel="cross-entropy and penalty (nats per image)")
    temperature.set(title="(c) With moving statistics")
    return figure


def _training(heading: str, runs: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Like Fig. 1: training loss, test accuracy, temperature."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    bands = runs.rule.nunique() <= 5  # more would hide each other
    seeds = runs.seed.nunique()
    shown = f"{'mean and range' if bands else 'mean'} of {seeds} seeds" if seeds > 1 else "one seed"
    figure.suptitle(f"{heading}: {shown}")
    loss, accuracy, temperature = figure.subplots(1, 3)
    for rule, own in runs.groupby("rule", sort=False):
        style = {"color": colours[str(rule)], "label": str(rule)}
        _line(loss, own, "training_loss", style, bands=bands)
        _line(accuracy, own, "accuracy", style, bands=bands)
        _line(temperature, own, "temperature", style, bands=bands)
    predicted = runs[runs.rule == "coolmomentum"].groupby("epoch").predicted_temperature
    curve = predicted.mean().dropna()
    if len(curve):
        label = "coolmomentum, by Eq. 19 from measured noise"
        temperature.plot(curve.index, curve, color="black", lw=1.2, ls=(0, (3, 2)), label=label)
    loss.set(title="(a) Training loss", yscale="log", ylabel="cross-entropy (nats per image)")
    accuracy.set(title="(b) Test accuracy", ylabel="test images classified right")
    settled = runs[runs.epoch >= runs.epoch.max() / 20].accuracy
    low = max(settled.quantile(0.02) - 0.01, 0)
    accuracy.set_ylim(low, min(settled.max() + 0.01, 1))
    accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    temperature.set(title="(c) Rescaled temperature", yscale="log")
    temperature.set_ylabel(r"$T\,\Delta t^2$ (squared change per step)")
    for panel in (loss, accuracy, temperature):
        panel.set(xlabel="epoch", xlim=(0, runs.epoch.max()))
    handles, labels = temperature.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


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
    groups = list(last.groupby(["rule", "framework"], sort=False))[::-1]
    figure = Figure(figsize=(9, 1.2 + 0.3 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for at, ((rule, _), own) in enumerate(groups):
        colour = colours[rule]
        axes.plot(own.accuracy, np.full(len(own), at), "|", color=colour, alpha=0.5)
        error = half_width(own.accuracy)
        axes.errorbar(own.accuracy.mean(), at, xerr=error, fmt="o", color=colour, capsize=3)
    axes.set_yticks(range(len(groups)), [f"{rule}, {framework}" for (rule, framework), _ in groups])
    axes.set(xlabel="test images classified right: mean, 95 % interval, every seed")
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=1))
    return figure


def _tuning(tuning: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """How accuracy depends on the learning rate, and on how much was tried."""
    cells = sensitivity(tuning)
    figure = Figure(figsize=(11, 5), layout="constrained")
    by_rate, by_budget = figure.subplots(1, 2)
    for rule, own in cells.groupby("rule", sort=False):
        colour = colours[str(rule)]
        seconds = own.groupby(["momentum", "weight_decay"])
        for style, (_, line) in zip(("-", "--", ":"), seconds, strict=False):
            # The first of the two numbers is drawn solid.
            line = line.sort_values("lr")
            by_rate.plot(line.lr, line.accuracy, style, marker=".", color=colour)
        best = best_of_k(list(own.accuracy))
        by_budget.plot(range(1, len(best) + 1), best, marker=".", color=colour, label=rule)
    by_rate.set(
        xscale="log",
        xlabel="learning rate",
        ylabel="validation accuracy (mean over tuning seeds)",
        title="(a) Each cell; dashed: the higher second number",
    )
    by_budget.set(xlabel="cells tried", title="(b) Expected best of so many cells")
    top = cells.accuracy.max()
    by_budget.set_ylim(max(0, top - 0.15), top + 0.01)
    for axes in (by_rate, by_budget):
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    figure.legend(*by_budget.get_legend_handles_labels(), loc="outside lower center", ncols=5)
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
