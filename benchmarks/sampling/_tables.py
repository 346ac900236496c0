"""Tables of measured numbers: for the terminal, the page and the records."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

__all__ = ["Cell", "Measured", "Part", "Table", "as_markdown", "as_records", "mean"]

NUMBER = ".4g"


class Measured(NamedTuple):
    """A number, and its standard error; NaN where there is none."""

    value: float
    error: float = math.nan

    def __str__(self) -> str:
        if not math.isfinite(self.value) or abs(self.value) >= 1e6:
            return f"{self.value:.2g}"
        if not 0 < self.error < math.inf:
            return f"{self.value:{NUMBER}}"
        digits = min(max(0, 1 - math.floor(math.log10(self.error))), 6)
        return f"{self.value:.{digits}f} ± {self.error:.{digits}f}"


Cell = Measured | str


class Table(NamedTuple):
    """Rows by name, each with a cell for some of the columns."""

    title: str
    rows: Mapping[str, Mapping[str, Cell]]
    notes: tuple[str, ...] = ()


class Part(NamedTuple):
    """What a part of the benchmark found."""

    tables: list[Table]
    draw: Callable[[], Figure] | None = None  # of the numbers just measured


def mean(values: Any) -> Measured:
    """Of independent values, with its standard error."""
    array = np.asarray(values, np.float64)
    with np.errstate(all="ignore"):
        return Measured(float(array.mean()), float(array.std(ddof=1) / math.sqrt(array.size)))


def as_markdown(table: Table) -> str:
    """A table of Markdown, its columns aligned, which reads well in a terminal as well."""
    columns = list(dict.fromkeys(name for row in table.rows.values() for name in row))
    lines = [["", *columns]]
    lines += [
        [name, *(str(row.get(column, "")) for column in columns)]
        for name, row in table.rows.items()
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    body = ("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)
    return "\n".join([f"### {table.title}", "", *body, *(f"\n{note}" for note in table.notes)])


def as_records(table: Table) -> Iterator[dict[str, Any]]:
    """One record for each cell."""
    for name, row in table.rows.items():
        for column, cell in row.items():
            record = {"table": table.title, "row": name, "column": column}
            if isinstance(cell, Measured):
                yield record | {"value": _plain(cell.value), "error": _plain(cell.error)}
            else:
                yield record | {"text": cell}


def _plain(number: float) -> float | str | None:
    """For JSON, which has neither NaN nor infinity."""
    if math.isnan(number):
        return None
    return float(f"{number:.8g}") if math.isfinite(number) else str(number)
