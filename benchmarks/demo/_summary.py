"""From the records of all runs to the learning rate that is chosen and the numbers reported."""

from typing import Any

import pandas as pd
from scipy import stats

__all__ = ["best_lr", "half_width", "paired_differences", "summarise"]

CONFIDENCE = 0.95


def best_lr(tuning: pd.DataFrame) -> float:
    """The learning rate with the highest mean validation accuracy after the last epoch.

    Of those that classify equally many of the few images right, the one with the lowest mean loss.
    """
    last = _last_epochs(tuning).groupby("lr")[["validation_accuracy", "validation_loss"]].mean()
    last = last.round({"validation_accuracy": 9})  # equal counts may differ in the last bit
    ranked = last.sort_values(["validation_accuracy", "validation_loss"], ascending=[False, True])
    return float(ranked.index[0])


def half_width(values: Any) -> float:
    """Half the length of the 95 % Student t-interval of the mean of independent values."""
    return float(stats.sem(values) * stats.t.ppf((1 + CONFIDENCE) / 2, df=len(values) - 1))


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """One line for each framework and optimizer: ``summary.csv``.

    Arithmetic means over the report seeds after the last epoch. (A geometric mean of temperatures
    would be too low for the predicted one, which scatters.)
    """
    lines = []
    for (framework, optimizer), own in runs.groupby(["framework", "optimizer"], sort=False):
        tried = own[own.phase == "tuning"].lr
        last = _last_epochs(own[own.phase == "report"])
        line = {
            "framework": framework,
            "optimizer": optimizer,
            "lr": last.lr.iloc[0],
            "lr_at_edge_of_grid": last.lr.iloc[0] in (tried.min(), tried.max()),
            "seeds": len(last),
        }
        for column in ("test_accuracy", "training_loss", "test_loss"):
            line[column] = last[column].mean()
            line[f"{column}_half_width"] = half_width(last[column])
        for column in ("temperature", "predicted_temperature"):
            line[column] = last[column].mean()
        lines.append(line)
    return pd.DataFrame(lines)


def paired_differences(runs: pd.DataFrame, column: str = "test_accuracy") -> pd.DataFrame:
    """How each other optimizer differs from CoolMomentum, seed by seed: mean and half-width."""
    last = _last_epochs(runs[runs.phase == "report"])
    lines = []
    for framework, own in last.groupby("framework", sort=False):
        values = own.pivot(index="seed", columns="optimizer", values=column)
        for optimizer in [name for name in own.optimizer.unique() if name != "CoolMomentum"]:
            difference = values[optimizer] - values["CoolMomentum"]
            lines.append((framework, optimizer, difference.mean(), half_width(difference)))
    return pd.DataFrame(lines, columns=["framework", "optimizer", "difference", "half_width"])


def _last_epochs(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs.epoch == runs.epoch.max()]
