"""``python -m benchmarks.gpu``, which nobody could run on a GPU yet: a rehearsal on the CPU."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import array_api_compat
import numpy as np
import psutil
import pytest

from benchmarks.gpu import luggage
from benchmarks.gpu.__main__ import RULES, main
from benchmarks.training import _data
from benchmarks.training._checkpoint import all_records

ROOT = Path(__file__).parent.parent
# What an image for machine learning may lack, or this project alone has; the wheel brings the last.
ABSENT = ("benchopt", "keras", "matplotlib", "psutil", "rich", "sybil", "tensorflow")
ABSENT += ("array_api_compat",)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, str], Path]:
    """The command, an environment in which some packages fail to be imported, and a folder."""
    folder = tmp_path_factory.mktemp("gpu")
    for name in ABSENT:
        (folder / "absent" / name).mkdir(parents=True)
        (folder / "absent" / name / "__init__.py").write_text("raise ImportError('not here')")
    piece = folder / "luggage" / "1"
    piece.mkdir(parents=True)
    package = Path(array_api_compat.__file__).parent
    with zipfile.ZipFile(piece / "array_api_compat-1-py3-none-any.whl", "w") as wheel:
        for file in package.rglob("*.py"):
            wheel.write(file, str(Path("array_api_compat") / file.relative_to(package)))
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--miniature"]
    command += ["--seconds", "3000"]  # a machine may be busy
    command += ["--luggage", str(folder / "luggage"), "--output", str(folder / "found")]
    path = os.pathsep.join([str(folder / "absent"), str(ROOT)])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COOLMOMENTUM")}
    return command, environment | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, folder


def test_the_command_in_miniature(
    rehearsal: tuple[list[str], dict[str, str], Path], tmp_path: Path
) -> None:
    """Each part ends and leaves its file; the same command makes nothing again.

    Nothing that is absent is imported, and of what is not in the image only what is in the luggage.
    """
    command, environment, folder = rehearsal
    found = folder / "found"
    begun = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert begun.returncode == 0, begun.stdout + begun.stderr
    log = (found / "checks.txt").read_text()
    assert " passed" in log
    assert "failed" not in log
    for framework, least in (("torch", 1 + 2 * 9), ("jax", 1 + 2 * 2)):
        lines = json.loads((found / f"speed-{framework}.json").read_text())
        assert len(lines) == least
        assert all(line["share_of_bandwidth"] > 0 for line in lines)
        assert lines[0]["share_of_bandwidth"] == 1
        (fused,) = {
            x["bytes"] for x in lines if x["dtype"] == "float32" and "copy" not in x["step"]
        }
        assert fused == 5 * 4 * (24 + 5 + 7)  # what moves in a step of three small tensors
    runs = json.loads((found / "training.json").read_text())
    for rule in RULES:
        own = [run for run in runs if run["rule"] == rule]
        assert [(run["epoch"], run["epochs"]) for run in own] == [(0, 3), (1, 3), (2, 3), (3, 3)]
        assert all(np.isfinite(run["training_loss"]) for run in own)
    (one,) = {run["training_loss"] for run in runs if run["epoch"] == 0}  # the same weights
    assert one > 0
    machine = json.loads((found / "machine.json").read_text())
    assert {"torch", "jax", "numpy", "optax"} <= set(machine["versions"])
    again = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    for part in ("checks", "speed-torch", "speed-jax"):
        assert f"== {part}: done before, status 0" in again.stdout
    assert ": epoch 1 of 3: " not in again.stdout
    assert json.loads((found / "training.json").read_text()) == runs


def test_training_that_was_cut_off_goes_on_elsewhere(
    rehearsal: tuple[list[str], dict[str, str], Path], tmp_path: Path
) -> None:
    """SIGKILL after an epoch of each rule: no child stays, and --resume takes what was brought."""
    command, environment, _ = rehearsal
    cut, whole = (tmp_path / name for name in ("cut", "whole"))
    alone = [*command, "--parts", "training", "--output"]
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen([*alone, str(cut)], env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 300
        while not all((cut / rule / "checkpoint.npz").exists() for rule in RULES):
            assert time.monotonic() < deadline
            assert child.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.005)
        theirs = psutil.Process(child.pid).children(recursive=True)
        child.send_signal(signal.SIGKILL)
        child.wait()
    _, alive = psutil.wait_procs(theirs, timeout=60)
    assert len(theirs) == len(RULES)
    assert not alive
    assert not (cut / "training.json").exists()
    done = [run["epoch"] for run in all_records(cut)]
    assert done.count(3) < len(RULES)  # they have not trained on
    resumed = [*alone, str(whole), "--resume", str(cut)]
    ended = subprocess.run(resumed, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    runs = json.loads((whole / "training.json").read_text())
    assert [run["epoch"] for run in runs if run["rule"] == "sgd-step"] == [0, 1, 2, 3]
    assert "coolmomentum: epoch 3 of 3, test accuracy " in ended.stdout
    assert ": epoch 1 of 3" not in ended.stdout


def test_a_part_ends_when_its_time_is_over(
    rehearsal: tuple[list[str], dict[str, str], Path], tmp_path: Path
) -> None:
    """It is not done then; the next command begins it again."""
    command, environment, _ = rehearsal
    output = tmp_path / "found"
    short = [*command, "--output", str(output), "--parts", "checks", "--seconds", "10.5"]
    ended = subprocess.run(short, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "== checks: status -9 after " in ended.stdout
    assert not (output / "checks.done.json").exists()


def test_luggage_is_packed_in_pieces_and_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two files in each piece; a piece that has not come is named, and no training begins."""
    contents = {name: name.encode() * 1000 for name in _data.CIFAR10}
    sums = {k: hashlib.md5(v, usedforsecurity=False).hexdigest() for k, v in contents.items()}
    monkeypatch.setattr(_data, "CIFAR10", sums)
    folder = tmp_path / "data" / luggage.CIFAR10
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv("COOLMOMENTUM_DATA", str(tmp_path / "data"))
    pieces = tmp_path / "luggage"
    luggage.pack(pieces)
    assert [len(list(piece.iterdir())) for piece in sorted(pieces.iterdir())] == [2, 2, 2]
    assert luggage.missing(pieces) == []
    luggage.unpack(pieces, tmp_path / "there")
    monkeypatch.setenv("COOLMOMENTUM_DATA", str(tmp_path / "there"))
    assert _data.cifar10_files() == contents
    assert gzip.decompress((pieces / "3" / "test_batch.gz").read_bytes()) == contents["test_batch"]

    monkeypatch.delenv("COOLMOMENTUM_DATA")
    (pieces / "2" / "data_batch_4.gz").unlink()
    options = ["--luggage", str(pieces), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*options, "--parts", "training"]) == 1
    assert f"training: left out, {pieces} lacks data_batch_4\n" in capsys.readouterr().out
