"""What is printed in the end."""

from pathlib import Path

from rich.console import Console

from benchmarks.training._results import RESULTS, read_results
from benchmarks.training._tables import paired_differences, summary

__all__ = ["report"]


def report(output: Path, console: Console) -> None:
    """Placeholder."""
    runs, _ = read_results(output / RESULTS)
    console.print(summary(runs[runs.phase == "report"]).to_string())
    console.print(paired_differences(runs[runs.phase == "report"]).to_string())
