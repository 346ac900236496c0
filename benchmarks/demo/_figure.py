"""The figure: training loss, test accuracy and rescaled temperature, like Fig. 1 of the paper."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

__all__ = ["save_figure"]

# Tol's high-contrast set: told apart with any colour vision, and in grey.
COLOURS = {"CoolMomentum": "#BB5566", "SGD": "#004488", "Adam": "#DDAA33"}
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
}


def save_figure(runs: pd.DataFrame, paths: list[Path]) -> None:
    """Draw the runs of the report phase, a row of three panels a framework, into each file."""
    reported = runs[runs.phase == "report"]
    frameworks = list(reported.framework.unique())
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 3.8 * len(frameworks) + 0.4), layout="constrained")
        rows = figure.subfigures(len(frameworks), 1, squeeze=False)[:, 0]
        for framework, row in zip(frameworks, rows, strict=True):
            own = reported[reported.framework == framework]
            row.suptitle(f"{framework}: mean and range of {own.seed.nunique()} seeds")
            panels = row.subplots(1, 3)
            _draw(own, *panels)
        figure.legend(*panels[2].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        for path in paths:
            figure.savefig(path, dpi=200)


def _draw(runs: pd.DataFrame, loss: Axes, accuracy: Axes, temperature: Axes) -> None:
    for optimizer, own in runs.groupby("optimizer", sort=False):
        style = {"color": COLOURS[str(optimizer)], "label": str(optimizer)}
        _line(loss, own, "training_loss", style)
        _line(accuracy, own, "test_accuracy", style)
        _line(temperature, own, "temperature", style)
    predicted = runs[runs.optimizer == "CoolMomentum"].groupby("epoch").predicted_temperature
    curve = predicted.mean().dropna()
    label = "CoolMomentum, predicted by Eq. 19 from measured gradient noise"
    temperature.plot(curve.index, curve, color="black", lw=1.2, ls=(0, (3, 2)), label=label)

    loss.set(title="(a) Training loss", yscale="log", ylabel="cross-entropy (nats per image)")
    accuracy.set(title="(b) Test accuracy", ylabel="test images classified right")
    settled = runs[runs.epoch >= runs.epoch.max() / 20].test_accuracy
    accuracy.set_ylim(settled.min() - 0.01, min(settled.max() + 0.01, 1))
    accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    temperature.set(title="(c) Rescaled temperature", yscale="log")
    temperature.set_ylabel(r"$T\,\Delta t^2$ (squared change per step)")
    for panel in (loss, accuracy, temperature):
        panel.set(xlabel="epoch", xlim=(0, runs.epoch.max()))


def _line(axes: Axes, runs: pd.DataFrame, column: str, style: dict[str, Any]) -> None:
    """The mean of the seeds, and a band from the lowest to the highest of them."""
    curve = runs.groupby("epoch")[column].agg(["mean", "min", "max"]).dropna()
    axes.plot(curve.index, curve["mean"], **style)
    axes.fill_between(
        curve.index, curve["min"], curve["max"], color=style["color"], alpha=0.15, lw=0
    )
