"""Progress while the demo trains: live bars in a terminal, a plain line now and then elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.demo._data import Epoch

__all__ = ["RunProgress"]

LINES = 10  # how many plain lines a whole demo prints


class RunProgress:
    """Shows how many runs are done, when all will be, and where the current one stands."""

    def __init__(self, console: Console, runs: int, epochs: int) -> None:
        self._console = console
        self._runs, self._epochs = runs, epochs
        self._done = 0  # runs
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),  # so that a line has no more than 80 characters
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._all = self._bars.add_task("", total=runs * epochs)
        self._current = self._bars.add_task("", total=epochs)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def show(self, phase: str, run: str, record: Epoch) -> None:
        """Take note of one more record of the current run."""
        state = f"{run}: loss {record.training_loss:.1e}, accuracy {record.accuracy:.1%}"
        self._bars.update(
            self._all,
            completed=self._done * self._epochs + record.epoch,
            description=f"{phase}, run {self._done + 1} of {self._runs}",
        )
        self._bars.update(self._current, completed=record.epoch, description=state)
        if record.epoch == self._epochs:
            self._finish(f"{phase}, {state}")

    def _finish(self, state: str) -> None:
        self._done += 1
        tenth_before, tenth = ((LINES * n) // self._runs for n in (self._done - 1, self._done))
        if not self._console.is_terminal and tenth > tenth_before:
            self._console.print(f"{self._done} of {self._runs} runs; {state}", soft_wrap=True)
