"""Collect the Python blocks of README and docs as tests: those of a file run in order, as one."""

import importlib.util
import os
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], patterns=["README.md", "docs/*.md"]
).pytest()

# Its blocks write files and need packages of their own: tests/test_logging_recipes.py runs them.
collect_ignore = ["docs/logging.md"]

# A process has one Keras backend: tests/test_keras_backends.py runs these with each.
if "KERAS_BACKEND" not in os.environ:
    collect_ignore += ["coolmomentum/keras", "coolmomentum/tensorflow"]
    collect_ignore += ["docs/keras.md", "docs/checkpoints.md", "docs/cooldown.md"]
    collect_ignore += ["docs/critical_batch_size.md"]
    collect_ignore_glob = ["benchmarks/training/_keras*.py"]

# What cannot run without a package; tests/frameworks.py has the same for the tests.
NEEDS = {
    "torch": [
        "coolmomentum/torch",
        "coolmomentum/keras/_foreach.py",
        "docs/cooldown.md",
        "docs/critical_batch_size.md",
        "docs/thermometer.md",
        "docs/plots.md",
    ],
    "optax": [
        "coolmomentum/jax",
        "docs/cooldown.md",
        "docs/critical_batch_size.md",
        "docs/jax.md",
        "docs/thermometer.md",
    ],
    "matplotlib": ["coolmomentum/plot.py", "docs/plots.md"],
    "safetensors": ["coolmomentum/portable.py", "docs/checkpoints.md"],
    "benchopt": [str(path) for path in Path(__file__).parent.glob("benchmarks/**/*.py")],
}
for package, paths in NEEDS.items():
    if importlib.util.find_spec(package) is None:
        collect_ignore += paths


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip README.md, a whole, where not all that it shows is installed."""
    missing = [name for name in ("torch", "optax") if importlib.util.find_spec(name) is None]
    for item in items:
        if missing and item.path.name == "README.md":
            item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(missing)}"))
