"""What a run leaves behind: a JSON line for each evaluation, and a backup to go on from.

A run has a folder. ``run.json`` says what run it is, and another is refused there. The backup has
the records as well, so that lines beyond it are gone when a run goes on from it.
"""

import json
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from benchmarks.imagenet.config import Config, ConfigError, Run
from benchmarks.training._checkpoint import Checkpoint
from benchmarks.training._files import write_whole

__all__ = [
    "RECORDS",
    "TIMES",
    "Folder",
    "Record",
    "RecordsError",
    "as_line",
    "as_lines",
    "read_records",
]

RECORDS, IDENTITY = "records.jsonl", "run.json"
TIMES = ("images_per_second",)  # not the same when a run is made again


class RecordsError(Exception):
    """Records cannot be read; the message is for the user."""


@dataclass(frozen=True)
class Record:
    """A run after some steps. Shares are of the evaluated images; None stands for no number."""

    config: str
    rule: str
    lr: float
    rho0: float | None
    seed: int
    step: int  # optimizer steps taken
    total_steps: int
    images: int  # that were trained on, with repetitions
    running_loss: float | None  # mean since the last record, of minibatches, penalty included
    top1: float  # of the averaged weights, as in Fig. 2
    top5: float
    top1_raw: float  # of the weights themselves
    top5_raw: float
    learning_rate: float  # of the last step
    rho: float | None  # of the last step; momentum for RMSProp
    temperature: float | None  # of CoolMomentum: Eq. 22 after the last step
    rescaled_temperature: float | None  # mean squared change of a parameter in the last step
    images_per_second: float | None  # without compilation and evaluation
    diverged: bool  # the loss is not finite: the run ends here
    evaluated_on: str
    evaluated_images: int
    device: str
    global_batch: int
    bn_group: int
    accumulated: int  # minibatches for a step
    dtype: str
    versions: str
    commit: str
    departures: list[str] = field(default_factory=list)


class Folder:
    """The folder of one run.

    Raises
    ------
    ConfigError
        If it is that of another run.
    """

    def __init__(self, path: Path, config: Config, run: Run, engine: dict[str, Any]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        identity = json.dumps(config.settings() | asdict(run) | engine, indent=1)
        file = path / IDENTITY
        if file.is_file() and (found := file.read_text(encoding="utf-8")) != identity:
            old, new = (dict(json.loads(text)) for text in (found, identity))
            differ = [k for k in new | old if new.get(k) != old.get(k)]
            changes = ", ".join(f"{k} {old.get(k)}, not {new.get(k)}" for k in differ)
            raise ConfigError(f"{path} is of another run ({changes}): choose another --output")
        write_whole(file, identity.encode())
        self.path = path
        self._checkpoint = Checkpoint(path, identity)

    def read(self) -> tuple[int, list[dict[str, Any]], bytes] | None:
        """Steps done, records, state; None if it begins now."""
        return self._checkpoint.read()

    def back_up(self, step: int, records: list[dict[str, Any]], state: bytes) -> None:
        """Make the backup; a full disk is told, and is no reason to stop."""
        self._checkpoint.write(step, records, state)

    def write(self, records: list[dict[str, Any]]) -> None:
        """Replace the records.

        Raises
        ------
        OSError
            If they cannot be written; the old ones are there then.
        """
        write_whole(self.path / RECORDS, as_lines(records))


def as_lines(records: list[dict[str, Any]]) -> bytes:
    """What a file of records has."""
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode()


def as_line(record: Record) -> dict[str, Any]:
    """A record as JSON has it, in which there is no NaN."""
    return {
        name: None if isinstance(value, float) and not isfinite(value) else value
        for name, value in asdict(record).items()
    }


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of all runs in a folder.

    Raises
    ------
    RecordsError
        If a file is broken, or lacks something.
    """
    found = []
    names = Record.__dataclass_fields__
    for path in sorted(folder.glob(f"*/{RECORDS}")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = dict(json.loads(line))
            except (ValueError, TypeError) as error:
                raise RecordsError(f"{path}:{number} cannot be read: {error}") from None
            if missing := [name for name in names if name not in record]:
                raise RecordsError(f"{path}:{number} lacks {', '.join(missing)}")
            found.append(record)
    return found
