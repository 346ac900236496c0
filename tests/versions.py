"""Run the tests in environments of other versions, each framework apart; see CONTRIBUTING.md.

``python tests/versions.py lowest`` does so with the lower bounds of pyproject.toml, and ``python
tests/versions.py today`` with those of constraints.txt, for a Python that `make test` is not run
with; names of environments after it choose some. It prints a table, and fails if a test fails or
an environment cannot be installed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = {"lowest": "constraints-lowest.txt", "today": "constraints.txt"}


@dataclass(frozen=True)
class Environment:
    """What is installed together, and the tests that are run there."""

    extras: str
    shown: tuple[str, ...]  # packages of the table; they must be there
    tests: tuple[str, ...]
    more: tuple[str, ...] = ()  # packages without a bound
    keras: str = ""  # its backend


CONTRACT = ("tests/contract",)
OF_KERAS = ("tests/keras_adapter", *CONTRACT, "docs/keras.md", "coolmomentum/keras")
ENVIRONMENTS = {
    "core": Environment(
        "plot", ("numpy", "array-api-compat", "matplotlib"), ("tests", "docs"), more=("pandas",)
    ),
    "torch": Environment("torch", ("torch", "numpy"), ("tests", "coolmomentum/torch")),
    "jax": Environment(
        "jax",
        ("jax", "optax", "numpy"),
        ("tests", "coolmomentum/jax", "docs/jax.md"),
        more=("flax", "orbax-checkpoint", "flatbuffers", "scikit-learn"),
    ),
    "keras-tensorflow": Environment(
        "tensorflow",
        ("keras", "tensorflow", "numpy"),
        (*OF_KERAS, "coolmomentum/tensorflow"),
        more=("tensorboard",),
        keras="tensorflow",
    ),
    "keras-jax": Environment(
        "keras,jax",
        ("keras", "jax", "numpy"),
        OF_KERAS,
        keras="jax",
    ),
    "keras-torch": Environment("keras,torch", ("keras", "torch", "numpy"), OF_KERAS, keras="torch"),
}


def run(name: str, which: str, keep: bool) -> tuple[str, str]:
    """The versions of an environment, and what pytest said of the tests there."""
    environment, folder = ENVIRONMENTS[name], ROOT / f".venv-{which}-{name}"
    venv.create(folder, with_pip=True, clear=True)
    python = str(folder / "bin" / "python")
    try:
        install = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        install += ["-c", str(ROOT / FILES[which])]
        # Without build isolation, so that the lowest hatchling is what builds.
        builders = ["hatchling", "editables", "hatch-fancy-pypi-readme"]
        if subprocess.run([*install, *builders], check=False).returncode:
            return "", "not installed"
        package = ["--no-build-isolation", "-e", f"{ROOT}[test,{environment.extras}]"]
        if subprocess.run([*install, *package, *environment.more], check=False).returncode:
            return "", "not installed"
        ask = "import sys, importlib.metadata as m; print([m.version(n) for n in sys.argv[1:]])"
        versions = subprocess.check_output([python, "-c", ask, *environment.shown], text=True)
        found = re.findall("'(.*?)'", versions)
        return (
            ", ".join(" ".join(pair) for pair in zip(environment.shown, found, strict=True)),
            tested(python, environment),
        )
    finally:
        if not keep:
            shutil.rmtree(folder)


def tested(python: str, environment: Environment) -> str:
    """The last line of pytest's output, which is shown while it runs."""
    required = [name.replace("-", "_") for name in environment.shown]
    settings = {"COOLMOMENTUM_REQUIRED": " ".join(required), "OMP_NUM_THREADS": "1"}
    if environment.keras:
        settings |= {"KERAS_BACKEND": environment.keras, "TF_CPP_MIN_LOG_LEVEL": "3"}
    # Others deprecate what was right when they were made.
    options = [
        "-W",
        "ignore::DeprecationWarning",
        "-q",
        "-n",
        "2",
        "--dist",
        "loadfile",
        "-p",
        "no:cacheprovider",
        "-rsfE",
    ]
    process = subprocess.Popen(
        [python, "-m", "pytest", *options, *environment.tests],
        cwd=ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        text=True,
    )
    last = ""
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    return last if process.wait() == 0 else f"FAILED: {last}"


def main() -> None:
    """All that are asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=FILES)
    parser.add_argument("names", nargs="*", metavar="environment", default=[*ENVIRONMENTS])
    parser.add_argument("--keep", action="store_true", help="leave the environments there")
    arguments = parser.parse_args()
    version = ".".join(map(str, sys.version_info[:3]))
    rows = []
    for name in arguments.names:
        versions, outcome = run(name, arguments.which, arguments.keep)
        rows.append(f"| {name} | {version} | {versions} | {outcome} |")
        print(rows[-1], flush=True)
    print("\n| environment | Python | versions | tests |\n| :--- | :--- | :--- | :--- |")
    print("\n".join(rows))
    sys.exit(any("passed" not in row or "FAILED" in row for row in rows))


if __name__ == "__main__":
    main()
