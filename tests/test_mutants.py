"""The mistakes of mutants.py, tried in a process of its own, from which it can fork."""

import subprocess
import sys
from pathlib import Path

from mutants import MUTANTS, mutated

import coolmomentum

PACKAGE = Path(coolmomentum.__file__).parent


def test_every_mistake_is_caught():
    """The tests fail for each of the mistakes, and pass without them."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("mutants.py"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_mistake_is_only_a_wrong_name(tmp_path):
    """Each is code that runs: a name that nobody knows would be caught by any test at all."""
    every = [mutant for mutants in MUTANTS.values() for mutant in mutants]
    for i, mutant in enumerate(every):
        source = PACKAGE / (mutant.where.partition(":")[0].replace(".", "/") + ".py")
        (tmp_path / f"{i}.py").write_text(mutated(source.read_text(encoding="utf-8"), mutant))
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F821", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
