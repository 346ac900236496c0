"""The temperature of the last displacements (Eq. 22), of all parameters or of each."""

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from coolmomentum.temperature import DisplacementSum
from coolmomentum.torch._reductions import pooled_sums_of_squares
from coolmomentum.torch._tensors import Group, Number, scalar


class Moved(NamedTuple):
    """Parameters that share the learning rate of the last step, and their displacements in it."""

    lr: Number
    params: list[Tensor]
    displacements: list[Tensor]


def moved(groups: list[Group], state: Mapping[Tensor, Any]) -> list[Moved]:
    """Of each parameter group what moved in the last step, or is trainable and rested."""
    at_rest = torch.zeros((), device="cpu")  # of one that the last step left alone
    parts = []
    for group in groups:
        idle = {int(i) for i in group["cooling_idle"].split(",") if i.isdigit()}
        pairs = [
            (p, at_rest if i in idle else state.get(p, {}).get("displacement", at_rest))
            for i, p in enumerate(group["params"])
        ]
        pairs = [(p, dx) for p, dx in pairs if p.requires_grad or dx is not at_rest]
        lr = scalar(group["cooling_lr"])
        parts.append(Moved(lr, [p for p, _ in pairs], [dx for _, dx in pairs]))
    return parts


def apart(parts: list[Moved]) -> list[Moved]:
    """The same, each parameter by itself."""
    return [
        Moved(lr, [p], [dx])
        for lr, params, displacements in parts
        for p, dx in zip(params, displacements, strict=True)
    ]


@torch.no_grad()
def mean_squares(parts: list[Moved], *, over_lr: bool) -> list[DisplacementSum]:
    """Of each part its squared displacements, over the learning rate or not, and its size."""
    squares = pooled_sums_of_squares([part.displacements for part in parts])
    return [
        DisplacementSum(_over(square, part.lr if over_lr else 1.0), _size(part.params), 1)
        for part, square in zip(parts, squares, strict=True)
    ]


def pooled(sums: list[DisplacementSum]) -> Tensor:
    """The mean over all parts, a 0-d tensor."""
    mean = reduce(DisplacementSum.merge, sums, DisplacementSum()).read()
    is_tensor = isinstance(mean, Tensor)
    return mean if is_tensor else torch.tensor(mean, dtype=torch.float64, device="cpu")


def _over(square: Number, lr: Number) -> Number:
    """``square / lr``; where lr is 0 infinite, and 0 at rest."""
    if not isinstance(lr, Tensor) and not isinstance(square, Tensor):
        return square / lr if lr else square and math.inf
    if not isinstance(square, Tensor):  # then the learning rate is one
        square = torch.full_like(cast(Tensor, lr), square)
    return torch.where(square == 0, torch.zeros_like(square), square / lr)


def _size(params: list[Tensor]) -> int:
    """How many real numbers there are in the tensors; a complex one is two."""
    return sum([param.numel() * (1 + param.is_complex()) for param in params])
