"""What importing the adapters does, in fresh processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from frameworks import installed
from keras_tools import BACKEND

import coolmomentum

ROOT = Path(coolmomentum.__file__).parent.parent
FRAMEWORKS = ("torch", "tensorflow", "jax", "optax", "flax")


def python(program, backend=BACKEND):
    """What a fresh process with a backend of Keras gives back."""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_adapter_loads_what_keras_loads():
    """Importing coolmomentum.keras after Keras loads no framework beyond Keras' own backend."""
    loaded = f"print(*sorted({set(FRAMEWORKS)} & set(sys.modules)))"
    done = python(f"import sys, keras; {loaded}; import coolmomentum.keras; {loaded}")
    assert done.returncode == 0, done.stderr
    before, after = (line.split() for line in done.stdout.splitlines())
    assert before == after
    assert ("tensorflow" in after) == (BACKEND == "tensorflow")
    assert ("torch" in after) == (BACKEND == "torch")


def test_the_tensorflow_adapter_is_for_the_tensorflow_backend():
    """It is the Keras optimizer there, and elsewhere one line that says what to do."""
    done = python(
        "import coolmomentum.tensorflow as a, coolmomentum.keras as b; "
        "print(a.CoolMomentum is b.CoolMomentum)"
    )
    if BACKEND == "tensorflow":
        assert done.stdout == "True\n"
    elif not installed("tensorflow"):
        assert done.stderr.splitlines()[-1] == (
            "ImportError: coolmomentum.tensorflow needs TensorFlow and Keras 3: "
            'pip install "coolmomentum[tensorflow]"'
        )
    else:
        assert done.stderr.splitlines()[-1] == (
            "ImportError: coolmomentum.tensorflow needs Keras on its tensorflow backend, not on "
            f"{BACKEND}: set KERAS_BACKEND=tensorflow before Keras is imported, or use "
            "coolmomentum.keras"
        )


WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import coolmomentum.{adapter}
"""


@pytest.mark.parametrize(
    ("adapter", "missing", "message"),
    [
        (
            "keras",
            "keras",
            'coolmomentum.keras needs Keras 3: pip install "coolmomentum[keras]"',
        ),
        (
            "tensorflow",
            "keras",
            "coolmomentum.tensorflow needs TensorFlow and Keras 3: "
            'pip install "coolmomentum[tensorflow]"',
        ),
        (
            "tensorflow",
            "tensorflow",
            "coolmomentum.tensorflow needs TensorFlow and Keras 3: "
            'pip install "coolmomentum[tensorflow]"',
        ),
        (
            "keras",
            BACKEND,
            f"Keras is set to its {BACKEND} backend, which is not installed: install it, or set "
            "KERAS_BACKEND to one of tensorflow, jax, torch that is",
        ),
    ],
)
def test_what_is_missing_is_named_with_its_extra(adapter, missing, message):
    """One line that says what to install."""
    done = python(WITHOUT.format(adapter=adapter, missing=missing))
    assert done.stderr.splitlines()[-1] == f"ImportError: {message}"


def test_another_error_is_shown_as_it_is():
    """A module that Keras itself misses is not taken for Keras."""
    done = python(WITHOUT.format(adapter="keras", missing="absl"))
    assert "No module named 'absl" in done.stderr.splitlines()[-1]
