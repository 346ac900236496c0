"""A config: the files of a folder, read and checked before any run, so that no run is in vain."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from benchmarks.training import _data
from benchmarks.training._frameworks import FRAMEWORKS, OPTIONS, unavailable
from benchmarks.training._results import CELL
from benchmarks.training._rules import TUNED, impossible

__all__ = [
    "CONFIGS",
    "Config",
    "File",
    "UnavailableError",
    "number_of_runs",
    "read",
    "solvers",
    "with_choice",
]

HERE = Path(__file__).parent
CONFIGS = HERE / "configs"
DATASETS = sorted(path.stem.removesuffix("_dataset") for path in HERE.glob("datasets/*_dataset.py"))
KEYS = ("dataset", "objective", "n-repetitions", "solver")

File = dict[str, Any]  # what a file for `benchopt run --config` has


class UnavailableError(Exception):
    """Something that a run needs is not there; the message is for the user."""


class Config(NamedTuple):
    """What is to be run, of which everything is there."""

    name: str
    tuning: File | None
    reports: dict[str, File]  # by the names of the files


def read(config: str, asked: list[str] | None = None) -> Config:
    """The config of that name, or in that folder; in the frameworks that are asked for, if any are.

    Raises
    ------
    UnavailableError, UnavailableDataError
        If it could not be run to its end, as far as that can be known before.
    """
    folder, reports = _files(config)
    tuning = reports.pop("tuning", None)
    if asked:
        reported = dict.fromkeys(name for of in reports.values() for name, _ in solvers(of))
        if others := [name for name in asked if name not in reported]:
            rule = f"--frameworks must be among those that {folder.name} reports"
            raise UnavailableError(f"{rule}, {', '.join(reported)}: {', '.join(others)}")
        if tuning:
            tuning["solver"] = [{asked[0]: cells} for _, cells in solvers(tuning)]
        for of in reports.values():
            of["solver"] = [{name: cells} for name, cells in solvers(of) if name in asked]
    for problem in _problems(tuning, reports):
        raise UnavailableError(problem)
    # Last: a set that has to be downloaded, or is not to be had, is so now.
    for dataset in {of["dataset"] for of in (*reports.values(), *([tuning] if tuning else []))}:
        getattr(_data, dataset.partition("[")[0])()
    return Config(folder.name, tuning, reports)


def number_of_runs(config: str) -> int:
    """How many runs a config has, each once where several files ask for it."""
    runs = {
        (of["dataset"], of["objective"], framework, str(cell), repetition)
        for of in _files(config)[1].values()
        for framework, cells in solvers(of)
        for cell in product(*([x] if not isinstance(x, list) else x for x in cells.values()))
        for repetition in range(of["n-repetitions"])
    }
    return len(runs)


def solvers(of: File) -> list[tuple[str, dict[str, Any]]]:
    """The frameworks of a file, each with some cells."""
    return [(name, cells) for solver in of["solver"] for name, cells in solver.items()]


def with_choice(cells: dict[str, Any], choice: pd.DataFrame | None) -> list[dict[str, Any]]:
    """The cells with the numbers that were chosen for their rules, where they are to be tuned."""
    if choice is None or TUNED not in cells.values():
        return [cells]
    return [
        cells
        | {"rule": rule}
        | {n: float(choice.loc[rule, n]) for n in CELL[1:] if cells[n] == TUNED}
        for rule in _rules(cells)
    ]


def _files(config: str) -> tuple[Path, dict[str, File]]:
    """The folder of a config, and its files by their names."""
    folders = CONFIGS / config, Path(config)
    folder = next((f for f in folders if (f / "report.yml").exists()), None)
    if folder is None:
        raise UnavailableError(f"config must be a folder with a report.yml: {config}")
    return folder, {path.stem: _file(path) for path in sorted(folder.glob("*.yml"), key=_stem)}


def _file(path: Path) -> File:
    try:
        of = yaml.safe_load(path.read_text(encoding="utf-8"))
        missing = [key for key in KEYS if key not in of]
        missing += ["rule" for _, cells in solvers(of) if "rule" not in cells][:1]
        file = File(of)
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise UnavailableError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if missing:
        raise UnavailableError(f"{path} must have {', '.join(missing)}")
    return file


def _stem(path: Path) -> str:
    return path.stem  # "report" before "report-2"


def _rules(cells: dict[str, Any]) -> list[str]:
    return cells["rule"] if isinstance(cells["rule"], list) else [cells["rule"]]


def _problems(tuning: File | None, reports: dict[str, File]) -> Iterator[str]:
    """What would keep the runs from being made, or would be found out after some."""
    tuned = [rule for _, cells in (solvers(tuning) if tuning else []) for rule in _rules(cells)]
    for name, of in (reports | ({"tuning": tuning} if tuning else {})).items():
        if str(of["dataset"]).partition("[")[0] not in DATASETS:
            yield f"{name}: dataset must be one of {', '.join(DATASETS)}: {of['dataset']}"
        for framework, cells in solvers(of):
            if framework not in FRAMEWORKS:
                yield f"{name}: framework must be one of {', '.join(FRAMEWORKS)}: {framework}"
            elif reason := unavailable(framework):
                yield f"{framework}: {reason}"
            for rule in _rules(cells):
                if reason := impossible(rule, framework):
                    yield f"{name}, {framework}: {reason}"
                elif TUNED in cells.values() and tuning is None:
                    yield "a report with tuned numbers needs a tuning.yml beside it"
                elif TUNED in cells.values() and rule not in tuned:
                    yield f"rules must be in tuning.yml to be reported: {rule}"
            if TUNED in cells.values() and (missing := [n for n in CELL if n not in cells]):
                yield f"{name}: what is tuned must also have {', '.join(missing)}"
    yield from _unlike([*reports.values(), *([tuning] if tuning else [])])


def _unlike(files: list[File]) -> Iterator[str]:
    """Options that only some of the rules would have."""
    for framework, options in OPTIONS.items():
        every = [cells for of in files for name, cells in solvers(of) if name == framework]
        for option in options:
            if len(values := {str(cells.get(option, False)) for cells in every}) > 1:
                has = ", ".join(sorted(values))
                yield f"{framework}: {option} must be the same for all rules and files: {has}"
