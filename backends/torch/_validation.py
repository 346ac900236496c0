"""Checks of a parameter group, in the user's terms."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coolmomentum import _check
from coolmomentum.schedules import CoolingSchedule, check_schedule, resolve_schedule
from coolmomentum.torch._tensors import Group

# The numbers by which rho cools, in the order of CoolingSchedule; None beside a callable schedule.
SCHEDULE_KEYS = tuple(field.name for field in dataclasses.fields(CoolingSchedule))
FLAGS = ("decoupled_weight_decay", "maximize", "capturable", "differentiable")
SWITCHES = ("foreach", "fused")  # flags that may be None
SETTINGS = (
    "schedule",
    *SCHEDULE_KEYS,
    *FLAGS,
    *SWITCHES,
    "weight_decay",
    "displacement_dtype",
    "lr",
)


def checked(own: Group, defaults: Group | None = None, *, whole: bool = False) -> Group:
    """The settings of a group, or of the constructor, as plain numbers that a checkpoint can hold.

    Raises an error that names the bad one. The constructor may leave the cooling to its groups; if
    ``whole``, nothing may be left.
    """
    settings = (defaults or {}) | own
    numbers = {
        "lr": _checked_rate(settings["lr"]),
        "weight_decay": _check.non_negative("weight_decay", _no_tensor(settings, "weight_decay")),
    }
    numbers |= checked_cooling(own, defaults, whole=whole)
    for name in (*FLAGS, *SWITCHES):
        if name in FLAGS or settings[name] is not None:
            _check.flag(name, settings[name])
    for other in ("foreach", "differentiable"):
        if settings["fused"] and settings[other]:
            raise RuntimeError(f"`fused` and `{other}` cannot be `True` together.")
    if defaults and settings["differentiable"] != defaults["differentiable"]:
        raise ValueError(
            f"differentiable must be that of the optimizer, {defaults['differentiable']}, in every "
            f"group: {settings['differentiable']}"
        )
    if settings["displacement_dtype"] not in (None, torch.float32):
        raise ValueError(
            "displacement_dtype must be torch.float32, or None for that of the parameter: "
            f"{settings['displacement_dtype']!r}"
        )
    return numbers


def checked_cooling(own: Group, defaults: Group | None = None, *, whole: bool = False) -> Group:
    """How a group cools: by its own schedule, by the constructor's, or by numbers of both."""
    given, schedule = _given(own), own.get("schedule")
    if schedule is None and defaults:
        if defaults["schedule"] is not None and not given:
            return {}
        given = _given(defaults) | given
    elif schedule is None and not (
        whole or "total_steps" in given or given.get("law") == "constant"
    ):
        resolve_schedule(**given, total_steps=2**62)  # left to the groups: check what there is
        return {}
    resolved = resolve_schedule(schedule, **given)
    if isinstance(resolved, CoolingSchedule):
        return dataclasses.asdict(resolved) | {"schedule": None}
    check_schedule(resolved, given.get("total_steps") or (defaults or {}).get("total_steps") or 1)
    return {name: given.get(name) for name in SCHEDULE_KEYS} | {"schedule": resolved}


def _given(group: Group) -> Group:
    return {
        name: plain(_no_tensor(group, name))
        for name in SCHEDULE_KEYS
        if group.get(name) is not None
    }


def _no_tensor(group: Group, name: str) -> Any:
    if isinstance(group[name], Tensor):
        raise TypeError(f"{name} must be a Python number: {group[name]!r}")
    return group[name]


def _checked_rate(lr: Any) -> float | Tensor:
    if not isinstance(lr, Tensor):
        return _check.non_negative("lr", lr)
    if lr.numel() != 1:
        raise ValueError(f"lr: Tensor lr must be 1-element: shape {tuple(lr.shape)}")
    _check.non_negative("lr", lr.item())
    return lr


def plain(value: Any) -> Any:
    """NumPy numbers as Python's, which ``torch.load(..., weights_only=True)`` reads back."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    if isinstance(value, dict):
        return {plain(key): plain(x) for key, x in value.items()}
    return value


def checked_step(value: Any) -> int:
    """The steps taken, as somebody wrote them into a group or a checkpoint."""
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 else value.tolist()
    value = plain(value)
    whole = isinstance(value, float) and value.is_integer()
    return _check.integer("cooling_step", int(value) if whole else value, 0)


def check_fused(params: list[Tensor]) -> None:
    """Refuse what no fused kernel takes, when the user has asked for one."""
    for param in params:
        if param.is_meta or not param.is_floating_point():
            raise RuntimeError(
                "`fused=True` requires all the params to be floating point Tensors of supported "
                f"devices: {param.dtype} on {param.device}"
            )


def check_tensor(
    value: Any, like: Tensor, *, read_only: bool, device: torch.device | None = None
) -> None:
    """Refuse a tensor that a kernel cannot take with a parameter, or would misread.

    A gradient is only read, and autograd expands the gradient of a sum.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"must be a tensor: {value!r}")
    if value.shape != like.shape:
        raise ValueError(f"must have its shape, {tuple(like.shape)}: {tuple(value.shape)}")
    if not (value.is_floating_point() or value.is_complex()):
        raise TypeError(f"must be of floating point: {value.dtype}")
    if value.is_complex() and not like.is_complex():
        raise TypeError(f"must be real, as the parameter is: {value.dtype}")
    if not (read_only or has_a_place_for_each(value)):
        raise ValueError(f"must be dense and have a place for each number: {value.layout}")
    if value.device != (device or value.device):
        raise ValueError(f"must be on its device, {device}: {value.device}")


def has_a_place_for_each(tensor: Tensor) -> bool:
    """Whether no two elements share their place in memory; a sparse tensor has no places."""
    if tensor.layout != torch.strided:
        return False
    sizes = zip(tensor.stride(), tensor.shape, strict=True)
    return tensor.numel() == 0 or not any([stride == 0 and size > 1 for stride, size in sizes])


def displacement_dtype(param: Tensor, group: Group) -> torch.dtype:
    """The dtype that the group wants for the displacement of a parameter."""
    wanted = group["displacement_dtype"]
    return param.dtype if wanted is None else torch.promote_types(param.dtype, wanted)


def zero_displacement(param: Tensor, group: Group) -> Tensor:
    """The displacement of a parameter that has not moved, in its memory layout."""
    dtype = displacement_dtype(param, group)
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
