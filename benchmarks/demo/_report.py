"""What the demo prints in the end: a table, what it means, and where the files are."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.demo._figure import save_figure
from benchmarks.demo._files import FIGURES, FILES, RUNS, SUMMARY
from benchmarks.demo._summary import paired_differences, summarise

__all__ = ["report"]


def report(output: Path, console: Console) -> None:
    """Make summary, table and figure from the runs in the file, and say where everything is."""
    runs = pd.read_csv(output / RUNS)
    summary = summarise(runs)
    summary.to_csv(output / SUMMARY, index=False)
    save_figure(runs, [output / name for name in FIGURES])
    console.print(_table(summary))
    for note in _notes(runs, summary):
        console.print(note)
    console.print(f"Files in {output}: {', '.join(FILES)}", soft_wrap=True)


def _table(summary: pd.DataFrame) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("in")
    table.add_column("optimizer")
    for heading in ("lr", "test\naccuracy %", "test loss\nmilli-nats", "training\nloss", "T dt²"):
        table.add_column(heading, justify="right")
    for line in summary.itertuples():
        accuracy, accuracy_pm = 100 * line.test_accuracy, 100 * line.test_accuracy_half_width
        table.add_row(
            line.framework,
            line.optimizer,
            f"{line.lr:g}" + ("*" if line.lr_at_edge_of_grid else ""),
            f"{accuracy:.2f} ± {accuracy_pm:.2f}",
            _milli(line.test_loss, line.test_loss_half_width),
            _milli(line.training_loss, line.training_loss_half_width),
            f"{line.temperature:.1e}",
        )
    return table


def _milli(loss: float, half_width: float) -> str:
    return f"{1000 * loss:.3g} ± {1000 * half_width:.2g}"


def _notes(runs: pd.DataFrame, summary: pd.DataFrame) -> Iterator[str]:
    yield (
        f"After the last epoch, mean of {summary.seeds.iloc[0]} seeds ± 95 % t-interval. The "
        "temperature is rescaled: mean squared change of a parameter in a step of the last epoch. "
        "Losses follow the learning rate chosen for accuracy; they do not rank the optimizers."
    )
    for line in summary[summary.optimizer == "CoolMomentum"].itertuples():
        yield (
            f"{line.framework}: CoolMomentum ends at {line.temperature:.1e}; Eq. 19 predicts "
            f"{line.predicted_temperature:.1e} from the noise."
        )
    yield "(The others end colder: their learning rate falls to 0, that of CoolMomentum to half.)"
    if summary.lr_at_edge_of_grid.any():
        yield "* at the edge of its grid: a better learning rate may lie outside."
    for line in paired_differences(runs).itertuples():
        difference, half_width = 100 * line.difference, 100 * line.half_width
        verdict = "includes" if abs(difference) <= half_width else "excludes"
        yield (
            f"{line.framework}: {line.optimizer} minus CoolMomentum, paired by seed: "
            f"{difference:+.2f} ± {half_width:.2f} points of accuracy ({verdict} 0)."
        )
