"""Ways to apply one step to lists of tensors, and the choice between them.

All compute Eq. 14, ``dx = rho dx - eta g``, and ``x = x + dx``; they differ in rounding and in
passes over memory. ``rho`` and ``eta`` are floats, or 0-d tensors where the host must not know them
(inside a CUDA graph or a compiled step).
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import array_api_compat.torch as xp
import torch
from torch import Tensor

from coolmomentum._arrays import upcast
from coolmomentum.torch._settings import Group
from coolmomentum.update import langevin_step, next_displacement

Number = float | Tensor  # a float, or a 0-d tensor


class Step(NamedTuple):
    """The settings of one step of one parameter group."""

    lr: Number  # base learning rate dt**2
    rho: Number  # momentum coefficient
    eta: Number  # step size, Eq. 16
    weight_decay: float
    decoupled_weight_decay: bool
    maximize: bool

    def beside(self, tensor: Tensor) -> "Step":
        """The same with coefficients that are tensors on the device and in the precision of one."""
        if not isinstance(self.eta, Tensor):  # nor are the others then
            return self
        lr, rho, eta = (_beside(value, tensor) for value in (self.lr, self.rho, self.eta))
        return self._replace(lr=lr, rho=rho, eta=eta)


class Tensors(NamedTuple):
    """Parameters, and their gradients and displacements in the same order."""

    params: list[Tensor]
    grads: list[Tensor]
    displacements: list[Tensor]

    def triples(self) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """One parameter, gradient and displacement after the other."""
        return zip(self.params, self.grads, self.displacements, strict=True)

    def at(self, index: list[int]) -> "Tensors":
        """Some of them."""
        return Tensors(*([tensors[i] for i in index] for tensors in self))

    def here(self) -> "Tensors":
        """The parts of DTensors that this process has, the gradients sharded as the parameters."""
        if set(map(type, self.params)) <= PLAIN:
            return self
        grads = [_sharded_as(param, grad) for param, grad, _ in self.triples()]
        every = (self.params, grads, self.displacements)
        return Tensors(*([local(tensor) for tensor in tensors] for tensors in every))


# --- the choice ---------------------------------------------------------------------------------


def take_step(tensors: Tensors, step: Step, ways: "Ways") -> None:
    """Apply one step, each tensor by its way; see :func:`sort_out`."""
    for path, index in ways:
        bucket = tensors if len(index) == len(tensors.params) else tensors.at(index)
        path(bucket, step.beside(bucket.params[0]))


def sort_out(tensors: Tensors, group: Group) -> "Ways":
    """For each tensor the fastest path that is right and that the group allows."""
    sorted_out: dict[Any, list[int]] = {}
    for i, triple in enumerate(tensors.triples()):
        key = (_path(*triple, group), triple[0].device, triple[0].dtype)
        if key not in sorted_out:
            sorted_out[key] = []
        sorted_out[key].append(i)
    return [(path, index) for (path, _, _), index in sorted_out.items()]


class Plan:
    """The ways of a step, which are those of the next one if the tensors are still like these.

    All of it may change in between without a notice, even the memory of a parameter; but with many
    small tensors sorting them out takes longer than the step. One call asks instead whether class,
    dtype, device, shape and strides of each are what they were.
    """

    def __init__(self, tensors: Tensors, group: Group) -> None:
        every = [*tensors.params, *tensors.grads, *tensors.displacements]
        self.ways = sort_out(tensors, group)
        self._settings = _choice(group)
        self._count = len(every)
        self._guards = _guards(every) if GUARDS_WORK else None

    def fits(self, tensors: Tensors, group: Group) -> bool:
        """Whether sorting out would give the same again."""
        every = [*tensors.params, *tensors.grads, *tensors.displacements]
        return (
            self._guards is not None
            and self._settings == _choice(group)
            and self._count == len(every)
            and bool(self._guards.check(*every))
        )


def _choice(group: Group) -> tuple[Any, ...]:
    return group["fused"], group["foreach"]


def _guards(tensors: list[Tensor]) -> Any:
    """What torch.compile can know its arguments again by."""
    shapes: Any = [list(tensor.shape) for tensor in tensors]  # its stub has them flat
    strides: Any = [list(tensor.stride()) for tensor in tensors]
    return torch._C._dynamo.guards.TensorGuards(
        *tensors, dynamic_dims_sizes=shapes, dynamic_dims_strides=strides
    )


def _guards_work() -> bool:
    """Whether this PyTorch has them, and whether they see all that the choice of a path does."""
    x = torch.zeros(2, 2, dtype=torch.float32, device="cpu")
    others = (x.double(), x.t(), x[:1], x.to("meta"), x.to_sparse(), torch.nn.Parameter(x))
    try:
        guards = _guards([x])
        return bool(guards.check(x + 1)) and not any(guards.check(other) for other in others)
    except (AttributeError, RuntimeError, TypeError):
        return False


def _path(param: Tensor, grad: Tensor, displacement: Tensor, group: Group) -> "Path":
    if type(param) not in PLAIN or _is_lazy(param) or _is_lazy(displacement):
        return _in_place
    if param.dtype != grad.dtype:
        return _by_the_core
    if not torch.compiler.is_compiling() and grad.is_neg():  # kernels read what is in the memory
        return _one_by_one if group["foreach"] is False else _foreach
    if group["fused"] or (group["fused"] is None and group["foreach"] is None and param.is_cpu):
        fused_dtypes = FUSED_DTYPES["cpu" if param.is_cpu else "cuda"]
        if (
            param.dtype in fused_dtypes
            and param.dtype == displacement.dtype
            and _same_dense_layout(param, grad, displacement)
        ):
            return _fused
    if group["foreach"] is None and param.is_cpu and param.dtype in _HALF:
        return _one_by_one  # or there would be float32 copies of everything at once
    return _one_by_one if group["foreach"] is False else _foreach


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
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _sharded_as(param: Any, grad: Any) -> Any:
    return grad.redistribute(placements=param.placements) if hasattr(param, "placements") else grad


def local(tensor: Tensor) -> Tensor:
    """The part of a DTensor that is here; kernels know only plain tensors."""
    if type(tensor) in PLAIN or not hasattr(tensor, "to_local"):
        return tensor
    return tensor.to_local()  # type: ignore[no-any-return]


def _beside(value: Number, tensor: Tensor) -> Number:
    if not isinstance(value, Tensor):
        return value
    # A 0-d tensor of another dtype would do, but takes CUDA's foreach off its fast route.
    double = tensor.dtype in (torch.float64, torch.complex128)
    return value.to(tensor.device, torch.float64 if double else torch.float32, non_blocking=True)


# --- the paths ----------------------------------------------------------------------------------


def _fused(tensors: Tensors, step: Step) -> None:
    """PyTorch's kernel of momentum SGD, in one pass over memory.

    It computes ``b = m b + (1 - d) g`` and ``p = p - l b``, after it has negated ``g`` on request
    and then added weight decay to it. With m = rho, 1 - d = -eta and l = -1, b is the displacement.
    (With the gradient negated instead, as maximize does, it is 5 % slower at 25 million.)
    """
    if not _fused_has_the_precision(step, tensors.params[0].dtype):
        _foreach(tensors, step)
        return
    if step.weight_decay and step.decoupled_weight_decay:
        torch._foreach_mul_(tensors.params, 1 - step.lr * step.weight_decay)
    torch._fused_sgd_(
        tensors.params,
        tensors.grads,
        tensors.displacements,
        weight_decay=0.0 if step.decoupled_weight_decay else step.weight_decay,
        momentum=step.rho or _TINY,  # type: ignore[arg-type]  # floats, by the check above
        lr=-1.0,
        dampening=1.0 + step.eta,  # type: ignore[arg-type]  # the same
        nesterov=False,
        maximize=step.maximize,
        is_first_step=False,
    )


def _fused_has_the_precision(step: Step, dtype: torch.dtype) -> bool:
    """Whether the kernel can be told this step: host floats, rho >= 0, and eta to full precision.

    It is told ``1 + eta`` and computes eta from that, wrong by up to 2**-53. This must be small
    against eta in the precision of the parameters, so float64 nearly always goes another way.
    Momentum 0 it cannot be told: see ``_TINY``.
    """
    if isinstance(step.rho, Tensor) or isinstance(step.eta, Tensor) or step.rho < 0:
        return False
    if not step.rho and dtype == torch.float64:
        return False
    error = abs((1.0 + step.eta - 1.0) - step.eta)
    return error <= torch.finfo(dtype).eps / 16 * step.eta


def _one_by_one(tensors: Tensors, step: Step) -> None:
    """Foreach with lists of one: no temporary is larger than a tensor."""
    for triple in tensors.triples():
        _foreach(Tensors(*([tensor] for tensor in triple)), step)


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


def _in_place(tensors: Tensors, step: Step) -> None:
    """One by one, the parameter by ``add_``: some tensor subclasses have little else.

    ``add_`` rounds the sum once, to the dtype of the parameter or as its class does. Products out
    of place come first, as they round half precision once too; else ``mul_`` will do.
    """
    coupled = step.weight_decay if not step.decoupled_weight_decay else 0.0
    decay = step.lr * step.weight_decay if step.decoupled_weight_decay else 0.0
    for param, grad, displacement in tensors.triples():
        slope = -upcast(grad, xp) if step.maximize else upcast(grad, xp)
        if step.weight_decay and not step.decoupled_weight_decay:
            try:
                slope = slope + upcast(param, xp) * coupled
            except _NOT_THERE:
                slope = slope.clone().add_(param, alpha=coupled)
        try:
            dx = upcast(displacement, xp)
            moved = next_displacement(dx, slope, rho=step.rho, step_size=step.eta)
            displacement.copy_(moved)
        except _NOT_THERE:
            moved = displacement.mul_(step.rho).add_(slope * -step.eta)
        if step.weight_decay and step.decoupled_weight_decay:
            try:
                moved = moved - upcast(param, xp) * decay
            except _NOT_THERE:
                param.mul_(1 - decay)
        param.add_(moved)


def _by_the_core(tensors: Tensors, step: Step) -> None:
    """The core's update, one by one: for gradients of another dtype."""
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


Path = Callable[[Tensors, Step], None]
Ways = list[tuple[Path, list[int]]]  # which of the tensors go each path

PLAIN = {Tensor, torch.nn.Parameter}
_NOT_THERE = (AttributeError, NotImplementedError, RuntimeError, TypeError)  # of tensor subclasses
_HALF = (torch.float16, torch.bfloat16)
# The kernel refuses momentum 0, and denormal numbers too where they are flushed to 0. In float32
# this is 0; times a displacement in float64 it need not be.
_TINY = sys.float_info.min


def _kernel_works() -> bool:
    """Whether this PyTorch has the kernel, with the arguments and the result of that of 2.13."""
    dtype = torch.float32  # whatever the default is
    param, grad, moved = (torch.full((17,), x, dtype=dtype, device="cpu") for x in (1.0, 2.0, 0.5))
    step = Step(0.5, 0.5, 0.375, weight_decay=0.25, decoupled_weight_decay=False, maximize=False)
    try:
        _fused(Tensors([param], [grad], [moved]), step)
    except (AttributeError, RuntimeError, TypeError):
        return False
    # dx = 0.5 * 0.5 - 0.375 * (2 + 0.25 * 1), exactly
    return bool((moved == -0.59375).all() and (param == 0.40625).all())


# Half precision is broken on the CPU: pytorch#191763.
FUSED_DTYPES: dict[str, tuple[torch.dtype, ...]] = {"cpu": (), "cuda": ()}
if _kernel_works():
    FUSED_DTYPES["cpu"] = (torch.float32, torch.float64)
    FUSED_DTYPES["cuda"] = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

GUARDS_WORK = _guards_work()
