"""Progress while runs are made: live bars in a terminal, a plain line now and then elsewhere.

On standard error, so that benchopt's own lines do not mix with it.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["PROGRESS", "RUNS"]

RUNS = "COOLMOMENTUM_RUNS"  # environment: how many runs this process will make, if that is known
LINES = 10  # how many plain lines a process prints


class _RunProgress:
    """Counts the runs of this process, and shows where the current one stands."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._total = int(os.environ.get(RUNS, 0))
        self._done, self._begun = 0, time.monotonic()

    @contextmanager
    def run(self, name: str, epochs: int) -> Iterator[Callable[[int, str], None]]:
        """Show a run: the function gets the number of epochs done, and what there is to say."""
        of = f" of {self._total}" if self._total else ""
        last = ""
        columns = TextColumn("{task.description}"), BarColumn(bar_width=10), TimeRemainingColumn()
        live = self._console.is_terminal
        with Progress(*columns, console=self._console, disable=not live, transient=True) as bars:
            bar = bars.add_task(name, total=epochs)

            def show(epochs_done: int, seen: str) -> None:
                nonlocal last
                last = seen
                # In two lines, which fit into 80 columns beside the bar.
                label = f"run {self._done + 1}{of}{self._left()}: {seen}\n{name}"
                bars.update(bar, completed=epochs_done, description=label)

            yield show
        self._done += 1
        tenth_before, tenth = (
            LINES * n // max(self._total, 1) for n in (self._done - 1, self._done)
        )
        if last and not live and tenth > tenth_before:
            line = f"run {self._done}{of}{self._left()}: {name}: {last}"
            self._console.print(line, soft_wrap=True)

    def _left(self) -> str:
        """How long the runs that are left will take, if they are like those before them."""
        if not (self._done and self._total):
            return ""
        each = (time.monotonic() - self._begun) / self._done
        return f", {timedelta(seconds=round(each * (self._total - self._done)))} left"


PROGRESS = _RunProgress()
