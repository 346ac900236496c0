"""The files of the demo: what they are called, and how provenance and runs are written."""

import json
import os
import platform
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

import coolmomentum
from benchmarks.demo._data import Epoch, Settings

__all__ = [
    "FIGURES",
    "FILES",
    "HELD_OUT",
    "RUNS",
    "SUMMARY",
    "append_run",
    "empty",
    "run_table",
    "write_provenance",
]

FIGURES = ("figure.png", "figure.svg")
RUNS = "runs.csv"
SUMMARY = "summary.csv"
PROVENANCE = "provenance.json"
FILES = (*FIGURES, RUNS, SUMMARY, PROVENANCE)
HELD_OUT = {"tuning": "validation", "report": "test"}  # the images that a phase measures
COLUMNS = [
    "framework",
    "phase",  # tuning or report
    "optimizer",
    "lr",
    "seed",
    "epoch",
    "step",
    "training_loss",
    "validation_loss",  # in the tuning only
    "validation_accuracy",
    "test_loss",  # in the report only
    "test_accuracy",
    "temperature",
    "predicted_temperature",
    "rho",
]


def empty(output: Path) -> None:
    """Make the folder, and remove what an earlier demo left: it must not pass for this one's."""
    output.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (output / name).unlink(missing_ok=True)


def write_provenance(
    output: Path, arguments: Sequence[str], frameworks: Iterable[str], protocol: dict[str, Any]
) -> None:
    """Write what is needed to repeat the demo."""
    packages = ("numpy", "scipy", "pandas", "scikit-learn", "matplotlib")
    provenance = {
        "command": shlex.join(["python", "-m", "benchmarks.demo", *arguments]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "versions": {"coolmomentum": coolmomentum.__version__}
        | {package: version(package) for package in packages}
        # Of the module, because TensorFlow is shipped under several names.
        | {name: import_module(name).__version__ for name in frameworks},
        "protocol": protocol,
    }
    (output / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n")


def run_table(
    records: list[Epoch], framework: str, phase: str, settings: Settings, seed: int
) -> pd.DataFrame:
    """One run as lines of ``runs.csv``."""
    part = HELD_OUT[phase]
    table = pd.DataFrame(records).rename(
        columns={"loss": f"{part}_loss", "accuracy": f"{part}_accuracy"}
    )
    return table.assign(
        framework=framework, phase=phase, optimizer=settings.optimizer, lr=settings.lr, seed=seed
    ).reindex(columns=COLUMNS)


def append_run(output: Path, run: pd.DataFrame) -> None:
    """Add a finished run, so that an interrupted demo keeps those that it finished."""
    path = output / RUNS
    run.to_csv(path, mode="a", header=not path.exists(), index=False)


def _commit() -> str | None:
    """The commit of the checkout, if it is one and git is there."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
