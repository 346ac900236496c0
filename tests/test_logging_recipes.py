"""The recipes of docs/logging.md, run as they stand there, against the packages they are for."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from coolmomentum import CoolingSchedule, effective_learning_rate, step_size

PAGE = Path(__file__).parents[1] / "docs" / "logging.md"
RHO = CoolingSchedule(24, rho0=0.9)  # that of every recipe
NAMES = ["rho", "step_size", "temperature"]


def code(heading: str = "") -> str:
    """The Python blocks of a section of the page; without a heading, those before the first."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = {"": sections[0]} | {part.partition("\n")[0]: part for part in sections[1:]}
    return "\n".join(re.findall(r"^```python\n(.*?)^```", named[heading], re.DOTALL | re.MULTILINE))


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A function that runs a section after the shared block, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

    def run(heading: str, change: tuple[str, str] = ("", "")) -> dict:
        assert change[0] in code(heading)
        names: dict = {"__name__": "recipe"}
        exec(code() + code(heading).replace(*change), names)
        return names

    return run


def events(folder: str) -> dict[str, list[tuple[int, float]]]:
    """The scalars that TensorBoard would show: name to steps and values."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    found: dict = {}
    for path in Path(folder).rglob("events.*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                number = float(make_ndarray(value.tensor).item())
                found.setdefault(value.tag, []).append((event.step, number))
    return found


def test_every_section_is_tested():
    """The page has no recipe that is not run here."""
    headings = re.findall(r"^## (.*)", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    tests = Path(__file__).read_text(encoding="utf-8")
    assert [heading for heading in headings if f'"{heading}"' not in tests] == []


def test_tqdm(recipe, capsys):
    """The bar ends at the last step, with rho, step size and temperature of the optimizer."""
    names = recipe("tqdm")
    assert names["bar"].n == 24
    last = capsys.readouterr().err.split("\r")[-1]
    heat = float(names["optimizer"].temperature())
    assert "24/24" in last
    assert f"rho=0, step_size=0.005, temperature={heat:.3g}]" in last


def test_tensorboard(recipe):
    """Each epoch's readings are in the file; rho and step size are those of the schedule."""
    names = recipe("TensorBoard")
    found = events("runs/cool")
    assert sorted(found) == [f"cooling/{name}" for name in NAMES]
    for name, expected in ("rho", RHO), ("step_size", lambda n: step_size(0.01, RHO(n))):
        steps, values = zip(*found[f"cooling/{name}"], strict=True)
        assert steps == (8, 16, 24)
        # A scalar is stored in float32.
        assert values == pytest.approx([expected(n) for n in steps], rel=2**-24)
    heat = float(names["optimizer"].temperature())
    assert found["cooling/temperature"][-1] == (24, pytest.approx(heat, rel=2**-24))


lightning = [
    # It asks for worker processes to load 256 rows.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Its own use of what PyTorch 2.13 deprecates.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),
]


def with_marks(marks):
    """Several marks on one test."""

    def decorate(test):
        for mark in marks:
            test = mark(test)
        return test

    return decorate


@with_marks(lightning)
def test_lightning(recipe):
    """As often as the trainer logs, the file gets what the optimizer has after that step."""
    names = recipe("Lightning")
    with Path("runs/lightning_logs/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [4, 8, 12, 16, 20, 24]
    for row in rows:
        assert float(row["rho"]) == RHO(int(row["step"]))
        assert float(row["step_size"]) == step_size(0.01, RHO(int(row["step"])))
    (optimizer,) = names["trainer"].optimizers
    assert float(rows[-1]["temperature"]) == float(optimizer.temperature())


@with_marks(lightning)
@pytest.mark.filterwarnings("ignore:You have set log_momentum=True:RuntimeWarning")
def test_the_monitor_of_lightning_does_not_see_the_cooling(recipe):
    """LearningRateMonitor logs the base learning rate, and 0 for a momentum of which it warns."""
    monitor = "pl.callbacks.LearningRateMonitor('step', log_momentum=True)"
    names = recipe("Lightning", ("CoolingMonitor()", monitor))
    metrics = names["trainer"].callback_metrics
    assert float(metrics["lr-CoolMomentum"]) == pytest.approx(0.01, rel=2**-24)
    assert float(metrics["lr-CoolMomentum-momentum"]) == 0.0
    assert names["trainer"].callbacks[0].lrs == {"lr-CoolMomentum": [0.01] * 6}


def test_hugging_face_trainer(recipe, monkeypatch):
    """The Trainer's log has the readings, and the learning rate stays what it was."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = recipe("Hugging Face Trainer")
    logs = [log for log in names["trainer"].state.log_history if "loss" in log]
    assert [log["step"] for log in logs] == [4, 8, 12, 16, 20, 24]
    for log in logs:
        assert log["learning_rate"] == 0.01
        assert log["rho"] == RHO(log["step"])
        assert log["step_size"] == step_size(0.01, RHO(log["step"]))
    assert logs[-1]["temperature"] == float(names["optimizer"].temperature())


def test_hugging_face_trainer_by_default_anneals_twice(recipe, monkeypatch):
    """Without lr_scheduler_type a linear decay multiplies what cools already: the page's table."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    section = code("Hugging Face Trainer")
    (line,) = [line for line in section.splitlines(True) if "lr_scheduler_type" in line]
    names = recipe("Hugging Face Trainer", (line, ""))
    (optimizer,) = {names["optimizer"]}
    assert float(optimizer.param_groups[0]["lr"]) == 0.0
    logs = {log["step"]: log for log in names["trainer"].state.log_history if "loss" in log}
    rows = re.findall(r"^\| (?:steps taken|`\"\w+\"`).*\|$", PAGE.read_text(), flags=re.MULTILINE)
    steps, constant, linear = ([float(x) for x in re.findall(r"\| ([\d.]+)", row)] for row in rows)
    assert steps == [0, 6, 12, 18, 24]
    for n, single, double in zip(steps, constant, linear, strict=True):
        assert round(effective_learning_rate(0.01, RHO(n)), 4) == single
        assert round(effective_learning_rate(0.01 * (1 - n / 24), RHO(n)), 4) == double
    for n, log in logs.items():
        assert log["rho"] == RHO(n)
        assert log["step_size"] == pytest.approx(step_size(0.01 * (1 - n / 24), RHO(n)), abs=1e-17)


def test_keras_and_tensorboard(tmp_path):
    """In a process of its own: history and TensorBoard have what the callback wrote."""
    program = code("Keras and TensorBoard") + (
        "import json\n"
        "print(json.dumps([history.history, model.optimizer.rho, model.optimizer.temperature()]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ
        | {
            "KERAS_BACKEND": "tensorflow",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    history, rho, heat = json.loads(done.stdout.splitlines()[-1])
    # rho is computed in float32 in the graph: see the adapter's own tests for its error.
    assert history["rho"] == pytest.approx([RHO(8), RHO(16), 0.0], abs=1e-6)
    assert history["rho"][-1] == rho == 0.0
    assert history["temperature"][-1] == heat > 0
    found = events(str(tmp_path / "runs" / "keras"))
    for name in "rho", "temperature":
        shown = [value for _, value in found[f"epoch_{name}"]]
        assert shown == pytest.approx(history[name], rel=2**-24, abs=1e-9)
