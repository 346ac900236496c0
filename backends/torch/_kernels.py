"""Ways to apply one step to lists of tensors.

All compute Eq. 14, ``dx = rho dx - eta g``, and ``x = x + dx``; they differ in rounding and in
passes over memory.
"""

import sys

import array_api_compat.torch as xp
import torch
from torch import Tensor

from coolmomentum._arrays import upcast
from coolmomentum.torch._tensors import HALF, Coefficients, TensorLists
from coolmomentum.update import langevin_step, next_displacement

# What tensor subclasses raise for an operation that they do not have.
_UNSUPPORTED = (AttributeError, NotImplementedError, RuntimeError, TypeError)
# The kernel refuses momentum 0, and denormal numbers too where they are flushed to 0. In float32
# this is 0; times a displacement in float64 it need not be.
_TINY = sys.float_info.min


def fused(tensors: TensorLists, step: Coefficients) -> None:
    """PyTorch's kernel of momentum SGD, in one pass over memory.

    It computes ``b = m b + (1 - d) g`` and ``p = p - l b``, after it has negated ``g`` on request
    and then added weight decay to it. With m = rho, 1 - d = -eta and l = -1, b is the displacement.
    (With the gradient negated instead, as maximize does, it is 5 % slower at 25 million.)
    """
    if not _fused_has_the_precision(step, tensors.params[0].dtype):
        foreach(tensors, step)
        return
    if step.decoupled_decay:
        torch._foreach_mul_(tensors.params, 1 - step.lr * step.decoupled_decay)
    torch._fused_sgd_(
        *tensors,
        weight_decay=step.coupled_decay,
        momentum=step.rho or _TINY,  # type: ignore[arg-type]  # floats, by the check above
        lr=-1.0,
        dampening=1.0 + step.eta,  # type: ignore[arg-type]  # the same
        nesterov=False,
        maximize=step.maximize,
        is_first_step=False,
    )


def _fused_has_the_precision(step: Coefficients, dtype: torch.dtype) -> bool:
    """Whether the kernel can take this step: host floats, rho >= 0, and eta to full precision.

    It takes ``1 + eta`` and computes eta from it, wrong by up to 2**-53. The error must be small
    against eta in the precision of the parameters, so float64 nearly always goes another way.
    It does not take momentum 0: see ``_TINY``.
    """
    if isinstance(step.rho, Tensor) or isinstance(step.eta, Tensor) or step.rho < 0:
        return False
    if not step.rho and dtype == torch.float64:
        return False
    error = abs((1.0 + step.eta - 1.0) - step.eta)
    return error <= torch.finfo(dtype).eps / 16 * step.eta


def single_tensor(tensors: TensorLists, step: Coefficients) -> None:
    """Foreach with lists of one: no temporary is larger than a tensor."""
    for triple in tensors.zipped():
        foreach(TensorLists(*([tensor] for tensor in triple)), step)


def foreach(tensors: TensorLists, step: Coefficients) -> None:
    """A few calls for the whole list; half-precision lists go through float32 copies."""
    if tensors.params[0].dtype not in HALF:
        _foreach_in_place(tensors, step)
        return
    wide = TensorLists(*([tensor.float() for tensor in tensors_] for tensors_ in tensors))
    _foreach_in_place(wide, step)
    torch._foreach_copy_(tensors.params, wide.params)
    torch._foreach_copy_(tensors.displacements, wide.displacements)


def _foreach_in_place(tensors: TensorLists, step: Coefficients) -> None:
    params, grads, displacements = tensors
    # Going up, only the gradient changes sign: weight decay shrinks the parameter either way.
    sign = -1.0 if step.maximize else 1.0
    if step.decoupled_decay:
        torch._foreach_mul_(params, 1 - step.lr * step.decoupled_decay)
    if step.coupled_decay:
        grads = list(torch._foreach_add(grads, params, alpha=sign * step.coupled_decay))
    torch._foreach_mul_(displacements, step.rho)
    if isinstance(step.eta, Tensor):  # there is no tensor alpha
        torch._foreach_sub_(displacements, torch._foreach_mul(grads, sign * step.eta))
    else:
        torch._foreach_add_(displacements, grads, alpha=-sign * step.eta)
    torch._foreach_add_(params, displacements)


def in_place(tensors: TensorLists, step: Coefficients) -> None:
    """One by one, the parameter by ``add_``: for subclasses, and gradients of another dtype.

    Some tensor subclasses have little else. ``add_`` rounds the sum once, to the dtype of the
    parameter or as its class does. Products out of place come first, because they round half
    precision once too; where a class has none, ``mul_`` will do.
    """
    for param, grad, displacement in tensors.zipped():
        slope = -upcast(grad, xp) if step.maximize else upcast(grad, xp)
        if step.coupled_decay:
            try:
                slope = slope + upcast(param, xp) * step.coupled_decay
            except _UNSUPPORTED:
                slope = slope.clone().add_(param, alpha=step.coupled_decay)
        try:
            dx = upcast(displacement, xp)
            moved = next_displacement(dx, slope, rho=step.rho, step_size=step.eta)
            displacement.copy_(moved)
        except _UNSUPPORTED:
            moved = displacement.mul_(step.rho).add_(slope * -step.eta)
        if step.decoupled_decay:
            try:
                moved = moved - upcast(param, xp) * (step.lr * step.decoupled_decay)
            except _UNSUPPORTED:
                param.mul_(1 - step.lr * step.decoupled_decay)
        param.add_(moved)


def differentiable(tensors: TensorLists, step: Coefficients) -> list[Tensor]:
    """The core's update with its graph kept; gives back the new displacements."""
    moved = []
    for param, grad, displacement in tensors.zipped():
        x, dx = langevin_step(
            param.clone(),  # the graph may have saved the old parameter, which copy_ overwrites
            displacement,
            grad,
            learning_rate=step.lr,
            rho=step.rho,
            weight_decay=step.coupled_decay or step.decoupled_decay,
            decoupled_weight_decay=bool(step.decoupled_decay),
            maximize=step.maximize,
            xp=xp,
        )
        param.copy_(x)
        moved.append(dx)
    return moved


def kernel_works() -> bool:
    """Whether this PyTorch has the kernel, with the arguments and the result it has in 2.13."""
    dtype = torch.float32  # whatever the default is
    tensors = TensorLists(
        *([torch.full((17,), x, dtype=dtype, device="cpu")] for x in (1.0, 2.0, 0.5))
    )
    try:
        fused(tensors, Coefficients(lr=0.5, rho=0.5, eta=0.375, coupled_decay=0.25))
    except (AttributeError, RuntimeError, TypeError):
        return False
    # dx = 0.5 * 0.5 - 0.375 * (2 + 0.25 * 1), exactly
    (x,), _, (dx,) = tensors
    return bool((dx == -0.59375).all() and (x == 0.40625).all())


# Half precision is broken on the CPU: pytorch#191763.
FUSED_DTYPES: dict[str, tuple[torch.dtype, ...]] = {"cpu": (), "cuda": ()}
if kernel_works():
    FUSED_DTYPES["cpu"] = (torch.float32, torch.float64)
    FUSED_DTYPES["cuda"] = (torch.float32, torch.float64, *HALF)
