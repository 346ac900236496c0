"""Fixtures of the tests of the training benchmark."""

import io
import os
import sys
from pathlib import Path

import pytest
from training_tools import CONFIG

from benchmarks.training.__main__ import main


@pytest.fixture(scope="session")
def ci(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``python -m benchmarks.training ci`` leaves behind, where nothing but ASCII is written.

    The folder has a letter that is none, which benchopt prints.
    """
    folder = tmp_path_factory.mktemp("résults")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONIOENCODING", "ascii")
        patch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
        assert main(["ci", "--output", str(folder)]) == 0
    return folder / "ci"


STAND_IN = """
import os, subprocess, sys, time
if "FAIL" in os.environ:
    sys.exit(3)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
path = sys.argv[sys.argv.index("--output") + 1] + ".up"
with open(path + ".new", "w") as file:
    file.write(f"{os.getpid()} {worker.pid}")
os.rename(path + ".new", path)
time.sleep(600)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config, and for benchopt something that says that it is there, with a worker, and waits."""
    (tmp_path / "benchopt").mkdir()
    (tmp_path / "benchopt" / "__init__.py").touch()
    (tmp_path / "benchopt" / "__main__.py").write_text(STAND_IN)
    config = tmp_path / "config"
    config.mkdir()
    (config / "report.yml").write_text(CONFIG)
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), root]))
    monkeypatch.setattr("benchmarks.training._command.PATIENCE", 0.0)
    return config
