"""The report of a config: a page that needs no network, figures, a table in the terminal."""

from base64 import b64encode
from collections.abc import Iterator
from html import escape
from io import BytesIO
from math import isnan
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.training._figures import figures
from benchmarks.training._results import CELL, RESULTS, read_results
from benchmarks.training._tables import chosen, sensitivity, summary

__all__ = ["Terminal", "report"]

PAGE = "report.html"
SUMMARY = "summary.csv"
HTML = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width"><style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .2rem .25rem; white-space: nowrap; }
th, td { text-align: right; border-bottom: 1px solid #8886; }
.summary th { white-space: normal; vertical-align: bottom; }
.summary :is(th, td):nth-child(-n + 2), .cells :is(th, td):first-child { text-align: left; }
img { max-width: 100%; min-width: 40rem; background: white; }
pre { background: #8882; padding: 1rem; overflow-x: auto; }
</style></head><body><h1>$title</h1>$body</body></html>
""")
LESS = "minus coolmomentum"
PLAIN = {"±": "+/-", "²": "^2", "†": "#"}


class Terminal(Console):
    """Where people read, with the letters that its encoding has."""

    def __init__(self) -> None:
        super().__init__(highlight=False, markup=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Of rich: every text comes by here before it is laid out."""
        return super().render_str("".join(map(self._there, text)), **options)

    def _there(self, letter: str) -> str:
        try:
            letter.encode(self.encoding)
        except UnicodeEncodeError:
            return PLAIN.get(letter, "?")
        return letter


def report(output: Path, console: Terminal) -> None:
    """Make page, figures and tables from the runs in the file, and say where everything is."""
    runs, about = read_results(output / RESULTS)
    reported, tuning = (runs[runs.phase == phase] for phase in ("report", "tuning"))
    table = summary(reported)
    choice = chosen(tuning) if len(tuning) else None
    if choice is not None:
        table["lr_at_edge_of_grid"] = table.rule.map(choice.at_edge)
    table.to_csv(output / SUMMARY, index=False)
    notes = [*([about["partial"]] if "partial" in about else []), *_notes(runs, table)]
    sections = [f"<p>{escape(_what(reported))}</p>", _as_html(_shown(table), "summary")]
    sections += [f"<p>{escape(note)}</p>" for note in notes]
    for name, heading, figure in figures(runs):
        png, svg = BytesIO(), output / f"{name}.svg"
        figure.savefig(svg, metadata={"Date": None})
        figure.savefig(png, format="png", dpi=150)
        (output / f"{name}.png").write_bytes(png.getvalue())
        data = b64encode(png.getvalue()).decode()
        image = f'<img alt="{escape(heading)}" src="data:image/png;base64,{data}">'
        sections.append(f'<h2>{escape(heading)}</h2><div class="wide">{image}</div>')
    if choice is not None:
        cells = _as_html(sensitivity(tuning), "cells")
        sections.append(f"<h2>Cells tried</h2><details><summary>All</summary>{cells}</details>")
    sections += ["<h2>Made by</h2>", f"<pre>{escape(_provenance(runs, about))}</pre>"]
    page = HTML.substitute(title=f"Training: {about['config']}", body="\n".join(sections))
    (output / PAGE).write_text(page, encoding="utf-8")

    console.print(_what(reported))
    console.print(_rich(_shown(table)))
    if diverged := table.diverged.sum():
        console.print(f"{diverged} runs of the report diverged: see the page.")
    for note in notes:
        console.print(note)
    console.print(f"The page with all figures: {output / PAGE}", soft_wrap=True)


def _what(reported: pd.DataFrame) -> str:
    """What was trained, in a sentence."""
    of = reported.iloc[0]
    seeds = reported.groupby(["framework", "rule"]).seed.nunique()
    few, many = seeds.min(), seeds.max()
    means = f"means of {many if few == many else f'{few} to {many}'} seeds"
    return (
        f"Network {of.network} on {of.dataset}, {of.epochs} epochs in batches of {of.batch}; after "
        f"the last epoch, on the test images, {means if many > 1 else 'one seed'}."
    )


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """What people read: numbers with their intervals."""
    at_edge = table.get("lr_at_edge_of_grid", pd.Series(False, table.index))
    excludes_0 = table.minus_coolmomentum.abs() > table.minus_coolmomentum_half_width
    differences = _with_interval(table, "minus_coolmomentum", "{:+.2f}", times=100)
    shown = pd.DataFrame(
        {
            "in": table.framework,
            "rule": table.rule,
            "lr": [f"{x:g}{'*' * edge}" for x, edge in zip(table.lr, at_edge, strict=True)],
            "momentum": table.momentum.map("{:g}".format),
            "test accuracy %": _with_interval(table, "accuracy", "{:.2f}", times=100),
            LESS: [x + "†" * mark for x, mark in zip(differences, excludes_0, strict=True)],
            "test loss": _with_interval(table, "loss", "{:.3f}"),
            "training loss": _with_interval(table, "training_loss", "{:.1e}"),
            "T dt²": table.temperature.map("{:.1e}".format),
            "by Eq. 19": table.predicted_temperature.map("{:.1e}".format).replace("nan", ""),
            "diverged": table.diverged.map(str) + " of " + table.seeds.map(str),
        }
    )
    if table.seconds.notna().any():
        shown["s/epoch"] = table.seconds.map("{:.2g}".format)
    decay = table.weight_decay.map("{:g}".format)
    if (table.weight_decay > 0).any():
        shown.insert(4, "weight decay", decay)
    return shown.loc[:, (shown != "").any()]


def _with_interval(table: pd.DataFrame, column: str, form: str, times: float = 1.0) -> list[str]:
    pairs = zip(table[column] * times, table[f"{column}_half_width"] * times, strict=True)
    return ["" if isnan(mean) else form.format(mean) + _half(half, form) for mean, half in pairs]


def _half(half: float, form: str) -> str:
    return "" if isnan(half) else f" ± {form.replace('+', '').format(half)}"


def _as_html(table: pd.DataFrame, kind: str) -> str:
    html = table.to_html(index=False, border=0, classes=kind, float_format="{:.4g}".format)
    return f'<div class="wide">{html}</div>'


def _rich(table: pd.DataFrame) -> Table:
    """What fits into 80 columns of it; the page has the rest."""
    columns = ["rule", "lr", "momentum", "test accuracy %", LESS, "T dt²"]
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    columns = [name for name in columns if name in table]
    for name in columns:
        justify: Any = "left" if name == "rule" else "right"
        heading = name.replace("test ", "test\n").replace("minus ", "minus\n")
        shown.add_column(heading, justify=justify, overflow="fold")
    for framework, its in table.groupby("in", sort=False):
        shown.add_section()
        shown.add_row(f"in {framework}:")
        for line in its[columns].itertuples(index=False):
            shown.add_row(*map(str, line))
    return shown


def _notes(runs: pd.DataFrame, table: pd.DataFrame) -> Iterator[str]:
    if (runs.dataset == "simulated").all():
        yield "The images are noise, to see whether everything works: no result means anything."
    yield (
        "± is the 95 % t-interval over seeds. Momentum is the rho0 of CoolMomentum, the beta1 of "
        "Adam. T dt² is the rescaled temperature: the mean squared change of a parameter in a step."
    )
    if table.rule.str.endswith("-cosine").any():
        yield (
            "A low T dt² is no merit by itself: CoolMomentum ends as SGD with half its learning "
            "rate, while a rule whose learning rate goes to 0 ends standing still."
        )
    if table.minus_coolmomentum.notna().any():
        yield (
            "Differences of accuracy from coolmomentum are in points, paired by seed; † where the "
            "interval excludes 0, which chance alone does to one in twenty."
        )
    if table.get("lr_at_edge_of_grid", pd.Series(dtype=bool)).any():
        yield "* at the edge of its grid: a better learning rate may lie outside."
    predicted = table[table.predicted_temperature.notna() & (table.rule == "coolmomentum")]
    if len(predicted):
        its = predicted.iloc[0]
        yield (
            f"In {its.framework}, coolmomentum ends at the temperature {its.temperature:.1e}; from "
            f"the measured gradient noise Eq. 19 predicts {its.predicted_temperature:.1e}."
        )
    tuning = runs[runs.phase == "tuning"]
    if len(tuning):
        diverged = tuning[tuning.diverged].groupby([*CELL, "seed"]).ngroups
        yield (
            f"The numbers of each rule were tuned in {tuning.framework.iloc[0]}, for accuracy on "
            f"other images and from other seeds; {diverged} runs diverged there."
        )


def _provenance(runs: pd.DataFrame, about: dict[str, Any]) -> str:
    columns = ["commit", "code", "versions", "python", "kernel", "processor", "processors", "gpu"]
    made = {name: sorted(map(str, runs[name].unique())) for name in columns}
    text: str = yaml.safe_dump(about | {"made with": made}, sort_keys=False, width=100)
    return text
