"""What a parameter group may hold: checks at construction, in the terms of the user."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coolmomentum import _check
from coolmomentum.schedules import CoolingSchedule, check_schedule, resolve_schedule

Group = dict[str, Any]  # one entry of param_groups
# The numbers by which rho cools, in the order of CoolingSchedule; None beside a callable schedule.
COOLING = tuple(field.name for field in dataclasses.fields(CoolingSchedule))

FLAGS = ("decoupled_weight_decay", "maximize", "capturable", "differentiable")


def checked(own: Group, defaults: Group | None = None, *, whole: bool = False) -> Group:
    """The settings of a group, or of the constructor, as plain numbers that a checkpoint can hold.

    Raises what names the bad one. The constructor may leave the cooling to its groups; what is
    whole may not.
    """
    settings = (defaults or {}) | own
    checked: Group = {"lr": _checked_rate(settings["lr"])}
    checked["weight_decay"] = _check.non_negative(
        "weight_decay", _no_tensor("weight_decay", settings["weight_decay"])
    )
    checked |= checked_cooling(own, defaults, whole=whole)
    for name in FLAGS:
        _check.flag(name, settings[name])
    for name in ("foreach", "fused"):
        if settings[name] is not None:
            _check.flag(name, settings[name])
    for one, other in (("fused", "foreach"), ("fused", "differentiable")):
        if settings[one] and settings[other]:
            raise RuntimeError(f"`{one}` and `{other}` cannot be `True` together.")
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
    return checked


def checked_cooling(own: Group, defaults: Group | None = None, *, whole: bool = False) -> Group:
    """How a group cools: by its own schedule, by the constructor's, or by numbers of both."""
    for name in COOLING:
        _no_tensor(name, own.get(name))
    given = _given(own)
    schedule = own.get("schedule")
    if schedule is None and defaults:
        if defaults["schedule"] is not None and not given:
            return {}
        given = _given(defaults) | given
    elif (
        schedule is None
        and not whole
        and given.keys().isdisjoint({"total_steps"})
        and (given.get("law") != "constant")
    ):
        resolve_schedule(**given, total_steps=2**62)  # left to the groups: check what there is
        return {}
    resolved = resolve_schedule(schedule, **given)
    if isinstance(resolved, CoolingSchedule):
        return {name: getattr(resolved, name) for name in COOLING} | {"schedule": None}
    length = own.get("total_steps") or (defaults or {}).get("total_steps") or 1
    check_schedule(resolved, length)
    return {name: given.get(name) for name in COOLING} | {"schedule": resolved}


def _given(group: Group) -> Group:
    return {name: plain(group[name]) for name in COOLING if group.get(name) is not None}


def plain(value: Any) -> Any:
    """NumPy numbers as Python's, which ``torch.load(..., weights_only=True)`` reads back."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    if isinstance(value, dict):
        return {plain(key): plain(x) for key, x in value.items()}
    return value


def clock_of(value: Any) -> int:
    """The clock that somebody wrote into a group or a checkpoint."""
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 else value.tolist()
    value = plain(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _check.integer("cooling_step", value, 0)


def _checked_rate(lr: Any) -> float | Tensor:
    if not isinstance(lr, Tensor):
        return _check.non_negative("lr", lr)
    if lr.numel() != 1:
        raise ValueError(f"lr: Tensor lr must be 1-element: shape {tuple(lr.shape)}")
    _check.non_negative("lr", lr.item())
    return lr


def _no_tensor(name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Python number: {value!r}")
    return value


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


def at_rest(param: Tensor, group: Group) -> Tensor:
    """The displacement of a parameter that has not moved, in its memory layout."""
    return torch.zeros_like(
        param, dtype=displacement_dtype(param, group), memory_format=torch.preserve_format
    )
