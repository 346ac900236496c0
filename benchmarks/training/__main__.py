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
from contextlib import suppress
from datetime import UTC, datetime
from itertools import product
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.training._benchopt import PARENT, end_all
from benchmarks.training._command import STOPS, Stopped, locked, stoppable
from benchmarks.training._config import (
    CONFIGS,
    Config,
    File,
    UnavailableError,
    number_of_runs,
    read,
    solvers,
    with_choice,
)
from benchmarks.training._data import UnavailableDataError
from benchmarks.training._frameworks import FRAMEWORKS
from benchmarks.training._progress import RUNS
from benchmarks.training._report import Terminal, report
from benchmarks.training._results import (
    CELL,
    RESULTS,
    ResultsError,
    read_benchopt,
    read_finished,
    read_results,
    write_results,
)
from benchmarks.training._tables import chosen

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run configs; the exit status is 0, 1 (failed), 2 (cannot begin) or 128 + that of a signal."""
    arguments = sys.argv[1:] if arguments is None else arguments
    console = Terminal()
    with stoppable():
        try:
            return _main(arguments, console)
        except Stopped as stopped:
            with suppress(OSError):  # the terminal may be gone
                console.print("Interrupted; the same command goes on from here.")
            return 128 + stopped.number


def _main(arguments: Sequence[str], console: Terminal) -> int:
    parser = _parser()
    options, for_benchopt = parser.parse_known_args(arguments)
    if options.draw and (for_benchopt or options.frameworks):
        parser.error("--draw draws whatever is in the results, and takes no option but these two")
    if options.to and not options.draw:
        parser.error("--to is for --draw")
    try:
        about = {"command": shlex.join(["python", "-m", "benchmarks.training", *arguments])}
        if options.draw:
            for config in options.configs:
                _draw(config, options.output, options.to, about, console)
            return 0
        for config in [read(config, options.frameworks) for config in options.configs]:
            _run(config, options.output / config.name, for_benchopt, about, console)
    except (UnavailableError, UnavailableDataError) as error:
        print(error, file=sys.stderr)
        return 2
    except (_FailedError, ResultsError) as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        room = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what_to_do = ": make room; the same command goes on from here" * room
        print(" ".join(f"{error}{what_to_do}".split()), file=sys.stderr)
        return 1
    return 0


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
    add("--draw", action="store_true", help="make no runs: page and figures of what is finished")
    add("--to", type=Path, help="of --draw: there, without times, even while runs are being made")
    add("--output", type=Path, default=Path("results"), help="a folder in it for each config")
    return parser


def _draw(
    config: str, output: Path, to: Path | None, about: dict[str, Any], console: Terminal
) -> None:
    """The results, or as many runs as are finished; only what is written to is locked."""
    name = Path(config).name
    source, target = output / name, (to or output) / name
    file = source / RESULTS
    runs, made = read_results(file) if file.is_file() else (pd.DataFrame(), {"partial": ""})
    if "partial" in made:
        runs, partial = _finished(source, number_of_runs(config))
        made = about | {"config": name, "partial": partial}
    target.mkdir(parents=True, exist_ok=True)
    with locked(target):
        if to is not None:
            runs = runs.assign(seconds=nan)
        if to is not None or "partial" in made:
            write_results(target / RESULTS, runs, made)
        report(target, console)


def _finished(folder: Path, of: int) -> tuple[pd.DataFrame, str]:
    """The runs that are finished, and how many they are.

    Raises
    ------
    UnavailableError
        If none is of the report, or if they do not belong together.
    """
    runs = read_finished(folder)
    count = len(runs.groupby(_RECORD[:-1]))
    reported = runs[runs.phase == "report"]
    if reported.empty:
        raise UnavailableError(
            f"there are no results to draw: {folder / RESULTS} ({count} of {of} runs are finished, "
            "none of a report)"
        )
    if (codes := runs.code.unique()).size > 1:
        raise UnavailableError(f"{folder} has runs of several codes: {', '.join(codes)}")
    for (framework, rule), own in reported.groupby(["framework", "rule"]):
        if len(own[CELL].drop_duplicates()) > 1:
            raise UnavailableError(f"{folder} has reports of several cells: {rule} in {framework}")
    seeds = reported.groupby(["framework", "rule"], sort=False).seed.nunique()
    each = ", ".join(f"{rule} {number}" for (_, rule), number in seeds.items())
    return runs, f"Not all runs are finished: {count} of {of}. Seeds of each rule: {each}."


def _run(
    config: Config,
    output: Path,
    for_benchopt: list[str],
    about: dict[str, Any],
    console: Terminal,
) -> None:
    name, tuning, reports = config
    output.mkdir(parents=True, exist_ok=True)
    with locked(output) as lock:
        bench = _Bench(output, lock, for_benchopt, console)
        tables, choice = [], None
        if tuning:
            tables += bench.run("tuning", tuning)
            choice = chosen(pd.concat(tables))
        for file, of in reports.items():
            of["solver"] = [
                {framework: cell}
                for framework, cells in solvers(of)
                for cell in with_choice(cells, choice)
            ]
            tables += bench.run(file, of)
        about = about | {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": name,
            "files": reports | ({"tuning": tuning} if tuning else {}),
        }
        # A run that two reports ask for is one run, made twice.
        runs = pd.concat(tables).drop_duplicates([*_RECORD])
        write_results(output / RESULTS, runs, about)
        report(output, console)


_RECORD = ["framework", "phase", *CELL, "seed", "epoch"]


class _Bench:
    """Where benchopt is run: a process for each framework, as Keras has one backend in each."""

    def __init__(self, output: Path, lock: int, for_benchopt: list[str], console: Terminal) -> None:
        self._output, self._lock = output, lock
        self._for_benchopt, self._console = for_benchopt, console

    def run(self, name: str, config: File) -> list[pd.DataFrame]:
        """Make what a file says, and return a table for each framework."""
        frameworks = dict.fromkeys(framework for framework, _ in solvers(config))
        tables = []
        for framework in frameworks:
            its = [{name: cells} for name, cells in solvers(config) if name == framework]
            tables.append(self._run_framework(name, framework, config | {"solver": its}))
        return tables

    def _run_framework(self, name: str, framework: str, config: File) -> pd.DataFrame:
        stem = self._output / f"{name}-{framework}"
        # benchopt keeps what runs write beside the result: in one place for all files, so that a
        # run that two of them ask for is made once.
        file, result = stem.with_suffix(".yml"), self._output / f"{framework}.parquet"
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        result.unlink(missing_ok=True)  # benchopt would write beside it
        runs = config["n-repetitions"] * sum(_cells(of) for _, of in solvers(config))
        self._console.print(f"{name}, {framework}: {runs} run{'s' * (runs > 1)}")
        command = [sys.executable, "-m", "benchmarks.training._benchopt", "run", str(HERE)]
        command += ["--config", str(file), "--output", str(result.resolve())]
        command += ["--no-plot", "--no-cache", *self._for_benchopt]
        environment = os.environ | {RUNS: str(runs), "BENCHOPT_RAISE_ON_ERROR": "1"}
        # Its output is a file, and in UTF-8 like those of benchopt, whatever the terminal has.
        environment |= {
            PARENT: str(os.getpid()),
            "PYTHONUTF8": "1",
            "PYTHONIOENCODING": "utf-8:backslashreplace",
        }
        backend = framework.removeprefix("keras_")
        if backend != framework:
            environment["KERAS_BACKEND"] = backend
        log = stem.with_suffix(".log")
        with log.open("w") as lines:
            child = subprocess.Popen(command, env=environment, stdout=lines, pass_fds=[self._lock])
        try:
            status = child.wait()
        finally:
            child.kill()  # nothing, if it has ended
            child.wait()
            end_all(os.getpid())
        if (stopped := -status if status < 0 else status - 128) in STOPS:
            raise Stopped(stopped)
        if status or not result.exists():
            raise _FailedError(f"benchopt has failed ({status}): see {log}")
        table = read_benchopt(result)
        found = len(table.groupby([*CELL, "seed"]))
        if found != runs:
            raise _FailedError(f"{found} of {runs} runs were made: see {log}")
        return table


def _cells(cells: dict[str, Any]) -> int:
    lists = [value if isinstance(value, list) else [value] for value in cells.values()]
    return len(list(product(*lists)))


if __name__ == "__main__":
    sys.exit(main())
