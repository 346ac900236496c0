"""optax's own test modules, which its wheel ships, with other optimizers in their tables."""

import ast
import importlib.util
import types
import warnings
from pathlib import Path
from typing import Any

import pytest


def suite(name: str, **tables: Any) -> types.ModuleType:
    """The test module ``name`` of optax, with its global names in ``tables`` replaced."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"this optax does not ship {name}", allow_module_level=True)
    tree = ast.parse(Path(spec.origin).read_text())
    first_class = next(i for i, node in enumerate(tree.body) if isinstance(node, ast.ClassDef))
    head = ast.unparse(tree.body[:first_class])
    assert all(f"{table} = " in head for table in tables), f"{name} has not all of {list(tables)}"
    module = types.ModuleType(name)
    module.__dict__.update(__file__=spec.origin, replaced_=tables)
    # The decorators of the classes read the tables, so they are replaced before the first class.
    tree.body[first_class:first_class] = ast.parse("globals().update(replaced_)").body
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the optimizers in their own tables
        exec(compile(tree, spec.origin, "exec"), module.__dict__)
    return module
