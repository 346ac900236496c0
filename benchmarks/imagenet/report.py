"""The report of a config: a page that needs no network, figures, a table in the terminal."""

from base64 import b64encode
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.imagenet.config import Config, Run
from benchmarks.imagenet.figures import NAMES, REFERENCE, figures
from benchmarks.imagenet.records import RECORDS, TIMES, as_lines, read_records
from benchmarks.training._files import write_whole
from benchmarks.training._report import HTML

__all__ = ["NOT_MADE", "report"]

PAGE, TABLE = "report.html", "table.csv"
NOT_MADE = (
    "A full run was not made by us: 448 million images, at 4,152 images a second 30 hours of a TPU "
    "v2-8."
)
BELOW = (
    "In the paper's own Fig. 2 CoolMomentum is below RMSProp throughout and ends .2 to .3 points "
    "of top-1 below; one run each."
)
_WHERE = {"train": "training", "validation": "validation"}
AUTHORS = "not available"  # their Table 3, of which only lr = .6 is known


def report(config: Config, source: Path, target: Path, console: Console) -> None:
    """Make page, figures and table from the records, and say where everything is.

    Parameters
    ----------
    config : what was to be run.
    source : its folder, with the records of as many runs as are there.
    target : where to; if that is another folder, with a copy of the records without times.

    Raises
    ------
    RecordsError, OSError
        If the records are broken, or cannot be drawn for want of room.
    """
    order = [run.name for run in config.runs]
    found = [x for x in read_records(source) if _folder(x) in order]
    found.sort(key=lambda record: order.index(_folder(record)))  # stable: steps stay in order
    if target != source:
        found = [record | dict.fromkeys(TIMES) for record in found]
        for name in dict.fromkeys(_folder(record) for record in found):
            lines = [record for record in found if _folder(record) == name]
            (target / name).mkdir(exist_ok=True)
            write_whole(target / name / RECORDS, as_lines(lines))
    records = pd.DataFrame(found)
    table = _table(config, records)
    write_whole(target / TABLE, table.to_csv(index=False).encode())
    body = [f"<p>{escape(text)}</p>" for text in _notes(config, records)]
    body += [f'<div class="wide">{table.to_html(index=False, border=0, classes="summary")}</div>']
    for name, heading, figure in figures(records, config.kind, reference=config.reference):
        png = BytesIO()
        figure.savefig(png, format="png", dpi=150)
        write_whole(target / f"{name}.png", png.getvalue())
        data = b64encode(png.getvalue()).decode()
        image = f'<img alt="{escape(heading)}" src="data:image/png;base64,{data}">'
        body.append(f'<h2>{escape(heading)}</h2><div class="wide">{image}</div>')
    body.append(f"<h2>Departures from the recipe</h2>{_departures(config, records)}")
    body.append(f"<h2>Made by</h2><pre>{escape(_provenance(config, records))}</pre>")
    page = HTML.substitute(title=f"ImageNet: {config.name}", body="\n".join(body))
    write_whole(target / PAGE, page.encode())
    console.print(_rich(table))
    if config.kind == "scan":
        console.print(f"The authors' values: {AUTHORS}.")
    console.print(f"The page with all figures: {target / PAGE}", soft_wrap=True)


def _folder(record: dict[str, Any]) -> str:
    return Run(record["rule"], record["lr"], record["rho0"]).name


def _table(config: Config, records: pd.DataFrame) -> pd.DataFrame:
    """The last record of each run, in the order of the config; a run without one stays in."""
    lines = []
    for run in config.runs:
        its = {"rule": NAMES[run.rule], "lr": f"{run.lr:g}", "rho0": f"{run.rho0 or ''}"}
        own = records
        if len(records):
            same = (records.rule == run.rule) & (records.lr == run.lr)
            own = records[same & ((records.rho0 == run.rho0) | (run.rho0 is None))]
        if len(own):
            last = own.iloc[-1]
            its |= {
                "step": f"{last.step:,} of {last.total_steps:,}",
                "top-1 %": f"{100 * last.top1:.1f}",
                "top-5 %": f"{100 * last.top5:.1f}",
                "raw top-1 %": f"{100 * last.top1_raw:.1f}",
                "running loss": _number(last.running_loss, ".3f"),
                "T dt²": _number(last.rescaled_temperature, ".1e"),
                "diverged": "yes" if last.diverged else "no",
            }
        else:
            its["step"] = "not run"
        if config.kind == "scan":
            its["authors"] = AUTHORS
        lines.append(its)
    return pd.DataFrame(lines).fillna("")


def _number(value: Any, form: str) -> str:
    return "" if pd.isna(value) else format(value, form)


def _notes(config: Config, records: pd.DataFrame) -> list[str]:
    runs = records.groupby(["rule", "lr", "rho0"], dropna=False).ngroups if len(records) else 0
    notes = [config.what, config.cannot, NOT_MADE]
    if len(records):
        last = records.iloc[-1]
        notes.append(
            f"n = {runs} of {len(config.runs)} runs, a line for each, all with seed {last.seed}; "
            f"accuracies are of {last.evaluated_images:,} {_WHERE[last.evaluated_on]} images. "
            "Top-1 and top-5 are of the averaged weights, as in Fig. 2; raw: of the weights "
            "themselves. T dt² is the mean squared change of a parameter in the last step."
        )
    else:
        notes.append(f"n = 0 of {len(config.runs)} runs.")
    if config.kind == "scan":
        notes.append(
            "In the shape of the paper's Table 3, of which only lr = .6 is known: the grid is ours."
        )
    if config.reference:
        ends = ", ".join(f"{NAMES[r]} {x[0][-1]:.3f}" for r, x in REFERENCE.items())
        notes.append(f"{BELOW} Digitised from it, to .003, last top-1: {ends}.")
    return notes


def _departures(config: Config, records: pd.DataFrame) -> str:
    found = dict.fromkeys(config.departures())
    if len(records):
        found |= dict.fromkeys(x for its in records.departures for x in its)
    return "<ul>" + "".join(f"<li>{escape(x)}</li>" for x in found) + "</ul>"


def _provenance(config: Config, records: pd.DataFrame) -> str:
    about: dict[str, Any] = {"config": config.name, "settings": config.settings()}
    if len(records):
        columns = ["device", "dtype", "bn_group", "accumulated", "versions", "commit"]
        about["made with"] = {name: sorted(set(map(str, records[name]))) for name in columns}
    text: str = yaml.safe_dump(about, sort_keys=False, width=100)
    return text


def _rich(table: pd.DataFrame) -> Table:
    """What fits into 80 columns of it."""
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    columns = ["rule", "lr", "rho0", "step", "top-1 %", "top-5 %", "diverged"]
    columns = [name for name in columns if name in table]
    for name in columns:
        shown.add_column(name, justify="left" if name == "rule" else "right", overflow="fold")
    for line in table[columns].itertuples(index=False):
        shown.add_row(*map(str, line))
    return shown
