"""The recipes of docs/logging.md for PyTorch, run as they stand there, with the real packages.

That for Keras is run by tests/keras_adapter, in a process that has Keras.
"""

import copy
import csv
import re
from pathlib import Path

import pytest
import torch
from recipes import PAGE, code, scalars, section, steps_by_the_page
from safetensors.torch import load_file
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from coolmomentum import CoolingSchedule, effective_learning_rate, step_size
from coolmomentum.torch import CoolMomentum, Thermometer

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

    def run(heading: str, *changes: tuple[str, str]) -> dict:
        text = code(heading)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        names: dict = {"__name__": "recipe"}
        exec(code() + text, names)
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
    headings = re.findall(r"^##+ (.*)", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    folder = Path(__file__).parent
    others = (
        "keras_adapter/test_keras_on_tensorflow_logging.py",
        "torch_adapter/test_torch_counting.py",
    )
    tests = "".join(
        path.read_text(encoding="utf-8") for path in (Path(__file__), *map(folder.joinpath, others))
    )
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


# --- training longer ----------------------------------------------------------------------------


@pytest.fixture
def steps():
    """What each step of any optimizer began with, its clock and rho, and its gradients."""
    taken: list[list] = []

    def before(optimizer, args, kwargs):
        taken.append([int(optimizer.param_groups[0]["cooling_step"]), optimizer.rho])

    def after(optimizer, args, kwargs):  # Lightning finds the gradients in the step, by a closure
        params = [p for group in optimizer.param_groups for p in group["params"]]
        taken[-1].append([p.grad.clone() for p in params])

    hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
    yield taken
    for hook in hooks:
        hook.remove()


def longer(steps, half: int) -> None:
    """Check that the first half cooled to its end, and the second as in a run of both."""
    short, long = CoolingSchedule(half, RHO0), CoolingSchedule(2 * half, RHO0)
    wanted = [(n, short(n) if n < half else long(n)) for n in range(2 * half)]
    assert [(n, rho) for n, rho, _ in steps] == wanted


def continued(params, saved: dict, steps) -> list[torch.Tensor]:
    """Parameters of a checkpoint after the second half of the gradients, by hand."""
    groups = iter(params)
    packed = saved["param_groups"]
    split = [{"params": [next(groups) for _ in group["params"]]} for group in packed]
    optimizer = CoolMomentum(split, lr=LR, total_steps=len(steps) // 2, rho0=RHO0)
    optimizer.load_state_dict(copy.deepcopy(saved))
    optimizer.extend(len(steps))
    for _, _, grads in steps[len(steps) // 2 :]:
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad
        optimizer.step()
    assert optimizer.rho == 0.0
    return [p.detach() for p in params]


def test_a_loop_trains_longer(recipe, steps):
    """The clock goes on, rho rises to where the long run has it and is 0 at the very end."""
    with pytest.warns(
        UserWarning, match="^of the checkpoint, total_steps=100 replaces 200; .*extend"
    ):
        names = recipe("Training longer")
    longer(steps, 50 * 2)
    assert names["optimizer"].rho == 0.0
    assert round(steps[100][1], 2) == 0.68  # as the page says


def test_extend_to_the_same_total_changes_nothing(recipe):
    """Then loading does not warn either."""
    same = ("total_steps=4 *", "total_steps=2 *")
    names = recipe("Training longer", same)
    assert names["optimizer"].param_groups[0]["total_steps"] == 100


@warnings_of_lightning
@pytest.mark.filterwarnings("ignore:.*not set.*weights_only:UserWarning")
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_lightning_trains_longer(recipe, steps, accumulation):
    """From its checkpoint, with what is left of an epoch's batches in a step of its own.

    The steps are those of the table, and the parameters those of a continuation by hand.
    """
    half = steps_by_the_page("Lightning", 2, 50, accumulation)
    accumulate = f"max_epochs=epochs, accumulate_grad_batches={accumulation},"
    with pytest.warns(UserWarning, match=f"total_steps={half} replaces {2 * half}; .*extend"):
        names = recipe("Longer in Lightning", ("max_epochs=epochs,", accumulate))
    trainer = names["trainer"]
    longer(steps, half)
    assert trainer.estimated_stepping_batches == trainer.global_step == len(steps)
    assert trainer.optimizers[0].rho == 0.0
    saved = torch.load("two.ckpt", weights_only=False)
    params = [x.requires_grad_() for x in saved["state_dict"].values()]
    params = continued(params, saved["optimizer_states"][0], steps)
    torch.testing.assert_close(
        params, [p.detach() for p in trainer.model.parameters()], rtol=0, atol=0
    )


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_the_trainer_trains_longer(recipe, steps, accumulation):
    """From its checkpoint, with what is left of an epoch's batches in a step of its own.

    The steps are those of the table, and the parameters those of a continuation by hand.
    """
    half = steps_by_the_page("Hugging Face", 2, 50, accumulation)
    accumulate = f"num_train_epochs=epochs, gradient_accumulation_steps={accumulation},"
    with pytest.warns(UserWarning, match=f"total_steps={half} replaces 1; .*extend"):
        names = recipe("Longer in the Trainer", ("num_train_epochs=epochs,", accumulate))
    trainer = names["trainer"]
    longer(steps, half)
    assert len(trainer.get_train_dataloader()) == 50
    assert trainer.state.max_steps == trainer.state.global_step == len(steps)
    assert trainer.optimizer.optimizer.rho == 0.0
    folder = Path(f"runs/longer/checkpoint-{half}")
    saved = torch.load(folder / "optimizer.pt")
    weights = load_file(folder / "model.safetensors")
    own = dict(trainer.model.named_parameters())
    groups = trainer.optimizer.param_groups
    order = [name for g in groups for p in g["params"] for name in own if own[name] is p]
    params = continued([weights[name].requires_grad_() for name in order], saved, steps)
    torch.testing.assert_close(params, [own[name].detach() for name in order], rtol=0, atol=0)


def test_a_trainer_that_was_interrupted_is_as_if_it_had_not_been(recipe, steps):
    """Resumed within an epoch, for no more epochs: extend changes nothing, bit for bit."""
    save = ('save_strategy="epoch"', 'save_strategy="steps", save_steps=60')
    text = code("Longer in the Trainer")
    once = text[text.index("\ntrain(epochs=2)") :]
    with pytest.warns(UserWarning, match="total_steps=100 replaces 1; "):
        names = recipe(
            "Longer in the Trainer",
            save,
            (once, "\nfirst = train(2)\nlast = train(2, 'runs/longer/checkpoint-60')"),
        )
    assert [n for n, _, _ in steps] == [*range(100), *range(60, 100)]
    assert [rho for _, rho, _ in steps[100:]] == [rho for _, rho, _ in steps[60:100]]
    first, last = (list(names[name].model.parameters()) for name in ("first", "last"))
    torch.testing.assert_close(first, last, rtol=0, atol=0)


def test_the_trainer_without_the_callback_warns_in_the_second_step(recipe):
    """The stand-in for total_steps cannot be left by mistake."""
    with pytest.warns(UserWarning, match=r"^2 steps are more than 5 % past total_steps=1, "):
        recipe("Longer in the Trainer", ("callbacks=[CoolToTheEnd()],", ""))


def test_the_trainer_has_its_own_weight_decay(recipe):
    """Its groups override the keyword; the learning rate is the keyword's."""
    keyword = ('"rho0": 0.9}', '"rho0": 0.9, "weight_decay": 0.5}')
    with pytest.warns(UserWarning, match="of the checkpoint"):
        names = recipe("Longer in the Trainer", keyword)
    groups = names["trainer"].optimizer.param_groups
    assert [(group["weight_decay"], group["lr"]) for group in groups] == [(0.0, LR)] * 2


# --- wrappers -----------------------------------------------------------------------------------


def wrappers(place: str) -> list[tuple[str, str]]:
    """The page's rows for a package: what one holds, and the optimizer in it."""
    table, package = [], ""
    text = section("Which object is the optimizer")
    for first, held, inner in re.findall(r"^\| (.*) ?\| .*?`(.*?)`.* \| (.*) \|$", text, re.M):
        package = first.strip() or package
        if package == place:
            table.append((held, held if inner == "that" else inner.strip("`")))
    return table


def test_accelerate_wraps_the_optimizer():
    """Its wrapper has neither rho nor extend; the optimizer in it has both."""
    import accelerate

    optimizer = CoolMomentum(torch.nn.Linear(2, 1).parameters(), total_steps=4, rho0=RHO0)
    names = {"accelerator": accelerate.Accelerator(cpu=True), "optimizer": optimizer}
    ((held, inner),) = wrappers("Accelerate")
    exec(held, names)
    assert eval(inner, names) is optimizer
    assert not hasattr(names["wrapped"], "rho")
    assert not hasattr(names["wrapped"], "extend")
    optimizer.extend(8)
    assert names["wrapped"].param_groups[0]["total_steps"] == 8


def test_the_trainer_wraps_the_optimizer(recipe):
    """The Trainer's attribute is Accelerate's wrapper."""
    with pytest.warns(UserWarning, match="of the checkpoint"):
        names = recipe("Longer in the Trainer")
    ((held, inner),) = wrappers("the Trainer")
    assert type(eval(held, names)) is not CoolMomentum
    assert type(eval(inner, names)) is CoolMomentum


def posing(wrapped, optimizer) -> None:
    """Check that a wrapper that poses as the class shows what the optimizer does and has."""
    assert isinstance(wrapped, CoolMomentum)
    assert wrapped is not optimizer
    for x in (optimizer, wrapped):
        assert x.rho == CoolingSchedule(4, RHO0)(2)
        assert float(x.temperature()) == float(optimizer.temperature()) > 0
    for x, total in ((optimizer, 6), (wrapped, 8)):
        x.extend(total)
        assert wrapped.rho == optimizer.rho == CoolingSchedule(total, RHO0)(2)
        assert optimizer.param_groups[0]["total_steps"] == total


@warnings_of_lightning
def test_lightning_wraps_the_optimizer(recipe):
    """In the module; the trainer has the optimizer itself."""
    import pytorch_lightning as pl

    seen = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if batch_idx == 1:
                names = {"trainer": trainer, "self": module}
                (_, itself), (held, inner) = wrappers("Lightning")
                exec(held, names)
                optimizer = eval(itself, names)
                assert type(optimizer) is CoolMomentum
                assert eval(inner, names) is optimizer
                posing(names["wrapped"], optimizer)
                seen.append(optimizer)

    names: dict = {}
    text = code("Longer in Lightning").split("\ndef train(")[0]
    text = text.replace("self.trainer.optimizers[0].extend", "").replace(
        "total_steps=steps", "total_steps=4"
    )
    exec(code() + text, names)
    quiet = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_steps=4, callbacks=[Look()], **quiet)
    trainer.fit(names["Model"](), names["loader"])
    assert len(seen) == 1


@pytest.mark.parametrize("kind", ["CoolMomentum", "SGD"])
def test_what_lightning_s_wrapper_loads_it_keeps(kind):
    """Whatever the optimizer: load_state_dict of the wrapper does not reach it."""
    from pytorch_lightning.core.optimizer import LightningOptimizer

    make = {
        "CoolMomentum": lambda p: CoolMomentum(p, lr=LR, total_steps=4),
        "SGD": lambda p: torch.optim.SGD(p, lr=LR),
    }[kind]
    optimizer = make([torch.zeros(1, requires_grad=True)])
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["lr"] = 2 * LR
    wrapped = LightningOptimizer(optimizer)
    wrapped.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == LR
    wrapped.optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 2 * LR


def test_fabric_wraps_the_optimizer():
    """Its wrapper poses as the class, and loads into the optimizer."""
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu")
    model = torch.nn.Linear(2, 1)
    optimizer = CoolMomentum(model.parameters(), total_steps=4, rho0=RHO0)
    names = {"fabric": fabric, "model": model, "optimizer": optimizer}
    ((held, inner),) = wrappers("Fabric")
    exec(held, names)
    assert eval(inner, names) is optimizer
    for _ in range(2):
        fabric.backward(names["model"](torch.ones(1, 2)).sum())
        names["wrapped"].step()
    saved = copy.deepcopy(names["wrapped"].state_dict())
    posing(names["wrapped"], optimizer)
    with pytest.warns(UserWarning, match="total_steps=4 replaces 8"):
        names["wrapped"].load_state_dict(saved)
    assert optimizer.rho == CoolingSchedule(4, RHO0)(2)
