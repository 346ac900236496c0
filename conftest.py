"""Collect the Python blocks of README and docs as tests: those of a file run in order, as one."""

import importlib.util
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parent


def into_a_folder(names: dict[str, Any]) -> None:
    """Run a page where what it writes does not stay."""
    names["_home"], names["_folder"] = Path.cwd(), tempfile.TemporaryDirectory()
    os.chdir(names["_folder"].name)


def home_again(names: dict[str, Any]) -> None:
    """Go back to where pytest runs."""
    os.chdir(names["_home"])
    names["_folder"].cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/*.md"],
    setup=into_a_folder,
    teardown=home_again,
).pytest()

# Its blocks write files and need packages of their own: tests/test_logging_recipes.py runs them.
collect_ignore = ["docs/logging.md", "docs/conf.py"]

# A process has one Keras backend: tests/test_keras_backends.py runs these with each.
OF_KERAS = "KERAS_BACKEND" in os.environ
if not OF_KERAS:
    collect_ignore += ["coolmomentum/keras", "coolmomentum/tensorflow"]
    collect_ignore_glob = ["benchmarks/training/_keras*.py"]
    collect_ignore_glob += [
        f"benchmarks/imagenet/{name}.py"
        for name in ("averages", "devices", "images", "network", "optimizers", "train")
    ]

# What cannot run without a package; tests/frameworks.py has the same for the tests.
NEEDS = {
    "torch": ["coolmomentum/torch", "coolmomentum/keras/_foreach.py"],
    "optax": ["coolmomentum/jax"],
    "matplotlib": ["coolmomentum/plot.py"],
    "safetensors": ["coolmomentum/portable.py"],
    "benchopt": [str(path) for path in ROOT.glob("benchmarks/**/*.py")],
}


def missing(page: Path) -> set[str]:
    """The packages that the blocks of a page import, and that are not to be had in this process."""
    imports = r"^ *(?:import|from) (?:coolmomentum(?:\.| import ))?(\w+)"
    names = set(re.findall(imports, page.read_text(encoding="utf-8"), re.MULTILINE))
    frameworks = {"torch", "optax", "keras", "flax", "orbax", "safetensors", "matplotlib"} & names
    return {
        name
        for name in frameworks | ({"jax", "optax"} if "jax" in names else set())
        if importlib.util.find_spec(name) is None or (name == "keras" and not OF_KERAS)
    }


for package, paths in NEEDS.items():
    if importlib.util.find_spec(package) is None:
        collect_ignore += paths
collect_ignore += [str(page) for page in ROOT.glob("docs/*.md") if missing(page)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip README.md, a whole, where not all that it shows is installed."""
    lacking = ", ".join(sorted(missing(ROOT / "README.md")))
    for item in items:
        if lacking and item.path.name == "README.md":
            item.add_marker(pytest.mark.skip(reason=f"not installed: {lacking}"))
