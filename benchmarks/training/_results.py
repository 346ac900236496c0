"""From what benchopt writes to one table of all runs, with what is needed to repeat them."""

import json
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.training._checkpoint import finished
from benchmarks.training._files import write_whole
from benchmarks.training._runs import Record

__all__ = [
    "CELL",
    "RESULTS",
    "ResultsError",
    "read_benchopt",
    "read_finished",
    "read_results",
    "write_results",
]

RESULTS = "results.parquet"
CELL = ["rule", "lr", "momentum", "weight_decay"]  # what is tuned
NAMES = {  # benchopt's columns: ours
    "p_obj_phase": "phase",
    "p_obj_network": "network",
    "p_obj_epochs": "epochs",
    "p_obj_batch": "batch",
    "dataset_name": "dataset",
    "system-processor": "processor",
    "system-cpus": "processors",
    "version-cuda": "gpu",
    "platform-release": "kernel",
}
COLUMNS = [
    *("framework", "phase", *CELL, "seed"),
    *(field.name for field in fields(Record)),
    *("dataset", "network", "epochs", "batch"),
    *("commit", "code", "versions", "python", "kernel", "processor", "processors", "gpu"),
]
KEY = b"benchmark"  # of the metadata in the file


class ResultsError(Exception):
    """A file is not what this benchmark has written; the message is for the user."""


def read_benchopt(path: Path) -> pd.DataFrame:
    """A file of benchopt with our names, one line for each record of each run."""
    table = pd.read_parquet(BytesIO(path.read_bytes()))
    table["framework"] = table.solver_name.str.split("[").str[0]
    for prefix in ("p_solver_", "objective_"):
        table = table.rename(
            columns={c: c.removeprefix(prefix) for c in table if c not in NAMES and prefix in c}
        )
    table = table.rename(columns=NAMES)
    return table[COLUMNS].astype({"gpu": "str"})


def read_finished(folder: Path) -> pd.DataFrame:
    """What has been finished of runs that may go on, from their checkpoints, in the same columns.

    Of the machine, which benchopt describes when all runs are made, nothing is known.
    """
    return pd.DataFrame(finished(folder)).reindex(columns=COLUMNS)


def write_results(path: Path, runs: pd.DataFrame, about: dict[str, Any]) -> None:
    """One file: the table, and in its metadata the configs and the command.

    Numbers are rounded to float32, which is what was computed with.
    """
    singles = dict.fromkeys(runs.select_dtypes("float64").columns.difference(CELL), "float32")
    table = pa.Table.from_pandas(runs.astype(singles), preserve_index=False)
    table = table.replace_schema_metadata({**table.schema.metadata, KEY: json.dumps(about)})
    file = BytesIO()
    pq.write_table(table, file, compression="zstd")
    write_whole(path, file.getvalue())


def read_results(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table, and what is said about it.

    Raises
    ------
    ResultsError
        If the file is broken, or is another one.
    """
    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
        about = json.loads((table.schema.metadata or {}).get(KEY, "null"))
        runs = table.to_pandas()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(about, dict) or "config" not in about:
        raise ResultsError(f"{path} was not written by this benchmark")
    if missing := [name for name in COLUMNS if name not in runs]:
        raise ResultsError(f"{path} lacks columns: {', '.join(missing)}")
    if not (runs.phase == "report").any():
        raise ResultsError(f"{path} has no runs of a report")
    return runs.astype(dict.fromkeys(runs.select_dtypes("float32"), "float64")), about
