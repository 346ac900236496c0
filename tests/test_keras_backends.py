"""The tests of the Keras adapter, once for each backend of Keras: a process has only one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import coolmomentum

TESTS = Path(__file__).parent / "keras_adapter"
PACKAGE = Path(coolmomentum.__file__).parent


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_the_keras_adapter(backend):
    """tests/keras_adapter and the examples of the adapter pass on this backend."""
    folders = [TESTS, PACKAGE / "keras"]
    if backend == "tensorflow":
        folders.append(PACKAGE / "tensorflow")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, folders)],
        cwd=PACKAGE.parent,
        env=os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
