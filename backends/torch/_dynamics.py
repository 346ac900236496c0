"""How torch's optimizers move: momentum, time step, masses and displacements."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adafactor, Adagrad, Adam, Muon, Optimizer, RMSprop
from torch.utils.hooks import RemovableHandle

from coolmomentum import thermometer
from coolmomentum.langevin import adam_mass
from coolmomentum.torch._optimizer import CoolMomentum
from coolmomentum.torch._reductions import local_real_view, sum_dtype, upcast
from coolmomentum.torch._tensors import HALF, Group, Number, scalar

Override = float | Callable[[Group], Number] | None  # rho or dt2 as the user tells it


class Settings(NamedTuple):
    """The settings of a group in a step, taken before it: a hook may change them after the step."""

    rho: Number | None
    dt2: Number | None
    lr: Number | None
    decay_factor: Number | None  # what decoupled weight decay multiplies the parameters by
    in_state: bool  # displacements can be read from the state after the step


class Before(NamedTuple):
    """A parameter before a step."""

    settings: Settings
    copy: Tensor | None  # None where its displacement can be read from the state after the step
    version: int | None  # changes if a step moves it, but for fused kernels: None
    had_gradient: bool  # or is to have one from a closure


def follow(
    optimizer: Any, before: Callable[..., None], after: Callable[..., None]
) -> tuple[Optimizer, list[RemovableHandle]]:
    """The optimizer that steps, with two hooks that torch calls before and after each step."""
    inner = unwrapped(optimizer)
    try:
        if inner is not None:
            pre = inner.register_step_pre_hook(before)
            return inner, [pre, inner.register_step_post_hook(after)]
    except AttributeError:  # its constructor did not call torch's
        pass
    names = [k for k, x in getattr(optimizer, "__dict__", {}).items() if isinstance(x, Optimizer)]
    raise TypeError(
        "optimizer must be a torch.optim.Optimizer whose step calls its hooks: "
        f"{type(optimizer).__name__}" + (f"; give its .{names[0]}" if names else "")
    )


def unwrapped(optimizer: Any) -> Optimizer | None:
    """The optimizer that steps, if there is one.

    The wrappers of Lightning, Fabric and Accelerate have it as ``.optimizer``. Their own hooks do
    not run, nor does the step look at what is set on them, though a wrapper may pose as the class
    of the optimizer in it.
    """
    inner = optimizer
    while inner is not None:
        if isinstance(inner, Optimizer) and (
            "param_groups" in vars(inner) or getattr(type(inner).step, "hooked", False)
        ):
            return inner
        inner = getattr(inner, "optimizer", None)
    return None


def stepper_of(optimizer: Any) -> Any:
    """A ZeroRedundancyOptimizer has all parameters; the CoolMomentum that steps some is .optim."""
    inner = getattr(optimizer, "optim", None)
    is_part = isinstance(inner, CoolMomentum) and not isinstance(optimizer, CoolMomentum)
    return inner if is_part else optimizer


def unwrapped_cool_momentum(optimizer: Any) -> CoolMomentum:
    """The CoolMomentum in a wrapper, or itself; else a TypeError."""
    inner = unwrapped(optimizer)
    if not isinstance(inner, CoolMomentum):
        raise TypeError(
            f"optimizer must be a coolmomentum.torch.CoolMomentum: {type(optimizer).__name__}"
        )
    return inner


def settings_of(optimizer: Optimizer, group: Group, rho: Override, dt2: Override) -> Settings:
    """The settings of a group in the step that comes next; the user's overrides go first."""
    told = [x(group) if callable(x) else x for x in (rho, dt2)]
    pairs = zip(told, dynamics_of(optimizer, group)[:2], strict=True)
    numbers = [own if override is None else override for override, own in pairs]
    lr = group["lr"] if uses_step_of(optimizer, SGD) else None
    decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, Adafactor | Muon))
    decay = group.get("weight_decay", 0) if decoupled else 0
    factor = 1 - scalar(group["lr"]) * decay if decay else None
    in_state = _is_in_state(optimizer, group)
    return Settings._make([*map(snapshot, [*numbers, lr, factor]), in_state])


def bath_of(optimizer: Optimizer) -> thermometer.Bath | None:
    """The heat bath of the step that comes next, if there is one."""
    ours = stepper_of(optimizer)
    bath = getattr(ours, "_bath", None) if uses_step_of(ours, CoolMomentum) else None
    if bath is None:
        return None
    step = int(ours.param_groups[0]["cooling_step"])
    return thermometer.Bath(bath.temperature_at(step), bath.noise)


def snapshot(value: Any) -> Any:
    """A float, or a tensor of one that later changes in place leave alone; None stays."""
    if isinstance(value, Tensor):
        return value.detach().reshape(()).clone()
    return None if value is None else float(value)


def dynamics_of(optimizer: Optimizer, group: Group) -> thermometer.Dynamics:
    """Adam's masses are taken as constant within the step."""
    if uses_step_of(stepper_of(optimizer), CoolMomentum):
        # A group that was just added to a ZeroRedundancyOptimizer has no rho before it steps.
        return thermometer.Dynamics(group.get("cooling_rho"), scalar(group["lr"]))
    if uses_step_of(optimizer, SGD) and not group["nesterov"]:
        return thermometer.sgd(scalar(group["lr"]), group["momentum"], group["dampening"])
    if uses_step_of(optimizer, Adam):  # AdamW is one, with decoupled_weight_decay
        return thermometer.adam(scalar(group["lr"]), group["betas"][0])
    if uses_step_of(optimizer, RMSprop):
        return thermometer.rmsprop(scalar(group["lr"]), group["momentum"])
    if uses_step_of(optimizer, Adagrad) and group["lr_decay"] == 0:
        return thermometer.adagrad(scalar(group["lr"]))
    return thermometer.Dynamics()


def has_masses(optimizer: Optimizer) -> bool:
    """Whether the coordinates have masses, rather than 1 each."""
    return any(uses_step_of(optimizer, kind) for kind in (Adam, RMSprop, Adagrad))


def mass_of(optimizer: Optimizer, group: Group, param: Tensor) -> Number:
    """The mass of each coordinate in the last step, a real tensor, for where there are masses."""
    state = optimizer.state.get(param)
    if not state:  # it never moved
        return 1.0

    def real(name: str) -> Tensor:
        return upcast(local_real_view(state[name]))

    mass: Tensor
    if isinstance(optimizer, Adam):
        step = torch.as_tensor(state["step"])
        square = real("max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq")
        mass = adam_mass(square, group["betas"][1], step.to(sum_dtype(step)), group["eps"])
    elif isinstance(optimizer, RMSprop):
        mean = real("grad_avg") if group["centered"] else None
        mass = thermometer.rms_mass(real("square_avg"), group["eps"], mean)
    else:
        mass = thermometer.rms_mass(real("sum"), group["eps"])
    return mass


def before(
    optimizer: Optimizer,
    group: Group,
    param: Tensor,
    how: Settings,
    closure: bool,
    *,
    copies: bool = True,
) -> Before:
    """The record of a parameter for the next step, which may get a closure."""
    is_ours = isinstance(optimizer, CoolMomentum)
    copy = None
    if copies and not (how.in_state and (is_ours or _is_known(optimizer, param))):
        copy = local_real_view(param).clone()
    fused = bool(group.get("fused")) or is_ours
    version = None if fused or hasattr(param, "to_local") else param._version
    return Before(how, copy, version, closure or param.grad is not None)


def displacement(optimizer: Optimizer, param: Tensor, known: Before, keep: bool) -> Tensor:
    """The displacement of a parameter in the last step: real, and local where it is sharded.

    For CoolMomentum it is the state itself, which the next step changes, or a copy to keep.
    """
    has_moved = moved(param, known)
    if known.copy is not None:
        factor = known.settings.decay_factor if has_moved else None
        return difference(local_real_view(param), known.copy, factor)
    state = optimizer.state.get(param)
    if not has_moved or not state:
        return torch.zeros_like(local_real_view(param))
    if isinstance(optimizer, CoolMomentum):
        moved_by = local_real_view(state["displacement"])
        return moved_by.clone() if keep else moved_by
    return local_real_view(state["momentum_buffer"]) * -known.settings.lr  # type: ignore[operator]


def moved(param: Tensor, known: Before) -> bool:
    """Whether the step moved it, though its gradient may have been dropped after it had moved."""
    if param.grad is not None:
        return True
    return known.had_gradient if known.version is None else param._version != known.version


def difference(after: Tensor, before: Tensor, decay_factor: Number | None = None) -> Tensor:
    """The displacement of a parameter, without its decoupled weight decay."""
    start = upcast(before)
    return upcast(after) - (start if decay_factor is None else start * decay_factor)


def _is_in_state(optimizer: Optimizer, group: Group) -> bool:
    if not uses_step_of(optimizer, SGD):
        return uses_step_of(optimizer, CoolMomentum)
    # A buffer does not know of a step that a loss scaler skips inside the kernel.
    skips = hasattr(optimizer, "found_inf")
    return bool(group["momentum"] and not group["nesterov"]) and not skips


def _is_known(optimizer: Optimizer, param: Tensor) -> bool:
    """Whether the momentum buffer of SGD will have the displacement.

    In half precision the parameter moves by less, as the sum is rounded. The buffer is sparse if
    the first gradient is, which a closure may bring during the step.
    """
    if param.dtype in HALF:
        return False
    buffer = optimizer.state.get(param, {}).get("momentum_buffer")
    first = param.grad if buffer is None else buffer
    return first is not None and first.layout == torch.strided


def clock_of(optimizer: Optimizer) -> int | None:
    """The clock of CoolMomentum where reading it does not wait, else None."""
    if not isinstance(optimizer, CoolMomentum):
        return None
    step = optimizer.param_groups[0]["cooling_step"]
    return int(step) if step.is_cpu else None


def has_gradient(optimizer: Optimizer) -> bool:
    """Whether any parameter has one."""
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def was_applied(optimizer: Optimizer, clock: int | None, had_gradient: bool) -> bool:
    """Whether the step before which ``clock_of`` and ``has_gradient`` gave these was one.

    A gradient may be dropped in the step, or come in its closure.
    """
    if clock is not None:
        return clock_of(optimizer) != clock
    found_inf = getattr(optimizer, "found_inf", None)
    # CoolMomentum has waited for it already.
    if found_inf is not None and (found_inf.is_cpu or isinstance(optimizer, CoolMomentum)):
        return not bool(found_inf)
    return had_gradient or has_gradient(optimizer)


def uses_step_of(optimizer: Optimizer, kind: type[Optimizer]) -> bool:
    """Whether it takes the steps of this class: a subclass may have its own."""
    return isinstance(optimizer, kind) and _step_of(type(optimizer)) is _step_of(kind)


def _step_of(kind: type[Optimizer]) -> Any:
    """The step of a class without the hooks that torch wraps it in, on the first class made."""
    step = kind.step
    return getattr(step, "__wrapped__", step) if getattr(step, "hooked", False) else step
