"""Public docstrings by numpydoc's rules: every parameter, result and an example, in order."""

import inspect
import os

import pytest
from frameworks import framework
from numpydoc.validate import validate

CODES = {
    "GL07",  # sections in their order
    "PR01",  # every parameter is there
    "PR02",  # and no other
    "PR03",  # in the order of the signature
    "RT01",  # what is returned
    "EX01",  # an example, which is executed
}
MODULES = (
    *("coolmomentum", "coolmomentum.audit", "coolmomentum.plot", "coolmomentum.portable"),
    *("coolmomentum.thermal", "coolmomentum.thermometer", "coolmomentum.numpy"),
)
ADAPTERS = ("coolmomentum.torch", "coolmomentum.jax")
if "KERAS_BACKEND" in os.environ:
    ADAPTERS = ("coolmomentum.keras",)


def public(module: str) -> list[str]:
    """Functions and classes; fields of a named tuple have comments, and a type has no docstring."""
    names = []
    for name in framework(module).__all__:
        thing = getattr(framework(module), name)
        is_tuple = inspect.isclass(thing) and issubclass(thing, tuple)
        if (inspect.isclass(thing) or inspect.isroutine(thing)) and not is_tuple:
            names.append(f"{module}.{name}")
    return names


@pytest.mark.parametrize("module", [*MODULES, *ADAPTERS])
def test_docstrings_are_whole(module):
    """Of every public function and class of the module."""
    found = [
        f"{name}: {code} {text}"
        for name in public(module)
        for code, text in validate(name)["errors"]
        if code in CODES
    ]
    assert found == []
