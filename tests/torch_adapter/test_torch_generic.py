"""What every torch optimizer has to get right, of CoolMomentum: groups, lr, closures, hooks."""

import pytest
import torch
from torch.optim import lr_scheduler as lrs
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch_tools import (
    assert_rounded,
    clock,
    displacements,
    exact,
    follow,
    gradients,
    parameters,
    path,
    same,
)

from coolmomentum.torch import CoolMomentum

COOLING = {"total_steps": 6, "rho0": 0.5, "lr": 0.125}


# --- parameter groups ---------------------------------------------------------------------------


def _without_rho0(settings):
    """Settings for the reference, which wants no rho0 beside a schedule."""
    return {k: v for k, v in settings.items() if k != "rho0" or "schedule" not in settings}


@path
def test_groups_move_as_optimizers_of_their_own(path):
    """Each group takes its own settings and the constructor's for the rest."""
    own = [
        {},
        {"lr": 0.25},
        {"weight_decay": 0.5},
        {"weight_decay": 0.5, "decoupled_weight_decay": True},
        {"maximize": True},
        {"total_steps": 2},
        {"rho0": 0.25},
        {"law": "linear"},
        {"warmup_steps": 3},
        {"schedule": lambda n: 0.25 + 0 * n},
    ]
    params = parameters(*[(3, 2)] * len(own))
    grads = gradients(params, 8)
    expected = [
        exact([param], [[g[i]] for g in grads], **_without_rho0(COOLING | settings))[0][0]
        for i, (param, settings) in enumerate(zip(params, own, strict=True))
    ]
    groups = [{"params": [p]} | settings for p, settings in zip(params, own, strict=True)]
    follow(params, CoolMomentum(groups, **COOLING, **path), grads)
    assert_rounded(params, expected, 8)


@path
def test_paths_may_differ_between_groups(path):
    """A group may choose its own way to compute the same."""
    params = parameters((5,), (5,))
    grads = gradients(params, 8)
    xs, _ = exact(params, grads, **COOLING)
    groups = [{"params": params[0]}, {"params": params[1]} | {"fused": False, "foreach": False}]
    if path.get("foreach") or path.get("fused"):
        groups[1] |= dict.fromkeys(path, False)
    follow(params, CoolMomentum(groups, **COOLING, **path), grads)
    assert_rounded(params, xs, 8)


def test_ways_to_name_parameters():
    """A generator, a tensor for a group, named parameters and groups of them are all taken."""
    model = torch.nn.Linear(2, 3)
    weight, bias = model.parameters()
    assert CoolMomentum(model.parameters(), total_steps=2).param_groups[0]["params"] == [
        weight,
        bias,
    ]
    assert CoolMomentum([{"params": bias}], total_steps=2).param_groups[0]["params"] == [bias]
    named = CoolMomentum(model.named_parameters(), total_steps=2)
    assert named.param_groups[0]["params"] == [weight, bias]
    assert named.param_groups[0]["param_names"] == ["weight", "bias"]
    grouped = CoolMomentum([{"params": [("w", weight)]}, {"params": [("b", bias)]}], total_steps=2)
    assert [group["param_names"] for group in grouped.param_groups] == [["w"], ["b"]]


def test_empty_lists():
    """No parameters at all are torch's error; a group may be empty."""
    with pytest.raises(ValueError, match="empty parameter list"):
        CoolMomentum([], total_steps=2)
    (param,) = parameters((3,))
    optimizer = CoolMomentum([{"params": []}, {"params": [param]}], total_steps=2)
    follow([param], optimizer, gradients([param], 2))
    assert clock(optimizer) == 2


def test_settings_only_in_the_groups():
    """total_steps may be missing in the constructor if every group has its own, or a schedule."""
    a, b = parameters((1,), (1,))
    optimizer = CoolMomentum(
        [{"params": [a], "total_steps": 4}, {"params": [b], "schedule": lambda n: 0.5}]
    )
    assert [group["cooling_rho"] for group in optimizer.param_groups] == [pytest.approx(0.99), 0.5]


def test_a_group_with_its_own_cooling_does_not_follow_the_callable():
    """The constructor's callable is for the groups that say nothing else."""
    a, b = parameters((1,), (1,))
    groups = [{"params": [a]}, {"params": [b], "total_steps": 4, "rho0": 0.75}]
    optimizer = CoolMomentum(groups, schedule=lambda n: 0.125)
    assert [group["cooling_rho"] for group in optimizer.param_groups] == [0.125, 0.75]


@path
def test_added_groups_take_the_running_clock(path):
    """A parameter that joins later cools with the others, and starts at rest."""
    first, second = parameters((4,), (4,))
    grads = gradients([first, second], 6)
    optimizer = CoolMomentum([first], **COOLING, **path)
    follow([first], optimizer, [g[:1] for g in grads[:3]])
    optimizer.add_param_group({"params": [second]})
    assert clock(optimizer) == 3
    follow([first, second], optimizer, grads[3:])
    assert clock(optimizer) == 6
    nothing = [[g[0], None] for g in grads[:3]]
    xs, _ = exact([*parameters((4,), (4,))], nothing + grads[3:], **COOLING)
    assert_rounded([first, second], xs, 6)
    steps = [group["cooling_step"] for group in optimizer.param_groups]
    assert steps[0] is not steps[1]


# --- gradients that are not there ---------------------------------------------------------------


@path
def test_parameters_without_gradients_are_not_touched(path):
    """A parameter that gets no gradient in some steps keeps itself and its displacement."""
    params = parameters((5,), (3, 3), ())
    grads = gradients(params, 6)
    grads[0][0] = grads[2][1] = grads[3][1] = grads[3][2] = None
    xs, dxs = exact(params, grads, **COOLING)
    optimizer = CoolMomentum(params, **COOLING, **path)
    follow(params, optimizer, grads)
    assert_rounded(params, xs, 6)
    assert_rounded(displacements(params, optimizer), dxs, 6)


@path
def test_a_step_without_any_gradient_is_no_step(path):
    """Parameters, displacements, clock and rho stand still; the closure is called all the same."""
    params = parameters((5,), (3,))
    optimizer = CoolMomentum(params, **COOLING, **path)
    optimizer.zero_grad()
    assert optimizer.step(lambda: 3.5) == 3.5
    assert (clock(optimizer), len(optimizer.state)) == (0, 0)
    follow(params, optimizer, gradients(params, 2))
    before = [p.detach().clone() for p in params]
    moved = [dx.clone() for dx in displacements(params, optimizer)]
    rho = float(optimizer.param_groups[0]["cooling_rho"])
    optimizer.zero_grad()
    optimizer.step()
    assert same(params, before)
    assert same(displacements(params, optimizer), moved)
    assert (clock(optimizer), float(optimizer.param_groups[0]["cooling_rho"])) == (2, rho)


def test_zero_grad():
    """Gradients go, or become zeros, as in every optimizer."""
    params = parameters((2,), (3,))
    optimizer = CoolMomentum(params, total_steps=2)
    follow(params, optimizer, gradients(params, 1))
    optimizer.zero_grad(set_to_none=False)
    assert [p.grad.tolist() for p in params] == [[0.0] * 2, [0.0] * 3]
    optimizer.zero_grad()
    assert [p.grad for p in params] == [None, None]


# --- learning rates -----------------------------------------------------------------------------


@path
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_tensor_lr_is_the_float(path, rank):
    """A 1-element tensor of any rank as lr gives what the float gives, and is left alone."""
    ours, theirs = parameters((17,), (), (0, 2)), parameters((17,), (), (0, 2))
    grads = gradients(ours, 6)
    lr = torch.full((1,) * rank, 0.125)
    follow(ours, CoolMomentum(ours, **COOLING | {"lr": lr}, weight_decay=0.25, **path), grads)
    follow(theirs, CoolMomentum(theirs, **COOLING, weight_decay=0.25, **path), grads)
    assert same(ours, theirs)
    assert (lr.ndim, lr.item()) == (rank, 0.125)


@path
def test_tensor_lr_may_be_filled(path):
    """What is written into a tensor lr is the lr of the next step."""
    params = parameters((4,))
    grads = gradients(params, 3)
    values = [0.125, 0.5, 0.0]
    xs, _ = exact(params, grads, values, **COOLING)
    lr = torch.tensor(1.0)
    optimizer = CoolMomentum(params, **COOLING | {"lr": lr}, **path)
    for value, grad in zip(values, grads, strict=True):
        lr.fill_(value)
        follow(params, optimizer, [grad])
    assert_rounded(params, xs, 3)


SCHEDULERS = {
    "lambda": lambda o: lrs.LambdaLR(o, lambda n: n / 4),  # begins at 0
    "cosine": lambda o: lrs.CosineAnnealingLR(o, T_max=8),
    "one cycle": lambda o: lrs.OneCycleLR(o, max_lr=0.25, total_steps=10, cycle_momentum=False),
    "plateau": lambda o: lrs.ReduceLROnPlateau(o, patience=2),
    "chain": lambda o: lrs.SequentialLR(
        o, [lrs.LinearLR(o, total_iters=3), lrs.ExponentialLR(o, 0.5)], milestones=[3]
    ),
}


@path
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_schedulers(path, scheduler, tensor_lr):
    """An LR scheduler sets eta = lr (1 + rho) / 2 of each step, and the cooling goes on beside."""
    params = parameters((4,), (5, 5))
    grads = gradients(params, 8)
    xs = [p.detach().clone().requires_grad_() for p in params]
    lr = torch.tensor(0.125, dtype=torch.float64) if tensor_lr else 0.125
    optimizer = CoolMomentum(params, **COOLING | {"lr": lr}, **path)
    schedule = SCHEDULERS[scheduler](optimizer)
    used = []
    for grad in grads:
        used.append(float(optimizer.param_groups[0]["lr"]))
        follow(params, optimizer, [grad])
        schedule.step(*([1.0] if scheduler == "plateau" else []))
    assert clock(optimizer) == 8
    assert len(set(used)) > 1
    assert_rounded(params, exact(xs, grads, used, **COOLING)[0], 8)


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: lrs.OneCycleLR(o, max_lr=0.1, total_steps=10),
        lambda o: lrs.CyclicLR(o, base_lr=0.1, max_lr=0.2),
    ],
    ids=["OneCycleLR", "CyclicLR"],
)
def test_schedulers_of_momentum_are_refused(scheduler):
    """What would cycle the momentum refuses, instead of being overruled by the cooling."""
    optimizer = CoolMomentum(parameters((2,)), total_steps=9)
    with pytest.raises(ValueError, match="optimizer must support momentum"):
        scheduler(optimizer)


# --- closures and hooks -------------------------------------------------------------------------


@path
def test_closures(path):
    """The closure is evaluated once, with gradients on, and its value handed back."""
    (param,) = parameters((3,))
    expected = param.detach() - 0.125 * 1.5 / 2 * 2 * param.detach()
    optimizer = CoolMomentum([param], **COOLING, **path)
    losses = []

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = (param**2).sum()
        loss.backward()
        losses.append(loss)
        return loss

    with torch.no_grad():
        assert optimizer.step(closure) is losses[0]
        assert not torch.is_grad_enabled()
    assert len(losses) == 1
    assert_rounded([param], [expected.numpy()], 1)
    assert param.requires_grad
    assert param.is_leaf


def test_step_hooks_fire_in_order():
    """Global pre, own pre, own post, global post; and not once they are removed."""
    (param,) = parameters((3,))
    optimizer = CoolMomentum([param], total_steps=9)
    calls = []

    def note(name):
        return lambda *_: calls.append((name, clock(optimizer)))

    handles = [
        register_optimizer_step_pre_hook(note("global pre")),
        register_optimizer_step_post_hook(note("global post")),
        optimizer.register_step_pre_hook(note("pre")),
        optimizer.register_step_post_hook(note("post")),
    ]
    follow([param], optimizer, gradients([param], 1))
    assert calls == [("global pre", 0), ("pre", 0), ("post", 1), ("global post", 1)]
    for handle in handles:
        handle.remove()
    follow([param], optimizer, gradients([param], 1))
    assert len(calls) == 4


def test_repr():
    """An optimizer prints its settings, before and after a step."""
    (param,) = parameters((3,))
    optimizer = CoolMomentum([param], total_steps=9, rho0=0.75)
    assert "CoolMomentum" in repr(optimizer)
    assert "rho0: 0.75" in repr(optimizer)
    assert "total_steps: 9" in repr(optimizer)
    follow([param], optimizer, gradients([param], 2))
    assert "step: 2" in repr(optimizer)


# --- schedules of the user ----------------------------------------------------------------------


@path
def test_a_callable_is_as_exact_as_a_law(path):
    """In float64 a callable gives what its numbers give, also where they become tensors."""
    params = parameters((4,))
    grads = gradients(params, 6)
    xs, _ = exact(params, grads, lr=0.125, schedule=lambda n: 0.3)
    follow(params, CoolMomentum(params, lr=0.125, schedule=lambda n: 0.3, **path), grads)
    assert_rounded(params, xs, 6)


def test_a_table_may_end_with_the_run():
    """A schedule that knows no rho after the last step fails in the step that needs one."""
    table = [0.5, 0.25, 0.0]
    params = parameters((2,), (2,))
    grads = gradients(params, 4)
    groups = [{"params": [params[0]]}, {"params": [params[1]], "schedule": lambda n: 0.5}]
    optimizer = CoolMomentum(groups, schedule=lambda n: table[n])
    follow(params, optimizer, grads[:3])
    before = [p.detach().clone() for p in params]
    with pytest.raises(IndexError):
        follow(params, optimizer, grads[3:])
    assert same(params, before)
    assert clock(optimizer) == 3


def test_a_rho_out_of_range_is_refused_before_anything_changes():
    """A callable that leaves [-1, 1) in mid-run stops the step, for all groups."""
    params = parameters((2,), (2,))
    groups = [{"params": [params[0]], "total_steps": 5}, {"params": [params[1]]}]
    optimizer = CoolMomentum(groups, schedule=lambda n: 0.5 if n < 2 else 1.5)
    grads = gradients(params, 3)
    follow(params, optimizer, grads[:2])
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match=r"schedule\(2\) must be in \[-1, 1\): 1.5"):
        follow(params, optimizer, grads[2:])
    assert same(params, before)
    assert clock(optimizer) == 2
