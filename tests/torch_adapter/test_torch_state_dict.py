"""State dicts of the PyTorch adapter: those of other versions and optimizers, and their hooks."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from checkpoint_tools import (
    callable_schedule,
    one_group,
    parameters,
    several_groups,
    through_a_file,
)
from torch_tools import clock, displacements, follow, gradients, path

from coolmomentum import CoolingSchedule
from coolmomentum.torch import CoolMomentum

# --- what a checkpoint lacks --------------------------------------------------------------------


def test_checkpoint_without_newer_flags():
    """What an older checkpoint does not have stays as the optimizer, group by group, has it."""
    params = parameters()
    optimizer = several_groups(params)
    follow(params, optimizer, gradients(params, 3))
    saved = through_a_file(optimizer.state_dict())
    for group in saved["param_groups"]:
        for name in ("maximize", "law", "foreach", "fused", "capturable", "differentiable"):
            del group[name]
        del group["displacement_dtype"], group["cooling_rho"]
    fresh = several_groups(parameters())
    fresh.load_state_dict(saved)
    for ours, theirs in zip(fresh.param_groups, optimizer.param_groups, strict=True):
        assert {k: v for k, v in ours.items() if k != "params"} == {
            k: v for k, v in theirs.items() if k != "params"
        }


def test_checkpoint_with_a_number_for_a_clock():
    """A clock that was saved as a plain number is a tensor again."""
    params = parameters()
    optimizer = one_group(params)
    follow(params, optimizer, gradients(params, 3))
    saved = optimizer.state_dict()
    saved["param_groups"][0]["cooling_step"] = 3.0
    optimizer.load_state_dict(saved)
    follow(params, optimizer, gradients(params, 1))
    step = optimizer.param_groups[0]["cooling_step"]
    assert (int(step), step.dtype) == (4, torch.int64)


@pytest.mark.parametrize(
    "other",
    [
        lambda params: torch.optim.SGD(params, lr=0.5, momentum=0.5),
        lambda params: torch.optim.SGD(params, lr=0.5),
        torch.optim.Adam,
        torch.optim.RMSprop,
    ],
    ids=["momentum", "SGD", "Adam", "RMSprop"],
)
def test_checkpoint_of_another_optimizer(other):
    """It is refused in one line that says how to start anew, and nothing has been changed."""
    params = parameters()
    theirs = other(params)
    follow(params, theirs, gradients(params, 3))
    optimizer = one_group(params)
    follow(params, optimizer, gradients(params, 2))
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"^state_dict must be of a CoolMomentum: to start anew "):
        optimizer.load_state_dict(through_a_file(theirs.state_dict()))
    assert_unchanged(optimizer, before)


def assert_unchanged(optimizer, before):
    """The optimizer has the state dict that it had."""
    now = optimizer.state_dict()
    assert now["param_groups"] == before["param_groups"]
    torch.testing.assert_close(now["state"], before["state"], rtol=0, atol=0)


def test_callables_stay_out_of_the_checkpoint():
    """A callable is not saved; the one of the optimizer that loads is kept, uncopied."""
    params = parameters()
    optimizer = callable_schedule(params)
    follow(params, optimizer, gradients(params, 3))
    saved = through_a_file(optimizer.state_dict())
    assert saved["param_groups"][0]["schedule"] == "a function of the step"
    assert callable(optimizer.param_groups[0]["schedule"])

    def schedule(n):
        return 0.75 / (1 + n)

    fresh = CoolMomentum(parameters(), schedule=schedule)
    fresh.load_state_dict(saved)
    assert fresh.param_groups[0]["schedule"] is schedule
    assert fresh.param_groups[0]["cooling_rho"] == 0.75 / 4
    cooled = one_group(parameters())
    with pytest.warns(UserWarning, match="followed a schedule of its own, which it does not hold"):
        cooled.load_state_dict(saved)  # has no cooling, so this one's stays
    assert cooled.rho == CoolingSchedule(5, 0.9)(3)
    with pytest.warns(UserWarning, match="did not follow this optimizer's own schedule"):
        fresh.load_state_dict(cooled.state_dict())
    assert fresh.rho == 0.75 / 4


def test_groups_that_do_not_match():
    """Another number of groups or parameters is an error, and nothing has changed by then."""
    params = parameters()
    optimizer = one_group(params)
    follow(params, optimizer, gradients(params, 2))
    before = copy.deepcopy(optimizer.state_dict())
    others = [several_groups(parameters()), one_group(parameters()[:2])]
    for other in others:
        with pytest.raises(ValueError, match="loaded state dict"):
            optimizer.load_state_dict(other.state_dict())
        assert_unchanged(optimizer, before)


# --- hooks --------------------------------------------------------------------------------------


def test_state_dict_hooks():
    """Pre hooks run before the state is packed, post hooks may change the packed dict."""
    optimizer = one_group(parameters())
    optimizer.register_state_dict_pre_hook(lambda o: o.state.update(note=1))

    def forget(_, packed):
        return {"had": packed["state"].pop("note")} | packed

    assert optimizer.state_dict()["state"] == {"note": 1}
    optimizer.register_state_dict_post_hook(forget)
    packed = optimizer.state_dict()
    assert (packed["had"], packed["state"]) == (1, {})


@path
def test_load_state_dict_hooks(path):
    """Pre hooks may change or replace what is loaded; post hooks see the clock and rho in order."""
    params = parameters()
    optimizer = one_group(params, **path)
    follow(params, optimizer, gradients(params, 2))
    saved = optimizer.state_dict()
    seen = []

    def replace(_, loaded):
        loaded = copy.deepcopy(loaded)
        loaded["param_groups"][0]["cooling_step"] += 1
        loaded["state"][0]["displacement"].fill_(7.0)
        return loaded

    def change(_, loaded):
        loaded["param_groups"][0]["rho0"] = 0.5

    fresh = one_group(parameters(), **path)
    fresh.register_load_state_dict_pre_hook(change)
    fresh.register_load_state_dict_pre_hook(replace, prepend=True)
    fresh.register_load_state_dict_post_hook(
        lambda o: seen.append((clock(o), float(o.param_groups[0]["cooling_rho"])))
    )
    with pytest.warns(UserWarning, match=r"of the checkpoint, rho0=0.5 replaces 0.9; to train "):
        fresh.load_state_dict(saved)
    assert seen == [(3, pytest.approx(CoolingSchedule(5, 0.5)(3), abs=1e-7))]
    assert displacements(fresh.param_groups[0]["params"][:1], fresh)[0].tolist() == [7.0] * 17
    assert saved["param_groups"][0]["rho0"] == 0.9
    fresh.load_state_dict(saved)
    assert len(seen) == 2  # our own hooks are gone again
    assert len(fresh._optimizer_load_state_dict_post_hooks) == 1


def test_the_same_on_every_process():
    """Keys come in one order whatever the seed of Python's hashes: all ranks write the same."""
    program = (
        "import hashlib, io, torch; from coolmomentum.torch import CoolMomentum;"
        "p = torch.zeros(2, requires_grad=True); o = CoolMomentum([p], total_steps=9);"
        "f = io.BytesIO(); torch.save(o.state_dict(), f);"
        "print(list(o.state_dict()['param_groups'][0]), hashlib.md5(f.getvalue()).hexdigest())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1


def test_a_hook_may_make_of_it_what_it_likes():
    """Post-hooks get the checkpoint without callables, and what they give back is returned."""
    param = torch.zeros(2, requires_grad=True)
    optimizer = CoolMomentum([param], schedule=lambda n: 0.5)
    seen = []

    def wrapped(_, packed):
        seen.append(packed["param_groups"][0]["schedule"])
        return {"mine": packed}

    optimizer.register_state_dict_post_hook(wrapped)
    assert list(optimizer.state_dict()) == ["mine"]
    assert seen == ["a function of the step"]
