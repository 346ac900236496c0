"""What commands that run for hours share: they stop when asked to, and lock their folder."""

import fcntl
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from benchmarks.training._config import UnavailableError

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOCK = ".lock"
PATIENCE = 5.0  # seconds in which a child notices that its parent was killed, and ends


class Stopped(BaseException):  # not an error
    """A signal asks to stop."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C, ``kill`` and a closed terminal raise ``Stopped``; once, so that it can be heeded.

    What was ignored before, as under ``nohup``, still is.
    """

    def stop(number: int, _: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    heeded = threading.current_thread() is threading.main_thread()  # elsewhere Python refuses
    before = {each: signal.getsignal(each) for each in STOPS if heeded}
    before = {each: old for each, old in before.items() if old not in (signal.SIG_IGN, None)}
    for each in before:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each, old in before.items():
            signal.signal(each, old)


@contextmanager
def locked(output: Path) -> Iterator[int]:
    """The folder for nobody but this process, and those to which it gives the descriptor.

    The lock ends with the last of them, however they end.
    """
    with (output / LOCK).open("a") as file:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"{output} is in use by another run: wait for its end, or choose another "
                        "--output"
                    ) from None
                time.sleep(0.1)
        yield file.fileno()
