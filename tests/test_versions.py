"""The lower bounds of pyproject.toml are those that ``make test-lowest`` installs."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def pins(file):
    """Name and version of each line of a file of constraints."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return [tuple(line.split("==")) for line in lines if not line.startswith("#")]


def test_the_lowest_versions_are_the_lower_bounds():
    """Every bound has its pin and every pin its bound, of the same version."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    requirements = [*settings["build-system"]["requires"], *settings["project"]["dependencies"]]
    for extra in settings["project"]["optional-dependencies"].values():
        requirements += extra
    bounds = [re.split(" *>= *", requirement) for requirement in requirements if ">" in requirement]
    assert {tuple(bound) for bound in bounds} == set(pins("constraints-lowest.txt"))
    assert len(pins("constraints-lowest.txt")) == len(dict(pins("constraints-lowest.txt")))


def test_a_requirement_has_a_lower_bound_or_none():
    """No other comparison, which ``make test-lowest`` would not see."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = settings["project"]
    extras = project["optional-dependencies"].values()
    for requirement in (*project["dependencies"], *(r for extra in extras for r in extra)):
        assert re.fullmatch(r"[\w-]+(\[[\w,-]+\])?(>=[\d.]+)?( *;.*)?", requirement)
