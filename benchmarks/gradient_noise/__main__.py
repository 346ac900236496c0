"""The command: measure, simulate or draw."""

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.gradient_noise._exact import Exact
from benchmarks.gradient_noise._networks import NETWORKS, OPTIMIZERS
from benchmarks.gradient_noise._report import draw, table
from benchmarks.gradient_noise._runs import FRAMEWORKS
from benchmarks.gradient_noise._series import compared_by_blocks
from benchmarks.gradient_noise._simulated import SIMULATED, simulated

RECORD = Path(os.environ.get("RECORD", Path(__file__).with_name("windows.json")))
# Of a row, which is replaced where it is measured again.
PLACE = ("framework", "network", "optimizer", "seed", "window")


def main() -> None:
    """Measure, write the record, and print a table; or draw."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gradient_noise",
        description="Compare the critical batch size that thermometers read with the exact one.",
    )
    names = ", ".join(FRAMEWORKS)
    parser.add_argument("frameworks", nargs="*", help=f"of {names}; none: print the record")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each, of three windows")
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS, choices=OPTIMIZERS)
    instead = parser.add_mutually_exclusive_group()
    for option, text in (
        ("--simulate", "print the table of simulated walks"),
        ("--blocks", "print the table of errors from blocks of steps, by JAX"),
        ("--draw", "make the figure"),
    ):
        instead.add_argument(option, action="store_true", help=f"{text}; no framework is measured")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.frameworks if name not in FRAMEWORKS]:
        parser.error(f"frameworks must be of {names}: {', '.join(unknown)}")
    if arguments.frameworks and (arguments.simulate or arguments.blocks or arguments.draw):
        parser.error(f"frameworks must be left out here: {', '.join(arguments.frameworks)}")
    if arguments.simulate:
        made = Table("rho", "highest curvature", "C1 alone", "two lags", "D", "covered")
        for rho, highest in SIMULATED:
            made.add_row(*simulated(rho, highest))
        Console().print(made)
        return
    if arguments.blocks:
        made = Table("network", "optimizer", "correlation", "block / step", "steps", "blocks")
        for title, network in NETWORKS.items():
            for optimizer in arguments.optimizers:
                first = 100 * OPTIMIZERS.index(optimizer)
                seeds = range(first, first + arguments.seeds)
                made.add_row(title, optimizer, *compared_by_blocks(network, optimizer, seeds))
        Console().print(made)
        return
    if arguments.draw:
        draw()
        return
    record = json.loads(RECORD.read_text()) if RECORD.exists() else []
    rows = {tuple(row[name] for name in PLACE): row for row in record}
    for framework in arguments.frameworks:
        for row in measure(framework, range(arguments.seeds), arguments.optimizers):
            rows[tuple(row[name] for name in PLACE)] = row  # kept at once, whatever comes
            RECORD.write_text("[\n" + ",\n".join(map(json.dumps, rows.values())) + "\n]\n")
    Console(width=200).print(table(list(rows.values())))


def measure(framework: str, seeds: range, optimizers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each network, optimizer, seed and window; each optimizer has its own batches."""
    name = framework
    if framework == "keras":
        name += f" on {os.environ.get('KERAS_BACKEND', 'tensorflow')}"
    console = Console()
    for title, network in NETWORKS.items():
        exact = Exact(network)
        for optimizer in optimizers:
            start = time.monotonic()
            for seed in np.array(seeds) + 100 * OPTIMIZERS.index(optimizer):
                for window, (reading, places) in enumerate(
                    FRAMEWORKS[framework](network, optimizer, seed)
                ):
                    two, two_error = exact.by_two_batches(places, 100 * seed + window)
                    yield {
                        "framework": name,
                        "network": title,
                        "optimizer": optimizer,
                        "seed": int(seed),
                        "window": window,
                        "batch": network.batch,
                        "exact": exact.critical(places),
                        "read": reading["critical_batch_size"],
                        "error": reading["critical_batch_size_error"],
                        "two": two,
                        "two_error": two_error,
                    }
            console.print(f"{name}, {title}, {optimizer}: {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
