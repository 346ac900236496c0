"""Tune, report and draw: ``python -m benchmarks.training CONFIG``.

A config is a folder of ``configs``, with files for ``benchopt run --config``. ``tuning.yml``, if it
is there, has the cells of every rule; ``report*.yml`` has what is reported, where "tuned" stands
for what the tuning chooses. An interrupted run goes on when the same command is given again.
"""

import argparse
import errno
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rich.console import Console

from benchmarks.training import _data
from benchmarks.training._frameworks import FRAMEWORKS, unavailable
from benchmarks.training._progress import RUNS
from benchmarks.training._report import report
from benchmarks.training._results import CELL, RESULTS, read_benchopt, write_results
from benchmarks.training._solver import TUNED
from benchmarks.training._tables import chosen

HERE = Path(__file__).parent
CONFIGS = HERE / "configs"

Config = dict[str, Any]  # what a file for `benchopt run --config` has


def main(arguments: Sequence[str] | None = None) -> int:
    """Run configs; the exit status is 0, 1 (failed), 2 (something is not there) or 130 (Ctrl-C)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options, for_benchopt = _parser().parse_known_args(arguments)
    console = Console(highlight=False, markup=False)
    try:
        for config in options.configs:
            if options.draw:
                _draw(options.output / Path(config).name, console)
            else:
                _run(config, options, for_benchopt, arguments, console)
    except (_UnavailableError, _data.UnavailableDataError) as error:
        print(error, file=sys.stderr)
        return 2
    except _FailedError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"{error}: make room; the same command goes on from here", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted; the same command goes on from here.")
        return 130
    return 0


class _UnavailableError(Exception):
    """A config or a framework is not there; the message is for the user."""


class _FailedError(Exception):
    """benchopt has failed; the message is for the user."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description="Tune optimizers alike, report fresh runs, draw figures.",
        epilog="Other options go to `benchopt run`: --parallel-config FILE, --n-jobs N, ...",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    names = sorted(path.name for path in CONFIGS.iterdir())
    add = parser.add_argument
    add("configs", nargs="+", help=f"of: {', '.join(names)}; or folders of your own")
    add("--frameworks", nargs="+", choices=FRAMEWORKS, help="only these; tune in the first of them")
    add("--draw", action="store_true", help="make no runs: page and figures anew from the results")
    add("--output", type=Path, default=Path("results"), help="a folder in it for each config")
    return parser


def _draw(output: Path, console: Console) -> None:
    if not (output / RESULTS).exists():
        raise _UnavailableError(f"there are no results to draw: {output / RESULTS}")
    report(output, console)


def _run(
    config: str,
    options: argparse.Namespace,
    for_benchopt: list[str],
    arguments: Sequence[str],
    console: Console,
) -> None:
    folder = next(
        (f for f in (CONFIGS / config, Path(config)) if (f / "report.yml").exists()), None
    )
    if folder is None:
        raise _UnavailableError(f"config must be a folder with a report.yml: {config}")
    files = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yml"))}
    reports = {name: of for name, of in files.items() if name != "tuning"}
    of_reports = {framework for of in reports.values() for framework, _ in _solvers(of)}
    frameworks = options.frameworks or [name for name in FRAMEWORKS if name in of_reports]
    _check_there(frameworks, files)

    output = options.output / folder.name
    output.mkdir(parents=True, exist_ok=True)
    bench = _Bench(output, for_benchopt, console)
    tables, choice = [], None
    if "tuning" in files:
        tuning = files["tuning"]
        tuning["solver"] = [
            {options.frameworks[0] if options.frameworks else name: cells}
            for name, cells in _solvers(tuning)
        ]
        tables += bench.run("tuning", tuning)
        choice = chosen(pd.concat(tables))
    for name, of in reports.items():
        of["solver"] = [
            {framework: cell}
            for framework, cells in _solvers(of)
            if framework in frameworks
            for cell in _with_choice(cells, choice)
        ]
        tables += bench.run(name, of)
    about = {
        "command": shlex.join(["python", "-m", "benchmarks.training", *arguments]),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": folder.name,
        "files": files,
    }
    # A run that two reports ask for is one run, made twice.
    runs = pd.concat(tables).drop_duplicates([*_RECORD])
    write_results(output / RESULTS, runs, about)
    report(output, console)


_RECORD = ["framework", "phase", *CELL, "seed", "epoch"]


def _check_there(frameworks: list[str], files: dict[str, Config]) -> None:
    for framework in frameworks:
        if reason := unavailable(framework):
            raise _UnavailableError(f"{framework}: {reason}")
    # Before anything else: a set that has to be downloaded, or is not to be had, is so now.
    for dataset in {of["dataset"] for of in files.values()}:
        getattr(_data, dataset.partition("[")[0])()


def _solvers(config: Config) -> list[tuple[str, Config]]:
    return [(name, cells) for solver in config["solver"] for name, cells in solver.items()]


def _with_choice(cells: Config, choice: pd.DataFrame | None) -> list[Config]:
    """The cells with the numbers that were chosen for their rules, where they are to be tuned."""
    if TUNED not in cells.values():
        return [cells]
    if choice is None:
        raise _UnavailableError("a report with tuned numbers needs a tuning.yml beside it")
    rules = cells["rule"] if isinstance(cells["rule"], list) else [cells["rule"]]
    if missing := set(rules) - set(choice.index):
        raise _UnavailableError(f"rules must be in tuning.yml to be reported: {', '.join(missing)}")
    return [
        cells
        | {"rule": rule}
        | {n: float(choice.loc[rule, n]) for n in CELL[1:] if cells[n] == TUNED}
        for rule in rules
    ]


class _Bench:
    """Where benchopt is run: a process for each framework, as Keras has one backend in each."""

    def __init__(self, output: Path, for_benchopt: list[str], console: Console) -> None:
        self._output, self._for_benchopt, self._console = output, for_benchopt, console

    def run(self, name: str, config: Config) -> list[pd.DataFrame]:
        """Make what a file says, and return a table for each framework."""
        frameworks = dict.fromkeys(framework for framework, _ in _solvers(config))
        tables = []
        for framework in frameworks:
            its = [(name, cells) for name, cells in _solvers(config) if name == framework]
            tables.append(self._run_framework(name, framework, config, [dict([x]) for x in its]))
        return tables

    def _run_framework(
        self, name: str, framework: str, config: Config, solvers: list[Config]
    ) -> pd.DataFrame:
        stem = self._output / f"{name}-{framework}"
        file, result = stem.with_suffix(".yml"), stem.with_suffix(".parquet")
        file.write_text(yaml.safe_dump(config | {"solver": solvers}, sort_keys=False))
        result.unlink(missing_ok=True)  # benchopt would write beside it
        runs = config["n-repetitions"] * sum(_cells(of) for s in solvers for of in s.values())
        self._console.print(f"{name}, {framework}: {runs} run{'s' * (runs > 1)}")
        command = [sys.executable, "-m", "benchopt", "run", str(HERE), "--config", str(file)]
        command += ["--output", str(result.resolve()), "--no-plot", "--no-cache"]
        environment = os.environ | {RUNS: str(runs), "BENCHOPT_RAISE_ON_ERROR": "1"}
        backend = framework.removeprefix("keras_")
        if backend != framework:
            environment["KERAS_BACKEND"] = backend
        log = stem.with_suffix(".log")
        with log.open("w") as lines:
            done = subprocess.run(
                [*command, *self._for_benchopt], env=environment, stdout=lines, check=False
            )
        if done.returncode == -2 or done.returncode == 130:
            raise KeyboardInterrupt
        if done.returncode or not result.exists():
            raise _FailedError(f"benchopt has failed ({done.returncode}): see {log}")
        table = read_benchopt(result)
        found = len(table.groupby([*CELL, "seed"]))
        if found != runs:
            raise _FailedError(f"{found} of {runs} runs were made: see {log}")
        return table


def _cells(cells: Config) -> int:
    lists = [value if isinstance(value, list) else [value] for value in cells.values()]
    return len(list(product(*lists)))


if __name__ == "__main__":
    sys.exit(main())
