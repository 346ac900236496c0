"""The step on Keras' PyTorch backend: a few calls for the whole list of tensors.

Keras does so for its own optimizers. For others it updates one variable after the other, which
takes 22 times as long for 65 small tensors.

The adapter for PyTorch has such a step too. It is not imported: the import takes seconds, and that
adapter needs a newer PyTorch than Keras does.
"""

from collections.abc import Sequence
from itertools import compress

import torch
from torch import Tensor

Number = float | Tensor  # a float, or a 0-d tensor


def is_on_host(count: Tensor) -> bool:
    """Whether a step can read its count: on a GPU it would wait, a compiled step would break."""
    return count.device.type == "cpu" and not torch.compiler.is_compiling()


@torch.no_grad()
def take_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    displacements: Sequence[Tensor],
    *,
    rho: Number,
    step_size: Number,
) -> None:
    """Eq. 14 in place, ``dx = rho dx - step_size g`` and ``x = x + dx``, for tensors of any dtype.

    Parameters
    ----------
    params, grads, displacements : tensors, in the same order; float16 and bfloat16 ones go through
        float32 copies, so that each result is rounded once.
    rho, step_size : floats, or 0-d tensors where the host must not know them.
    """
    dtypes = [x.dtype for x in params]
    for dtype in set(dtypes):
        chosen = [other == dtype for other in dtypes]
        xs, gs, dxs = (list(compress(x, chosen)) for x in (params, grads, displacements))
        wide = torch.promote_types(dtype, torch.float32)
        gs = [g if g.dtype == wide else g.to(wide) for g in gs]
        if wide == dtype:
            _in_place(xs, gs, dxs, rho, step_size)
            continue
        wide_xs, wide_dxs = ([tensor.to(wide) for tensor in tensors] for tensors in (xs, dxs))
        _in_place(wide_xs, gs, wide_dxs, rho, step_size)
        torch._foreach_copy_(xs, wide_xs)
        torch._foreach_copy_(dxs, wide_dxs)


def _in_place(
    xs: list[Tensor], gs: list[Tensor], dxs: list[Tensor], rho: Number, step_size: Number
) -> None:
    rho, step_size = (x.to(gs[0]) if isinstance(x, Tensor) else x for x in (rho, step_size))
    torch._foreach_mul_(dxs, rho)
    if isinstance(step_size, Tensor):  # there is no tensor alpha
        torch._foreach_sub_(dxs, torch._foreach_mul(gs, step_size))
    else:
        torch._foreach_add_(dxs, gs, alpha=-step_size)
    torch._foreach_add_(xs, dxs)
