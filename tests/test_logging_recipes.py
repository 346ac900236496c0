"""The recipes of docs/logging.md for PyTorch, run as they stand there, with the real packages.

That for Keras is run by tests/keras_adapter, in a process that has Keras.
"""

import csv
import re
from pathlib import Path

import pytest
import torch
from recipes import PAGE, code, scalars

from coolmomentum import CoolingSchedule, effective_learning_rate, step_size
from coolmomentum.torch import Thermometer

RHO0, LR = 0.9, 0.01  # of every recipe
TEMPERATURES = ("temperature", "predicted_temperature")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A function that runs a section after the shared block, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are tiny: more threads would wait for one another

    def run(heading: str, change: tuple[str, str] = ("", "")) -> dict:
        assert change[0] in code(heading)
        names: dict = {"__name__": "recipe"}
        exec(code() + code(heading).replace(*change), names)
        return names

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def readings(monkeypatch):
    """Every reading that any thermometer gives."""
    given: list[dict] = []
    read = Thermometer.read

    def reading(self, by="all", reset=False):
        given.append(read(self, by, reset))
        return given[-1]

    monkeypatch.setattr(Thermometer, "read", reading)
    return given


def expected(readings: list[dict], total_steps: int, lr=lambda n: LR) -> dict[int, dict]:
    """What a log should have, by step: settings by the closed forms, temperatures as read."""
    rho, step, log = CoolingSchedule(total_steps, RHO0), 0, {}
    for reading in readings:
        step += reading["steps"]
        settings = {"rho": rho(step), "step_size": step_size(lr(step), rho(step))}
        log[step] = settings | {name: reading[name] for name in TEMPERATURES}
        assert all(value > 0 for value in list(log[step].values())[2:])
    return log


def test_every_section_is_tested():
    """The page has no recipe that is not run, here or on the backends of Keras."""
    headings = re.findall(r"^## (.*)", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    keras = Path(__file__).parent / "keras_adapter" / "test_keras_on_tensorflow_logging.py"
    tests = Path(__file__).read_text(encoding="utf-8") + keras.read_text(encoding="utf-8")
    assert [heading for heading in headings if f'"{heading}"' not in tests] == []


def test_tqdm(recipe, readings, capsys):
    """The bar ends at the last step, with the readings of the last epoch."""
    recipe("tqdm")
    log = expected(readings, 100)
    assert list(log) == [50, 100]
    last = capsys.readouterr().err.split("\r")[-1]
    assert "100/100" in last
    shown = dict(re.findall(r"(\w+)=([-+.e\d]+)", last))
    # tqdm prints three digits: half a unit of the third is at most 1/200 of the number.
    assert {name: float(x) for name, x in shown.items()} == pytest.approx(log[100], rel=1 / 200)


def test_tensorboard(recipe, readings):
    """Each epoch's readings are in the file, as float32."""
    recipe("TensorBoard")
    log = expected(readings, 100)
    curves = scalars(Path("runs/cool"))
    assert list(log) == [50, 100]
    assert sorted(curves) == sorted(f"cooling/{name}" for name in log[50])
    for name in log[50]:
        wanted = [(step, pytest.approx(log[step][name], rel=2**-24)) for step in log]
        assert curves[f"cooling/{name}"] == wanted


def warnings_of_lightning(test):
    """Let it say that loading 1600 rows needs workers, and use what PyTorch 2.13 deprecates."""
    test = pytest.mark.filterwarnings("ignore:.*does not have many workers")(test)
    return pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated")(test)


@warnings_of_lightning
def test_lightning(recipe, readings):
    """As often as the trainer logs, its file gets the readings after that step."""
    names = recipe("Lightning")
    log = expected(readings, 100)
    with Path("runs/lightning_logs/version_0/metrics.csv").open() as file:
        rows = [{name: float(x) for name, x in row.items()} for row in csv.DictReader(file)]
    assert [row.pop("step") for row in rows] == list(log) == [20, 40, 60, 80, 100]
    assert rows == list(log.values())
    assert not names["trainer"].optimizers[0]._optimizer_step_post_hooks, "it was not closed"


@warnings_of_lightning
@pytest.mark.filterwarnings("ignore:You have set log_momentum=True:RuntimeWarning")
def test_the_monitor_of_lightning_does_not_see_the_cooling(recipe):
    """LearningRateMonitor logs the base learning rate, and 0 for the momentum, with a warning."""
    monitor = "pl.callbacks.LearningRateMonitor('step', log_momentum=True)"
    names = recipe("Lightning", ("CoolingMonitor()", monitor))
    assert names["trainer"].callbacks[0].lrs == {"lr-CoolMomentum": [LR] * 5}
    shown = names["trainer"].callback_metrics
    assert float(shown["lr-CoolMomentum-momentum"]) == 0.0


def losses(names: dict) -> dict[int, dict]:
    """The log of a Trainer by step, without the summary at its end."""
    history = names["trainer"].state.log_history
    return {row["step"]: row for row in history if "loss" in row}


def test_hugging_face_trainer(recipe, readings):
    """The Trainer's log has the readings, and the learning rate stays what it was."""
    logged = losses(recipe("Hugging Face Trainer"))
    log = expected(readings, 64)
    assert list(logged) == list(log) == [16, 32, 48, 64]
    for step, row in logged.items():
        assert row["learning_rate"] == LR
        assert row | log[step] == row


def test_hugging_face_trainer_by_default_anneals_twice(recipe, readings):
    """Without lr_scheduler_type a linear decay multiplies what cools already: the page's table."""
    (line,) = (x for x in code("Hugging Face Trainer").splitlines(True) if "lr_scheduler_type" in x)
    logged = losses(recipe("Hugging Face Trainer", (line, "")))
    log = expected(readings, 64, lr=lambda n: LR * (1 - n / 64))
    for step, row in logged.items():
        # Two products of numbers below 1/100.
        assert row["step_size"] == pytest.approx(log[step]["step_size"], abs=2 * 2**-53 / 100)
        assert row["rho"] == log[step]["rho"]
    assert logged[64]["step_size"] == 0.0

    rows = re.findall(r"^\| (?:steps taken|`\"\w+\"`).*\|$", PAGE.read_text(), flags=re.MULTILINE)
    steps, constant, linear = ([float(x) for x in re.findall(r"\| ([\d.]+)", row)] for row in rows)
    rho = CoolingSchedule(64, RHO0)
    assert steps == [0, *logged]
    assert constant == [round(effective_learning_rate(LR, rho(n)), 4) for n in steps]
    twice = [round(effective_learning_rate(LR * (1 - n / 64), rho(n)), 4) for n in steps]
    assert linear == twice
