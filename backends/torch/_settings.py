"""What a parameter group may hold: checks at construction, in the terms of the user."""

from typing import Any

import torch
from torch import Tensor

from coolmomentum import _check, _defaults
from coolmomentum.schedules import CoolingSchedule, check_schedule, resolve_schedule

Group = dict[str, Any]  # one entry of param_groups
# How rho cools, in the order in which a checkpoint holds it, with the defaults of a schedule.
COOLING = {
    "total_steps": None,
    "rho0": _defaults.RHO0,
    "law": _defaults.LAW,
    "warmup_steps": 0,
    "warmup_clock": _defaults.WARMUP_CLOCK,
}

FLAGS = (
    "decoupled_weight_decay",
    "maximize",
    "capturable",
    "differentiable",
    "track_temperature",
)


def checked(own: Group, defaults: Group | None = None) -> Group:
    """The settings of a group, or of the constructor, as plain numbers that a checkpoint can hold.

    Raises what names the bad one. The constructor may leave the cooling to its groups.
    """
    settings = (defaults or {}) | own
    weight_decay = _checked_scalar("weight_decay", settings["weight_decay"])
    if isinstance(weight_decay, Tensor):  # kept as one for its gradient only
        differentiable = settings["differentiable"] is True
        weight_decay = weight_decay.reshape(()) if differentiable else weight_decay.item()
    checked = {"lr": _checked_scalar("lr", settings["lr"]), "weight_decay": weight_decay}
    checked |= _checked_cooling(own, defaults)
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


def _checked_cooling(own: Group, defaults: Group | None) -> Group:
    """How a group cools: by its own schedule, by the constructor's, or by numbers of both."""
    numbers = (defaults or {}) | own
    for name in COOLING.keys() & own.keys():
        if isinstance(own[name], Tensor):
            raise TypeError(f"{name} must be a Python number: {own[name]!r}")
    cooling: dict[str, Any]
    if own.get("schedule") is not None:
        cooling = {name: own.get(name, default) for name, default in COOLING.items()}
        resolved = resolve_schedule(own["schedule"], **cooling)
    elif defaults and defaults["schedule"] is not None and not own.keys() & COOLING.keys():
        return {}
    else:
        cooling = {name: numbers[name] for name in COOLING}
        if defaults is None and cooling["total_steps"] is None:
            resolve_schedule(**cooling | {"total_steps": 2**62})  # check what there is
            return {}
        resolved = resolve_schedule(**cooling)
    if isinstance(resolved, CoolingSchedule):
        return {name: getattr(resolved, name) for name in COOLING} | {"schedule": None}
    check_schedule(resolved, numbers["total_steps"] or 1)
    return cooling | {"schedule": resolved}


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


def at_rest(param: Tensor, group: Group) -> Tensor:
    """The displacement of a parameter that has not moved, in its memory layout."""
    return torch.zeros_like(
        param, dtype=displacement_dtype(param, group), memory_format=torch.preserve_format
    )
