"""The clock of a parameter group, and the coefficients of the step it stands at."""

import math

import array_api_compat.torch as xp
import torch
from torch import Tensor

from coolmomentum import _check
from coolmomentum.langevin import step_size
from coolmomentum.schedules import cooled_rho
from coolmomentum.torch._paths import Number, Step
from coolmomentum.torch._settings import Group


def _on_device(group: Group) -> bool:
    """Whether clock and coefficients have to stay tensors: no host number may enter the step."""
    return torch.compiler.is_compiling() or bool(group["capturable"])


def place_clock(group: Group) -> None:
    """Put the clock where the step wants it, and rho beside it."""
    param = next(iter(group["params"]), None)
    if group["capturable"] and param is not None and not param.is_meta:
        group["step"] = group["step"].to(param.device)
    else:
        group["step"] = group["step"].cpu()
    rho = _next_rho(group)
    group["rho"] = rho.float() if isinstance(rho, Tensor) else rho


def tick(group: Group) -> None:
    """Advance the clock; ``group["rho"]`` becomes that of the next step."""
    group["step"].add_(1)
    rho = _next_rho(group)
    if isinstance(rho, Tensor) and isinstance(group["rho"], Tensor):
        group["rho"].copy_(rho)
    else:
        group["rho"] = rho.float() if isinstance(rho, Tensor) else rho


def _next_rho(group: Group) -> Number:
    """As :func:`_rho`, but NaN where a schedule of the user fails.

    It may end with the run. If there is a next step, that will fail, before anything has changed.
    """
    if group["schedule"] is None or _on_device(group):
        return _rho(group)
    try:
        return _rho(group)
    except Exception:
        return math.nan


def _rho(group: Group) -> Number:
    """The momentum coefficient of the next step: a float, or a 0-d tensor beside the clock."""
    on_device = _on_device(group)
    step = group["step"] if on_device else int(group["step"])
    # float64 also for float32 parameters: a 0-d tensor does not promote them. MPS has none.
    dtype = torch.float32 if group["step"].device.type == "mps" else torch.float64
    if group["schedule"] is not None:
        rho = group["schedule"](step)
        if on_device:
            return torch.as_tensor(rho, dtype=dtype, device=group["step"].device)
        return _check.half_open(f"schedule({step})", rho, low=-1)
    cooled: Number = cooled_rho(
        step,
        group["total_steps"],
        group["rho0"],
        group["law"],
        group["warmup_steps"],
        group["warmup_clock"],
        dtype=dtype,
        xp=xp if on_device else math,
    )
    return cooled


def step_of(group: Group) -> Step:
    lr = scalar(group["lr"])
    if isinstance(lr, Tensor) and not (_on_device(group) or group["differentiable"]):
        lr = lr.item() if lr.device.type == "cpu" else lr  # reading it elsewhere would wait
    rho = _rho(group)
    if isinstance(rho, Tensor):
        lr = lr * torch.ones_like(rho)  # as a float it would be compiled in, once for each value
    return Step(
        lr,
        rho,
        step_size(lr, rho),
        group["weight_decay"],
        group["decoupled_weight_decay"],
        group["maximize"],
    )


def scalar(lr: Number) -> Number:
    """A 1-element tensor of any rank as a 0-d one."""
    return lr.reshape(()) if isinstance(lr, Tensor) else lr
