"""The mistakes of mutants.py, tried in a process of its own, from which it can fork."""

import subprocess
import sys
from pathlib import Path


def test_every_mistake_is_caught():
    """The tests fail for each of the mistakes, and pass without them."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("mutants.py"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
