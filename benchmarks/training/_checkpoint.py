"""The file that lets an interrupted run go on: at most the epoch in progress is lost.

There is always a whole one, even if the machine goes down. One that other code or other settings
wrote, or that is broken all the same, is not used.
"""

import io
import json
import sys
from hashlib import sha256
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

from benchmarks.training._files import write_whole

__all__ = ["Checkpoint", "all_records", "finished"]

NAME = "checkpoint.npz"
MEMBERS = ("identity", "about", "epochs", "records", "state")


class Checkpoint:
    """The checkpoint of one run, in a folder of its own.

    ``identity`` is whatever must be the same when the run goes on; ``about`` says what run it is,
    for those who read its records before all others are made.
    """

    def __init__(
        self, folder: Path | None, identity: str, about: dict[str, Any] | None = None
    ) -> None:
        self._folder, self._identity, self._about = folder, identity, about or {}
        self._warned = False

    def read(self) -> tuple[int, list[dict[str, Any]], bytes] | None:
        """Epochs done, records so far, state of the trainer; or None if there is nothing usable."""
        if self._folder is None:
            return None
        try:
            content = io.BytesIO((self._folder / NAME).read_bytes())  # NumPy leaves files open
            with np.load(content, allow_pickle=False) as file:
                if str(file["identity"]) != self._identity:
                    return None
                its = {name: file[name] for name in MEMBERS}
                if str(file["digest"]) != _digest(its):
                    raise ValueError("its digest is another one")
            return int(its["epochs"]), json.loads(str(its["records"])), its["state"].tobytes()
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever zip, NumPy and JSON make of a broken one
            self.refuse(error)
            return None

    def refuse(self, error: Exception) -> None:
        """Say that what is there cannot be gone on with."""
        reason = shorten(f"{type(error).__name__}: {error}", 300)
        print(
            f"{self._folder}: the run begins again, its checkpoint is broken ({reason})",
            file=sys.stderr,
        )

    def write(self, epochs: int, records: list[dict[str, Any]], state: bytes) -> None:
        """Replace what was written before. A full disk is no reason to stop training."""
        if self._folder is None:
            return
        said = json.dumps(self._about), epochs, json.dumps(records)
        values = self._identity, *said, np.frombuffer(state, np.uint8)
        its: dict[str, Any] = {
            name: np.asarray(value) for name, value in zip(MEMBERS, values, strict=True)
        }
        file = io.BytesIO()
        np.savez(file, **its, digest=np.asarray(_digest(its)))
        try:
            write_whole(self._folder / NAME, file.getvalue())
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            print(
                f"{self._folder}: no checkpoint could be written ({error.strerror}); the training "
                "goes on, but would start again if it were interrupted",
                file=sys.stderr,
            )


def finished(folder: Path) -> list[dict[str, Any]]:
    """The records of all runs in there that have made their last epoch, in the order they did.

    Each record has what the checkpoint's ``about`` says of its run. Others may be in progress.
    """
    return _records(folder, only_finished=True)


def all_records(folder: Path) -> list[dict[str, Any]]:
    """The same of all runs, as far as they are."""
    return _records(folder, only_finished=False)


def _records(folder: Path, *, only_finished: bool) -> list[dict[str, Any]]:
    lines = []
    for path in sorted(folder.rglob(NAME), key=lambda path: path.stat().st_mtime):
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                about, records = (json.loads(str(file[name])) for name in ("about", "records"))
        except Exception:  # a broken one, whose run begins again
            continue
        ends = records and (records[-1]["diverged"] or records[-1]["epoch"] == about["epochs"])
        if ends or not only_finished:
            lines += [about | record for record in records]
    return lines


def _digest(members: dict[str, Any]) -> str:
    return sha256(b"".join(members[name].tobytes() for name in MEMBERS)).hexdigest()
