"""A benchopt solver that makes one whole run and gives back a record for each epoch.

It goes round what benchopt 1.10 does otherwise. With the ``run_once`` strategy no run is cut short
by a test of convergence, by 100 s or by 100 evaluations, nor left out because it diverged. All
records have the same columns, which benchopt cannot do without. Times are taken inside the run,
after the device has finished, and compilations are told from steps (benchopt warms up once for a
solver, whatever follows).
"""

import platform
import subprocess
import sys
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from benchopt import BaseSolver

import coolmomentum
from benchmarks.training._checkpoint import Checkpoint
from benchmarks.training._frameworks import OPTIONS, trainer, unavailable, versions
from benchmarks.training._problem import Problem
from benchmarks.training._progress import PROGRESS
from benchmarks.training._rules import TUNED, Settings, impossible
from benchmarks.training._runs import run

__all__ = ["TrainingSolver"]

# Runs of one setting follow each other, and what was compiled for the last one serves again.
_trainer = lru_cache(maxsize=1)(trainer)


class TrainingSolver(BaseSolver):  # type: ignore[misc]  # benchopt is not typed
    """A framework with every rule; ``name`` is that of the framework."""

    sampling_strategy = "run_once"
    parameters: ClassVar[dict[str, list[Any]]] = {
        "rule": ["coolmomentum"],
        "lr": [0.01],
        "momentum": [0.99],
        "weight_decay": [0.0],
    }

    def skip(self, **objective: Any) -> tuple[bool, str | None]:
        """Say what cannot be run, and why."""
        reason = unavailable(self.name) or impossible(self.rule, self.name)
        if TUNED in (self.lr, self.momentum, self.weight_decay):
            reason = "its numbers are to be tuned first: python -m benchmarks.training does both"
        return reason is not None, reason

    def set_objective(self, problem: Problem, seed: int, phase: str) -> None:
        """Take note of what is to be done."""
        self._problem, self._seed, self._phase = problem, seed, phase

    def run(self, _: Any) -> None:
        """Make the run, or what is left of one that was interrupted."""
        settings = Settings(self.rule, self.lr, self.momentum, self.weight_decay)
        options = {option: getattr(self, option) for option in OPTIONS.get(self.name, ())}
        misses = _trainer.cache_info().misses
        theirs = _trainer(self.name, self._problem, settings, **options)
        compiled = _trainer.cache_info().misses == misses
        identity = f"seed {self._seed}, code {_code()}, versions {versions(self.name)}"
        name = f"{self.name} {self.rule} lr {self.lr:g} momentum {self.momentum:g}"
        folder = self.get_run_output_path()
        about = {"framework": self.name, "phase": self._phase, **settings._asdict(), **options}
        about |= {"seed": self._seed, **self._problem.about(), "code": _code()}
        about |= {"dataset": folder.parents[2].name, **_provenance(self.name)}
        with PROGRESS.run(name, self._problem.epochs) as show:
            self._records = run(
                theirs,
                self._problem,
                settings,
                self._seed,
                Checkpoint(folder, identity, about),
                show,
                every_epoch=self._phase == "report",
                compiled=compiled,
            )

    def get_result(self) -> dict[str, Any]:
        """The records, and what has made them."""
        return {
            "records": self._records,
            "provenance": {"seed": self._seed, "code": _code(), **_provenance(self.name)},
        }


def _code() -> str:
    """A digest of the code that runs: a checkpoint of other code is not gone on with."""
    modules = [
        module.__file__
        for name, module in sorted(sys.modules.items())
        if name.startswith(("coolmomentum", "benchmarks.training")) and module.__file__
    ]
    return sha256(b"".join(Path(file).read_bytes() for file in modules)).hexdigest()[:12]


@lru_cache
def _provenance(framework: str) -> dict[str, str]:
    """What is needed to repeat a run, beside what benchopt notes of the machine."""
    own = {"coolmomentum": coolmomentum.__version__, "numpy": np.__version__}
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": ", ".join(f"{k} {v}" for k, v in (own | versions(framework)).items()),
    }


def _commit() -> str:
    """The commit of the checkout, if it is one and git is there."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
