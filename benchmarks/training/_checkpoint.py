"""The file that lets an interrupted run go on: at most the epoch in progress is lost.

A file is written beside the old one and then renamed over it, so that there is always a whole one.
One that other code or other settings wrote is not used.
"""

import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Checkpoint"]

NAME = "checkpoint.npz"


class Checkpoint:
    """The checkpoint of one run, in a folder of its own.

    ``identity`` is whatever must be the same when the run goes on.
    """

    def __init__(self, folder: Path | None, identity: str) -> None:
        self._folder, self._identity = folder, identity
        self._warned = False

    def read(self) -> tuple[int, list[dict[str, Any]], bytes] | None:
        """Epochs done, records so far, state of the trainer; or None if there is nothing usable."""
        if self._folder is None:
            return None
        try:
            with np.load(self._folder / NAME, allow_pickle=False) as file:
                identity, epochs, records, state = (file[k] for k in file.files)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None  # none, or cut short when the machine went down
        if str(identity) != self._identity:
            return None
        return int(epochs), json.loads(str(records)), state.tobytes()

    def write(self, epochs: int, records: list[dict[str, Any]], state: bytes) -> None:
        """Replace what was written before. A full disk is no reason to stop training."""
        if self._folder is None:
            return
        file = io.BytesIO()
        np.savez(
            file,
            identity=np.asarray(self._identity),
            epochs=np.asarray(epochs),
            records=np.asarray(json.dumps(records)),
            state=np.frombuffer(state, np.uint8),
        )
        new = self._folder / f"{NAME}.new"
        try:
            new.write_bytes(file.getvalue())
            new.replace(self._folder / NAME)
        except OSError as error:
            self._warn(error)
            new.unlink(missing_ok=True)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            print(
                f"{self._folder}: no checkpoint could be written ({error.strerror}); the training "
                "goes on, but would start again if it were interrupted",
                file=sys.stderr,
            )
