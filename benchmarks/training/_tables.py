"""From the records of all runs to the cell that is chosen and the numbers that are reported."""

from math import comb, nan
from typing import Any

import pandas as pd
from scipy import stats

from benchmarks.training._results import CELL

__all__ = [
    "best_of_k",
    "chosen",
    "half_width",
    "last_records",
    "paired_differences",
    "sensitivity",
    "summary",
]

CONFIDENCE = 0.95
RUN = ["framework", "phase", *CELL, "seed"]
REFERENCE = "coolmomentum"


def last_records(runs: pd.DataFrame) -> pd.DataFrame:
    """The last record of every run; that of a run that diverged is where it ended."""
    return runs.loc[runs.groupby(RUN, sort=False).epoch.idxmax()]


def chosen(tuning: pd.DataFrame) -> pd.DataFrame:
    """The cell of each rule with the highest mean accuracy, of equals the lowest mean loss.

    ``at_edge`` says that its learning rate is the lowest or highest tried.
    """
    last = last_records(tuning)
    cells = last.groupby(CELL, sort=False)[["accuracy", "loss"]].mean().reset_index()
    cells["accuracy"] = cells.accuracy.round(7)  # equal counts may differ in the last bit
    ranked = cells.sort_values(["accuracy", "loss"], ascending=[False, True], kind="stable")
    best = ranked.groupby("rule", sort=False).first()
    tried = last.groupby("rule").lr.agg(["min", "max"]).loc[best.index]
    best["at_edge"] = (best.lr == tried["min"]) | (best.lr == tried["max"])
    return best.loc[last.rule.unique()]  # in the order of the config


def half_width(values: Any) -> float:
    """Half the length of the 95 % Student t-interval of the mean of independent values.

    NaN for one value, which says nothing about others.
    """
    if len(values) < 2:
        return nan
    return float(stats.sem(values) * stats.t.ppf((1 + CONFIDENCE) / 2, df=len(values) - 1))


def summary(report: pd.DataFrame) -> pd.DataFrame:
    """One line for each framework and rule: means over seeds after the last epoch, and differences.

    (A geometric mean of temperatures would be too low for the predicted one, which scatters.)
    """
    lines = []
    for (framework, rule), own in last_records(report).groupby(["framework", "rule"], sort=False):
        every = report[(report.framework == framework) & (report.rule == rule)]
        line = {"framework": framework, "rule": rule}
        line |= {name: own[name].iloc[0] for name in CELL[1:]}
        line |= {"seeds": len(own), "diverged": int(own.diverged.sum())}
        for column in ("accuracy", "loss", "training_loss"):
            line[column] = own[column].mean()
            line[f"{column}_half_width"] = half_width(own[column])
        for column in ("temperature", "predicted_temperature"):
            line[column] = own[column].mean()
        line["seconds"] = every.seconds.median()  # of an epoch
        lines.append(line)
    return pd.DataFrame(lines).merge(paired_differences(report), "left", ["framework", "rule"])


def paired_differences(report: pd.DataFrame, column: str = "accuracy") -> pd.DataFrame:
    """How each other rule differs from CoolMomentum, seed by seed: mean and half-width."""
    lines = []
    for framework, own in last_records(report).groupby("framework", sort=False):
        values = own.pivot(index="seed", columns="rule", values=column)
        if REFERENCE not in values or len(values) < 2:
            continue
        for rule in [name for name in own.rule.unique() if name != REFERENCE]:
            difference = (values[rule] - values[REFERENCE]).dropna()
            lines.append((framework, rule, difference.mean(), half_width(difference)))
    columns = ["framework", "rule", "minus_coolmomentum", "minus_coolmomentum_half_width"]
    return pd.DataFrame(lines, columns=columns)


def sensitivity(tuning: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy of every cell, and how many of its runs diverged."""
    last = last_records(tuning)
    return (
        last.groupby(CELL, sort=False)
        .agg(accuracy=("accuracy", "mean"), diverged=("diverged", "sum"), seeds=("seed", "size"))
        .reset_index()
    )


def best_of_k(accuracies: list[float]) -> list[float]:
    """Expected best of k cells drawn at random without replacement, for each k.

    Of n sorted values the i-th (from 1) is the best of ``comb(i - 1, k - 1)`` of the ``comb(n, k)``
    draws.

    Examples
    --------
    >>> best_of_k([1.0, 2.0, 4.0])
    [2.3333333333333335, 3.3333333333333335, 4.0]
    """
    values, n = sorted(accuracies), len(accuracies)
    return [
        sum(value * comb(i, k - 1) for i, value in enumerate(values)) / comb(n, k)
        for k in range(1, n + 1)
    ]
