"""``make imagenet-smoke``: whole runs of the ImageNet benchmark in miniature, some minutes each.

On TensorFlow, on two logical CPUs, on four JAX devices, on two hosts; and one that is interrupted
and killed.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT.parent / "shared" / "data" / "imagenet-sample-1k-256.tar"
IMAGES = str(SAMPLE) if SAMPLE.is_file() else "simulated"
RUN = "coolmomentum-lr0.01-rho0.9"


def begin(output: Path, *options: str, backend: str = "tensorflow") -> subprocess.Popen[str]:
    """The command, in a session of its own."""
    command = [sys.executable, "-m", "benchmarks.imagenet", "smoke", "--images", IMAGES]
    command += ["--output", str(output), *options]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": paths}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def records(output: Path) -> list[dict]:
    """Of the run, times aside."""
    lines = (output / "smoke" / RUN / "records.jsonl").read_text().splitlines()
    return [json.loads(line) | {"images_per_second": None} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The records on TensorFlow."""
    output = tmp_path_factory.mktemp("whole")
    process = begin(output)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert (output / "smoke" / "report.html").is_file()
    assert (output / "smoke" / RUN / "weights.npz").is_file()
    return records(output)


def test_on_tensorflow(whole: list[dict]) -> None:
    """Two records, of 24 steps."""
    assert [record["step"] for record in whole] == [12, 24]
    assert not whole[-1]["diverged"]
    assert whole[-1]["device"] == "1 CPU, TensorFlow"


@pytest.mark.parametrize(
    ("backend", "devices", "group"), [("tensorflow", 2, 8), ("jax", 4, 16)], ids=["tf", "jax"]
)
def test_on_several_devices(
    whole: list[dict], tmp_path: Path, backend: str, devices: int, group: int
) -> None:
    """The same columns, and the devices said."""
    process = begin(tmp_path, "--devices", str(devices), backend=backend)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    found = records(tmp_path)
    assert [list(record) for record in found] == [list(record) for record in whole]
    assert [record["step"] for record in found] == [12, 24]
    assert found[-1]["device"].startswith(f"{devices} ")
    assert found[-1]["bn_group"] == group


def test_two_hosts_make_the_run_of_one(tmp_path: Path) -> None:
    """A small network; each host has one device and reads its half of each batch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    folder = Path(__file__).parent / "keras_adapter"
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": paths}
    processes = []
    for name, options in (("0", ["hosts"]), ("1", ["hosts"]), ("one", [])):
        its = {
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
            "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
            "KERAS_DISTRIBUTION_PROCESS_ID": name,
        }
        command = [sys.executable, "imagenet_on_hosts.py", str(tmp_path / name), *options]
        processes.append(
            subprocess.Popen(
                command,
                cwd=folder,
                env=environment | (its if options else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    for process in processes:
        said, _ = process.communicate()
        assert process.returncode == 0, said
    first, second, one = (
        [json.loads(x) for x in (tmp_path / name / "records.jsonl").read_text().splitlines()]
        for name in ("0", "1", "one")
    )
    assert [record["step"] for record in first] == [7, 12]
    for column in ("running_loss", "top1", "top5", "top1_raw", "top5_raw", "temperature"):
        found = [[record[column] for record in its] for its in (first, second, one)]
        assert found[0] == found[1]
        # A sum of two halves may round once more in each of 12 steps; rho = .9 remembers ten.
        assert found[0] == pytest.approx(found[2], rel=12 * 10 * 2**-24)


def _done(output: Path) -> int:
    """Steps in the backup."""
    (path,) = output.rglob("checkpoint.npz") or (None,)
    with np.load(path) as checkpoint:
        return int(checkpoint["epochs"])


def test_interrupted_and_killed_it_ends_with_the_same_records(
    whole: list[dict], tmp_path: Path
) -> None:
    """Ctrl-C after 5 steps; SIGKILL to the command alone after 10: what trains for it ends too."""
    for number, (signal_, after) in enumerate(((signal.SIGINT, 5), (signal.SIGKILL, 10))):
        process = begin(tmp_path)
        deadline = time.monotonic() + 300
        while not (any(tmp_path.rglob("checkpoint.npz")) and _done(tmp_path) >= after):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if number == 0:
            os.killpg(process.pid, signal_)  # as a terminal does
        else:
            os.kill(process.pid, signal_)
        said, _ = process.communicate()
        assert process.returncode == (130 if number == 0 else -signal.SIGKILL), said
        assert after <= _done(tmp_path) < 24
        print(f"{signal_.name} with {_done(tmp_path)} of 24 steps in the backup")
    process = begin(tmp_path)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert records(tmp_path) == whole
