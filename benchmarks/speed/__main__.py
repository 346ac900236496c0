"""``python -m benchmarks.speed results/speed``: the report from the JSON files of a run."""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd

from benchmarks.speed.turns import COPY

BYTES_COPIED, BYTES_STEPPED = 8, 20  # a float32 parameter: read and write; read p, g, v, write p, v


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
    (arguments.output / "speed.md").write_text(report(runs))


def report(runs: dict[str, Any]) -> str:
    """The whole page."""
    machine = next(iter(runs.values()))["machine_info"]
    lines = [
        "# Speed",
        "",
        "Made by `make speed`, or `python -m benchmarks.speed results/speed` from its files.",
        "Contenders take turns in one process, one thread each. A ratio is the median of the",
        "ratios within a turn, of process CPU time, with its quartiles; below 1 is faster. *Copy*",
        "is the speed of 20 bytes a parameter (parameter, gradient and momentum read, two of them",
        "written) as a fraction of that of NumPy's copy of as many float32 numbers in the same",
        "turns, for models that are larger than the caches. *ms* is of this machine "
        f"({machine['cpu'].get('brand_raw', machine['machine'])}), and of no other.",
        "",
    ]
    for name, run in runs.items():
        lines += [f"## {name}", ""]
        for benchmark in run["benchmarks"]:
            if not benchmark["name"].startswith("test_growth"):
                lines += table(benchmark)
    lines += ["## Growth", "", "![Time of a step against size](speed-growth.png)", ""]
    return "\n".join(lines)


def table(benchmark: dict[str, Any]) -> list[str]:
    """One benchmark as a table of Markdown."""
    info = benchmark["extra_info"]
    baselines, counts = info["baselines"], info["counts"]
    counted = list(dict.fromkeys(key for values in counts.values() for key in values))
    header = ["", "ms", *(f"/ {name}" for name in baselines), "copy", *counted]
    rows = [header, ["---"] + ["---:"] * (len(header) - 1)]
    cpu = pd.DataFrame({name: seconds["cpu"] for name, seconds in info["seconds"].items()})
    for name in cpu:
        share = BYTES_STEPPED / BYTES_COPIED * (cpu[COPY] / cpu[name]).median()
        rows.append(
            [
                str(name),
                f"{1000 * cpu[name].median():.3g}",
                *(ratio(cpu[name] / cpu[baseline]) for baseline in baselines),
                f"{share:.0%}" if steps(str(name)) and info["parameters"] >= 10**6 else "",
                *(
                    f"{counts.get(name, {}).get(key, ''):.4g}"
                    if key in counts.get(name, {})
                    else ""
                    for key in counted
                ),
            ]
        )
    return [f"### {benchmark['name']}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]


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
