"""The kernel for each tensor: the fastest that is right and that the parameter group allows."""

from collections.abc import Callable
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from coolmomentum.torch import _kernels as kernels
from coolmomentum.torch._tensors import HALF, PLAIN_TYPES, Coefficients, Group, TensorLists

Kernel = Callable[[TensorLists, Coefficients], None]
Buckets = list[tuple[Kernel, list[int]]]  # which of the tensors each kernel takes


def apply_step(tensors: TensorLists, step: Coefficients, buckets: Buckets) -> None:
    """Apply one step, each tensor by its kernel; see :func:`bucket_by_kernel`."""
    for kernel, index in buckets:
        bucket = tensors if len(index) == len(tensors.params) else tensors.select(index)
        kernel(bucket, step.to_device_of(bucket.params[0]))


def bucket_by_kernel(tensors: TensorLists, group: Group) -> Buckets:
    """The tensors of each kernel, device and dtype."""
    buckets: dict[Any, list[int]] = {}
    for i, triple in enumerate(tensors.zipped()):
        key = (select_kernel(*triple, group), triple[0].device, triple[0].dtype)
        if key not in buckets:
            buckets[key] = []
        buckets[key].append(i)
    return [(kernel, index) for (kernel, _, _), index in buckets.items()]


def select_kernel(param: Tensor, grad: Tensor, displacement: Tensor, group: Group) -> Kernel:
    """The kernel for one parameter."""
    is_plain = type(param) in PLAIN_TYPES and param.dtype == grad.dtype
    if not is_plain or _is_lazy(param) or _is_lazy(displacement):
        return kernels.in_place
    by_default = group["fused"] is None and group["foreach"] is None and param.is_cpu
    if (group["fused"] or by_default) and _is_right_for_fused(param, grad, displacement):
        return kernels.fused
    # Half precision on the CPU by loop, or there would be float32 copies of everything at once.
    loop_by_default = group["foreach"] is None and param.is_cpu and param.dtype in HALF
    loop = group["foreach"] is False or loop_by_default
    return kernels.single_tensor if loop else kernels.foreach


def _is_right_for_fused(param: Tensor, grad: Tensor, displacement: Tensor) -> bool:
    fused_dtypes = kernels.FUSED_DTYPES["cpu" if param.is_cpu else "cuda"]
    is_known = param.dtype in fused_dtypes and param.dtype == displacement.dtype
    return is_known and not _is_lazy(grad) and _same_dense_layout(param, grad, displacement)


def _is_lazy(tensor: Tensor) -> bool:
    """Whether its memory holds the negative or the conjugate; kernels read what is in memory."""
    return not torch.compiler.is_compiling() and (tensor.is_neg() or tensor.is_conj())


def _same_dense_layout(param: Tensor, grad: Tensor, displacement: Tensor) -> bool:
    """Whether the kernel may run through the three in the order of their memory.

    On the CPU it does so unasked, and is wrong where the layouts differ.
    """
    if param.is_contiguous() and grad.is_contiguous() and displacement.is_contiguous():
        return True
    return param.stride() == grad.stride() == displacement.stride() and _is_dense(param)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlaps, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


class DispatchCache:
    """The buckets of a step, which the next one uses if its tensors look the same.

    Users may change any tensor between steps, even the memory of a parameter; but bucketing many
    small tensors takes longer than the step.
    """

    def __init__(self, tensors: TensorLists, group: Group) -> None:
        self.buckets = bucket_by_kernel(tensors, group)
        self._displacements = tensors.displacements
        self._key = dispatch_key(tensors, group)

    def matches(self, tensors: TensorLists, group: Group) -> bool:
        """Whether the kernels would be selected again and all shapes agree."""
        params, grads, displacements = tensors
        sizes = [*map(Tensor.size, params)]
        return (
            len(sizes) == len(self._displacements)
            and all(map(is_, displacements, self._displacements))
            and sizes == [*map(Tensor.size, grads)]
            and sizes == [*map(Tensor.size, displacements)]
            and self._key == dispatch_key(tensors, group)
        )


def dispatch_key(tensors: TensorLists, group: Group) -> tuple[Any, ...]:
    """The reasons for a selection, if displacements are the same tensors and all shapes agree.

    A model moves to a device as a whole, so the device of the first parameter will do.
    """
    params, grads, displacements = tensors
    return (
        group["fused"],
        group["foreach"],
        [param.device for param in params[:1]],
        [*map(type, params)],
        [*map(_DTYPE, params)],
        [*map(_DTYPE, grads)],
        any(map(Tensor.is_neg, grads)) and [*map(Tensor.is_neg, grads)],
        _layouts([*params, *grads, *displacements]),
    )


def _layouts(tensors: list[Tensor]) -> list[Any]:
    """Layouts, strides and shapes; nothing if all are contiguous, which is quicker to find out."""
    if all(map(Tensor.is_contiguous, tensors)):
        return []
    return [[*map(x, tensors)] for x in (attrgetter("layout"), Tensor.stride, Tensor.size)]


_DTYPE = attrgetter("dtype")
