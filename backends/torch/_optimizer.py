"""CoolMomentum as a torch optimizer: parameter groups, the step, checkpoints, temperature."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor
from torch.optim import Optimizer

from coolmomentum import _defaults
from coolmomentum.schedules import Law, Schedule, WarmupClock
from coolmomentum.temperature import DisplacementSum, coordinates
from coolmomentum.torch._clock import place_clock, scalar, step_of, tick
from coolmomentum.torch._paths import (
    Number,
    Plan,
    Tensors,
    Ways,
    differentiable_step,
    local,
    sort_out,
    take_step,
)
from coolmomentum.torch._settings import (
    COOLING,
    Group,
    at_rest,
    check_fused,
    checked,
    displacement_dtype,
)
from coolmomentum.torch._thermometry import (
    known_squares,
    pooled_sums_of_squares,
    sums_of_squares,
)


class CoolMomentum(Optimizer):
    """Momentum SGD whose momentum coefficient cools from rho0 to 0 over total_steps.

    With ``n`` the steps taken, one step is ``rho = schedule(n)``, ``g = grad + weight_decay p``,
    ``dx = rho dx - lr (1 + rho) / 2 g``, ``p = p + dx``, ``n = n + 1``. The displacement ``dx`` is
    the only state of a parameter. :class:`torch.optim.SGD` keeps ``-dx / lr`` instead, so a change
    of its learning rate acts on past gradients too; here it acts on the new ones only. With
    ``law="constant"`` and ``rho0 = m`` this is SGD with momentum m and learning rate
    ``lr (1 + m) / 2``.

    After total_steps rho stays 0: plain SGD with learning rate ``lr / 2``. The clock counts the
    steps that were applied; it is one for all parameter groups and part of the checkpoint.

    Parameters
    ----------
    params : parameters, named parameters or dicts of parameter groups, as for every optimizer of
        torch. A group may have its own value of every argument below.
    lr : base learning rate, the squared time step ``dt**2``: a finite number >= 0 or a 1-element
        tensor of one.
    total_steps : optimizer steps (not microbatches) over which rho cools to 0; required unless a
        schedule is given.
    rho0 : initial momentum coefficient, in [0, 1).
    law : "paper", "linear", "exponential" or "constant", see :class:`coolmomentum.CoolingSchedule`.
    warmup_steps : steps at the start with rho = 0, in [0, total_steps).
    warmup_clock : "run" lets the cooling clock run on during the warm-up, "hold" starts it after.
    schedule : a law, a :class:`coolmomentum.CoolingSchedule`, or any callable ``step -> rho`` in
        [-1, 1), in place of the five arguments before. A callable gets a Python int, or a 0-d
        integer tensor in compiled and capturable steps, and is not part of the checkpoint.
    weight_decay : coefficient of the L2 term added to the gradient, finite and >= 0.
    decoupled_weight_decay : shrink the parameters by ``1 - lr weight_decay`` instead (as AdamW).
    maximize : go up the gradient.
    foreach : False for a loop over the tensors; otherwise few calls for many tensors, where they
        are plain tensors.
    fused : True or False to choose; by default the fused kernel is used on the CPU. It is used only
        where it is right: float32, dense and equal layouts (on CUDA half precision too).
    capturable : keep clock and rho on the device, so that the step can be captured in a CUDA graph.
    differentiable : keep the graph of the step, also to lr and weight_decay where they are tensors.
    displacement_dtype : ``torch.float32`` keeps float32 displacements for half-precision
        parameters; by default they have the dtype of the parameter. The arithmetic of a step is
        float32 or better in any case.
    track_temperature : let the step sum the squares of its displacements in its own pass over
        memory, so that reading temperatures costs next to nothing. A Triton kernel does this on
        CUDA for float32 and half precision, unless foreach or ``fused=False`` choose another way;
        it has one launch for each parameter, best in a CUDA graph where they are many and small
        (read after a replay). Elsewhere nothing changes: temperatures are summed when they are
        read. So they are after a checkpoint is loaded, in another order, and the last digits may
        differ. A displacement that you change yourself is summed anew if PyTorch counts the change
        as one, which it does not through ``.data``, a DTensor or a collective; put a new tensor in
        its place then.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.
    RuntimeError
        If foreach, fused and differentiable contradict each other.

    Notes
    -----
    ``param_groups[i]["rho"]`` is the coefficient that the next step will use and
    ``param_groups[i]["step"]`` the clock, a 0-d int64 tensor; both are there to be read. No key is
    called momentum: give OneCycleLR and CyclicLR ``cycle_momentum=False``.

    Examples
    --------
    >>> import torch
    >>> from coolmomentum.torch import CoolMomentum
    >>> x = torch.tensor([1.0], requires_grad=True)
    >>> optimizer = CoolMomentum([x], lr=0.25, total_steps=2, rho0=0.75)
    >>> for _ in range(2):
    ...     optimizer.zero_grad()
    ...     (x**2 / 2).sum().backward()
    ...     optimizer.step()
    >>> x.item(), optimizer.param_groups[0]["rho"], optimizer.temperature().item()
    (0.525390625, 0.0, 0.261856079...)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = _defaults.LEARNING_RATE,
        *,
        total_steps: int | None = None,
        rho0: float = _defaults.RHO0,
        law: Law = _defaults.LAW,
        warmup_steps: int = 0,
        warmup_clock: WarmupClock = _defaults.WARMUP_CLOCK,
        schedule: Law | Schedule | None = None,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        displacement_dtype: torch.dtype | None = None,
        track_temperature: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "total_steps": total_steps,
            "rho0": rho0,
            "law": law,
            "warmup_steps": warmup_steps,
            "warmup_clock": warmup_clock,
            "schedule": schedule,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": differentiable,
            "displacement_dtype": displacement_dtype,
            "track_temperature": track_temperature,
        }
        super().__init__(params, defaults | checked(defaults))

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether torch.amp.GradScaler may leave it to step() to unscale and to skip."""
        return bool(self.defaults["fused"])

    # --- parameter groups -----------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters, which takes the running clock.

        Parameters
        ----------
        param_group : dict with "params" and those settings that differ from the constructor's.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As the constructor; the optimizer is then as it was.
        """
        if isinstance(param_group, dict):
            param_group = param_group | checked(param_group, self.defaults)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        clocks = [other["step"] for other in self.param_groups if "step" in other]
        at_rest = torch.zeros((), dtype=torch.int64, device="cpu")
        group["step"] = clocks[0].clone() if clocks else at_rest
        group["last_lr"] = 1.0  # none yet; a displacement of 0 is cold by any but 0
        place_clock(group)

    def state_dict(self) -> dict[str, Any]:
        """The checkpoint: clock, settings and displacements, without schedule callables.

        Returns
        -------
        dict as of every torch optimizer, which ``torch.load(..., weights_only=True)`` reads back
        """

        def without_callables(_: Optimizer, packed: dict[str, Any]) -> None:
            for group in packed["param_groups"]:
                group["schedule"] = None

        # As a hook, so that those of the user see what is saved, and may make of it what they like.
        hook = self.register_state_dict_post_hook(without_callables, prepend=True)
        try:
            return super().state_dict()
        finally:
            hook.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint, bit for bit.

        Parameters
        ----------
        state_dict : from :meth:`state_dict`. Its settings replace those of the constructor; what it
            lacks stays, and so do schedule callables.

        Raises
        ------
        ValueError
            If the parameter groups do not match. Nothing has been changed then.
        """
        before = [dict(group) for group in self.param_groups]
        seen: dict[str, Any] = {}

        def restore(_: Optimizer) -> None:
            groups = zip(self.param_groups, seen["param_groups"], before, strict=True)
            for group, saved, own in groups:
                kept = (own.keys() - saved.keys()) | {"schedule"}  # say, flags of later versions
                if saved.get("total_steps") is None:  # of a run that followed a callable
                    kept |= COOLING.keys()
                group.update({name: own[name] for name in sorted(kept)})
                group["step"] = torch.as_tensor(group["step"], dtype=torch.int64)
                place_clock(group)
                for param, key in zip(group["params"], saved["params"], strict=True):
                    # torch has cast it to the dtype of the parameter, which may be narrower.
                    if "displacement" in seen["state"].get(key, {}):
                        self.state[param]["displacement"] = seen["state"][key]["displacement"].to(
                            device=param.device, dtype=displacement_dtype(param, group)
                        )

        # As hooks, because the hooks of the user before them may change what is loaded, and those
        # after them may look at it.
        hooks = (
            self.register_load_state_dict_pre_hook(lambda _, loaded: seen.update(loaded)),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    # --- the step -------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One optimizer step.

        Parameters
        ----------
        closure : evaluates the model again and gives back the loss.

        Returns
        -------
        what the closure gives back, or None

        Raises
        ------
        RuntimeError
            If a gradient is sparse. Nothing has been changed then.
        ValueError
            If a schedule callable gives a rho outside [-1, 1). Nothing has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            if not self._is_dry_run() and not self._is_skipped():
                self._step()
        return loss

    def _step(self) -> None:
        work = []
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            displacements: list[Tensor] = []
            self._init_group(group, params, grads, displacements)
            work.append((group, Tensors(params, grads, displacements)))
        if not any(tensors.params for _, tensors in work):
            return
        steps = [step_of(group) for group in self.param_groups]  # all, before anything changes
        for index, ((group, tensors), step) in enumerate(zip(work, steps, strict=True)):
            if (scale := getattr(self, "grad_scale", None)) is not None:
                for grad in tensors.grads:
                    local(grad).div_(scale.reshape(()).to(grad.device))
            if group["differentiable"]:
                for param, grad, displacement in tensors.triples():
                    moved = differentiable_step(param, grad, displacement, step)
                    self.state[param]["displacement"] = moved
            else:
                here = tensors.here()
                known_squares.forget(here.displacements)
                take_step(here, step, self._ways(index, here, group))
            tick(group, step.lr)

    def _ways(self, index: int, tensors: Tensors, group: Group) -> Ways:
        """The paths of a group, by the plan of its last step if that still fits."""
        if torch.compiler.is_compiling():
            return sort_out(tensors, group)
        plans: dict[int, Plan] = self.__dict__.setdefault("_plans", {})  # not in a copy or pickle
        if index not in plans or not plans[index].fits(tensors, group):
            plans[index] = Plan(tensors, group)
        return plans[index].ways

    def _init_group(
        self,
        group: Group,
        params: list[Tensor],
        grads: list[Tensor],
        displacements: list[Tensor],
    ) -> None:
        """Fill the lists with what has a gradient. The name and the lists are torch.compile's."""
        found = [param.grad for param in group["params"]]
        grads.extend([grad for grad in found if grad is not None])
        if any([grad.layout in _SPARSE for grad in grads]):
            raise RuntimeError("CoolMomentum does not support sparse gradients")
        if len(grads) == len(found):
            params.extend(group["params"])
        else:
            of_all = zip(group["params"], found, strict=True)
            params.extend([param for param, grad in of_all if grad is not None])
        if group["fused"]:
            check_fused(params)
        state = self.state
        try:  # to look each up once: with many small tensors this is a good part of a step
            displacements.extend([state[param]["displacement"] for param in params])
        except KeyError:
            self._add_displacements(params, group)
            displacements.extend([state[param]["displacement"] for param in params])

    def _add_displacements(self, params: list[Tensor], group: Group) -> None:
        """At rest, for those parameters that have none."""
        for param in params:
            state = self.state[param]
            if "displacement" not in state:
                state["displacement"] = at_rest(param, group)

    def _is_dry_run(self) -> bool:
        """Whether this is the step by which torch.distributed.checkpoint makes state appear.

        It steps a fresh optimizer with learning rate 0 and gradients of zeros (pytorch#164929),
        which is no step of the run and must not start the clock. A warm-up from learning rate 0 has
        gradients.
        """
        if torch.compiler.is_compiling() or self.state:
            return False
        if not all(_number(group["lr"]) == 0 for group in self.param_groups):
            return False
        every = [param.grad for group in self.param_groups for param in group["params"]]
        grads = [grad for grad in every if grad is not None]
        if any(grad.layout in _SPARSE for grad in grads):
            return False
        # Summed over all shards, so that every process comes to the same answer.
        if grads and bool(sums_of_squares([(grad != 0).float() for grad in grads]).any()):
            return False
        for group in self.param_groups:
            self._init_group(group, [], [], [])
        return True

    def _is_skipped(self) -> bool:
        """Whether a GradScaler that leaves it to the optimizer has found a gradient not finite."""
        found_inf = getattr(self, "found_inf", None)
        return found_inf is not None and bool(found_inf)

    # --- the temperature ------------------------------------------------------------------------

    def temperature(self) -> Tensor:
        """Temperature of the last displacements (Eq. 22), over all parameters.

        The mean of ``dx**2 / lr`` over the coordinates of all trainable parameters, with the
        learning rate that their group had in the last step; a complex number counts as two
        coordinates. Where that learning rate was 0 there is no temperature (NaN, infinite).

        Returns
        -------
        0-d float64 tensor (float32 on MPS) on the device of the parameters; nothing waits for it
        until it is read, with ``float(...)`` say. 0 before the first step. With sharded parameters
        (DTensor) it is the global one, and every process has to call this.
        """
        return self._pooled(in_units_of_lr=True)

    def rescaled_temperature(self) -> Tensor:
        """Mean squared displacement ``T dt**2`` of the last step, over all parameters.

        Returns
        -------
        0-d float64 tensor, as :meth:`temperature`
        """
        return self._pooled(in_units_of_lr=False)

    def temperatures(self) -> dict[Tensor, Tensor]:
        """:meth:`temperature` of each parameter by itself.

        Returns
        -------
        dict from trainable parameter to 0-d float64 tensor, as for
        ``{name: t[p] for name, p in model.named_parameters()}``
        """
        return self._apart(in_units_of_lr=True)

    def rescaled_temperatures(self) -> dict[Tensor, Tensor]:
        """:meth:`rescaled_temperature` of each parameter by itself, as :meth:`temperatures`."""
        return self._apart(in_units_of_lr=False)

    @torch.no_grad()
    def _pooled(self, in_units_of_lr: bool) -> Tensor:
        groups = self._displacements()
        sums = pooled_sums_of_squares([displacements for _, displacements in groups])
        total = DisplacementSum()
        for (params, _), square, lr in zip(groups, sums, self._units(in_units_of_lr), strict=True):
            total = total.merge(DisplacementSum(_over(square, lr), _size(params), 1))
        mean = total.read()
        if isinstance(mean, Tensor):
            return mean
        return torch.tensor(mean, dtype=torch.float64, device="cpu")

    @torch.no_grad()
    def _apart(self, in_units_of_lr: bool) -> dict[Tensor, Tensor]:
        groups = self._displacements()
        sums = iter(sums_of_squares([x for _, displacements in groups for x in displacements]))
        return {
            param: DisplacementSum(_over(next(sums), lr), _size([param]), 1).read()
            for (params, _), lr in zip(groups, self._units(in_units_of_lr), strict=True)
            for param in params
        }

    def _displacements(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        """For each group its trainable parameters and their displacements."""
        at_rest = torch.zeros(())  # of a parameter that has not met a gradient
        groups = []
        for group in self.param_groups:
            params = [p for p in group["params"] if p.requires_grad or p.grad is not None]
            groups.append(
                (params, [self.state.get(p, {}).get("displacement", at_rest) for p in params])
            )
        return groups

    def _units(self, in_units_of_lr: bool) -> list[Number]:
        """For each group what its squared displacements are to be divided by."""
        return [scalar(group["last_lr"]) if in_units_of_lr else 1.0 for group in self.param_groups]


_SPARSE = {
    torch.sparse_coo,
    torch.sparse_csr,
    torch.sparse_csc,
    torch.sparse_bsr,
    torch.sparse_bsc,
}


def _over(square: Number, lr: Number) -> Number:
    """``square / lr``, NaN or infinite where that is 0, which Python's own floats refuse."""
    return square / lr if isinstance(lr, Tensor) or lr else square * math.inf


def _size(params: list[Tensor]) -> int:
    """How many real numbers there are in the tensors."""
    if any([param.is_complex() for param in params]):
        return sum(coordinates(param, xp=xp) for param in params)
    return sum([param.numel() for param in params])  # the same, many times faster


def _number(value: float | Tensor) -> float:
    """As ``float(...)``, which warns of a tensor that requires a gradient."""
    return value.item() if isinstance(value, Tensor) else value
