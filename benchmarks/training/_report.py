"""The report of a config: a page that needs no network, figures, a table in the terminal."""

from base64 import b64encode
from collections.abc import Iterator
from html import escape
from io import BytesIO
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.training._figures import figures
from benchmarks.training._results import CELL, RESULTS, read_results
from benchmarks.training._tables import chosen, paired_differences, sensitivity, summary

__all__ = ["report"]

PAGE = "report.html"
SUMMARY = "summary.csv"
HTML = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title><style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
img { max-width: 100%; } pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; }
</style></head><body><h1>$title</h1>$body</body></html>
""")


def report(output: Path, console: Console) -> None:
    """Make page, figures and tables from the runs in the file, and say where everything is."""
    runs, about = read_results(output / RESULTS)
    reported, tuning = (runs[runs.phase == phase] for phase in ("report", "tuning"))
    table = summary(reported)
    choice = chosen(tuning) if len(tuning) else None
    if choice is not None:
        table["lr_at_edge_of_grid"] = table.rule.map(choice.at_edge)
    table.to_csv(output / SUMMARY, index=False)
    notes = list(_notes(runs, table))
    sections = [f"<p>{escape(note)}</p>" for note in notes]
    sections.insert(0, _as_html(_shown(table)))
    for name, figure in figures(runs):
        png, svg = BytesIO(), output / f"{name}.svg"
        figure.savefig(svg, metadata={"Date": None})
        figure.savefig(png, format="png", dpi=150)
        (output / f"{name}.png").write_bytes(png.getvalue())
        data = b64encode(png.getvalue()).decode()
        sections.append(f'<h2>{name}</h2><img alt="{name}" src="data:image/png;base64,{data}">')
    if choice is not None:
        sections += ["<h2>Cells tried</h2>", _as_html(sensitivity(tuning))]
    sections += ["<h2>Made by</h2>", f"<pre>{escape(_provenance(runs, about))}</pre>"]
    page = HTML.substitute(title=f"Training: {about['config']}", body="\n".join(sections))
    (output / PAGE).write_text(page)

    console.print(_rich(_shown(table)))
    if diverged := table.diverged.sum():
        console.print(f"{diverged} runs of the report diverged: see {output / PAGE}")
    for note in notes:
        console.print(note)
    files = ", ".join(sorted(path.name for path in output.iterdir() if path.suffix != ".log"))
    console.print(f"Files in {output}: {files}", soft_wrap=True)


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """What people read: numbers with their intervals."""
    at_edge = table.get("lr_at_edge_of_grid", pd.Series(False, table.index))
    shown = pd.DataFrame(
        {
            "in": table.framework,
            "rule": table.rule,
            "lr": [f"{x:g}{'*' * edge}" for x, edge in zip(table.lr, at_edge, strict=True)],
            "momentum": table.momentum.map("{:g}".format),
            "test accuracy %": _with_interval(table, "accuracy", 100, "{:.2f}"),
            "test loss": _with_interval(table, "loss", 1, "{:.3g}"),
            "training loss": _with_interval(table, "training_loss", 1, "{:.3g}"),
            "T dt²": table.temperature.map("{:.1e}".format),
            "diverged": table.diverged.map(str) + " of " + table.seeds.map(str),
        }
    )
    if table.seconds.notna().any():
        shown["s/epoch"] = table.seconds.map("{:.2g}".format)
    decay = table.weight_decay.map("{:g}".format)
    if (table.weight_decay > 0).any():
        shown.insert(4, "weight decay", decay)
    return shown


def _with_interval(table: pd.DataFrame, column: str, times: float, form: str) -> list[str]:
    pairs = zip(table[column], table[f"{column}_half_width"], strict=True)
    return [
        form.format(times * mean) + (f" ± {times * half:.2g}" if half == half else "")
        for mean, half in pairs
    ]


def _as_html(table: pd.DataFrame) -> str:
    html: str = table.to_html(index=False, border=0, float_format="{:.4g}".format)
    return html


def _rich(table: pd.DataFrame) -> Table:
    """What fits into 80 columns of it; the page has the rest."""
    table = table[["in", "rule", "lr", "momentum", "test accuracy %", "test loss", "T dt²"]]
    table["in"] = table["in"].where(~table["in"].duplicated(), "")
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for name in table:
        justify: Any = "left" if name in ("in", "rule") else "right"
        heading = name.replace("test ", "test\n")
        shown.add_column(heading, justify=justify, overflow="fold")
    for line in table.itertuples(index=False):
        shown.add_row(*map(str, line))
    return shown


def _notes(runs: pd.DataFrame, table: pd.DataFrame) -> Iterator[str]:
    yield (
        f"After the last epoch, means of {table.seeds.max()} seeds at most, ± 95 % t-interval. The "
        "temperature is rescaled: mean squared change of a parameter in a step of the last epoch. "
        "Losses follow numbers chosen for accuracy; they do not rank the rules."
    )
    if table.get("lr_at_edge_of_grid", pd.Series(dtype=bool)).any():
        yield "* at the edge of its grid: a better learning rate may lie outside."
    for line in table[table.rule == "coolmomentum"].itertuples():
        if line.predicted_temperature == line.predicted_temperature:
            yield (
                f"{line.framework}: coolmomentum ends at {line.temperature:.1e}; Eq. 19 predicts "
                f"{line.predicted_temperature:.1e} from the noise."
            )
    tuning = runs[(runs.phase == "tuning") & runs.diverged]
    yield f"{tuning.groupby([*CELL, 'seed']).ngroups} runs diverged in the tuning."
    for line in paired_differences(runs[runs.phase == "report"]).itertuples():
        difference, half_width = 100 * line.difference, 100 * line.half_width
        verdict = "includes" if abs(difference) <= half_width else "excludes"
        yield (
            f"{line.framework}: {line.rule} minus coolmomentum, paired by seed: "
            f"{difference:+.2f} ± {half_width:.2f} points of accuracy ({verdict} 0)."
        )


def _provenance(runs: pd.DataFrame, about: dict[str, Any]) -> str:
    columns = ["commit", "code", "versions", "python", "kernel", "processor", "processors", "gpu"]
    made = {name: sorted(map(str, runs[name].unique())) for name in columns}
    text: str = yaml.safe_dump(about | {"made with": made}, sort_keys=False, width=100)
    return text
