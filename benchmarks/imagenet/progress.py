"""Progress of one run: a live bar in a terminal, elsewhere a plain line at each evaluation."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Show", "showing"]

Show = Callable[[int, str, bool], None]  # steps done, what there is to say, whether to print it


@contextmanager
def showing(name: str, begin: int, total_steps: int) -> Iterator[Show]:
    """Show a run that goes on from a step, on standard error."""
    console = Console(stderr=True, highlight=False, markup=False)
    began = time.monotonic()
    columns = TextColumn("{task.description}"), BarColumn(bar_width=20), TimeRemainingColumn()
    live = console.is_terminal
    with Progress(*columns, console=console, disable=not live, transient=True) as bars:
        bar = bars.add_task(name, total=total_steps, completed=begin)

        def show(step: int, seen: str, lasting: bool) -> None:
            label = f"{name}\nstep {step:,} of {total_steps:,}: {seen}"
            bars.update(bar, completed=step, description=label)
            if lasting and not live:
                each = (time.monotonic() - began) / max(step - begin, 1)
                left = timedelta(seconds=round(each * (total_steps - step)))
                line = f"{name}: step {step:,} of {total_steps:,}, {left} left: {seen}"
                console.print(line, soft_wrap=True)

        yield show
