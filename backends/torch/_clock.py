"""The clock of a parameter group, and the coefficients of the step it stands at."""

import math
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from coolmomentum import _check
from coolmomentum.langevin import step_size
from coolmomentum.schedules import cooled_rho
from coolmomentum.torch._paths import Number, Step
from coolmomentum.torch._settings import COOLING, Group


def _on_device(group: Group) -> bool:
    """Whether clock and coefficients have to stay tensors: no host number may enter the step.

    That is so in a compiled or captured step, and where tensors have no values (FakeTensorMode).
    """
    return (
        torch.compiler.is_compiling()
        or bool(group["capturable"])
        or type(group["cooling_step"]) is not Tensor
    )


def place_clock(group: Group) -> None:
    """Put the clock where the step wants it, and rho and the last learning rate beside it."""
    param = next(iter(group["params"]), None)
    if group["capturable"] and param is not None and not param.is_meta:
        group["cooling_step"] = group["cooling_step"].to(param.device)
    else:
        group["cooling_step"] = group["cooling_step"].cpu()
    rho, lr = next_rho(group), group["cooling_lr"]
    if group["capturable"]:
        device = group["cooling_step"].device
        rho, lr = (torch.as_tensor(x, dtype=_dtype(device), device=device) for x in (rho, lr))
    group["cooling_rho"] = _shown("cooling_rho", rho)
    group["cooling_lr"] = _shown("cooling_lr", lr)


def tick(group: Group, lr: Number) -> bool:
    """Advance the clock; ``group["cooling_rho"]`` becomes that of the next step.

    Gives back whether the clock is known to be more than 5 % past the end of the cooling.
    """
    past_end = False
    if _on_device(group):
        group["cooling_step"].add_(1)
    else:  # the same in a third of the time
        step = int(group["cooling_step"]) + 1
        group["cooling_step"].fill_(step)
        past_end = _cools(group) and step > 1.05 * group["total_steps"]
    _show(group, "cooling_rho", next_rho(group))
    _show(group, "cooling_lr", lr)
    return past_end


def refresh_rho(group: Group) -> None:
    """Show the rho of the next step anew, after a setting has changed."""
    rho = next_rho(group)
    if isinstance(group["cooling_rho"], Tensor):
        group["cooling_rho"].fill_(rho)  # or a compiled step would see another type
    else:
        group["cooling_rho"] = rho


def _cools(group: Group) -> bool:
    """Whether rho is known to come to 0 at total_steps."""
    return group["schedule"] is None and group["law"] != "constant"


def _show(group: Group, name: str, value: Number) -> None:
    """Let the user read a coefficient; in place where a graph wants it to stay where it is."""
    if isinstance(value, Tensor) and isinstance(group[name], Tensor):
        group[name].copy_(_shown(name, value))
        return
    group[name] = _shown(name, value)
    if torch.compiler.is_compiling():
        # torch.compile sees capturable=True and writes the group back as it sees it; but one that
        # is meant to be capturable has tensors here from the start.
        group["capturable"] = False


def _shown(name: str, value: Number) -> Number:
    """A copy to be read: rho 0-d float32, the learning rate in the precision of the temperature."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach().clone()
    if name == "cooling_rho" or value.device.type == "mps":
        return value.reshape(()).float()
    # With one dimension: torch.compile loses changes of 0-d float64 tensors on the CPU.
    return value.reshape(1).double()


def next_rho(group: Group) -> Number:
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
    step = group["cooling_step"] if on_device else int(group["cooling_step"])
    cooling = [group[name] for name in COOLING]
    if not on_device:
        if group["schedule"] is None:
            return _cooled_rho(step, *cooling)
        return _check.half_open(f"schedule({step})", group["schedule"](step), low=-1)
    # float64 also for float32 parameters: a 0-d tensor does not promote them.
    dtype = _dtype(group["cooling_step"].device)
    if group["schedule"] is not None:
        rho = group["schedule"](step)
        return torch.as_tensor(rho, dtype=dtype, device=group["cooling_step"].device)
    cooled: Tensor = cooled_rho(step, *cooling, dtype=dtype, xp=_TRACEABLE)
    return cooled


# In a compiled step a total_steps that has changed is symbolic, which compat's clip cannot take.
_TRACEABLE = SimpleNamespace(**{**vars(xp), "clip": torch.clamp})


def _dtype(device: torch.device) -> torch.dtype:
    """The precision of coefficients that are tensors; MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@lru_cache  # each is asked for twice, to be shown after a step and by the next, and by every group
def _cooled_rho(step: int, *cooling: Any) -> float:
    rho: float = cooled_rho(step, *cooling, xp=math)
    return rho


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
