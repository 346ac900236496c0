"""What is collected where a framework is not installed: in processes that cannot import it."""

import collections
import os
import subprocess
import sys
from pathlib import Path

import pytest
from frameworks import NEEDS
from versions import ENVIRONMENTS

ROOT = Path(__file__).parents[1]
ALL = ("torch", "jax", "optax", "tensorflow", "keras")
# docs/agreement.md has a row for each path of each adapter in each dtype.
ROWS = (ROOT / "docs" / "agreement.md").read_text(encoding="utf-8").splitlines()
# A plugin that pytest loads before any conftest.py. PyTorch asks for specs of other frameworks, so
# that these must be None, and no error.
BLOCK = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {blocked}:
            return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def pytest_without(folder, blocked, *arguments, required=""):
    """Run pytest in a process that cannot import what is blocked; what it printed and returned."""
    (folder / "block.py").write_text(BLOCK.format(blocked=set(blocked)), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "COOLMOMENTUM_REQUIRED": required,
    }
    command = [sys.executable, "-m", "pytest", "-p", "block", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_make_test_requires_all():
    """So that CI cannot pass without one."""
    assert "COOLMOMENTUM_REQUIRED=all" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "there",
    [(), ("torch",), ("jax", "optax"), ("jax",)],
    ids=lambda there: "_".join(there) or "numpy alone",
)
def test_the_rest_is_collected(tmp_path, there):
    """Without a framework all tests of the others are there, with the paths of the contract."""
    blocked = [name for name in ALL if name not in there]
    done = pytest_without(tmp_path, blocked, "tests", "--collect-only", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    tests = [line for line in done.stdout.splitlines() if "::" in line]
    paths = [
        line.partition("[")[2] for line in tests if "::test_any_settings_and_gradients[" in line
    ]
    counts = collections.Counter(path.split(",")[0] for path in paths)
    adapters = {"numpy"} | {"torch"} & set(there) | ({"jax"} if "optax" in there else set())
    assert counts == {name: sum(row.startswith(f"| {name}") for row in ROWS) for name in adapters}
    assert counts["numpy"] == 3
    files = {line.partition("::")[0].removeprefix("tests/") for line in tests}
    assert any(file.startswith("torch_adapter/") for file in files) == ("torch" in there)
    assert any(file.startswith("jax_adapter/") for file in files) == ("optax" in there)
    others = {path.name for path in ROOT.glob("tests/test_*.py")} - {
        path.name for pattern in NEEDS for path in ROOT.glob(f"tests/{pattern}")
    }
    assert others <= files


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_a_backend_of_keras_is_enough(tmp_path, monkeypatch, backend):
    """Without the other backends what tests/versions.py runs is collected: the adapter's tests."""
    monkeypatch.setenv("KERAS_BACKEND", backend)
    blocked = {*ALL, "benchopt"} - {"keras", backend}
    tests = ENVIRONMENTS[f"keras-{backend}"].tests
    done = pytest_without(tmp_path, blocked, *tests, "--collect-only", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    files = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert "tests/keras_adapter/test_keras_core.py" in files
    others = {file for file in files if "test_keras_on_" in file and f"_on_{backend}" not in file}
    assert not others


def test_they_run(tmp_path):
    """Where NumPy is alone the core passes; of the other libraries there is nothing to test."""
    files = [f"tests/{name}" for name in ("test_update.py", "contract/test_arguments.py")]
    done = pytest_without(tmp_path, ALL, "-q", "-rs", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "jax.numpy is not installed" in done.stdout
    assert " passed" in done.stdout


def test_what_is_required_must_be_there(tmp_path):
    """A framework that COOLMOMENTUM_REQUIRED names is missed before any test."""
    done = pytest_without(tmp_path, ["torch"], "tests/test_update.py", required="jax torch")
    assert done.returncode != 0
    assert "COOLMOMENTUM_REQUIRED names torch: not installed" in done.stderr
