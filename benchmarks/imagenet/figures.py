"""The figures: Fig. 2 of the paper, the thermometer, and a scan in the shape of its Table 3.

The authors' curves were digitised from their Fig. 2, to .003, the first point of CoolMomentum by
eye; each is of one run. They did not publish Table 3's values.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.imagenet.recipe import AUTHORS_STEPS
from benchmarks.training._figures import STYLE

__all__ = ["REFERENCE", "figures"]

STEPS = (6_255, 12_510, 25_020, 50_040, 100_080, 150_120, 200_160, AUTHORS_STEPS)
REFERENCE = {  # top-1 at these steps, and top-5 at the last
    "coolmomentum": ((0.503, 0.640, 0.687, 0.719, 0.751, 0.765, 0.768, 0.7695), 0.932),
    "rmsprop": ((0.648, 0.686, 0.711, 0.736, 0.757, 0.770, 0.771, 0.772), 0.934),
}
# The paper's colours in Tol's set, and lighter ones for a second run of a rule.
COLOURS = {"coolmomentum": ("#004488", "#66CCEE"), "rmsprop": ("#EE7733", "#DDAA33")}
NAMES = {"coolmomentum": "CoolMomentum", "rmsprop": "RMSProp"}
GREY = {"coolmomentum": "0.45", "rmsprop": "0.7"}


def figures(
    records: pd.DataFrame, kind: str, *, reference: bool
) -> Iterator[tuple[str, str, Figure]]:
    """All figures that the records allow: name of the file, heading, figure."""
    with rc_context(STYLE):
        if kind == "scan":
            if len(records):
                yield "scan", "Accuracy after the last step, by learning rate", _scan(records)
            return
        if len(records) or reference:
            yield "figure-2", "Accuracy of the averaged weights", _figure_2(records, reference)
        if len(records):
            yield "thermometer", "Temperature and loss of each step", _thermometer(records)


def _figure_2(records: pd.DataFrame, reference: bool) -> Figure:
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.subplots()
    if reference:
        _reference(axes)
        axes.set(xlim=(0, AUTHORS_STEPS), ylim=(0.48, 0.96))
    for label, colour, own in _runs(records):
        axes.plot(own.step, own.top1, color=colour, marker=".", label=f"{label}: top-1")
        axes.plot(own.step, own.top5, color=colour, ls="--", marker=".", label=f"{label}: top-5")
    on = {"train": "training", "validation": "validation"}
    where = on[records.evaluated_on.iloc[0]] if len(records) else "validation"
    axes.set(xlabel="step", ylabel=f"share of the {where} images classified right")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if len(records) and not reference:
        axes.set(xlim=(0, records.total_steps.max()), ylim=(0, min(1.1 * records.top5.max(), 1.02)))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _reference(axes: Axes) -> None:
    """The authors' curves, in grey: RMSProp's is above CoolMomentum's throughout."""
    for rule, (top1, top5) in REFERENCE.items():
        label = f"{NAMES[rule]}, authors, digitised"
        axes.plot(STEPS, top1, color=GREY[rule], marker=".", label=f"{label}: top-1")
        end: dict[str, Any] = {"color": GREY[rule], "marker": "x", "ls": "", "clip_on": False}
        axes.plot(STEPS[-1:], [top5], label=f"{label}: top-5, the end only", **end)


def _thermometer(records: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    rho, temperature, loss = figure.subplots(1, 3)
    for label, colour, own in _runs(records):
        rho.plot(own.step, own.rho, color=colour, label=label)
        temperature.plot(own.step, own.rescaled_temperature, color=colour)
        loss.plot(own.step, own.running_loss, color=colour)
    rho.set(title=r"(a) $\rho$, or RMSProp's momentum", ylim=(-0.02, 1.02))
    temperature.set(title="(b) Rescaled temperature", yscale="log")
    temperature.set_ylabel(r"$T\,\Delta t^2$ (squared change per step)")
    loss.set(title="(c) Running loss with penalty", ylabel="nats per image")
    if records.running_loss.max() > 10 * records.running_loss.median():
        loss.set(yscale="log")
    for panel in (rho, temperature, loss):
        panel.set(xlabel="step", xlim=(0, records.total_steps.max()))
        panel.xaxis.set_major_formatter("{x:,.0f}")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _scan(records: pd.DataFrame) -> Figure:
    """Diverged runs stay in, as crosses at whatever they ended with."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    last = records.groupby(["rule", "lr"], as_index=False).last()
    for rule, own in last.groupby("rule"):
        colour, label = COLOURS[str(rule)][0], NAMES[str(rule)]
        axes.plot(own.lr, own.top1, color=colour, marker="o", label=f"{label}: top-1")
        axes.plot(
            own.lr,
            own.top5,
            color=colour,
            ls="--",
            marker="o",
            mfc="white",
            label=f"{label}: top-5",
        )
        if len(ended := own[own.diverged]):
            cross: dict[str, Any] = {"color": colour, "marker": "X", "ms": 11, "ls": ""}
            axes.plot(ended.lr, ended.top1, label=f"{label}: diverged", clip_on=False, **cross)
    where = "training" if records.evaluated_on.iloc[0] == "train" else "validation"
    axes.set(xscale="log", xlabel="learning rate", ylim=(-0.02, 1.02))
    axes.set_ylabel(f"share of the {where} images classified right")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _runs(records: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Label, colour and records of each run, CoolMomentum first."""
    for rule in COLOURS:
        its = records[records.rule == rule] if len(records) else records
        groups = its.groupby(["lr", "rho0"], dropna=False, sort=False) if len(its) else []
        for number, ((lr, rho0), own) in enumerate(groups):
            rho = "" if pd.isna(rho0) else rf", $\rho_0$ {rho0:g}"
            yield f"{NAMES[rule]}, lr {lr:g}{rho}", COLOURS[rule][number % 2], own
