"""Tensors whose shapes differ never reach a kernel: run in a process of its own, which may crash.

Hypothesis draws what was saved and what is there, paths, groups, layouts and edits. Every draw ends
in the right trajectory, or in an error that names parameter and shapes and has changed nothing.
"""

import copy
import os
import re

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from coolmomentum.torch import CoolMomentum

PATHS = ({}, {"foreach": False}, {"foreach": True}, {"fused": True}, {"capturable": True},
         {"differentiable": True})  # fmt: skip
SHAPES = (
    (),
    (0,),
    (1,),
    (3,),
    (12,),
    (2, 3),
    (3, 2),
    (1, 3),
    (3, 1),
    (10, 64),
    (1000, 64),
    (2500,),
)
EDITS = ("none", "data", "data and gradient", "gradient", "displacement", "resized gradient")
LR, STEPS, RHO0 = 0.25, 8, 0.5
draws = st.fixed_dictionaries(
    {
        "path": st.sampled_from(PATHS),
        "dtype": st.sampled_from((torch.float32, torch.float64, torch.bfloat16)),
        "saved": st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3),
        "present": st.lists(st.sampled_from(SHAPES), min_size=3, max_size=3),
        "same": st.lists(st.booleans(), min_size=3, max_size=3),
        "layout": st.sampled_from(("C", "F", "gaps")),
        "grouped": st.booleans(),
        "named": st.booleans(),
        "before": st.integers(0, 2),  # steps of the optimizer that loads
        "edit": st.sampled_from(EDITS),
        "edited": st.sampled_from(SHAPES),
        "which": st.integers(0, 2),
    }
)


def tensor(shape, dtype, seed, layout):
    """Random numbers in a memory layout."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).to(dtype)
    if layout == "F":
        backwards = tuple(reversed(range(x.ndim)))
        return x.permute(backwards).contiguous().permute(backwards)
    if layout == "gaps" and x.ndim:
        return x.repeat_interleave(2, -1)[..., ::2]
    return x


def make(shapes, draw, seed):
    """Parameters and their optimizer."""
    params = [
        tensor(shape, draw["dtype"], seed + i, draw["layout"]).requires_grad_(
            "differentiable" not in draw["path"]  # which moves no leaf that requires a gradient
        )
        for i, shape in enumerate(shapes)
    ]
    entries = [(f"p{i}", p) for i, p in enumerate(params)] if draw["named"] else params
    groups = [{"params": [entry]} for entry in entries] if draw["grouped"] else entries
    return params, CoolMomentum(
        groups, lr=LR, total_steps=STEPS, rho0=RHO0, law="constant", **draw["path"]
    )


def give_gradients(params, draw, seed):
    """A gradient for each, in a layout."""
    for i, param in enumerate(params):
        param.grad = tensor(param.shape, param.dtype, 100 * seed + i, draw["layout"])


def displacement_of(param, optimizer):
    """As the state has it, or zeros."""
    zeros = torch.zeros_like(param)
    return optimizer.state.get(param, {}).get("displacement", zeros).detach()


def follow(params, optimizer, draw, seed):
    """One step, which is the right one."""
    eta = LR * (1 + RHO0) / 2
    exact = []
    for param in params:
        moved = RHO0 * displacement_of(param, optimizer).double() - eta * param.grad.double()
        exact.append((param.detach().double() + moved, moved))
    optimizer.step()
    for param, (x, dx) in zip(params, exact, strict=True):
        close = {"rtol": 8 * torch.finfo(param.dtype).eps, "atol": 8 * torch.finfo(param.dtype).eps}
        torch.testing.assert_close(param.detach().double(), x, **close)
        torch.testing.assert_close(displacement_of(param, optimizer).double(), dx, **close)


def everything(params, optimizer):
    """A copy of all that a failed call must not change."""
    state = optimizer.state_dict()
    return copy.deepcopy(([p.detach() for p in params], state["state"], state["param_groups"]))


def refused(call, params, optimizer, shapes):
    """The call names parameter and both shapes, and changes nothing."""
    before = everything(params, optimizer)
    try:
        call()
    except ValueError as error:
        message = str(error)
    else:
        raise AssertionError("not refused")
    assert re.match(
        r"the (gradient|displacement) of parameter ('p\d'|\d) must have its shape", message
    )
    assert any(f"{tuple(ours)}: {tuple(theirs)}" in message for ours, theirs in shapes), message
    after = everything(params, optimizer)
    assert after[2] == before[2]
    torch.testing.assert_close(after[:2], before[:2], rtol=0, atol=0)


def edit(params, optimizer, draw):
    """Change something behind the optimizer's back; gives back the shapes that then differ."""
    param = params[draw["which"] % len(params)]
    kind, shape = draw["edit"], draw["edited"]
    new = tensor(shape, param.dtype, 7, draw["layout"])
    if kind in ("data", "data and gradient"):
        if kind == "data and gradient":
            param.grad = None
        param.data = new
        if kind == "data and gradient":
            param.grad = tensor(shape, param.dtype, 8, draw["layout"])
    elif kind in ("gradient", "resized gradient"):
        param.grad.data = new
    elif kind == "displacement" and "displacement" in optimizer.state.get(param, {}):
        optimizer.state[param]["displacement"] = new
    pairs = []
    for x in params:
        dx = optimizer.state.get(x, {}).get("displacement")
        pairs += [(x.shape, y.shape) for y in (x.grad, dx) if y is not None and y.shape != x.shape]
    return pairs


CASE = {"path": {}, "dtype": torch.float32, "same": [False] * 3, "layout": "C", "grouped": False,
        "named": True, "before": 0, "edit": "none", "edited": (3,), "which": 0}  # fmt: skip


@settings(
    max_examples=int(os.environ.get("SHAPES_EXAMPLES", "200")),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(draws)
@example(CASE | {"saved": [(10, 64)], "present": [(1000, 64)] * 3})
@example(CASE | {"saved": [(1000, 64)], "present": [(10, 64)] * 3})
@example(CASE | {"saved": [(3,)], "present": [(12,)] * 3})
@example(CASE | {"saved": [(2, 3)], "present": [(3, 2)] * 3})
@example(
    CASE
    | {
        "saved": [(3,)],
        "same": [True] * 3,
        "present": [(3,)] * 3,
        "edit": "data",
        "edited": (2500,),
    }
)
@example(CASE | {"saved": [(3,)], "same": [True] * 3, "present": [(3,)] * 3,
                 "edit": "data and gradient", "edited": (2500,)})  # fmt: skip
@example(CASE | {"saved": [(3,)], "same": [True] * 3, "present": [(3,)] * 3, "edit": "displacement",
                 "edited": (2500,)})  # fmt: skip
def program(draw):
    """Train, save, load where shapes may differ, edit, step."""
    old, source = make(draw["saved"], draw, 1)
    for seed in (1, 2):
        give_gradients(old, draw, seed)
        source.step()
    present = [
        saved if same else other
        for saved, other, same in zip(draw["saved"], draw["present"], draw["same"], strict=False)
    ]
    params, optimizer = make(present, draw, 50)
    for seed in range(draw["before"]):
        give_gradients(params, draw, 10 + seed)
        follow(params, optimizer, draw, seed)
    saved = copy.deepcopy(source.state_dict())
    differ = [(x, y) for x, y in zip(present, draw["saved"], strict=True) if x != y]
    if differ:
        refused(lambda: optimizer.load_state_dict(saved), params, optimizer, differ)
    else:
        optimizer.load_state_dict(saved)
    give_gradients(params, draw, 20)
    differ = edit(params, optimizer, draw)
    if differ:
        refused(optimizer.step, params, optimizer, differ)
    else:
        follow(params, optimizer, draw, 20)
        give_gradients(params, draw, 21)
        follow(params, optimizer, draw, 21)


if __name__ == "__main__":
    torch.set_num_threads(1)
    program()
    print("every draw was right or refused")
