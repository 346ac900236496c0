"""``python -m benchmarks.speed results/speed``: the report from the JSON files of a run."""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd

from benchmarks.speed.turns import COPY

BYTES_COPIED, BYTES_STEPPED = 8, 20  # a float32 parameter: read and write; read p, g, v, write p, v
SMALL, LARGE, FLAT = "65 tensors, 270 thousand", "161 tensors, 25.6 million", "1 tensor, 25 million"
INTRODUCTION = """\
# Speed

Users need the first table. The rest is for who works on the package.

## What a step costs

On one core of a CPU, as ratios of processor time; below 1 is faster than what it stands beside:

{users}

The state is one array for each parameter, as that of SGD with momentum; by default a step on the
CPU in float32 allocates nothing more.

{summary}
Made by `make speed`, or `python -m benchmarks.speed results/speed` from its files, on one machine:
{machine}, no GPU, other work beside it.

## How to read the tables

Contenders take turns in one process, one thread each. A ratio is the median of the ratios within a
turn, of process CPU time, with its quartiles; below 1 is faster. *Wall* is the same by the clock.
*Copy* is the speed of 20 bytes a parameter (parameter, gradient and momentum read, two of them
written) as a fraction of that of NumPy's copy of as many float32 numbers in the same turns, for
models larger than the caches; it can be above 100 %, as a copy waits for memory that it only
writes, while a step has read what it writes. *ms*, the CPU time of a step, is of this machine and
of no other. *Bytes a parameter* are counted from the arguments of the operators (PyTorch) or are
XLA's estimate (JAX), *operators* are those called from Python, and *allocated bytes* all that these
allocate in a step, which the peak above the state cannot exceed.

## Targets

They were set before anything was measured, as what a careful implementation should reach.
"""
REASONS = "### What stands in the way"


# The first table: what is timed, beside what, and where both are in the results.
USERS = (
    ("PyTorch, a step", "`torch.optim.SGD`, its default", "torch", "test_paths[{}]", 0),
    ("", "the same, `fused=True`", "torch", "test_paths[{}]", 1),
    ("JAX, jitted and donated", "`optax.sgd` with momentum", "jax", "test_paths[{}]", 2),
    (
        *("Keras on TensorFlow, in a graph", "`keras.optimizers.SGD` with momentum"),
        *("keras-tensorflow", "test_paths[{}-graph]", 3),
    ),
    ("on JAX, jitted", "", "keras-jax", "test_paths[{}-jit]", 3),
    ("on PyTorch", "", "keras-torch", "test_paths[{}-eager]", 3),
    ("PyTorch, `temperature()`", "a fused step", "torch", "test_temperature[{}]", 4),
)
PAIRS = (
    ("CoolMomentum", "torch.optim.SGD"),
    ("CoolMomentum", "torch.optim.SGD, fused"),
    ("cool_momentum", "optax.sgd"),
    ("CoolMomentum", "keras SGD"),
    ("temperature()", "torch.optim.SGD, fused"),
)


class Target(NamedTuple):
    """What was aimed at before anything was measured: a ratio of two contenders."""

    what: str
    run: str
    benchmark: str
    contender: str
    baseline: str
    limit: float


def targets() -> list[Target]:
    """Those that are ratios of times."""
    ours, sgd, fused = "CoolMomentum", "torch.optim.SGD", "torch.optim.SGD, fused"
    optax, keras_sgd = "optax.sgd", "keras SGD"
    found = [
        Target("torch, fused SGD", "torch", f"test_paths[{LARGE}]", ours, fused, 1.0),
        Target("torch, fused SGD", "torch", f"test_paths[{SMALL}]", ours, fused, 0.85),
        Target("torch, default SGD", "torch", f"test_paths[{LARGE}]", ours, sgd, 0.6),
        Target("torch, default SGD", "torch", f"test_paths[{SMALL}]", ours, sgd, 0.5),
        *(
            Target(
                "temperature on demand, fused SGD",
                "torch",
                f"test_temperature[{size}]",
                "temperature()",
                fused,
                0.4,
            )
            for size in (FLAT, LARGE, SMALL)
        ),
    ]
    for size in (LARGE, SMALL):
        found += [
            Target("JAX", "jax", f"test_paths[{size}]", "cool_momentum", optax, 1.02),
            Target(
                "JAX, thermometer",
                "jax",
                f"test_windowed[{size}]",
                "cool_momentum, thermometer",
                optax,
                1.05,
            ),
        ]
        for backend, way, limit in (
            ("jax", "jit", 1.02),
            ("tensorflow", "graph", 1.02),
            ("tensorflow", "jit", 1.02),
            ("tensorflow", "eager", 1.3),
            ("torch", "eager", 1.02),
        ):
            found.append(
                Target(
                    f"Keras on {backend}, {way}",
                    f"keras-{backend}",
                    f"test_paths[{size}-{way}]",
                    ours,
                    keras_sgd,
                    limit,
                )
            )
    return found


def main() -> None:
    """Read every JSON file of a folder, write the report beside the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="folder with JSON files of pytest-benchmark")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder of the report")
    arguments = parser.parse_args()
    runs = {p.stem: json.loads(p.read_text()) for p in sorted(arguments.results.glob("*.json"))}
    if not runs:
        parser.error(f"results must be a folder with JSON files: {arguments.results}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    draw(runs, arguments.output / "speed-growth.png")
    remarks = Path(__file__).with_name("remarks.md").read_text()
    (arguments.output / "speed.md").write_text(report(runs, remarks))


def report(runs: dict[str, Any], remarks: str) -> str:
    """The whole page."""
    machine = next(iter(runs.values()))["machine_info"]
    cpu = machine["cpu"]
    named = f"{cpu.get('brand_raw', machine['machine'])}, {cpu.get('count')} cores"
    summary, reasons = remarks.split(REASONS)
    introduction = INTRODUCTION.format(machine=named, summary=summary, users=for_users(runs))
    lines = [introduction, *met(runs), REASONS + reasons]
    for name, run in runs.items():
        lines += [f"## {name}", ""]
        for benchmark in run["benchmarks"]:
            if not benchmark["name"].startswith("test_growth"):
                lines += table(benchmark)
    lines += ["## Growth", "", "![Time of a step against size](speed-growth.png)", ""]
    return "\n".join(lines)


def seconds_of(runs: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """The times of all contenders, by the run and the name of the benchmark."""
    return {
        (run, benchmark["name"]): benchmark["extra_info"]["seconds"]
        for run, content in runs.items()
        for benchmark in content["benchmarks"]
    }


def for_users(runs: dict[str, Any]) -> str:
    """The first table: medians of ratios, at two sizes; what was not measured is left empty."""
    named = seconds_of(runs)
    lines = [f"| | beside | {LARGE} | {SMALL} |", "| --- | --- | ---: | ---: |"]
    for what, beside, run, benchmark, pair in USERS:
        cells = []
        for size in (LARGE, SMALL):
            seconds = named.get((run, benchmark.format(size)))
            if seconds is None:
                cells.append("")
                continue
            ours, theirs = (pd.Series(seconds[name]["cpu"]) for name in PAIRS[pair])
            cells.append(f"{(ours / theirs).median():.2f}")
        lines.append(f"| {' | '.join((what, beside, *cells))} |")
    return "\n".join(lines)


def met(runs: dict[str, Any]) -> list[str]:
    """The targets as a table of Markdown."""
    named = seconds_of(runs)
    rows = [["against", "model", "target", "measured", ""], ["---", "---", "---:", "---:", "---"]]
    for target in targets():
        seconds = named.get((target.run, target.benchmark))
        if seconds is None:
            continue
        cpu = {name: pd.Series(times["cpu"]) for name, times in seconds.items()}
        ratios = cpu[target.contender] / cpu[target.baseline]
        verdict = "met" if round(ratios.median(), 2) <= target.limit else "not met"
        model = target.benchmark.split("[")[1].rstrip("]").split("-")[0]
        rows.append([target.what, model, f"{target.limit:.2f}", ratio(ratios), verdict])
    return [*(f"| {' | '.join(row)} |" for row in rows), ""]


def table(benchmark: dict[str, Any]) -> list[str]:
    """One benchmark as a table of Markdown."""
    info = benchmark["extra_info"]
    baselines, counts = info["baselines"], info["counts"]
    counted = list(dict.fromkeys(key for values in counts.values() for key in values))
    on = [f"/ {name}" for name in baselines]
    header = ["", "ms", *on, *(f"{name}, wall" for name in on), "copy", *counted]
    rows = [header, ["---"] + ["---:"] * (len(header) - 1)]
    times = info["seconds"]
    cpu, wall = (
        pd.DataFrame({name: seconds[clock] for name, seconds in times.items()})
        for clock in ("cpu", "wall")
    )
    for name in cpu:
        share = BYTES_STEPPED / BYTES_COPIED * (cpu[COPY] / cpu[name]).median()
        values = (counts.get(name, {}).get(key) for key in counted)
        rows.append(
            [
                str(name),
                f"{1000 * cpu[name].median():.3g}",
                *(ratio(cpu[name] / cpu[baseline]) for baseline in baselines),
                *(f"{(wall[name] / wall[baseline]).median():.2f}" for baseline in baselines),
                f"{share:.0%}" if steps(str(name)) and info["parameters"] >= 10**6 else "",
                *("" if value is None else f"{value:.4g}" for value in values),
            ]
        )
    speed = BYTES_COPIED * info["parameters"] / cpu[COPY].median() / 1e9
    return [
        f"### {title(benchmark['name'])}",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"The copy ran at {speed:.1f} GB/s.",
        "",
    ]


def title(name: str) -> str:
    """A benchmark's name as a heading: ``test_paths[1 tensor-jit]`` is "Paths: 1 tensor, jit"."""
    what, _, case = name.removeprefix("test_").rstrip("]").partition("[")
    what = what.replace("_", " ").capitalize()
    return f"{what}: {case.replace('-', ', ')}" if case else what


def steps(contender: str) -> bool:
    """Whether it moves the bytes of a step, not those of a reading."""
    return contender != COPY and not contender.startswith(("temperature", "one sum"))


def ratio(ratios: pd.Series) -> str:
    """Median and quartiles."""
    low, median, high = ratios.quantile([0.25, 0.5, 0.75])
    return f"**{median:.2f}** ({low:.2f}-{high:.2f})"


def draw(runs: dict[str, Any], path: Path) -> None:
    """Time of a step against parameters and against tensors, a row for each framework."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    growth = {
        name: [b["extra_info"] for b in run["benchmarks"] if b["name"].startswith("test_growth")]
        for name, run in runs.items()
    }
    growth = {name: infos for name, infos in growth.items() if infos}
    if not growth:
        return
    figure, axes = plt.subplots(
        len(growth), 2, figsize=(8, 2.6 * len(growth)), squeeze=False, layout="constrained"
    )
    for row, (name, infos) in zip(axes, growth.items(), strict=True):
        kinds = (
            (
                "parameters",
                "parameters in one tensor",
                [i for i in infos if i["parameters"] >= 10**4 and i["tensors"] == 1],
            ),
            (
                "tensors",
                "tensors of 1,000",
                [i for i in infos if i["parameters"] == 1000 * i["tensors"]],
            ),
        )
        for axis, (key, label, chosen) in zip(row, kinds, strict=True):
            for contender in chosen[0]["seconds"] if chosen else ():
                times = [pd.Series(i["seconds"][contender]["cpu"]) * 1000 for i in chosen]
                sizes = [i[key] for i in chosen]
                style = {"color": "0.6", "linestyle": ":"} if contender == COPY else {"marker": "."}
                (line,) = axis.loglog(sizes, [t.median() for t in times], label=contender, **style)
                low, high = ([t.quantile(q) for t in times] for q in (0.25, 0.75))
                axis.fill_between(sizes, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
            axis.set(xlabel=label, ylabel="ms a step", title=name)
        row[0].legend(fontsize="x-small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
