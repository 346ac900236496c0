"""How an optimizer of torch moves: its momentum, its time step, its masses, its displacements."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from coolmomentum.langevin import adam_mass, learning_rate_from_adam, learning_rate_from_sgd
from coolmomentum.torch._clock import scalar
from coolmomentum.torch._optimizer import CoolMomentum
from coolmomentum.torch._paths import Number
from coolmomentum.torch._settings import Group
from coolmomentum.torch._thermometry import real_part_here, sum_dtype, wide


class Motion(NamedTuple):
    """How a group moves in one step; NaN where that is not known."""

    rho: Number = math.nan  # momentum coefficient
    dt2: Number = math.nan  # squared time step


def motion_of(optimizer: Optimizer, group: Group) -> Motion:
    """The motion of a group in the step that comes next.

    Adam's masses are taken as constant within it.
    """
    lr = scalar(group["lr"])
    if _steps_as(optimizer, CoolMomentum):
        return Motion(group["cooling_rho"], lr)
    if _steps_as(optimizer, SGD) and not group["nesterov"]:
        momentum = group["momentum"]
        return _motion(lr * (1 - group["dampening"]) if momentum else lr, momentum)
    if _steps_as(optimizer, Adam) or _steps_as(optimizer, AdamW):
        beta1 = group["betas"][0]
        if isinstance(beta1, Tensor) or 0 <= beta1 < 1:
            return Motion(beta1, learning_rate_from_adam(lr, beta1))
        return Motion()
    if _steps_as(optimizer, RMSprop):
        return _motion(lr, group["momentum"])
    if _steps_as(optimizer, Adagrad) and group["lr_decay"] == 0:
        return _motion(lr, 0.0)
    return Motion()


def has_masses(optimizer: Optimizer) -> bool:
    """Whether the coordinates have masses, rather than 1 each."""
    return any(_steps_as(optimizer, kind) for kind in (Adam, AdamW, RMSprop, Adagrad))


def mass_of(optimizer: Optimizer, group: Group, param: Tensor) -> Number:
    """The mass of each coordinate in the last step, a real tensor, for where there are masses."""
    state = optimizer.state.get(param)
    if not state:  # it never moved
        return 1.0
    if isinstance(optimizer, Adam | AdamW):
        moment = real_part_here(state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"])
        step = torch.as_tensor(state["step"])
        steps = step.to(sum_dtype(step))
        of_adam: Tensor = adam_mass(wide(moment), group["betas"][1], steps, group["eps"])
        return of_adam
    if isinstance(optimizer, RMSprop):
        moment = wide(real_part_here(state["square_avg"]))
        if group["centered"]:
            moment = moment - wide(real_part_here(state["grad_avg"])).square()
    else:
        moment = wide(real_part_here(state["sum"]))
    mass: Tensor = moment.sqrt() + group["eps"]
    return mass


def displaced(optimizer: Optimizer, group: Group, param: Tensor) -> Tensor:
    """The last displacement of a parameter as its state has it, for where ``is_in_state`` says so.

    A real tensor, which for CoolMomentum is that of the state itself.
    """
    state = optimizer.state.get(param, {})
    if param.grad is None or not state:  # it was left alone in this step
        return torch.zeros_like(real_part_here(param))
    if isinstance(optimizer, CoolMomentum):
        return real_part_here(state["displacement"])
    return real_part_here(state["momentum_buffer"]) * -scalar(group["lr"])


def is_in_state(optimizer: Optimizer, group: Group) -> bool:
    """Whether the displacements of the step that comes next can be read from the state after it."""
    if _steps_as(optimizer, CoolMomentum):
        return True
    # A buffer does not know of a step that a loss scaler skips inside the kernel, nor of what the
    # sum with a parameter of half precision loses.
    return (
        _steps_as(optimizer, SGD)
        and group["momentum"] != 0
        and not group["nesterov"]
        and getattr(optimizer, "found_inf", None) is None
        and not any(
            param.dtype in (torch.float16, torch.bfloat16)
            or (param.grad is not None and param.grad.layout != torch.strided)
            for param in group["params"]
        )
    )


def shrinkage(optimizer: Optimizer, group: Group) -> Number:
    """What decoupled weight decay multiplies the parameters by, beside the displacement."""
    decay = group.get("weight_decay", 0)
    decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, _DECOUPLED))
    return 1 - scalar(group["lr"]) * decay if decoupled and decay else 1.0


def clock_of(optimizer: Optimizer) -> int | None:
    """The clock of CoolMomentum where reading it does not wait, else None."""
    if (
        isinstance(optimizer, CoolMomentum)
        and (clock := optimizer.param_groups[0]["cooling_step"]).is_cpu
    ):
        return int(clock)
    return None


def was_applied(optimizer: Optimizer, clock: int | None) -> bool:
    """Whether the step before which ``clock_of`` gave this was more than a call."""
    if clock is not None:
        return clock_of(optimizer) != clock
    found_inf = getattr(optimizer, "found_inf", None)
    # CoolMomentum has waited for it already.
    if found_inf is not None and (found_inf.is_cpu or isinstance(optimizer, CoolMomentum)):
        return not bool(found_inf)
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def _motion(learning_rate: Number, momentum: Number) -> Motion:
    if not isinstance(momentum, Tensor) and not 0 <= momentum < 1:
        return Motion()
    return Motion(momentum, learning_rate_from_sgd(learning_rate, momentum))


def _steps_as(optimizer: Optimizer, kind: type[Optimizer]) -> bool:
    """Whether it takes the steps of this class: a subclass may have its own."""
    return isinstance(optimizer, kind) and type(optimizer).step is kind.step


_DECOUPLED = tuple(
    getattr(torch.optim, name)
    for name in ("AdamW", "Adafactor", "Muon")
    if hasattr(torch.optim, name)
)
