"""Measure how far every path is from the float64 reference, and write docs/agreement.md.

Run as ``make agreement``. It takes some minutes; Keras is measured in a process for each backend.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from bounds import FORMATS, RunningBound, rounded
from drivers import DRIVERS, Driver, Oracle

from coolmomentum import CoolingSchedule

DOCS = Path(__file__).parents[2] / "docs"
STEPS = 1000
SHAPES = ((3, 4), (), (129,), (16, 8))
DECAY = 2.0**-7
BACKENDS = ("tensorflow", "jax", "torch")
WHAT = ("parameters", "displacements")


def drivers() -> dict[str, Driver]:
    """The paths that this process can measure: those of Keras if it has a backend of Keras."""
    if "KERAS_BACKEND" not in os.environ:
        return DRIVERS
    from keras_drivers import DRIVERS as OF_KERAS

    return OF_KERAS


# --- the run ------------------------------------------------------------------------------------


def measure(driver: Driver, steps: int = STEPS) -> dict[str, float]:
    """The worst deviations of a run from the reference, in units in the last place, with bounds.

    Noisy gradients of a quadratic loss with curvatures 0.1 to 10, at the reference's parameters;
    the paper's law over the first nine tenths of the steps; weight decay; a learning rate that is
    warmed up and later divided by 8. A unit is that of the largest magnitude that the coordinate
    has had, and the bound is the one for the coordinate and the step of the worst deviation.
    """
    random = np.random.default_rng(0)
    curvatures = [10.0 ** random.uniform(-1, 1, shape) for shape in SHAPES]
    start = [rounded(np.asarray(random.standard_normal(shape)), driver.dtype) for shape in SHAPES]
    cooling = CoolingSchedule(steps * 9 // 10, 0.99)
    oracle = Oracle(start, 2.0**-10, cooling, DECAY)
    run = driver.make(start, oracle.lr, cooling, DECAY)
    bounds = [RunningBound(driver.precision) for _ in start]
    for bound, x in zip(bounds, start, strict=True):
        bound.start(x)
    largest = {"parameters": [np.abs(x) for x in start], "displacements": [0.0 for _ in start]}
    worst = dict.fromkeys(WHAT, (0.0, 0.0))
    share = 0.0
    for n in range(steps):
        oracle.lr = 2.0**-10 if n < steps // 20 else 2.0**-7 if n < steps // 2 else 2.0**-10
        run.set_lr(oracle.lr)
        gradients = [
            rounded(k * x + random.standard_normal(x.shape), driver.dtype)
            for k, x in zip(curvatures, oracle.xs, strict=True)
        ]
        rho, before = cooling(n), oracle.state.displacements
        error = driver.precision.rho_error(cooling, rho)
        for bound, x, dx, g in zip(bounds, oracle.xs, before, gradients, strict=True):
            bound.step(x, dx, g, oracle.lr, rho, DECAY, error)
        oracle.step(gradients)
        run.step(gradients)
        both = {
            "parameters": (run.params(), oracle.xs, [bound.x for bound in bounds]),
            "displacements": (
                run.displacements(),
                oracle.state.displacements,
                [bound.dx for bound in bounds],
            ),
        }
        for what, arrays in both.items():
            dtype = driver.precision.displacement_dtype if what == "displacements" else driver.dtype
            for i, (ours, exact, bound) in enumerate(zip(*arrays, strict=True)):
                largest[what][i] = np.maximum(largest[what][i], np.abs(exact))
                unit = ulp(largest[what][i], dtype)
                deviation = np.abs(ours - exact)
                at = np.unravel_index(np.argmax(deviation / unit), np.shape(unit))
                found = (float((deviation / unit)[at]), float((bound / unit)[at]))
                worst[what] = max(worst[what], found)
                share = max(share, float((deviation / bound).max()))
    columns = {
        f"{what}, {name}": value
        for what in WHAT
        for name, value in zip(("worst", "bound"), worst[what], strict=True)
    }
    return columns | {"largest share of a bound": share}


def ulp(values: np.ndarray, dtype: str) -> np.ndarray:
    """Distance from a number to the next one of its dtype."""
    form = FORMATS[dtype]
    exponents = np.frexp(values)[1]  # values are in [2**(e - 1), 2**e)
    return np.maximum(np.ldexp(1.0, exponents - form.digits), form.subnormal)


# --- all of them --------------------------------------------------------------------------------


def table() -> pd.DataFrame:
    """One row for each path and dtype, of all adapters."""
    rows = measured_here()
    with tempfile.TemporaryDirectory() as folder:
        for backend in BACKENDS:
            file = Path(folder) / backend
            subprocess.run(
                [sys.executable, __file__, "--rows", str(file)],
                env=os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
                check=True,
            )
            rows |= json.loads(file.read_text(encoding="utf-8"))
    frame = pd.DataFrame.from_dict(rows, orient="index")
    names = frame.index.str.rsplit(", ", n=1)
    frame.insert(0, "dtype", frame.index.map(lambda name: drivers_dtype(name)))
    frame.insert(0, "path", frame.index.map(lambda name: name))
    del names
    return frame


def drivers_dtype(name: str) -> str:
    """The dtype in the name of a path."""
    (dtype,) = (word for word in name.split(", ") if word in FORMATS)
    return dtype


def measured_here() -> dict[str, dict[str, float]]:
    """The rows of this process, by name; what is being measured goes to standard error."""
    rows = {}
    for name, driver in drivers().items():
        print(name, file=sys.stderr, flush=True)
        rows[name] = measure(driver)
    return rows


# --- the page -----------------------------------------------------------------------------------


def page(frame: pd.DataFrame) -> str:
    """The page, in Markdown."""
    return ""


def figure(frame: pd.DataFrame) -> Any:
    """The figure: for each path the worst deviation and its bound."""
    return mpl


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, help="only write the rows of this process, as JSON")
    rows = parser.parse_args().rows
    if rows:
        rows.write_text(json.dumps(measured_here()), encoding="utf-8")
        return
    print(version("numpy"))


if __name__ == "__main__":
    main()
