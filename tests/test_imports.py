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
    *("_arrays", "_check", "_defaults", "audit", "cooldown"),
    *("langevin", "schedules", "solver", "temperature", "thermal", "update"),
)
THERMOMETER = tuple(sorted(path.stem for path in (PACKAGE / "thermometer").glob("*.py")))
FRAMEWORKS = (
    *("torch", "jax", "jaxlib", "optax", "flax", "tensorflow", "keras"),
    *("matplotlib", "safetensors"),
)
# Beside the core: modules that need one library more.
OPTIONAL = {"plot": "matplotlib", "portable": "safetensors"}
ADAPTERS = ("numpy", "torch", "keras", "tensorflow", "jax")


@pytest.mark.parametrize("module", ["coolmomentum", "coolmomentum.numpy", "coolmomentum.plot"])
def test_importing_loads_no_framework_and_says_nothing(module):
    """A fresh process that imports it loads no framework, prints nothing and warns of nothing."""
    asked_for = {OPTIONAL[name] for name in OPTIONAL if module == f"coolmomentum.{name}"}
    for package in asked_for:
        pytest.importorskip(package)
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


@pytest.mark.parametrize("name", ["langevin", "schedules", "solver", "temperature", "update"])
def test_public_names_are_re_exported(name):
    """Every public name of a core module is the same thing in the package, and listed there."""
    module = importlib.import_module(f"coolmomentum.{name}")
    for public in module.__all__:
        assert getattr(coolmomentum, public) is getattr(module, public)
        assert public in coolmomentum.__all__


@pytest.mark.parametrize("name", ["CoolMomentum", "cool_momentum", "Thermometer"])
def test_who_looks_here_for_an_optimizer_is_told_where_it_is(name):
    """One line names the four imports; to hasattr, dir and getattr it is an attribute not there."""
    for importing in (
        f"from coolmomentum import {name}",
        f"from coolmomentum import rho_at, {name}",
    ):
        with pytest.raises(ImportError) as caught:
            exec(importing)
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(f"{name!r} is in the module of your framework")
        for framework in ("torch", "jax", "keras", "numpy"):
            assert f"from coolmomentum.{framework} " in message
    assert not hasattr(coolmomentum, name)
    assert name not in dir(coolmomentum)
    assert getattr(coolmomentum, name, None) is None
    with pytest.raises(AttributeError, match=r"from coolmomentum\.torch import CoolMomentum"):
        getattr(coolmomentum, name)


def test_other_names_are_missing_as_ever():
    """Names that do not exist, and adapters that were not imported, say what Python says."""
    done = subprocess.run(
        [sys.executable, "-c", "import coolmomentum; coolmomentum.torch"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines()[-1] == (
        "AttributeError: module 'coolmomentum' has no attribute 'torch'"
    )
    with pytest.raises(ImportError, match=r"^cannot import name 'nothing' from 'coolmomentum'"):
        from coolmomentum import nothing  # noqa: F401
    with pytest.raises(AttributeError, match=r"^module 'coolmomentum' has no attribute '__x__'$"):
        _ = coolmomentum.__x__


def test_a_star_import_has_the_public_names():
    """All of __all__, and nothing else."""
    names: dict[str, object] = {}
    exec("from coolmomentum import *", names)
    assert names.keys() - {"__builtins__"} == set(coolmomentum.__all__)


def test_a_type_checker_sees_only_the_names_there_are():
    """A module's __getattr__ makes every name exist for mypy, so it is kept from it."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (kept,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    hidden = [node for node in tree.body if isinstance(node, ast.If) and kept in node.body]
    assert kept.name == "__getattr__"
    assert [ast.unparse(node.test) for node in hidden] == ["not TYPE_CHECKING"]
