"""benchopt, as ``python -m benchmarks.training._benchopt run ...``, that ends with its parent.

The number of the parent is in the environment. However that ends, nothing trains for it any more,
which would be in the way of the next run: it writes to the same files.
"""

import os
import runpy
import signal
import threading
import time
from contextlib import suppress

import psutil

__all__ = ["PARENT", "end_all", "end_with"]

PARENT = "COOLMOMENTUM_PARENT"  # environment, of the child and of workers that it starts
SECONDS = 0.2


def end_with(parent: int) -> None:
    """End this process, at whatever it is, and its workers, when that one is no more its parent."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS)
        end_all(parent)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def end_all(parent: int) -> None:
    """End all other processes of this machine that work for that one.

    They are asked, as what joblib has to clean up after its workers goes only when it has.
    """
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is another user's
            if process.environ().get(PARENT) == str(parent) and process.pid != os.getpid():
                process.terminate()


if __name__ == "__main__":
    end_with(int(os.environ[PARENT]))  # before what takes long
    runpy.run_module("benchopt", run_name="__main__")
