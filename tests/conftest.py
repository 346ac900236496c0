"""Fixtures and settings that every test shares."""

import os
from collections.abc import Iterator

import hypothesis
import pytest
from frameworks import framework, left_out
from libraries import LIBRARIES, Library

# They need eight devices, which test_jax_sharding.py gives them in a process of their own.
collect_ignore_glob = ["*_on_eight_devices.py", "*_in_two_processes.py", *left_out()]

# Chosen by HYPOTHESIS_PROFILE or by pytest's --hypothesis-profile; see CONTRIBUTING.md.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=2000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# They wait for processes of their own, for minutes.
LONGEST = ("test_keras_backends.py", "test_packaging.py", "test_mutants.py", "test_jax_sharding.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``pytest --eq 19`` runs the tests of Eq. 19 of the paper."""
    parser.addoption("--eq", type=int, help="run the tests of this equation of the paper alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, or one process would be left with them at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    if (number := config.getoption("--eq")) is not None:
        items[:] = [x for x in items if any(number in m.args for m in x.iter_markers("eq"))]


def pytest_report_header() -> str:
    """What is not tested here, because something is not installed."""
    return f"left out, as not all they need is installed: {', '.join(left_out()) or 'none'}"


@pytest.fixture(params=LIBRARIES, ids=lambda library: library.name)
def library(request: pytest.FixtureRequest) -> Library:
    """Each array library; JAX both eager and jitted."""
    return request.param


@pytest.fixture
def jax_x64() -> Iterator[None]:
    """JAX with 64-bit types, as ``jax.config.update("jax_enable_x64", True)`` makes it."""
    jax = framework("jax")
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest, library: Library) -> str:
    """The dtypes that a library computes in; JAX has float64 with x64 only."""
    if request.param == "float64" and library.name.startswith("jax"):
        request.getfixturevalue("jax_x64")
    return request.param
