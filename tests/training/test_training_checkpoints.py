"""A run that was interrupted or killed goes on; what is on the disk is whole or the old one."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from training_tools import (
    CONFIG,
    first_half,
    first_weights,
    heed_signals,
    short_problem,
)

from benchmarks.training import _checkpoint
from benchmarks.training.__main__ import main
from benchmarks.training._checkpoint import Checkpoint
from benchmarks.training._data import digits
from benchmarks.training._jax import JaxTrainer
from benchmarks.training._problem import Problem
from benchmarks.training._results import read_results, write_results
from benchmarks.training._rules import Settings
from benchmarks.training._runs import Record, run
from benchmarks.training._torch import TorchTrainer


def _epochs_done(output: Path) -> int:
    """Of all runs, by their checkpoints."""
    done = 0
    for path in output.rglob("checkpoint.npz"):
        with np.load(path) as checkpoint:
            done += int(checkpoint["epochs"])
    return done


def test_a_run_that_was_interrupted_and_killed_goes_on(tmp_path: Path) -> None:
    """After Ctrl-C, and SIGKILL, in the middle of a run: the records of a whole one, to the bit."""
    config = tmp_path / "killed"
    config.mkdir()
    (config / "report.yml").write_text(CONFIG)
    options = [str(config), "--output", str(tmp_path / "results")]
    heed_signals()
    output = tmp_path / "results" / "killed"
    command = [sys.executable, "-m", "benchmarks.training", *options]
    done, log = 0, tmp_path / "log"
    for signal_, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        with log.open("a") as lines:
            process = subprocess.Popen(command, start_new_session=True, stdout=lines, stderr=lines)
        deadline = time.monotonic() + 300
        while (seen := _epochs_done(output)) < done + 3:
            assert seen >= done, "it begins again"
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(process.pid, signal_)
        assert process.wait() == status
        before, done = done, _epochs_done(output)
        assert before < done < 24  # in the middle of the two runs
        print(f"{signal_.name} after {done} of 24 epochs")
    assert "Interrupted; the same command goes on from here." in log.read_text()

    assert main(options) == 0
    runs, _ = read_results(output / "results.parquet")
    images = digits()
    problem = Problem("mlp", images.training, images.test, epochs=12, batch=32)
    settings = Settings("coolmomentum", 0.01, 0.9)
    trainer = TorchTrainer(problem, settings)
    assert runs.seed.nunique() == 2
    for seed, resumed in runs.groupby("seed"):
        whole = pd.DataFrame(
            run(trainer, problem, settings, int(seed), Checkpoint(None, ""), lambda *_: None)
        )
        for column in whole.columns.drop("seconds"):
            expected = whole[column].astype(runs[column].dtype)
            if expected.dtype == "float64":
                expected = expected.astype("float32")
            np.testing.assert_array_equal(resumed[column], expected, err_msg=column)


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A write that fails half-way is told once, and what was written before can still be read."""
    checkpoint = Checkpoint(tmp_path, "this run")
    checkpoint.write(1, [{"epoch": 1}], b"state")

    def full(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    checkpoint.write(2, [{"epoch": 2}], b"later")
    checkpoint.write(3, [{"epoch": 3}], b"later")
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert checkpoint.read() == (1, [{"epoch": 1}], b"state")
    assert [path.name for path in tmp_path.iterdir()] == [_checkpoint.NAME]
    assert Checkpoint(tmp_path, "another run").read() is None


def test_a_full_disk_is_one_clear_line(
    ci: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1 where page and figures cannot be written; a mistake of ours is not hidden."""

    def fail(number: int) -> Callable:
        def write(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return write

    monkeypatch.setattr("benchmarks.training.__main__.report", fail(errno.ENOSPC))
    assert main(["ci", "--draw", "--output", str(ci.parent)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device: make room; the same command goes on" in line
    monkeypatch.setattr("benchmarks.training.__main__.report", fail(errno.EACCES))
    assert main(["ci", "--draw", "--output", str(ci.parent)]) == 1
    assert capsys.readouterr().err == "[Errno 13] Permission denied\n"
    monkeypatch.setattr("benchmarks.training.__main__.report", lambda *_: {}["bug"])
    with pytest.raises(KeyError):
        main(["ci", "--draw", "--output", str(ci.parent)])


def test_results_are_whole_or_the_old_ones(
    ci: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up while they are written costs nothing that was there."""
    path = tmp_path / "results.parquet"
    write_results(path, *read_results(ci / "results.parquet"))
    old = path.read_bytes()

    def full(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_results(path, *read_results(ci / "results.parquet"))
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def _members(content: bytes) -> dict:
    with np.load(io.BytesIO(content)) as file:
        return dict(file)


def _zip(members: dict) -> bytes:
    file = io.BytesIO()
    np.savez(file, **members)
    return file.getvalue()


def _npy(content: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, np.frombuffer(content, np.uint8))
    return file.getvalue()


@pytest.mark.parametrize(
    "broken",
    [
        lambda content: b"",
        first_half,
        lambda content: content[len(content) // 2 :],
        lambda content: content.replace(b"state", b"stave"),
        _npy,
        lambda content: json.dumps({"epochs": 1}).encode(),
        lambda content: _zip({"state": _members(content)["state"]}),
        lambda content: _zip(_members(content) | {"state": _members(content)["state"][:100]}),
        lambda content: _zip(_members(content) | {"records": np.asarray('[{"epoch": 2}]')}),
        lambda content: _zip(_members(content) | {"records": np.asarray('[{"epoch": 1')}),
        lambda content: _zip(_members(content) | {"epochs": np.asarray(2)}),
        lambda content: _zip(_members(content) | {"epochs": np.asarray("one")}),
    ],
    ids=[
        "empty", "begun", "ended", "other members", "npy", "JSON", "state alone", "state cut",
        "other records", "records cut", "other epochs", "epochs no number",
    ],
)  # fmt: skip
def test_a_broken_checkpoint_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: Callable[[bytes], bytes]
) -> None:
    """Of length 0, cut, or a whole zip of something else: the run begins again, and says so."""
    checkpoint = Checkpoint(tmp_path, "this run")
    assert checkpoint.read() is None
    assert capsys.readouterr().err == ""
    checkpoint.write(1, [{"epoch": 1}], bytes(range(200)))
    assert checkpoint.read() == (1, [{"epoch": 1}], bytes(range(200)))
    path = tmp_path / _checkpoint.NAME
    path.write_bytes(broken(path.read_bytes()))
    assert checkpoint.read() is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}: the run begins again, its checkpoint is broken (")
    checkpoint.write(2, [], b"new")
    assert checkpoint.read() == (2, [], b"new")


def _without_optimizer(state: bytes) -> bytes:
    """In PyTorch: the weights are taken, and then it fails."""
    file = io.BytesIO()
    model, _ = torch.load(io.BytesIO(state), weights_only=True)
    torch.save([{name: value + 1 for name, value in model.items()}, {}], file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("trainer", "broken"),
    [
        (TorchTrainer, first_half),
        (TorchTrainer, lambda state: b""),
        (TorchTrainer, _without_optimizer),
        (JaxTrainer, first_half),
        (JaxTrainer, lambda state: b""),
    ],
)
def test_a_state_that_cannot_be_restored_is_none(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    trainer: type,
    broken: Callable[[bytes], bytes],
) -> None:
    """The run begins again, from its own weights, whatever was taken before it was seen."""
    problem, settings = short_problem("mlp"), Settings("coolmomentum", 0.01, 0.9)
    its = trainer(problem, settings)

    def records(checkpoint: Checkpoint) -> list:
        found = [vars(x) for x in run(its, problem, settings, 0, checkpoint, lambda *_: None)]
        return [{k: repr(v) for k, v in each.items() if k != "seconds"} for each in found]

    expected = records(Checkpoint(None, ""))
    its.start(first_weights(problem))
    checkpoint = Checkpoint(tmp_path, "")
    checkpoint.write(1, [vars(Record(1, 3, 0.0, 0.0, 0.0, 0.0))], broken(its.state()))
    assert records(checkpoint) == expected
    assert "the run begins again, its checkpoint is broken (" in capsys.readouterr().err
    done, _, state = checkpoint.read()
    assert done == 2
    its.restore(state)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is waited for, then it is renamed, then the folder is waited for."""
    seen = []
    sync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        seen.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def replaced(path: Path, target: Path) -> None:
        seen.append("renamed")
        replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    Checkpoint(tmp_path, "").write(1, [], b"state")
    file, folder = (path.stat().st_ino for path in (tmp_path / _checkpoint.NAME, tmp_path))
    assert seen == [file, "renamed", folder]


def test_a_disk_that_fails_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If what was written does not get there, or nothing may be written any more."""
    checkpoint = Checkpoint(tmp_path, "")
    checkpoint.write(1, [], b"state")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(Path, "unlink", fail)
    checkpoint.write(2, [], b"later")
    assert "no checkpoint could be written (Read-only file system)" in capsys.readouterr().err
    assert checkpoint.read() == (1, [], b"state")
