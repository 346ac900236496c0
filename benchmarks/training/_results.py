"""From what benchopt writes to one table of all runs, with what is needed to repeat them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["CELL", "RESULTS", "read_benchopt", "read_results", "write_results"]

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
KEY = b"benchmark"  # of the metadata in the file


def read_benchopt(path: Path) -> pd.DataFrame:
    """A file of benchopt with our names, one line for each record of each run."""
    table = pd.read_parquet(path)
    table["framework"] = table.solver_name.str.split("[").str[0]
    for prefix in ("p_solver_", "objective_"):
        table = table.rename(
            columns={c: c.removeprefix(prefix) for c in table if c not in NAMES and prefix in c}
        )
    table = table.rename(columns=NAMES)
    numbers = table.columns[table.columns.get_loc("epoch") : table.columns.get_loc("seed")]
    first = ["framework", "phase", *CELL, "seed", *numbers, "dataset", "network", "epochs", "batch"]
    last = ["commit", "code", "versions", "python", "kernel", "processor", "processors", "gpu"]
    return table[[*first, *last]].astype({"gpu": "str"})


def write_results(path: Path, runs: pd.DataFrame, about: dict[str, Any]) -> None:
    """One file: the table, and in its metadata the configs and the command.

    Numbers are rounded to float32, which is what was computed with.
    """
    singles = dict.fromkeys(runs.select_dtypes("float64").columns.difference(CELL), "float32")
    table = pa.Table.from_pandas(runs.astype(singles), preserve_index=False)
    table = table.replace_schema_metadata({**table.schema.metadata, KEY: json.dumps(about)})
    pq.write_table(table, path, compression="zstd")


def read_results(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table, and what is said about it."""
    table = pq.read_table(path)
    runs = table.to_pandas()
    return runs.astype(dict.fromkeys(runs.select_dtypes("float32"), "float64")), json.loads(
        table.schema.metadata[KEY]
    )
