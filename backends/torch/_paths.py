"""Three ways to apply one step to lists of tensors: a loop over the core, foreach, and one kernel.

All three compute Eq. 14, ``dx = rho dx - eta g``, and ``x = x + dx``; they differ in rounding and
in passes over memory. ``rho`` and ``eta`` are floats, or 0-d tensors where the host must not know
them (inside a CUDA graph or a compiled step).
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import array_api_compat.torch as xp
import torch
from torch import Tensor

from coolmomentum.torch._settings import Group
from coolmomentum.update import langevin_step

Number = float | Tensor  # a float, or a 0-d tensor


class Step(NamedTuple):
    """The settings of one step of one parameter group."""

    lr: Number  # base learning rate dt**2
    rho: Number  # momentum coefficient
    eta: Number  # step size, Eq. 16
    weight_decay: float
    decoupled_weight_decay: bool
    maximize: bool

    def on(self, device: torch.device) -> "Step":
        """The same beside the tensors; a 0-d tensor on the CPU goes with those of any device."""
        return self._replace(
            lr=_on(self.lr, device), rho=_on(self.rho, device), eta=_on(self.eta, device)
        )


class Tensors(NamedTuple):
    """Parameters with their gradients and displacements, all of one device and dtype."""

    params: list[Tensor]
    grads: list[Tensor]
    displacements: list[Tensor]

    def triples(self) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """One parameter, gradient and displacement after the other."""
        return zip(self.params, self.grads, self.displacements, strict=True)


def unscale(grads: list[Tensor], scale: Tensor) -> None:
    for grad in grads:
        local(grad).div_(scale.to(grad.device))


def local(tensor: Tensor) -> Tensor:
    """The part of a DTensor that is here; kernels know only plain tensors."""
    if type(tensor) in _PLAIN or not hasattr(tensor, "to_local"):
        return tensor
    return tensor.to_local()  # type: ignore[no-any-return]


def buckets(tensors: Tensors) -> list[Tensors]:
    """The tensors by device and dtype, DTensors as their local parts."""
    by_kind: dict[Any, Tensors] = {}
    for param, grad, displacement in tensors.triples():
        if type(param) not in _PLAIN and hasattr(param, "placements"):
            grad = grad.redistribute(placements=param.placements)  # type: ignore[attr-defined]
            param, grad, displacement = local(param), local(grad), local(displacement)
        key = (param.device, param.dtype, grad.dtype, type(param) in _PLAIN)
        if key not in by_kind:
            by_kind[key] = Tensors([], [], [])
        for tensor, bucket in zip((param, grad, displacement), by_kind[key], strict=True):
            bucket.append(tensor)
    return list(by_kind.values())


def take_path(tensors: Tensors, step: Step, group: Group) -> None:
    """Apply one step by the fastest path that is right, unless the user has chosen another."""
    param, grad = tensors.params[0], tensors.grads[0]
    step = step.on(param.device)
    by_default = group["fused"] is None and group["foreach"] is None and param.device.type == "cpu"
    if (group["fused"] or by_default) and _fused_step_is_right(step, param.dtype):
        tensors = _fused_where_right(tensors, step)
        if not tensors.params:
            return
    if group["foreach"] is False or type(param) not in _PLAIN or grad.dtype != param.dtype:
        _loop(tensors, step)
    else:
        _foreach(tensors, step)


def _fused_where_right(tensors: Tensors, step: Step) -> Tensors:
    """Step the tensors that the kernel is right for; give back the others."""
    right, rest = Tensors([], [], []), Tensors([], [], [])
    for triple in tensors.triples():
        chosen = right if _fused_tensor_is_right(*triple) else rest
        for tensor, bucket in zip(triple, chosen, strict=True):
            bucket.append(tensor)
    if right.params:
        _fused(right, step)
    return rest


def _on(value: Number, device: torch.device) -> Number:
    if not isinstance(value, Tensor) or value.device.type == "cpu":
        return value
    return value.to(device, non_blocking=True)


def _loop(tensors: Tensors, step: Step) -> None:
    """The core's own update, one by one: any dtype and layout, computed in float32 or better."""
    for param, grad, displacement in tensors.triples():
        x, dx = _langevin_step(param, grad, displacement, step)
        param.copy_(x)
        displacement.copy_(dx)


def differentiable_step(param: Tensor, grad: Tensor, displacement: Tensor, step: Step) -> Tensor:
    """The same with its graph kept; gives back the new displacement."""
    # The graph may have saved the old parameter, which copy_ overwrites: hence the clone.
    x, dx = _langevin_step(param.clone(), grad, displacement, step)
    param.copy_(x)
    return dx


def _langevin_step(
    param: Tensor, grad: Tensor, displacement: Tensor, step: Step
) -> tuple[Tensor, Tensor]:
    return langevin_step(
        param,
        displacement,
        grad,
        learning_rate=step.lr,
        rho=step.rho,
        weight_decay=step.weight_decay,
        decoupled_weight_decay=step.decoupled_weight_decay,
        maximize=step.maximize,
        xp=xp,
    )


def _foreach(tensors: Tensors, step: Step) -> None:
    """A few calls for the whole list; half-precision lists go through float32 copies."""
    if tensors.params[0].dtype not in _HALF:
        _foreach_in_place(tensors, step)
        return
    wide = Tensors(*([tensor.float() for tensor in tensors_] for tensors_ in tensors))
    _foreach_in_place(wide, step)
    torch._foreach_copy_(tensors.params, wide.params)
    torch._foreach_copy_(tensors.displacements, wide.displacements)


def _foreach_in_place(tensors: Tensors, step: Step) -> None:
    params, grads, displacements = tensors
    # Going up, only the gradient changes sign: weight decay shrinks the parameter either way.
    sign = -1.0 if step.maximize else 1.0
    if step.weight_decay and step.decoupled_weight_decay:
        torch._foreach_mul_(params, 1 - step.lr * step.weight_decay)
    elif step.weight_decay:
        grads = list(torch._foreach_add(grads, params, alpha=sign * step.weight_decay))
    torch._foreach_mul_(displacements, step.rho)
    if isinstance(step.eta, Tensor):  # there is no tensor alpha
        torch._foreach_sub_(displacements, torch._foreach_mul(grads, sign * step.eta))
    else:
        torch._foreach_add_(displacements, grads, alpha=-sign * step.eta)
    torch._foreach_add_(params, displacements)


def _fused(tensors: Tensors, step: Step) -> None:
    """PyTorch's kernel of momentum SGD, in one pass over memory; see `_fused_step_is_right`.

    The kernel computes ``b = m b + (1 - d) g`` and ``p = p - l b``, after it has negated ``g`` on
    request and then added weight decay to it. With m = rho, 1 - d = eta, l = -1, the gradient
    negated and the decay negative, b is the displacement.
    """
    assert not isinstance(step.rho, Tensor)
    assert not isinstance(step.eta, Tensor)
    if step.weight_decay and step.decoupled_weight_decay:
        torch._foreach_mul_(tensors.params, 1 - step.lr * step.weight_decay)
    torch._fused_sgd_(
        tensors.params,
        tensors.grads,
        tensors.displacements,
        weight_decay=0.0 if step.decoupled_weight_decay else -step.weight_decay,
        momentum=step.rho or _TINY,
        lr=-1.0,
        dampening=1.0 - step.eta,
        nesterov=False,
        maximize=not step.maximize,
        is_first_step=False,
    )


def _fused_step_is_right(step: Step, dtype: torch.dtype) -> bool:
    """Whether the kernel takes these numbers: host floats, rho >= 0, and eta to full precision.

    The kernel wants ``1 - eta`` and computes eta from it, wrong by up to 2**-54. That must be small
    against eta in the precision of the parameters, so float64 nearly always goes another way.
    """
    if isinstance(step.rho, Tensor) or isinstance(step.eta, Tensor) or step.rho < 0:
        return False
    error = abs((1.0 - (1.0 - step.eta)) - step.eta)
    return error <= torch.finfo(dtype).eps / 16 * step.eta


def _fused_tensor_is_right(param: Tensor, grad: Tensor, displacement: Tensor) -> bool:
    """Whether the kernel is right for a tensor: a plain float one, its three layouts the same.

    On the CPU of PyTorch 2.13 it leaves most of a half-precision tensor unchanged
    (pytorch#191763) and takes every layout for that of the parameter.
    """
    allowed = _FUSED_CPU if param.device.type == "cpu" else _FUSED_CUDA
    return (
        param.dtype in allowed
        and param.dtype == grad.dtype == displacement.dtype
        and param.stride() == grad.stride() == displacement.stride()
        and (param.is_contiguous() or _is_dense(param))
    )


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlaps, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


_PLAIN = (Tensor, torch.nn.Parameter)
_HALF = (torch.float16, torch.bfloat16)
_FUSED_CPU = (torch.float32, torch.float64)
_FUSED_CUDA = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_TINY = math.ulp(0.0)  # the kernel refuses momentum 0; this times any displacement is 0
