"""What importing the package does and does not do, in fresh processes and in the sources."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import coolmomentum

PACKAGE = Path(coolmomentum.__file__).parent
CORE = (
    *("_arrays", "_check", "_defaults", "_thermometer_before"),
    *("langevin", "schedules", "temperature", "update"),
)
THERMOMETER = tuple(sorted(path.stem for path in (PACKAGE / "thermometer").glob("*.py")))
FRAMEWORKS = (
    *("torch", "jax", "jaxlib", "optax", "flax", "tensorflow", "keras"),
    *("matplotlib", "safetensors"),
)
# Beside the core: modules that need one library more.
OPTIONAL = {"plot": "matplotlib", "checkpoint": "safetensors"}
ADAPTERS = ("numpy", "torch", "keras", "tensorflow", "jax")


@pytest.mark.parametrize("module", ["coolmomentum", "coolmomentum.numpy", "coolmomentum.plot"])
def test_importing_loads_no_framework_and_says_nothing(module):
    """A fresh process that imports it loads no framework, prints nothing and warns of nothing."""
    asked_for = {OPTIONAL[name] for name in OPTIONAL if module == f"coolmomentum.{name}"}
    others = set(FRAMEWORKS) - asked_for
    program = f"import sys, {module}; print(sorted({others} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def imports(source: Path) -> set[str]:
    """The modules that a source file imports, at its top or anywhere else."""
    nodes = list(ast.walk(ast.parse(source.read_text(encoding="utf-8"))))
    plain = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    return plain | {
        "." * node.level + (node.module or "") for node in nodes if isinstance(node, ast.ImportFrom)
    }


def test_the_list_of_core_modules_is_complete():
    """A new module of the core is tested here as well."""
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", *CORE, *OPTIONAL}


@pytest.mark.parametrize(
    "module", ["__init__", *CORE, *OPTIONAL, *(f"thermometer/{name}" for name in THERMOMETER)]
)
def test_the_core_imports_itself_numpy_and_the_compatibility_layer(module):
    """No source of the core names a framework or an adapter, not even inside a function.

    Nor does it name an optional module, which may name the one library that it needs.
    """
    allowed = {"coolmomentum", "numpy", "array_api_compat", OPTIONAL.get(module)}
    for name in imports(PACKAGE / f"{module}.py"):
        top, _, rest = name.partition(".")
        assert top in allowed | sys.stdlib_module_names
        assert top != "coolmomentum" or rest.partition(".")[0] not in {*ADAPTERS, *OPTIONAL}


@pytest.mark.parametrize("name", ["langevin", "schedules", "temperature", "update"])
def test_public_names_are_re_exported(name):
    """Every public name of a core module is the same thing in the package, and listed there."""
    module = importlib.import_module(f"coolmomentum.{name}")
    for public in module.__all__:
        assert getattr(coolmomentum, public) is getattr(module, public)
        assert public in coolmomentum.__all__
