"""A step that sums its squared displacements on the way: one pass over memory, by a Triton kernel.

Triton comes with PyTorch's builds for CUDA and ROCm, and wants a C compiler. Where it is missing,
importing this fails.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from coolmomentum.torch._paths import PLAIN, Number, Step, Tensors
from coolmomentum.torch._thermometry import known_squares

BLOCK = 1024  # elements that one program of the kernel moves, and sums
DTYPES = {torch.float32, torch.bfloat16, torch.float16}  # it computes in float32


@triton.jit  # type: ignore[untyped-decorator]  # Triton's types are not Python's
def cool_momentum_step(  # type: ignore[no-untyped-def]  # the same
    param,
    grad,
    displacement,
    squares,
    rho,
    eta,
    shrink,
    weight_decay,
    size,
    on_device: tl.constexpr,  # rho, eta and shrink are tensors
    coupled: tl.constexpr,
    decoupled: tl.constexpr,
    maximize: tl.constexpr,
    block: tl.constexpr,
):
    """Eq. 14 for a block of elements in the order of their memory, and their sum for Eq. 22."""
    here = tl.program_id(0)
    at = here.to(tl.int64) * block + tl.arange(0, block)
    inside = at < size
    if on_device:
        rho, eta, shrink = tl.load(rho), tl.load(eta), tl.load(shrink)
    x = tl.load(param + at, inside, 0.0).to(tl.float32)
    slope = tl.load(grad + at, inside, 0.0).to(tl.float32)
    dx = tl.load(displacement + at, inside, 0.0).to(tl.float32)
    if maximize:
        slope = -slope
    if coupled:
        slope += weight_decay * x
    if decoupled:
        x *= shrink
    dx = rho * dx - eta * slope
    stored = dx.to(displacement.dtype.element_ty)
    tl.store(param + at, (x + dx).to(param.dtype.element_ty), inside)
    tl.store(displacement + at, stored, inside)
    # What is outside was loaded as 0, and so is its displacement.
    tl.store(squares + here, tl.sum(stored.to(tl.float32) * stored.to(tl.float32)))


# TRITON_INTERPRET=1 lets NumPy run it, on tensors of the CPU.
INTERPRETED = not isinstance(cool_momentum_step, triton.JITFunction)


def can_take(param: Tensor, grad: Tensor, displacement: Tensor) -> bool:
    """Whether the kernel is for tensors of this kind and place."""
    every = (param, grad, displacement)
    return (
        {type(tensor) for tensor in every} <= PLAIN
        and len({tensor.device for tensor in every}) == 1
        and {tensor.dtype for tensor in every} <= DTYPES
        and not displacement.is_inference()  # those do not count the changes made to them
        and (_can_run_triton(param.device) if param.is_cuda else INTERPRETED and param.is_cpu)
    )


@functools.cache
def _can_run_triton(device: torch.device) -> bool:
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (7, 0)


def one_pass(tensors: Tensors, step: Step) -> None:
    """A path of the step as those in _paths, for parameters, gradients and displacements alike."""
    coupled = bool(step.weight_decay) and not step.decoupled_weight_decay
    decoupled = bool(step.weight_decay) and step.decoupled_weight_decay
    shrink = 1 - step.lr * step.weight_decay if decoupled else step.eta  # which is not used then
    rho, eta, shrink = _all_alike(step.rho, step.eta, shrink)
    # Triton launches on the current device.
    with torch.cuda.device(tensors.params[0].get_device()):  # -1, and nothing, on the CPU
        for param, grad, displacement in tensors.triples():
            blocks = triton.cdiv(param.numel(), BLOCK)
            squares = known_squares.buffer(displacement, blocks)
            if blocks:
                cool_momentum_step[(blocks,)](
                    param,
                    grad,
                    displacement,
                    squares,
                    rho,
                    eta,
                    shrink,
                    step.weight_decay,
                    param.numel(),
                    on_device=isinstance(eta, Tensor),
                    coupled=coupled,
                    decoupled=decoupled,
                    maximize=step.maximize,
                    block=BLOCK,
                )
            for written in (param, displacement):
                torch.autograd.graph.increment_version(written)
            known_squares.note(displacement, squares)


def _all_alike(*coefficients: Number) -> list[Number]:
    """Floats, or tensors on the device if any is one: to fill a tensor waits for nothing."""
    for one in coefficients:
        if isinstance(one, Tensor):
            return [x if isinstance(x, Tensor) else torch.full_like(one, x) for x in coefficients]
    return list(coefficients)
