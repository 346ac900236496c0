"""The tests of the Keras adapter, once for each backend of Keras: a process has only one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import coolmomentum

TESTS = Path(__file__).parent / "keras_adapter"
PACKAGE = Path(coolmomentum.__file__).parent
# All but the test of a comparison, which is of the reference.
CONTRACT = sorted((Path(__file__).parent / "contract").glob("test_[!c]*.py"))
CONTRACT.append(Path(__file__).parent / "contract" / "test_contract.py")
PAGES = [
    Path(__file__).parents[1] / "docs" / f"{name}.md"
    for name in ("keras", "start_keras", "checkpoints", "cooldown", "critical_batch_size")
]
DOCSTRINGS = Path(__file__).with_name("test_docstrings.py")
FOLDERS = {
    backend: [TESTS, *CONTRACT, DOCSTRINGS, *PAGES, PACKAGE / "keras"]
    for backend in ("tensorflow", "jax", "torch")
}
FOLDERS["tensorflow"].append(PACKAGE / "tensorflow")


# TensorFlow numbers the messages of replicas in each strategy from the same number: those of two
# strategies in one process may meet.
REPLICAS = TESTS / "test_keras_on_tensorflow_imagenet.py"


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict]:
    """A process for each backend, which run side by side, and the file that it writes to."""
    folder = tmp_path_factory.mktemp("keras")
    name = request.config.getoption("--hypothesis-profile")
    profile = {"HYPOTHESIS_PROFILE": name} if name else {}
    runs = {}
    for backend, folders in FOLDERS.items():
        with (folder / backend).open("w") as output:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "pytest",
                    "-q",
                    "-p",
                    "no:cacheprovider",
                    f"--ignore={REPLICAS}",
                    *map(str, folders),
                ],
                cwd=PACKAGE.parent,
                env=os.environ | profile | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        runs[backend] = process, folder / backend
    yield runs
    for process, _ in runs.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("backend", FOLDERS)
def test_the_keras_adapter(runs, backend):
    """tests/keras_adapter, the contract suite and the adapter's examples pass on this backend."""
    process, output = runs[backend]
    assert process.wait() == 0, output.read_text()


def test_the_replicas_of_the_imagenet_benchmark():
    """Its tests on TensorFlow pass in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(REPLICAS)]
    environment = os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        command, cwd=PACKAGE.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
