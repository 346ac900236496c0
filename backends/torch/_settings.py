"""What a parameter group may hold: checks at construction, in the terms of the user."""

from typing import Any

import torch
from torch import Tensor

from coolmomentum import _check
from coolmomentum.schedules import CoolingSchedule, check_schedule

Group = dict[str, Any]  # one entry of param_groups
COOLING = {"total_steps", "rho0", "law", "warmup_steps", "warmup_clock"}


def flattened(settings: Group) -> Group:
    """The fields of a CoolingSchedule as plain settings, which a checkpoint can hold."""
    schedule = settings.get("schedule")
    if not isinstance(schedule, CoolingSchedule):
        return {}
    fields = {name: getattr(schedule, name) for name in COOLING} | {"schedule": None}
    if settings.get("total_steps") not in (None, schedule.total_steps):
        raise ValueError(
            f"total_steps must be that of the schedule, {schedule.total_steps}, or not be given: "
            f"{settings['total_steps']!r}"
        )
    return fields


def checked(settings: Group) -> Group:
    """The settings of a group as plain Python numbers, or an error that names the bad one.

    Without a schedule and total_steps, which every group may give for itself, there is no cooling
    to check.
    """
    weight_decay = _checked_scalar("weight_decay", settings["weight_decay"])
    if isinstance(weight_decay, Tensor):  # kept as one for its gradient only
        differentiable = settings["differentiable"] is True
        weight_decay = weight_decay.reshape(()) if differentiable else weight_decay.item()
    checked = {"lr": _checked_scalar("lr", settings["lr"]), "weight_decay": weight_decay}
    if settings["schedule"] is not None:
        check_schedule(settings["schedule"], settings["total_steps"] or 1)
    elif settings["total_steps"] is not None:
        cooling = CoolingSchedule(**{name: settings[name] for name in COOLING})
        checked |= {name: getattr(cooling, name) for name in COOLING}
    for name in ("decoupled_weight_decay", "maximize", "capturable", "differentiable"):
        _check.flag(name, settings[name])
    for name in ("foreach", "fused"):
        if settings[name] is not None:
            _check.flag(name, settings[name])
    for one, other in (("fused", "foreach"), ("fused", "differentiable")):
        if settings[one] and settings[other]:
            raise RuntimeError(f"`{one}` and `{other}` cannot be `True` together.")
    if settings["displacement_dtype"] not in (None, torch.float32):
        raise ValueError(
            "displacement_dtype must be torch.float32, or None for that of the parameter: "
            f"{settings['displacement_dtype']!r}"
        )
    return checked


def _checked_scalar(name: str, value: Any) -> float | Tensor:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name}: Tensor {name} must be 1-element: shape {tuple(value.shape)}")
        _check.non_negative(name, value.item())
        return value
    return _check.non_negative(name, value)


def check_fused(params: list[Tensor]) -> None:
    """Refuse what no fused kernel takes, when the user has asked for one."""
    for param in params:
        if param.is_meta or not param.is_floating_point():
            raise RuntimeError(
                "`fused=True` requires all the params to be floating point Tensors of supported "
                f"devices: {param.dtype} on {param.device}"
            )


def displacement_dtype(param: Tensor, group: Group) -> torch.dtype:
    wanted = group["displacement_dtype"]
    return param.dtype if wanted is None else torch.promote_types(param.dtype, wanted)
