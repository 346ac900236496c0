"""How many steps there are: the formulas of choosing.md and logging.md, with the real packages.

A run of so many steps has its clock at that number at the end, and rho has just come to 0.
"""

import os
import re

import pytest
import torch
from distributed_tools import run_distributed
from recipes import PAGE, code, section, steps_by_the_page
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, DistributedSampler
from torch_tools import clock

from coolmomentum.torch import CoolMomentum

CHOOSING = PAGE.with_name("choosing.md")
EPOCHS, BATCHES = 2, 50  # of the page; a process of two has 25 batches


def loop(steps, loader, accumulation=1, anew=False, wrap=lambda model: model):
    """Train for EPOCHS in a loop of one's own; gives back the optimizer."""
    model = wrap(torch.nn.Linear(10, 1))
    optimizer = CoolMomentum(model.parameters(), total_steps=steps, rho0=0.9)
    n = 0
    for _ in range(EPOCHS):
        n = 0 if anew else n
        for x, y in loader:
            torch.nn.functional.mse_loss(model(x), y).backward()
            n += 1
            if n % accumulation == 0:
                optimizer.step()
                optimizer.zero_grad()
    return optimizer


def shared():
    """What the first block of the page makes."""
    names: dict = {}
    exec(code(), names)
    return names


def ended(optimizer):
    """The clock, and whether rho is 0 now and was not one step before."""
    (group,) = optimizer.param_groups
    before = CoolMomentum([torch.zeros(1, requires_grad=True)], total_steps=group["total_steps"])
    before.param_groups[0]["cooling_step"] = group["cooling_step"] - 1
    return clock(optimizer), optimizer.rho == 0.0 < before.rho


@pytest.mark.parametrize(
    ("row", "accumulation", "anew"),
    [
        ("a plain loop", 1, False),
        ("a loop that accumulates", 3, False),
        ("a loop that accumulates", 4, False),
        ("the same, its count starting anew", 3, True),
        ("the same, its count starting anew", 4, True),
    ],
)
def test_loops(row, accumulation, anew):
    """A loop of one's own, with and without a remainder of batches."""
    steps = steps_by_the_page(row, EPOCHS, BATCHES, accumulation)
    optimizer = loop(steps, shared()["loader"], accumulation, anew)
    assert ended(optimizer) == (steps, True)


# --- processes ----------------------------------------------------------------------------------


def accelerate(rank, change):
    """The recipe of the page: length of its loader, clock, and learning rate of each step."""
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, args, kwargs: rates.append(optimizer.param_groups[0]["lr"])
    )
    names: dict = {}
    assert change[0] in code("How many steps")
    exec(code() + code("How many steps").replace(*change), names)
    hook.remove()
    wrapped = names["optimizer"]
    assert not hasattr(wrapped, "rho")
    return len(names["loader"]), ended(wrapped.optimizer), rates


def lengths(rank):
    """Of loaders of 51 batches, before and after they are prepared."""
    from accelerate import Accelerator, DataLoaderConfiguration

    dataset, larger = (torch.utils.data.TensorDataset(torch.zeros(n, 1)) for n in (1610, 1642))
    loaders = [DataLoader(dataset, 32), DataLoader(larger, 32, drop_last=True)]
    found = [(len(loader), len(Accelerator().prepare(loader))) for loader in loaders]
    split = Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=True))
    sampler = DistributedSampler(dataset)
    counted = [sum(1 for _ in Accelerator().prepare(loader)) for loader in loaders]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=2)
    optimizer, scheduler = split.prepare(optimizer, scheduler)
    optimizer.step()
    scheduler.step()
    return {
        "prepared": found,
        "counted": counted,
        "split": len(split.prepare(loaders[0])),
        "sampler": len(DataLoader(dataset, 32, sampler=sampler)),
        "rate of split": scheduler.get_last_lr(),
    }


def ddp(rank):
    """A loop that accumulates under DistributedDataParallel."""
    loader = shared()["loader"]
    loader = DataLoader(loader.dataset, batch_size=32, sampler=DistributedSampler(loader.dataset))
    steps = steps_by_the_page("DDP", EPOCHS, len(loader), 4)
    optimizer = loop(steps, loader, 4, wrap=torch.nn.parallel.DistributedDataParallel)
    return len(loader), steps, ended(optimizer)


def trainer(rank, folder):
    """The recipe of the page for the Trainer, once."""
    names: dict = {}
    text = code("Longer in the Trainer")
    text = text.replace("epochs,\n", "epochs, gradient_accumulation_steps=4,\n", 1)
    text = text.replace('"runs/longer"', repr(folder)).split("\ntrain(epochs=2)")[0]
    text = text.replace('"constant",', '"constant_with_warmup", warmup_steps=4,')
    exec(code() + text, names)
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, args, kwargs: rates.append(optimizer.param_groups[0]["lr"])
    )
    trained = names["train"](EPOCHS)
    hook.remove()
    assert [round(rate / 0.01, 6) for rate in rates] == [0, 0.25, 0.5, 0.75] + [1] * 10
    groups = trained.optimizer.optimizer.param_groups
    clocks = {int(group["cooling_step"]) for group in groups}
    return len(trained.get_train_dataloader()), clocks, trained.optimizer.optimizer.rho


def lightning(rank, folder):
    """The recipe of the page for Lightning, once, under DDP."""
    os.environ["TORCHELASTIC_RUN_ID"] = "here"  # the processes are there already
    names: dict = {}
    text = code("Longer in Lightning").split("\ntrain(epochs=2)")[0]
    more = f"accumulate_grad_batches=4, devices=2, strategy='ddp', default_root_dir={folder!r},"
    exec(code() + text.replace("epochs,\n", f"epochs, {more}", 1), names)
    trained = names["train"](EPOCHS)
    return trained.num_training_batches, ended(trained.optimizers[0])


def work(rank, folder):
    """All of them, one after the other."""
    os.environ |= {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    return {
        "accelerate": accelerate(rank, ("", "")),
        "accelerate, even": accelerate(rank, ("accumulation = 4", "accumulation = 5")),
        "accelerate, short": accelerate(rank, ("* accelerator.num_processes", "")),
        "lengths": lengths(rank),
        "ddp": ddp(rank),
        "trainer": trainer(rank, folder),
        "lightning": lightning(rank, folder),
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes report."""
    folder = tmp_path_factory.mktemp("counting")
    return run_distributed(work, folder, str(folder))


def test_accelerate_in_two_processes(two):
    """The loader's length is a process's share, and each epoch ends with a step."""
    steps = steps_by_the_page("Accelerate", EPOCHS, 25, 4)
    assert [report["accelerate"][:2] for report in two] == [(25, (steps, True))] * 2


def test_a_prepared_scheduler_steps_once_for_each_process(two):
    """A warm-up takes as many steps of the optimizer as meant if the recipe's factor is there."""
    for report in two:
        factors = [1 + 9 * min(n, 3) / 3 for n in range(14)]
        # LinearLR goes on from the last rate: one division and one product for each of 6 steps.
        meant = pytest.approx([0.001 * f for f in factors], rel=6 * 2 * 2**-53)
        assert report["accelerate"][2] == meant
        full = [n for n, rate in enumerate(report["accelerate, short"][2]) if rate > 0.0099]
        assert full[0] == 2  # not 3: it is at the end of its 3 steps after half of them


def test_the_share_of_a_process(two):
    """Batches over processes, rounded up, or down where the loader drops the last."""
    wanted = {
        "prepared": [(51, 26), (51, 25)],
        "counted": [26, 25],
        "split": 51,
        "sampler": 26,
        "rate of split": [0.75],
    }
    assert [report["lengths"] for report in two] == [wanted] * 2


def test_ddp_in_two_processes(two):
    """The length of a loader with a DistributedSampler needs no division by the processes."""
    steps = steps_by_the_page("DDP", EPOCHS, 25, 4)
    assert [report["ddp"] for report in two] == [(25, steps, (steps, True))] * 2


def test_the_trainer_in_two_processes(two):
    """Its loader has a process's share, and each epoch ends with a step."""
    steps = steps_by_the_page("Hugging Face", EPOCHS, 25, 4)
    assert [report["trainer"] for report in two] == [(25, {steps}, 0.0)] * 2


def test_lightning_in_two_processes(two):
    """Its loader has a process's share, and each epoch ends with a step."""
    steps = steps_by_the_page("Lightning", EPOCHS, 25, 4)
    assert [report["lightning"] for report in two] == [(25, (steps, True))] * 2


def test_the_formula_of_the_page_of_choosing(two):
    """Of the loader before it is split, exact where nothing is left over."""
    text = CHOOSING.read_text(encoding="utf-8")
    (formula,) = re.findall(r"`(epochs \* len\(loader\) // \(.*?\))`", text)
    values = {"epochs": EPOCHS, "loader": range(BATCHES), "accumulation": 5, "processes": 2}
    steps = eval(formula, values)
    assert [report["accelerate, even"][:2] for report in two] == [(25, (steps, True))] * 2


# --- a wrong count ------------------------------------------------------------------------------


def test_epochs_given_for_steps():
    """The third step warns, in the words that both pages quote."""
    with pytest.warns(UserWarning, match="^3 steps are more than 5 % past") as caught:
        loop(EPOCHS, shared()["loader"])
    assert len(caught) == 1
    message = str(caught[0].message)
    assert f"\n    {message}\n" in section("How many steps")
    assert " ".join(message.split()) in " ".join(CHOOSING.read_text(encoding="utf-8").split())
