"""The tables of what was measured, and the figure of the page."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from scipy.stats import binomtest

from benchmarks.gradient_noise._exact import Exact
from benchmarks.gradient_noise._networks import NETWORKS
from benchmarks.gradient_noise._runs import WINDOW, in_torch

FIGURE = Path(__file__).parents[2] / "docs" / "critical_batch_size.png"
RUN = 10  # windows of half the length in the figure


def table(rows: list[dict[str, Any]]) -> Table:
    """Ratios to the exact value, coverages, and the root mean square of deviation over error."""
    compares = "cover", "deviation / error"
    made = Table(
        *("framework", "network", "optimizer", "exact / batch"),
        *("read / exact", *compares, "two batches / exact", *compares),
    )
    keys = dict.fromkeys((row["framework"], row["network"], row["optimizer"]) for row in rows)
    for key in keys:
        chosen = [r for r in rows if (r["framework"], r["network"], r["optimizer"]) == key]
        exact, batch = (np.array([r[name] for r in chosen]) for name in ("exact", "batch"))
        cells = [f"{np.exp(np.mean(np.log(exact / batch))):.2f}"]
        for name, error in (("read", "error"), ("two", "two_error")):
            cells += compared(np.array([[r[name], r[error], r["exact"]] for r in chosen]))
        made.add_row(*key, *cells)
    return made


def compared(rows: np.ndarray) -> list[str]:
    """Geometric mean of the ratio, and how many errors cover, with 95 per cent intervals."""
    read, error, exact = rows[np.isfinite(rows[:, 0]) & (rows[:, 0] > 0)].T
    logs, deviations = np.log(read / exact), (read - exact) / error
    spread = 1.96 * logs.std(ddof=1) / math.sqrt(len(logs))
    low, middle, high = np.exp(logs.mean() + spread * np.arange(-1, 2))
    covered = binomtest(int(np.sum(abs(deviations) < 1)), len(logs))
    least, most = covered.proportion_ci()
    return [
        f"{middle:.2f} ({low:.2f} to {high:.2f})",
        f"{covered.k} of {covered.n} ({100 * least:.0f} to {100 * most:.0f} %)",
        f"{np.sqrt(np.mean(deviations**2)):.2f}",
    ]


def draw() -> None:
    """A run of the second network in PyTorch, from its first step on: the figure of the page."""
    import matplotlib.pyplot as plt

    network = NETWORKS["two dense layers"]._replace(burn_in=0)
    exact, points = Exact(network), []
    for window, (reading, places) in enumerate(in_torch(network, "SGD", 0, RUN, WINDOW // 2)):
        two = exact.by_two_batches(places, 900 + window)
        read = [reading[name] for name in ("critical_batch_size", "critical_batch_size_error")]
        points.append([(window + 0.5) * WINDOW / 2, exact.critical(places), *read, *two])
    step, true, read, error, two, two_error = np.array(points).T
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(step, true, color="black", label="exact, over all examples")
    bars: dict[str, Any] = {"fmt": "o", "capsize": 3, "markersize": 4}
    axes.errorbar(step - 60, read, error, color="C0", label="thermometer", **bars)
    axes.errorbar(
        step + 60,
        np.where(two_error > 0, two, np.nan),
        abs(two_error),
        color="C1",
        label="two batches at one place",
        **bars,
    )
    axes.axhline(network.batch, color="gray", linestyle=":", label="batch size of the run")
    axes.set(
        xlabel="step",
        ylabel="critical batch size",
        ylim=(0, None),
        title="Two dense layers on digits, SGD with momentum 0.9",
    )
    axes.legend(frameon=False, loc="lower right", ncols=2)
    figure.savefig(FIGURE, dpi=150)
