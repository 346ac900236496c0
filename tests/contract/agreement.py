"""Measure how far every path is from the float64 reference, and write docs/agreement.md.

Run as ``make agreement``. It takes some minutes; Keras is measured in a process for each backend.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from adapters import DRIVERS
from bounds import FORMATS, RunningBound, rounded
from drivers import Driver, Oracle
from frameworks import framework

from coolmomentum import CoolingSchedule

pd, plt = framework("pandas"), framework("matplotlib.pyplot")  # of the page alone
DOCS = Path(__file__).parents[2] / "docs"
STEPS = 1000
SHAPES = ((3, 4), (), (129,), (16, 8))
DECAY = 2.0**-7
BACKENDS = ("tensorflow", "jax", "torch")
WHAT = ("parameters", "displacements")


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
    # Keras on PyTorch has float32 in its own weight decay, which is decoupled; this is not.
    own = driver.precision.decay_dtype or driver.dtype
    narrow = FORMATS[own].digits < FORMATS[driver.dtype].digits
    precision = replace(driver.precision, **{"decay_dtype": driver.dtype} if narrow else {})
    bounds = [RunningBound(precision) for _ in start]
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
        error = precision.rho_error(cooling, rho)
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
            for i, (ours, exact, bound) in enumerate(zip(*arrays, strict=True)):
                largest[what][i] = np.maximum(largest[what][i], np.abs(exact))
                unit = ulp(largest[what][i], driver.dtype)
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


def measured_here() -> dict[str, dict[str, float]]:
    """The rows of this process by the names of the paths, which go to standard error meanwhile."""
    rows = {}
    for name, driver in DRIVERS.items():
        print(name, file=sys.stderr, flush=True)
        rows[name] = measure(driver)
    return rows


def measured_everywhere() -> pd.DataFrame:
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
    return frame_of(rows)


def frame_of(rows: dict[str, dict[str, float]]) -> pd.DataFrame:
    """The rows as a table, with path and dtype as columns."""
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.insert(0, "dtype", [split(name)[1] for name in rows])
    frame.insert(0, "path", [split(name)[0] for name in rows])
    return frame


def split(name: str) -> tuple[str, str]:
    """The name of a driver as that of its path and its dtype."""
    words = name.split(", ")
    (dtype,) = (word for word in words if word in FORMATS)
    return ", ".join(word for word in words if word != dtype), dtype


# --- the page -----------------------------------------------------------------------------------

PAGE = """# How far the adapters are from the reference

<!-- Written by `make agreement`. -->

Every path of every adapter takes the same {steps:,} steps as the NumPy reference in float64: four
parameters of up to 129 elements, noisy gradients of a quadratic loss, the paper's law over
{cooling} steps from rho0 = 0.99, weight decay, and a learning rate that is raised by 8 and later
lowered again. The tables have the largest deviation of any coordinate after any step, in units in
the last place (ulp): the distance to the next number of the parameters' dtype, at the largest
magnitude that the coordinate has had. Beside it stands the bound for that coordinate and step.

The bounds follow from the operations of a step and the formats of the numbers, and from nothing
else; the derivation is in [tests/contract/bounds.py](../tests/contract/bounds.py). They hold for
the worst rounding in every operation, while roundings mostly cancel, so that after many steps they
are far away. The last column is the largest fraction of its bound that any deviation had at any
step, most often in one of the first, where there is nothing yet to cancel. Above 1 it would be an
error, and the tests would fail.

![The worst deviation of each path, with its bound](agreement.png)

{tables}
Measured on {machine} with {versions}.
`make agreement` writes this page anew. On other machines and versions the deviations differ; they
stay within the bounds.
"""
LIBRARIES = ("numpy", "torch", "jax", "optax", "keras", "tensorflow-cpu")


def page(frame: pd.DataFrame) -> str:
    """The page, in Markdown."""
    tables = [f"## {dtype}\n\n{table(frame[frame['dtype'] == dtype])}" for dtype in FORMATS]
    return PAGE.format(
        steps=STEPS,
        cooling=STEPS * 9 // 10,
        tables="\n".join(tables),
        machine=f"{platform.machine()} under {platform.system()}",
        versions=", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    )


def table(rows: pd.DataFrame) -> str:
    """The rows of one dtype, in Markdown."""
    lines = [
        "| path | parameters | bound | displacements | bound | share of bound |",
        "| :--- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for path, _, *values, share in rows.itertuples(index=False):
        numbers = " | ".join(f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in values)
        lines.append(f"| {path} | {numbers} | {share:.2f} |")
    return "\n".join(lines) + "\n"


def figure(frame: pd.DataFrame) -> plt.Figure:
    """For each path and dtype a dot at the worst deviation and a bar at its bound."""
    paths = list(dict.fromkeys(frame["path"]))[::-1]  # from the top
    drawn, panels = plt.subplots(
        1, 2, sharey=True, figsize=(11, 1 + 0.36 * len(paths)), layout="constrained"
    )
    offsets = dict(zip(FORMATS, np.linspace(0.27, -0.27, len(FORMATS)), strict=True))
    colours = dict(zip(FORMATS, ("#0072b2", "#d55e00", "#009e73", "#cc79a7"), strict=True))
    for panel, what in zip(panels, WHAT, strict=True):
        for dtype, rows in frame.groupby("dtype"):
            y = [paths.index(path) + offsets[dtype] for path in rows["path"]]
            # What is below is exact, or nearly: a logarithmic axis has no 0.
            worst = rows[f"{what}, worst"].clip(lower=0.1)
            bound = rows[f"{what}, bound"].clip(lower=0.1)
            panel.hlines(y, worst, bound, color=colours[dtype], alpha=0.35, linewidth=1)
            panel.plot(worst, y, "o", color=colours[dtype], markersize=4, label=dtype)
            panel.plot(bound, y, "|", color=colours[dtype], markersize=6, markeredgewidth=1.5)
        panel.set_xscale("log")
        panel.set_xlabel(f"{what}: deviation from the reference (ulp)")
        panel.set_yticks(range(len(paths)), paths, fontsize=8)
        panel.grid(axis="x", alpha=0.3)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    order = [labels.index(dtype) for dtype in FORMATS if dtype in labels]
    drawn.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside upper center",
        ncols=len(order),
        frameon=False,
        title=f"worst deviation in {STEPS:,} steps (dot; none is drawn at 0.1) and its bound (bar)",
    )
    return drawn


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, help="only write the rows of this process, as JSON")
    rows = parser.parse_args().rows
    if rows:
        rows.write_text(json.dumps(measured_here()), encoding="utf-8")
        return
    frame = measured_everywhere()
    plt.switch_backend("agg")
    figure(frame).savefig(DOCS / "agreement.png", dpi=110, facecolor="white")
    (DOCS / "agreement.md").write_text(page(frame), encoding="utf-8")


if __name__ == "__main__":
    main()
