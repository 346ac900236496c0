"""The kernel that sums the displacements in the pass of the step. There is no GPU here.

The contract suite runs it, interpreted, beside the oracle; here is what that does not show.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch_tools import displacements, draw, follow, gradients, parameters
from triton_interpreter import TRITON

from coolmomentum.torch import CoolMomentum, _paths

if not TRITON:
    pytest.skip("PyTorch has no Triton on this system", allow_module_level=True)

from coolmomentum.torch import _one_pass

SETTINGS = {"total_steps": 9, "lr": 0.125, "track_temperature": True}


class Reads(TorchDispatchMode):
    """How many elements the operators are given."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Count those of every tensor."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        self.elements += 0 if function.is_view else sum(x.numel() for x in tensors)
        return function(*args, **kwargs or {})


def reads(optimizer):
    """Elements read for its temperature."""
    with Reads() as counted:
        optimizer.temperature()
    return counted.elements


@pytest.fixture
def stepped():
    """Three parameters after two steps, and their optimizer."""
    params = parameters((5000,), (60, 70), (3,), dtype=torch.float32)
    optimizer = CoolMomentum(params, **SETTINGS)
    follow(params, optimizer, gradients(params, 2))
    return params, optimizer


def sums_of(displacement):
    """The tensor that the step writes its sums to."""
    return _one_pass.known_squares._parts[displacement][1]


def summed_alone(params, optimizer):
    """The temperature by Eq. 22 in float64."""
    moved = torch.cat([dx.double().ravel() for dx in displacements(params, optimizer)])
    return (moved.square().mean() / optimizer.param_groups[0]["cooling_lr"]).item()


def test_code_for_a_gpu():
    """Compiled for two GPUs it moves each array once, spills nothing, and is compiled once.

    Parameter, gradient and displacement are read and two of them written: 20 bytes in float32,
    14 with bfloat16 parameters and float32 displacements, 10 all in bfloat16. Three kernels are
    compiled, for sizes that are 1, can be divided by 16, and others; none as rho cools.
    """
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("launched_without_a_gpu.py")
    printed = subprocess.run(
        [sys.executable, script], env=env, check=True, capture_output=True, text=True
    ).stdout
    runs = json.loads(printed)
    assert len(runs) == 12
    for run in runs:
        half = run["dtype"] == "torch.bfloat16"
        wide = run["displacements"] == "torch.float32"
        assert run["bytes a parameter"] == (20 if not half else 14 if wide else 10)
        assert run["rounds to nearest"] is half
        assert run["stack bytes"] == 0
        assert run["kernels compiled after each step"] == [3] * 4
        assert run["launches"] == [1, 1, 4, 5] * 4


def test_the_temperature_is_there_after_a_step(stepped):
    """Reading it reads one number for each block of 1024 elements (5 + 5 + 1), not 9203.

    It then joins and divides some scalars. (NumPy, without such a step, is not seen: 0.)
    """
    params, optimizer = stepped
    assert optimizer.temperature().item() == pytest.approx(
        summed_alone(params, optimizer), rel=1e-6
    )
    assert 11 < reads(optimizer) < 50
    apart = optimizer.temperatures()
    for i, moved in enumerate(displacements(params, optimizer)):
        assert apart[i].item() == pytest.approx(
            (moved.double().square().mean() / 0.125).item(), rel=1e-6
        )


def test_a_step_writes_its_sums_where_the_last_one_did(stepped):
    """So that a captured step, which knows addresses, does so too."""
    params, optimizer = stepped
    moved = displacements(params, optimizer)
    before = [sums_of(dx).data_ptr() for dx in moved]
    follow(params, optimizer, gradients(params, 3))
    after = [sums_of(dx).data_ptr() for dx in moved]
    assert 0 not in before
    assert after == before
    assert optimizer.temperature().item() == pytest.approx(
        summed_alone(params, optimizer), rel=1e-6
    )


def test_changed_displacements_are_summed_anew(stepped):
    """By the user, by a checkpoint, by a step of another kind: what was summed counts no more."""
    params, optimizer = stepped
    saved = optimizer.state_dict()
    hot = optimizer.temperature().item()
    with torch.no_grad():
        for moved in displacements(params, optimizer):
            moved.mul_(2)
    assert optimizer.temperature().item() == pytest.approx(4 * hot, rel=1e-6)

    again = CoolMomentum(params, **SETTINGS)
    again.load_state_dict(saved)
    follow(params, again, gradients(params, 1))
    assert 11 < reads(again) < 50
    again.load_state_dict(saved)
    assert again.temperature().item() == pytest.approx(summed_alone(params, again), rel=1e-6)

    for other in ({"foreach": True}, {"track_temperature": False}):  # PyTorch's fused kernel
        follow(params, again, gradients(params, 1))
        again.param_groups[0].update(other)
        follow(params, again, gradients(params, 1))
        assert again.temperature().item() == pytest.approx(summed_alone(params, again), rel=1e-6)
        again.param_groups[0].update({"foreach": None, "track_temperature": True})

    follow(params, again, gradients(params, 1))
    torch.compile(again.step, backend="aot_eager")()
    assert again.temperature().item() == pytest.approx(summed_alone(params, again), rel=1e-6)


def test_sums_of_another_size_go_elsewhere(stepped):
    """A displacement that has grown has more blocks than there is room for."""
    params, optimizer = stepped
    (moved,) = displacements(params[2:], optimizer)
    assert _one_pass.known_squares.buffer(moved, 1) is sums_of(moved)
    assert _one_pass.known_squares.buffer(moved, 5).shape == (5,)


def test_a_sum_that_overflows_is_infinite():
    """As on a GPU without a word: found by the thorough profile of the contract suite."""
    (param,) = parameters((2000,), dtype=torch.float32)
    optimizer = CoolMomentum([param], **SETTINGS)
    follow([param], optimizer, [[torch.full_like(param, 1e22)]])
    assert optimizer.temperature().item() == torch.inf


def test_autograd_notices_the_step():
    """A parameter that a graph has saved may not change before its backward pass."""
    (param,) = parameters((4,), dtype=torch.float32)
    loss = param.square().sum()
    follow([param], CoolMomentum([param], **SETTINGS), gradients([param], 1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.fixture
def kernels(monkeypatch):
    """Elements of each tensor that the kernel got."""
    taken = []

    def one_pass(tensors, step):
        taken.extend(param.numel() for param in tensors.params)

    monkeypatch.setattr(_one_pass, "one_pass", one_pass)
    return taken


class Grad(torch.Tensor):
    """A gradient that may keep its numbers elsewhere, as one that is still on its way."""


@pytest.mark.parametrize(
    ("settings", "taken"),
    [
        ({}, [6]),
        ({"fused": True}, [6]),
        ({"capturable": True}, [6]),
        ({"fused": False}, []),
        ({"foreach": True}, []),
        ({"foreach": False}, []),
        ({"track_temperature": False}, []),
    ],
)
def test_choice(kernels, settings, taken):
    """It is for who asks for it and for no other path, and for float32 and dense layouts alone."""
    params = [
        draw(2, 3, dtype=torch.float32),
        draw(2, 3),
        draw(2, 3, dtype=torch.float32).t()[:2],
        draw(2, 3, dtype=torch.float32),
        draw(2, 3, dtype=torch.complex64),
    ]
    for param in params:
        param.requires_grad_()
        param.grad = torch.ones(param.shape, dtype=param.dtype)
    params[3].grad = params[3].grad.as_subclass(Grad)
    if settings.get("fused"):
        params = params[:4]
    CoolMomentum(params, **SETTINGS | settings).step()
    assert kernels == taken


def test_elsewhere_nothing_changes(kernels, monkeypatch):
    """On a CPU whose kernels are not interpreted, and where there is no Triton."""
    params = parameters((5,), (2, 3), dtype=torch.float32)
    others = parameters((5,), (2, 3), dtype=torch.float32)
    optimizer, other = (
        CoolMomentum(params, **SETTINGS),
        CoolMomentum(others, total_steps=9, lr=0.125),
    )
    monkeypatch.setattr(_one_pass, "INTERPRETED", False)
    grads = gradients(params, 2)
    follow(params, optimizer, grads[:1])
    monkeypatch.setattr(_paths, "_one_pass_kernel", lambda: None)
    follow(params, optimizer, grads[1:])
    follow(others, other, grads)
    assert kernels == []
    assert all(map(torch.equal, params, others))
    assert torch.equal(optimizer.temperature(), other.temperature())


def test_without_triton(monkeypatch):
    """Its import fails in silence."""
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "coolmomentum.torch._one_pass")
    monkeypatch.delattr("coolmomentum.torch._one_pass")
    assert _paths._one_pass_kernel.__wrapped__() is None
