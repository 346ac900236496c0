"""Types that the modules share: lists of tensors, and the coefficients of a step."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Group = dict[str, Any]  # one entry of param_groups
Number = float | Tensor  # a float, or a 0-d tensor
PLAIN_TYPES = {Tensor, torch.nn.Parameter}
HALF = (torch.float16, torch.bfloat16)


class Coefficients(NamedTuple):
    """The numbers of one step of one parameter group; floats, or 0-d tensors.

    They are tensors where the host must not know them: in a CUDA graph or a compiled step.
    """

    lr: Number  # base learning rate dt**2
    rho: Number  # momentum coefficient
    eta: Number  # step size, Eq. 16
    coupled_decay: float = 0.0  # weight decay that is added to the gradient
    decoupled_decay: float = 0.0  # weight decay that shrinks the parameter, by 1 - lr decay
    maximize: bool = False

    def to_device_of(self, tensor: Tensor) -> "Coefficients":
        """The same, with tensors on the device and in the precision of another tensor."""
        if not isinstance(self.eta, Tensor):  # nor are the others then
            return self
        # A 0-d tensor of another dtype would do, but takes CUDA's foreach off its fast route.
        double = tensor.dtype in (torch.float64, torch.complex128)
        dtype = torch.float64 if double else torch.float32
        lr, rho, eta = (
            x.to(tensor.device, dtype, non_blocking=True) if isinstance(x, Tensor) else x
            for x in self[:3]
        )
        return self._replace(lr=lr, rho=rho, eta=eta)


class TensorLists(NamedTuple):
    """Parameters, and their gradients and displacements in the same order."""

    params: list[Tensor]
    grads: list[Tensor]
    displacements: list[Tensor]

    def zipped(self) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """One parameter, gradient and displacement after the other."""
        return zip(self.params, self.grads, self.displacements, strict=True)

    def select(self, index: list[int]) -> "TensorLists":
        """Some of them."""
        return TensorLists(*([tensors[i] for i in index] for tensors in self))

    def to_local(self) -> "TensorLists":
        """The parts of DTensors that this process has, the gradients sharded as the parameters."""
        if PLAIN_TYPES.issuperset(map(type, self.params)):
            return self
        grads = [_sharded_as(param, grad) for param, grad, _ in self.zipped()]
        every = (self.params, grads, self.displacements)
        return TensorLists(*([to_local(tensor) for tensor in tensors] for tensors in every))


def to_local(tensor: Tensor) -> Tensor:
    """The part of a DTensor that this process has; kernels know only plain tensors."""
    if type(tensor) in PLAIN_TYPES or not hasattr(tensor, "to_local"):
        return tensor
    return tensor.to_local()  # type: ignore[no-any-return]


def _sharded_as(param: Any, grad: Any) -> Any:
    return grad.redistribute(placements=param.placements) if hasattr(param, "placements") else grad


def scalar(lr: Number) -> Number:
    """A 1-element tensor of any rank as a 0-d one."""
    return lr.reshape(()) if isinstance(lr, Tensor) else lr
