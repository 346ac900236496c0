"""The step counter of a parameter group, and the coefficients of the step it stands at."""

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
from coolmomentum.torch._tensors import Coefficients, Group, Number, scalar
from coolmomentum.torch._validation import SCHEDULE_KEYS


def coefficients_for(group: Group) -> Coefficients:
    """The coefficients of the next step."""
    lr = scalar(group["lr"])
    if isinstance(lr, Tensor) and not (_is_on_device(group) or group["differentiable"]):
        lr = lr.item() if lr.device.type == "cpu" else lr  # reading it elsewhere would wait
    rho = _rho(group)
    if isinstance(rho, Tensor):
        lr = lr * torch.ones_like(rho)  # as a float it would be compiled in, once for each value
    kind = "decoupled_decay" if group["decoupled_weight_decay"] else "coupled_decay"
    decay = {kind: group["weight_decay"]}
    return Coefficients(lr, rho, step_size(lr, rho), **decay, maximize=group["maximize"])


def _is_on_device(group: Group) -> bool:
    """Whether step counter and coefficients must stay tensors: no host number may enter the step.

    That is so in a compiled or captured step, and where tensors have no values (FakeTensorMode).
    """
    return (
        torch.compiler.is_compiling()
        or bool(group["capturable"])
        or type(group["cooling_step"]) is not Tensor
    )


def advance_step(group: Group, lr: Number) -> bool:
    """Count the step, and publish its learning rate and the rho of the next step.

    Gives back whether the counter is known to be more than 5 % past the end of the cooling.
    """
    past_end = False
    if _is_on_device(group):
        group["cooling_step"].add_(1)
    else:  # the same in a third of the time
        step = int(group["cooling_step"]) + 1
        group["cooling_step"].fill_(step)
        cools = group["schedule"] is None and group["law"] != "constant"
        past_end = cools and step > 1.05 * group["total_steps"]
    _publish(group, "cooling_rho", next_rho(group))
    _publish(group, "cooling_lr", lr)
    return past_end


def place_step_counter(group: Group) -> None:
    """Put the step counter where the step wants it, with rho and the last learning rate."""
    devices = [param.device for param in group["params"][:1] if not param.is_meta]
    device = devices[0] if devices and group["capturable"] else "cpu"
    step = group["cooling_step"] = group["cooling_step"].to(device)
    rho, lr = next_rho(group), group["cooling_lr"]
    if group["capturable"]:
        to = {"dtype": _dtype(step.device), "device": step.device}
        rho, lr = torch.as_tensor(rho, **to), torch.as_tensor(lr, **to)
    group["cooling_rho"] = _snapshot("cooling_rho", rho)
    group["cooling_lr"] = _snapshot("cooling_lr", lr)


def refresh_rho(group: Group) -> None:
    """Publish the rho of the next step again, after a setting has changed."""
    rho = next_rho(group)
    if isinstance(group["cooling_rho"], Tensor):
        group["cooling_rho"].fill_(rho)  # or a compiled step would see another type
    else:
        group["cooling_rho"] = rho


def _publish(group: Group, name: str, value: Number) -> None:
    """Let the user read a coefficient; in place where a graph wants it to stay where it is."""
    if isinstance(value, Tensor) and isinstance(group[name], Tensor):
        group[name].copy_(_snapshot(name, value))
        return
    group[name] = _snapshot(name, value)
    if isinstance(value, Tensor) and torch.compiler.is_compiling():
        # torch.compile sees capturable=True and writes the group back as it sees it; but one that
        # is meant to be capturable has tensors here from the start.
        group["capturable"] = False


def _snapshot(name: str, value: Number) -> Number:
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
    if group["schedule"] is None or _is_on_device(group):
        return _rho(group)
    try:
        return _rho(group)
    except Exception:
        return math.nan


def _rho(group: Group) -> Number:
    """The momentum coefficient of the next step: a float, or a 0-d tensor with the counter."""
    schedule, step = group["schedule"], group["cooling_step"]
    cooling = [group[name] for name in SCHEDULE_KEYS]
    if not _is_on_device(group):
        step = int(step)
        if schedule is None:
            return _cooled_rho(step, *cooling)
        return _check.half_open(f"schedule({step})", schedule(step), low=-1)
    # float64 also for float32 parameters: a 0-d tensor does not promote them.
    dtype = _dtype(step.device)
    if schedule is not None:
        return torch.as_tensor(schedule(step), dtype=dtype, device=step.device)
    cooled: Tensor = cooled_rho(step, *cooling, dtype=dtype, xp=_TRACEABLE)
    return cooled


# In a compiled step a total_steps that has changed is symbolic, which compat's clip cannot take.
_TRACEABLE = SimpleNamespace(**{**vars(xp), "clip": torch.clamp})


def _dtype(device: torch.device) -> torch.dtype:
    """The precision of coefficients that are tensors; MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@lru_cache  # asked twice for each, to publish it and in the next step, and by every group
def _cooled_rho(step: int, *cooling: Any) -> float:
    rho: float = cooled_rho(step, *cooling, xp=math)
    return rho
