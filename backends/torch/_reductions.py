"""Sums of squares and products of tensors, which temperatures are read from, whole or sharded."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coolmomentum.torch._tensors import Number, to_local

# Elements. The error of a float32 dot grows with its length; of 2**18 numbers that scatter it is
# below 1e-6, and some 2e-5 (7e-5 if complex) where all are equal.
_CHUNK = 2**18
_FLOAT32 = 4  # bytes; less is not enough to sum in


def sums_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of squared moduli of each tensor, global where it is sharded.

    Parameters
    ----------
    tensors : floating or complex tensors of any layout; DTensors too, and then every process of
        their meshes has to call this: there is one collective for each mesh.

    Returns
    -------
    float64 tensor (float32 on MPS) of shape (len(tensors),), without having waited for it, on the
    first accelerator that one of them is on, else on the CPU
    """
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    device = device_of(tensors)
    sums = [dot(x, x).to(device) for x in map(local_real_view, tensors)]
    return all_reduced(tensors, torch.stack(sums))


def all_reduced(tensors: Sequence[Tensor], sums: Tensor) -> Tensor:
    """The local sums, added up over all processes.

    Parameters
    ----------
    tensors : one for each row; their devices and shardings count, not their values.
    sums : shape (len(tensors), ...).

    Returns
    -------
    as :func:`sums_of_squares`, of the shape of ``sums``
    """
    if not any(hasattr(tensor, "to_local") for tensor in tensors):
        return sums
    from torch.distributed.tensor import DTensor, Partial, Replicate

    alike: dict[Any, list[int]] = {}
    for i, tensor in enumerate(tensors):
        if isinstance(tensor, DTensor):
            alike.setdefault((tensor.device_mesh, tensor.placements), []).append(i)
    for (mesh, sharding), rows in alike.items():
        # A process that holds a copy holds the whole sum; one that holds a shard, a part of it.
        placements = [Replicate() if p.is_replicate() else Partial() for p in sharding]
        whole = DTensor.from_local(sums[rows], mesh, placements).full_tensor()
        sums = sums.index_copy(0, torch.tensor(rows, device=sums.device), whole)
    return sums


def pooled_sums_of_squares(lists: Sequence[Sequence[Tensor]]) -> list[Number]:
    """For each list the sum of its :func:`sums_of_squares`, with little overhead on the CPU.

    Parameters
    ----------
    lists : of tensors, as there.

    Returns
    -------
    floats on the CPU, 0-d tensors where a float would have to be waited for
    """
    arrays = [_arrays(tensors) for tensors in lists]
    if None not in arrays:
        return [sum(map(_sum_of_squares, x)) for x in arrays if x is not None]
    each = sums_of_squares([tensor for tensors in lists for tensor in tensors])
    return [part.sum() for part in torch.split(each, list(map(len, lists)))]


def _arrays(tensors: Sequence[Tensor]) -> list[np.ndarray] | None:
    """The memory of the tensors as NumPy sees it, whose calls cost less, if it can sum them all."""
    if not set(map(type, tensors)) <= {Tensor}:
        return None
    try:
        arrays = [tensor.numpy() for tensor in tensors]
    except (RuntimeError, TypeError):  # elsewhere, not of a dtype of NumPy, or with a graph
        return None
    return None if any([array.itemsize < _FLOAT32 for array in arrays]) else arrays


def _sum_of_squares(array: np.ndarray) -> float:
    if array.size <= _CHUNK:
        return float(np.vdot(array, array).real)
    flat = array.ravel(order="K")  # no copy, in whatever order the memory is
    parts = [flat[i : i + _CHUNK] for i in range(0, flat.size, _CHUNK)]
    return sum([float(np.vdot(part, part).real) for part in parts])


def device_of(tensors: Sequence[Tensor]) -> torch.device:
    """Where their sums are made: the first accelerator that one of them is on, else the CPU."""
    devices = (tensor.device for tensor in tensors if tensor.device.type != "cpu")
    return next(devices, torch.device("cpu"))


def local_real_view(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has, without its graph, complex numbers as two."""
    tensor = to_local(tensor).detach()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products of two real tensors, a 0-d tensor."""
    if a.device.type != "cpu":
        if a is not b:
            return (upcast(a) * upcast(b)).sum().to(sum_dtype(a))
        norm: Tensor = torch.linalg.vector_norm(a, dtype=torch.float32)
        return norm.to(sum_dtype(norm)).square()
    # One float32 dot or norm of 25 million elements is wrong by 1e-4 to 3e-3 here, and sum(x * x)
    # is seven times slower, for its temporary.
    a, b = (_flat(a),) * 2 if a is b else (_flat(a), _flat(b))
    if a.numel() <= _CHUNK:
        return torch.dot(a, b).double()
    parts = [torch.dot(*ab) for ab in zip(*(torch.split(x, _CHUNK) for x in (a, b)), strict=True)]
    return torch.stack(parts).sum(dtype=torch.float64)


def _flat(tensor: Tensor) -> Tensor:
    return upcast(tensor.reshape(-1))


def upcast(tensor: Tensor) -> Tensor:
    """A real tensor in float32 or float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of sums that are made on the device of a tensor; MPS has no float64."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
