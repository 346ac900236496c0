"""The PyTorch adapter under torch.amp.GradScaler: a skipped step has not been a step."""

import math

import pytest
import torch
from torch_tools import PATHS, clock, displacements, follow, gradients, parameters, path, same

from coolmomentum.torch import CoolMomentum

SETTINGS = {"lr": 0.125, "total_steps": 5, "rho0": 0.9, "weight_decay": 0.25}
SHAPES = [(17,), (3, 4), ()]


def scaler():
    """A scaler whose scales are powers of two, so that unscaling is exact, and which only falls."""
    return torch.amp.GradScaler(device="cpu", init_scale=2.0**10, growth_interval=1000)


def scaled_step(params, optimizer, scaler, grads, unscale_first=False):
    """Backward, from a loss whose gradients are these, and step."""
    optimizer.zero_grad()
    loss = sum((p * g).sum() for p, g in zip(params, grads, strict=True))
    scaler.scale(loss).backward()
    if unscale_first:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


def state_of(params, optimizer):
    """Copies of all that a step changes."""
    return (
        [p.detach().clone() for p in params],
        [dx.clone() for dx in displacements(params, optimizer)],
        clock(optimizer),
        [float(group["cooling_rho"]) for group in optimizer.param_groups],
    )


def assert_same_state(ours, theirs):
    """Equal bit for bit."""
    assert same(ours[0], theirs[0])
    assert same(ours[1], theirs[1])
    assert ours[2:] == theirs[2:]


@path
@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_overflow_in_the_middle(path, unscale_first, bad, dtype):
    """The bad step moves nothing, and the rest is the run without it and without a scaler."""
    params, plain = parameters(*SHAPES, dtype=dtype), parameters(*SHAPES, dtype=dtype)
    grads = gradients(params, 6)
    optimizer, unscaled = (
        CoolMomentum(params, **SETTINGS, **path),
        CoolMomentum(plain, **SETTINGS, **path),
    )
    scale = scaler()
    for n, good in enumerate(grads):
        if n == 3:
            before = state_of(params, optimizer)
            spoilt = [g.clone() for g in good]
            spoilt[1][0, 2] = bad  # one number, of one parameter
            scaled_step(params, optimizer, scale, spoilt, unscale_first)
            assert_same_state(state_of(params, optimizer), before)
            assert scale.get_scale() == 2.0**9
        scaled_step(params, optimizer, scale, good, unscale_first)
        follow(plain, unscaled, [good])
        assert_same_state(state_of(params, optimizer), state_of(plain, unscaled))
    assert clock(optimizer) == 6


@path
def test_overflow_at_the_start(path):
    """The first steps may be the bad ones, as they are with the usual initial scale."""
    params, plain = parameters(*SHAPES), parameters(*SHAPES)
    grads = gradients(params, 2)
    optimizer = CoolMomentum(params, **SETTINGS, **path)
    before = [p.detach().clone() for p in params]
    scale = scaler()
    for _ in range(3):
        scaled_step(params, optimizer, scale, [g * math.inf for g in grads[0]])
    assert same([p.detach() for p in params], before)
    assert clock(optimizer) == 0
    unscaled = CoolMomentum(plain, **SETTINGS, **path)
    for good in grads:
        scaled_step(params, optimizer, scale, good)
        follow(plain, unscaled, [good])
    assert_same_state(state_of(params, optimizer), state_of(plain, unscaled))


@pytest.mark.parametrize(
    ("path", "dtype"),
    [(path, torch.bfloat16) for path in PATHS.values()] + [({"fused": True}, torch.float16)],
)
def test_half_precision_parameters(path, dtype):
    """Scaled by a power of two that overflows nothing, half precision too is bit for bit the same.

    Float16 gradients GradScaler refuses to unscale; with fused=True the optimizer does it.
    """
    params, plain = parameters(*SHAPES, dtype=dtype), parameters(*SHAPES, dtype=dtype)
    grads = [[g.clamp(-2, 2) for g in gs] for gs in gradients(params, 6)]
    optimizer, unscaled = (
        CoolMomentum(params, **SETTINGS, **path),
        CoolMomentum(plain, **SETTINGS, **path),
    )
    scale = scaler()
    for good in grads:
        scaled_step(params, optimizer, scale, good)
        follow(plain, unscaled, [good])
    assert_same_state(state_of(params, optimizer), state_of(plain, unscaled))


def test_who_unscales():
    """With fused=True the scaler leaves it to step(), and clears away what it left there."""
    params = parameters(*SHAPES)
    for settings, supports in (({}, False), ({"foreach": True}, False), ({"fused": True}, True)):
        optimizer = CoolMomentum(params, **SETTINGS, **settings)
        assert optimizer._step_supports_amp_scaling is supports
        scaled_step(params, optimizer, scaler(), gradients(params, 1)[0])
        assert not hasattr(optimizer, "grad_scale")
        assert not hasattr(optimizer, "found_inf")


@pytest.mark.parametrize("shape", [(), (1,)])
def test_scale_and_verdict_of_any_rank(shape):
    """What is left for step() may be 0-d or 1-d, and the scale may be missing."""
    (param,) = parameters(())
    optimizer = CoolMomentum([param], lr=1.0, total_steps=2, rho0=0.0, fused=True)
    start = param.item()
    param.grad = torch.tensor(4.0, dtype=torch.float64)
    optimizer.grad_scale, optimizer.found_inf = None, torch.ones(shape)
    optimizer.step()
    assert (param.item(), clock(optimizer)) == (start, 0)
    optimizer.grad_scale, optimizer.found_inf = torch.full(shape, 8.0), torch.zeros(shape)
    optimizer.step()
    assert (param.item(), clock(optimizer)) == (start - 0.25, 1)
