"""Checkpoints of the PyTorch adapter: a resumed run is the run that was not interrupted."""

import copy
import pickle
import tempfile
import warnings

import pytest
import torch
import torch.distributed.checkpoint
from checkpoint_tools import (
    SETTINGS,
    STEPS,
    callable_schedule,
    one_group,
    parameters,
    several_groups,
    tensor_lr,
    through_a_file,
    wide_displacements,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch_tools import assert_rounded, clock, displacements, exact, follow, gradients, path, same

from coolmomentum.torch import CoolMomentum

MAKERS = [
    (one_group, torch.float32),
    (one_group, torch.float64),
    (one_group, torch.bfloat16),
    (several_groups, torch.float32),
    (tensor_lr, torch.float32),
    (wide_displacements, torch.bfloat16),
    (wide_displacements, torch.float16),
    (callable_schedule, torch.float32),
]


def scheduler_of(optimizer):
    """An LR schedule over the whole run."""
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)


def train(params, optimizer, scheduler, grads):
    """Step optimizer and LR schedule through given gradients."""
    for step_grads in grads:
        follow(params, optimizer, [step_grads])
        scheduler.step()


@path
@pytest.mark.parametrize(("make", "dtype"), MAKERS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_resumed_at_any_step(path, make, dtype):
    """Saved and resumed after any number of steps, a run with an LR schedule goes on bit for bit.

    Parameters, displacements, clocks and rho are those of the uninterrupted run.
    """
    whole = parameters(dtype)
    grads = gradients(whole, STEPS)
    optimizer = make(whole, **path)
    train(whole, optimizer, scheduler_of(optimizer), grads)
    for cut in range(STEPS + 1):
        first = parameters(dtype)
        before = make(first, **path)
        scheduler = scheduler_of(before)
        train(first, before, scheduler, grads[:cut])
        saved = through_a_file([before.state_dict(), scheduler.state_dict()])

        second = [p.detach().clone().requires_grad_() for p in first]
        after = make(second, **path)
        scheduler = scheduler_of(after)
        after.load_state_dict(saved[0])
        scheduler.load_state_dict(saved[1])
        train(second, after, scheduler, grads[cut:])

        assert same(second, whole)
        assert same(displacements(second, after), displacements(whole, optimizer))
        for ours, theirs in zip(after.param_groups, optimizer.param_groups, strict=True):
            for name in ("cooling_step", "cooling_rho", "lr"):
                assert type(ours[name]) is type(theirs[name])
                assert ours[name] == theirs[name]
            assert ours["cooling_step"].dtype == torch.int64


@path
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_independent(path, copied):
    """A deep copy and an unpickled optimizer go on by themselves, each as the original would."""
    params = parameters()
    grads = gradients(params, STEPS)
    optimizer = several_groups(params, **path)
    follow(params, optimizer, grads[:3])
    twins, twin = copied((params, optimizer))
    assert repr(twin) == repr(optimizer)
    follow(twins, twin, grads[3:])
    assert (clock(twin), clock(optimizer)) == (STEPS, 3)
    follow(params, optimizer, grads[3:])
    assert same(twins, params)
    assert same(displacements(twins, twin), displacements(params, optimizer))


def test_state_dicts_are_deterministic():
    """Equal runs have equal state dicts, and loading one does not change it."""
    dicts = []
    for _ in range(2):
        params = parameters()
        optimizer = several_groups(params)
        follow(params, optimizer, gradients(params, 3))
        dicts.append(optimizer.state_dict())
    kept = copy.deepcopy(dicts[0])
    fresh = parameters()
    loaded = several_groups(fresh)
    loaded.load_state_dict(dicts[0])
    for other in (dicts[0], dicts[1], loaded.state_dict()):
        torch.testing.assert_close(other["state"], kept["state"], rtol=0, atol=0)
        assert other["param_groups"] == kept["param_groups"]


def test_what_is_in_a_checkpoint():
    """One tensor a parameter, numbers and the clock; names where there are some."""
    params = parameters()
    optimizer = CoolMomentum([(f"p{i}", p) for i, p in enumerate(params)], **SETTINGS)
    follow(params, optimizer, gradients(params, 3))
    packed = optimizer.state_dict()
    assert [list(packed["state"][i]) for i in range(3)] == [["displacement"]] * 3
    (group,) = packed["param_groups"]
    assert group["param_names"] == ["p0", "p1", "p2"]
    assert {name: group[name] for name in SETTINGS} == SETTINGS
    step = group["cooling_step"]
    assert (step.dtype, step.shape, int(step)) == (torch.int64, (), 3)


def test_map_location_and_devices():
    """Displacements follow the parameters, wherever the checkpoint was; the clock stays here."""
    params = parameters()
    optimizer = one_group(params)
    follow(params, optimizer, gradients(params, 3))
    saved = through_a_file(optimizer.state_dict(), map_location="cpu")
    there = [p.detach().to("meta").requires_grad_() for p in params]
    moved = CoolMomentum(there, **SETTINGS)
    moved.load_state_dict(saved)
    assert {dx.device.type for dx in displacements(there, moved)} == {"meta"}
    assert moved.param_groups[0]["cooling_step"].device.type == "cpu"
    assert clock(moved) == 3


@pytest.mark.parametrize("wanted", [None, torch.float32])
@pytest.mark.parametrize("source", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("target", [torch.float64, torch.float32, torch.bfloat16])
def test_into_a_model_of_another_dtype(source, target, wanted):
    """Displacements are rounded once, to the dtype that steps of the new model keep them in."""
    old, new = parameters(source), parameters(target)
    before = CoolMomentum(old, **SETTINGS, displacement_dtype=wanted)
    follow(old, before, gradients(old, 3))
    after = CoolMomentum(new, **SETTINGS)
    after.load_state_dict(through_a_file(before.state_dict()))
    kept = target if wanted is None else torch.promote_types(target, wanted)
    assert same(
        displacements(new, after),
        [dx.to(kept) for dx in displacements(old, before)],
    )
    follow(new, after, gradients(new, 1))
    assert {dx.dtype for dx in displacements(new, after)} == {kept}


@path
def test_between_paths(path):
    """A checkpoint of any path is one of every other; the clock lands where the new one wants it.

    The flags are settings and come with it, so they are taken out first.
    """
    old, new = parameters(torch.float64), parameters(torch.float64)
    grads = gradients(old, STEPS)
    before, after = one_group(old, foreach=False), one_group(new, **path)
    follow(old, before, grads[:4])
    saved = through_a_file(before.state_dict())
    for flag in ("foreach", "fused", "capturable"):
        del saved["param_groups"][0][flag]
    after.load_state_dict(saved)
    assert {name: after.param_groups[0][name] for name in path} == path
    with torch.no_grad():
        torch._foreach_copy_(new, old)
    follow(new, after, grads[4:])
    # assert_rounded is for rho <= 1/2; here errors live on for 1 / (1 - 0.9) = 10 steps, not 2.
    xs, _ = exact(parameters(torch.float64), grads, **SETTINGS)
    assert_rounded(new, xs, 5 * STEPS)


# --- torch.distributed.checkpoint, one process --------------------------------------------------

OPTIONS = [
    StateDictOptions(),
    StateDictOptions(full_state_dict=True, cpu_offload=True),
    StateDictOptions(flatten_optimizer_state_dict=True),
]


def model_and_optimizer(**settings):
    """A small network, always the and its optimizer."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    return model, CoolMomentum(model.parameters(), **SETTINGS | settings)


def step(model, optimizer, n):
    """One step of training on the n-th batch."""
    optimizer.zero_grad()
    model(torch.full((5, 3), 0.1 * n)).pow(2).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "full", "flattened"])
def test_distributed_state_dicts(options):
    """State dicts by parameter name carry the clock, and the run goes on bit for bit."""
    model, optimizer = model_and_optimizer()
    for n in range(3):
        step(model, optimizer, n)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    other, resumed = model_and_optimizer()
    set_optimizer_state_dict(other, resumed, saved, options=options)
    assert clock(resumed) == 3
    other.load_state_dict(model.state_dict())
    for n in range(3, STEPS):
        step(model, optimizer, n)
        step(other, resumed, n)
    assert same(other.parameters(), model.parameters())
    assert resumed.param_groups[0]["cooling_rho"] == optimizer.param_groups[0]["cooling_rho"]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "full", "flattened"])
def test_distributed_state_dicts_know_what_the_last_step_moved(options):
    """A layer that had no gradient in it does not heat the temperature of the resumed run."""
    model, optimizer = model_and_optimizer()
    step(model, optimizer, 1)
    optimizer.zero_grad()
    model[0](torch.ones(5, 3)).pow(2).sum().backward()
    optimizer.step()
    assert optimizer.param_groups[0]["cooling_idle"] == "2,3"
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    other, resumed = model_and_optimizer()
    set_optimizer_state_dict(other, resumed, saved, options=options)
    assert float(resumed.temperature()) == float(optimizer.temperature())
    dcp = torch.distributed.checkpoint
    again, also = model_and_optimizer()
    here = {"optimizer": get_optimizer_state_dict(again, also, options=options)}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is meant for several processes
        dcp.save({"optimizer": saved}, checkpoint_id=folder, no_dist=True)
        dcp.load(here, checkpoint_id=folder, no_dist=True)
    set_optimizer_state_dict(again, also, here["optimizer"], options=options)
    assert float(also.temperature()) == float(optimizer.temperature())
    assert clock(also) == 2


@pytest.mark.parametrize("lr", [0.125, torch.tensor(0.125)], ids=["float", "tensor"])
def test_asking_for_the_state_does_not_start_the_clock(lr):
    """get_optimizer_state_dict steps a fresh optimizer with lr 0, which is no step of the run."""
    model, optimizer = model_and_optimizer(lr=lr)
    before = [p.detach().clone() for p in model.parameters()]
    saved = get_optimizer_state_dict(model, optimizer)
    assert int(saved["param_groups"][0]["cooling_step"]) == clock(optimizer) == 0
    assert all(not state["displacement"].any() for state in saved["state"].values())
    assert same(model.parameters(), before)
    assert optimizer.param_groups[0]["cooling_rho"] == 0.9
    step(model, optimizer, 1)
    assert clock(optimizer) == 1


@path
def test_a_warm_up_from_zero_starts_the_clock(path):
    """A step of the run with lr 0 counts: it has gradients."""
    params = parameters()
    optimizer = one_group(params, **path)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: n / 4)
    assert optimizer.param_groups[0]["lr"] == 0.0
    train(params, optimizer, warm_up, gradients(params, 1))
    assert clock(optimizer) == 1
