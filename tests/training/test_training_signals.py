"""How the command of the training benchmark ends: signals, and children that it leaves none of."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from training_tools import heed_signals

from benchmarks.training.__main__ import main


def _begin(request: pytest.FixtureRequest, config: Path, output: Path, name: str) -> tuple:
    """A run of its own, in a session of its own, and its files."""
    log = output.parent / f"{name}.log"
    options = [str(config), "--output", str(output / name)]
    with log.open("w") as lines:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.training", *options],
            start_new_session=True,
            stdout=lines,
            stderr=lines,
        )
    request.addfinalizer(lambda: _kill_session(process))
    return process, options, log, output / name / "config" / "torch.parquet.up"


def _kill_session(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_nothing_trains_on_after_the_end_and_nothing_twice_before(
    stand_in: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """Whichever signal ends the command alone, the child and its workers end with it.

    Before, a second run in the folder has exit status 2, and one line. It has as well while the
    child of a killed command is still there, which cannot end as long as it is stopped.
    """
    heed_signals()
    cases = {"SIGTERM": 143, "SIGHUP": 129, "SIGINT": 130, "SIGKILL": -9, "stopped": -9}
    begun = {name: _begin(request, stand_in, tmp_path / "results", name) for name in cases}
    for name, (process, options, log, up) in begun.items():
        _until(lambda up=up, process=process: up.exists() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        pids = list(map(int, up.read_text().split()))
        assert main(options) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{up.parent} is in use by another run: ")
        if name == "stopped":
            os.kill(pids[0], signal.SIGSTOP)
        process.send_signal(getattr(signal, name, signal.SIGKILL))
        assert process.wait() == cases[name], log.read_text()
        if name == "stopped":
            assert main(options) == 2
            os.kill(pids[0], signal.SIGCONT)
        _until(lambda pids=pids: all(map(_gone, pids)))
        told = "Interrupted; the same command goes on from here." in log.read_text()
        assert told == (cases[name] > 0)
        assert "Traceback" not in log.read_text()
        with monkeypatch.context() as patch:
            patch.setenv("FAIL", "at once")
            assert main(options) == 1  # it has begun
        assert "benchopt has failed (3): see " in capsys.readouterr().err


@pytest.mark.parametrize("status", [-signal.SIGTERM, 128 + signal.SIGINT])
def test_a_child_that_was_stopped_is_an_interruption(
    stand_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    """As if the signal had come to the command: it may have come to both, in whatever order."""
    code = (
        f"import os, sys; os.kill(os.getpid(), {-status}) if {status} < 0 else sys.exit({status})"
    )
    (tmp_path / "benchopt" / "__main__.py").write_text(code)
    assert main([str(stand_in), "--output", str(tmp_path / "results")]) == 128 + abs(status) % 128
    assert "Interrupted; the same command goes on from here." in capsys.readouterr().out


def test_a_signal_while_it_draws_and_another_end_it_once(
    ci: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second one does not disturb the end; afterwards signals are what they were."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def report(*_: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGHUP)

    # Else, without a handler, the signal would end the tests.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        monkeypatch.setattr("benchmarks.training.__main__.report", report)
        assert main(["ci", "--draw", "--output", str(ci.parent)]) == 143
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, previous)
    out, err = capsys.readouterr()
    assert out == "Interrupted; the same command goes on from here.\n"
    assert err == ""
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert after == before


def test_a_signal_that_was_ignored_is_ignored(ci: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under ``nohup``, or for a terminal that is closed."""
    monkeypatch.setattr(
        "benchmarks.training.__main__.report", lambda *_: signal.raise_signal(signal.SIGHUP)
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["ci", "--draw", "--output", str(ci.parent)]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
