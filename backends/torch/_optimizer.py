"""CoolMomentum as a torch optimizer: parameter groups, the step, checkpoints, temperature."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor
from torch.optim import Optimizer

from coolmomentum import _check, _defaults
from coolmomentum.schedules import Law, Schedule, WarmupClock
from coolmomentum.temperature import DisplacementSum, coordinates
from coolmomentum.torch._clock import next_rho, place_clock, refresh_rho, scalar, step_of, tick
from coolmomentum.torch._paths import (
    Number,
    Plan,
    Step,
    Tensors,
    Ways,
    differentiable_step,
    local,
    sort_out,
    take_step,
)
from coolmomentum.torch._settings import (
    COOLING,
    FLAGS,
    Group,
    at_rest,
    check_fused,
    checked,
    checked_cooling,
    clock_of,
    displacement_dtype,
    plain,
)
from coolmomentum.torch._thermometry import pooled_sums_of_squares, sums_of_squares


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
        schedule is given or the law is "constant".
    rho0 : initial momentum coefficient, in [0, 1); 0.99 if None.
    law : "paper" (if None), "linear", "exponential" or "constant", see
        :class:`coolmomentum.CoolingSchedule`.
    warmup_steps : steps at the start with rho = 0, in [0, total_steps).
    warmup_clock : "run" (if None) lets the cooling run on meanwhile, "hold" starts it after that.
    hold_steps : steps at the start with rho = rho0, before the law begins, in [0, total_steps).
    schedule : a :class:`coolmomentum.CoolingSchedule`, or any callable ``step -> rho`` in [-1, 1),
        in place of the six arguments before. A callable gets a Python int, or a 0-d integer tensor
        in compiled and capturable steps, and is not part of the checkpoint.
    weight_decay : coefficient of the L2 term added to the gradient, finite and >= 0.
    decoupled_weight_decay : shrink the parameters by ``1 - lr weight_decay`` instead (as AdamW).
    maximize : go up the gradient.
    foreach : False for a loop over the tensors; otherwise few calls for many tensors, where they
        are plain tensors.
    fused : True or False to choose; by default the fused kernel is used on the CPU. It is used only
        where it is right: float32, dense and equal layouts (on CUDA half precision too).
    capturable : keep clock and rho on the device, so that the step can be captured in a CUDA graph.
    differentiable : keep the graph of the step, also to lr where it is a tensor.
    displacement_dtype : ``torch.float32`` keeps float32 displacements for half-precision
        parameters; by default they have the dtype of the parameter. The arithmetic of a step is
        float32 or better in any case.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.
    RuntimeError
        If foreach, fused and differentiable contradict each other.

    Warns
    -----
    UserWarning
        Once, when the clock runs more than 5 % past total_steps in eager steps.

    Notes
    -----
    Beside its settings a parameter group holds, to be read, ``"cooling_step"``, the clock (a 0-d
    int64 tensor), ``"cooling_rho"``, the coefficient of the next step, ``"cooling_lr"``, the
    learning rate of the last step, and ``"cooling_idle"``, the indices of the parameters that the
    last step did not move, as ``"0,3"`` (distributed checkpoints cannot take a list). Settings that
    you edit there are checked before the next step. No key is called momentum: give OneCycleLR and
    CyclicLR ``cycle_momentum=False``.

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
    >>> x.item(), optimizer.rho, optimizer.temperature().item()
    (0.525390625, 0.0, 0.261856079...)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = _defaults.LEARNING_RATE,
        *,
        total_steps: int | None = None,
        rho0: float | None = None,
        law: Law | None = None,
        warmup_steps: int | None = None,
        warmup_clock: WarmupClock | None = None,
        hold_steps: int | None = None,
        schedule: Schedule | None = None,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        displacement_dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "total_steps": total_steps,
            "rho0": rho0,
            "law": law,
            "warmup_steps": warmup_steps,
            "warmup_clock": warmup_clock,
            "hold_steps": hold_steps,
            "schedule": schedule,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": differentiable,
            "displacement_dtype": displacement_dtype,
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
        self._check_groups()
        if isinstance(param_group, dict):
            # The clock of a group that comes from another optimizer is not that of this run.
            own = {name: x for name, x in param_group.items() if name not in _PUBLISHED}
            param_group = own | checked(own, self.defaults)
        super().add_param_group(param_group)
        self._publish(self.param_groups[-1], self._running_clock())
        self._note_settings(len(self.param_groups) - 1)

    def _running_clock(self) -> Tensor:
        """A copy of the clock of a group, or of one that was taken out; 0 at the start."""
        clocks = [group.get("cooling_step") for group in self.param_groups]
        clocks.append(getattr(self, "_last_clock", None))
        running = [clock for clock in clocks if isinstance(clock, Tensor)]
        return running[0].clone() if running else torch.zeros((), dtype=torch.int64, device="cpu")

    def _publish(self, group: Group, clock: Tensor) -> None:
        """Let a group begin at a clock, with what is to be read beside it."""
        group["cooling_step"] = clock
        group["cooling_lr"] = 1.0  # none yet; a displacement of 0 is cold by any but 0
        group["cooling_idle"] = ""
        place_clock(group)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the clock and the settings that were checked go along."""
        kept = {name: self.__dict__[name] for name in _KEPT if name in self.__dict__}
        state: dict[str, Any] = super().__getstate__()
        return state | kept

    def extend(self, total_steps: int) -> None:
        """Cool over another number of steps from now on: "train longer".

        rho is then where a run of ``total_steps`` would have it at this step. So it may rise.

        Parameters
        ----------
        total_steps : of the whole run, those that were taken included; for all parameter groups.

        Raises
        ------
        TypeError
            If it is not an integer, or a group follows a schedule of your own.
        ValueError
            If more steps than that were taken, or a group holds or warms up for as long.
        RuntimeError
            If the step is capturable: a captured graph does not see the change.

        Examples
        --------
        >>> x = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = CoolMomentum([x], total_steps=2, rho0=0.75, law="linear")
        >>> for _ in range(2):
        ...     (x**2 / 2).sum().backward()
        ...     optimizer.step()
        >>> optimizer.rho
        0.0
        >>> optimizer.extend(total_steps=4)
        >>> optimizer.rho
        0.6
        """
        total_steps = _check.integer("total_steps", total_steps, 1)
        self._check_groups()
        extended = []
        for group in self.param_groups:
            if group["schedule"] is not None:
                raise TypeError(
                    "extend is for a run that cools by total_steps, not by a schedule of your own: "
                    f"{group['schedule']!r}"
                )
            if group["capturable"]:
                raise RuntimeError(
                    "extend is not for capturable=True, as a captured graph would not see it: "
                    'set group["total_steps"] and capture the step anew'
                )
            if (taken := int(group["cooling_step"])) > total_steps:
                raise ValueError(f"total_steps must be >= the {taken} steps taken: {total_steps}")
            extended.append(checked_cooling(group | {"total_steps": total_steps}, whole=True))
        for group, cooling in zip(self.param_groups, extended, strict=True):
            group.update(cooling)
            refresh_rho(group)
        for index in range(len(self.param_groups)):
            self._note_settings(index)
        if self.defaults["total_steps"] is not None:
            self.defaults["total_steps"] = total_steps
        self.__dict__["_has_warned"] = False

    @property
    def rho(self) -> float | list[float]:
        """Momentum coefficient of the next step; a list with that of each group if they differ.

        NaN where a schedule of your own fails. On an accelerator (capturable) reading it waits.
        """
        self._check_groups()
        rhos = [float(next_rho(group)) for group in self.param_groups]
        return rhos[0] if len(set(rhos)) == 1 else rhos

    def state_dict(self) -> dict[str, Any]:
        """The checkpoint: clock, settings and displacements, without schedule callables.

        NumPy numbers become Python's.

        Returns
        -------
        dict as of every torch optimizer, which ``torch.load(..., weights_only=True)`` reads back
        """

        def without_callables(_: Optimizer, packed: dict[str, Any]) -> None:
            for group in packed["param_groups"]:
                group.update(plain(group))
                if group["schedule"] is not None:
                    group["schedule"] = _OWN_SCHEDULE
            packed["state"] = plain(packed["state"])

        self._check_groups()
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
        TypeError, ValueError
            If it is the checkpoint of another optimizer, parameter groups or shapes do not match,
            or a setting is out of range. Nothing has been changed then.

        Warns
        -----
        UserWarning
            Once, with all settings of the cooling that are not the constructor's.
        """
        self._check_groups()
        before = [dict(group) for group in self.param_groups]
        seen: dict[str, Any] = {}
        _check_form(state_dict)

        def check(_: Optimizer, loaded: dict[str, Any]) -> None:
            _check_form(loaded)
            seen.update(loaded)
            if len(loaded["param_groups"]) != len(before):
                return  # torch refuses it
            seen["groups"] = [
                _continued(own, saved)
                for own, saved in zip(before, loaded["param_groups"], strict=True)
            ]
            self._check_loaded_shapes(loaded)

        def restore(_: Optimizer) -> None:
            groups = zip(self.param_groups, seen["param_groups"], seen["groups"], strict=True)
            for group, saved, continued in groups:
                group.update(continued)
                for param, key in zip(group["params"], saved["params"], strict=True):
                    # torch has cast it to the dtype of the parameter, which may be narrower.
                    if "displacement" in seen["state"].get(key, {}):
                        self.state[param]["displacement"] = seen["state"][key]["displacement"].to(
                            device=param.device, dtype=displacement_dtype(param, group)
                        )
                place_clock(group)
            for index in range(len(self.param_groups)):
                self._note_settings(index)

        # As hooks, because the hooks of the user before them may change what is loaded, and those
        # after them may look at it.
        hooks = (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()
        for own, saved in zip(before, seen["param_groups"], strict=True):
            if message := _difference(own, saved):
                warnings.warn(message, stacklevel=2)
                break

    def _check_loaded_shapes(self, loaded: dict[str, Any]) -> None:
        """Refuse displacements that are not of their parameter's shape and kind, or of none."""
        for group, saved in zip(self.param_groups, loaded["param_groups"], strict=True):
            for param, key in zip(group["params"], saved["params"], strict=False):
                state = loaded["state"].get(key, {})
                if "displacement" in state:
                    self._check_tensor(param, "displacement", state["displacement"], param)

    def _check_tensor(self, param: Tensor, name: str, value: Any, like: Tensor) -> None:
        """Refuse what a kernel cannot take beside a parameter, or would take for something else."""
        text = f"the {name} of parameter {self._label(param)!r} must "
        if not isinstance(value, Tensor):
            raise TypeError(f"{text}be a tensor: {value!r}")
        if value.shape != like.shape:
            raise ValueError(f"{text}have its shape, {tuple(like.shape)}: {tuple(value.shape)}")
        if not (value.is_floating_point() or value.is_complex()):
            raise TypeError(f"{text}be of floating point: {value.dtype}")
        if value.is_complex() and not like.is_complex():
            raise TypeError(f"{text}be real, as the parameter is: {value.dtype}")
        # A gradient is only read, and autograd expands that of a sum.
        if value.layout != torch.strided or (name != "gradient" and _overlaps(value)):
            raise ValueError(f"{text}be dense and have a place for each number: {value.layout}")

    def _label(self, param: Tensor) -> str | int:
        """The name of a parameter where it is known, else its place in the optimizer."""
        return next(label for label, other in self._labelled() if other is param)

    def _labelled(self) -> Iterator[tuple[str | int, Tensor]]:
        """Parameters with a label each; a name that comes again gets a number, ``weight#2``."""
        place = 0
        taken = {name for group in self.param_groups for name in group.get("param_names", ())}
        seen: set[str | int] = set()
        for group in self.param_groups:
            names = group.get("param_names", ())
            for i, param in enumerate(group["params"]):
                name = label = names[i] if i < len(names) else place
                count = 1
                while label in seen or (count > 1 and label in taken):
                    count += 1
                    label = f"{name}#{count}"
                seen.add(label)
                yield label, param
                place += 1

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
        self._check_groups()
        if torch.compiler.is_compiling():
            work = self._prepared()
        else:  # all that may fail comes before anything has changed
            fresh = self.__dict__["_fresh"] = []  # not in a copy or pickle
            try:
                work = self._prepared()
            except Exception:
                self._forget(fresh)
                raise
        past_end = []
        for group, tensors, step, here, way in work:
            if (scale := getattr(self, "grad_scale", None)) is not None:
                for grad in tensors.grads:
                    local(grad).div_(scale.reshape(()).to(grad.device))
            if group["differentiable"]:
                for param, grad, displacement in tensors.triples():
                    moved = differentiable_step(param, grad, displacement, step)
                    self.state[param]["displacement"] = moved
            else:
                take_step(here, step, way)
            if group["cooling_idle"] or len(tensors.params) != len(group["params"]):
                group["cooling_idle"] = ",".join(
                    [str(i) for i, param in enumerate(group["params"]) if param.grad is None]
                )
            if tick(group, step.lr):
                past_end.append(group)
        if past_end:
            self._warn_of_the_end(past_end[0])

    def _prepared(self) -> list[tuple[Group, Tensors, Step, Tensors, Ways]]:
        """What a step moves and how, group by group; nothing if no parameter has a gradient."""
        every = []
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            displacements: list[Tensor] = []
            self._init_group(group, params, grads, displacements)
            every.append(Tensors(params, grads, displacements))
        if not any([tensors.params for tensors in every]) and self._has_parameters():
            return []
        groups = list(enumerate(zip(self.param_groups, every, strict=True)))
        steps = [step_of(group) for group in self.param_groups]
        ways = [self._ways(i, tensors, group) for i, (group, tensors) in groups]
        return [
            (group, tensors, step, *way)
            for (_, (group, tensors)), step, way in zip(groups, steps, ways, strict=True)
        ]

    def _forget(self, fresh: list[Tensor]) -> None:
        """Take back the displacements at rest that a step which failed had made."""
        for param in fresh:
            del self.state[param]["displacement"]
            if not self.state[param]:
                del self.state[param]

    def _has_parameters(self) -> bool:
        """False in a process that has none, as under ZeroRedundancyOptimizer; its clock runs on."""
        return any([group["params"] for group in self.param_groups])

    def _check_groups(self) -> None:
        """Check what was edited by hand since the last step, as the constructor checks it."""
        if torch.compiler.is_compiling():
            return
        # Not self.__dict__: Lightning's wrapper poses as this class and has what it wraps alone.
        known = getattr(self, "_known", {})
        for index, group in enumerate(self.param_groups):
            noted = known.get(index, (None, None, None))
            *now, clock = self._settings_of(group)
            if clock is noted[2] and now == [*noted[:2]] and _is_good_rate(group.get("lr")):
                continue
            for name, default in self.defaults.items():
                group.setdefault(name, default)
            new = dict(group)
            if noted[1] and new["schedule"] is not None and new["schedule"] is not noted[1][0]:
                new |= dict.fromkeys(COOLING)  # a new schedule replaces the numbers
            settings = checked(new, whole=True)
            settings["lr"] = group["lr"] if isinstance(group["lr"], Tensor) else settings["lr"]
            group.update(settings)
            clock, idle = group.get("cooling_step"), group.get("cooling_idle")
            if clock is None or clock is not noted[2]:
                lr = group.get("cooling_lr", 1.0)
                self._publish(group, self._running_clock() if clock is None else _as_clock(clock))
                group["cooling_lr"] = lr
                place_clock(group)
            group["cooling_idle"] = idle if isinstance(idle, str) else ""
            refresh_rho(group)
            self._note_settings(index)

    def _settings_of(self, group: Group) -> tuple[list[type], list[Any], Any]:
        """What tells whether a group was edited: types, values, and the clock it had."""
        values = [group.get(name) for name in _CHECKED]
        published = all(name in group for name in _PUBLISHED)
        return list(map(type, values)), values, group.get("cooling_step") if published else None

    def _note_settings(self, index: int) -> None:
        if not hasattr(self, "_known"):
            self._known: dict[int, tuple[Any, ...]] = {}
        self._known[index] = self._settings_of(self.param_groups[index])
        self.__dict__["_last_clock"] = self.param_groups[index]["cooling_step"]

    def _warn_of_the_end(self, group: Group) -> None:
        if not self.__dict__.get("_has_warned"):
            self.__dict__["_has_warned"] = True
            step, end = group["cooling_step"], group["total_steps"]
            warnings.warn(
                f"{int(step)} steps are more than 5 % past total_steps={end}, when rho came to 0. "
                "Count optimizer steps, not epochs; to train for longer call "
                "optimizer.extend(total_steps).",
                stacklevel=_level_of_the_caller(),
            )

    def _ways(self, index: int, tensors: Tensors, group: Group) -> tuple[Tensors, Ways]:
        """What this process has of the tensors, and the path of each.

        By the dispatch of the last step if that still fits, which wants the same shapes again.
        """
        if group["differentiable"]:
            self._check_shapes(tensors, tensors)
            return tensors, []
        here = tensors.here()
        if torch.compiler.is_compiling():
            self._check_shapes(tensors, here)
            return here, sort_out(here, group)
        plans: dict[int, Plan] = self.__dict__.setdefault("_plans", {})  # not in a copy or pickle
        if index not in plans or not plans[index].fits(here, group):
            plans.pop(index, None)
            self._check_shapes(tensors, here)
            plans[index] = Plan(here, group)
        return here, plans[index].ways

    def _check_shapes(self, tensors: Tensors, here: Tensors) -> None:
        """Refuse gradients and displacements that are not of the shape of their parameter.

        Kernels do not look: they would read and write outside of the memory.
        """
        for param, (x, grad, displacement) in zip(tensors.params, here.triples(), strict=True):
            for name, value in (("gradient", grad), ("displacement", displacement)):
                self._check_tensor(param, name, value, x)
                if value.device != x.device:
                    raise ValueError(
                        f"the {name} of parameter {self._label(param)!r} must be on its device, "
                        f"{x.device}: {value.device}"
                    )
            if _overlaps(x):
                raise ValueError(
                    f"parameter {self._label(param)!r} must have a place for each number: "
                    f"strides {x.stride()}"
                )

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
                self.__dict__.setdefault("_fresh", []).append(param)

    def _is_dry_run(self) -> bool:
        """Whether this is the step by which torch.distributed.checkpoint makes state appear.

        It steps a fresh optimizer with learning rate 0 and gradients of zeros (pytorch#164929),
        which is no step of the run and must not start the clock. A warm-up from learning rate 0 has
        gradients.
        """
        if torch.compiler.is_compiling() or any("displacement" in x for x in self.state.values()):
            return False
        if not all(_number(group["lr"]) == 0 for group in self.param_groups):
            return False
        every = [param.grad for group in self.param_groups for param in group["params"]]
        if not self._has_parameters():  # nothing tells it from a warm-up from 0, which comes first
            return any(int(group["cooling_step"]) for group in self.param_groups)
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
        coordinates. A parameter that had no gradient in the last step did not move in it. What
        moved with a learning rate of 0 is infinitely hot.

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

    def temperatures(self) -> dict[str | int, Tensor]:
        """:meth:`temperature` of each parameter by itself.

        Returns
        -------
        dict of 0-d float64 tensors, by the name of a trainable parameter where the optimizer was
        made with ``model.named_parameters()``, else by its place among the parameters, from 0
        """
        return self._apart(in_units_of_lr=True)

    def rescaled_temperatures(self) -> dict[str | int, Tensor]:
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
    def _apart(self, in_units_of_lr: bool) -> dict[str | int, Tensor]:
        groups = self._displacements()
        sums = iter(sums_of_squares([x for _, displacements in groups for x in displacements]))
        labels = {param: label for label, param in self._labelled()}
        return {
            labels[param]: DisplacementSum(_over(next(sums), lr), _size([param]), 1).read()
            for (params, _), lr in zip(groups, self._units(in_units_of_lr), strict=True)
            for param in params
        }

    def _displacements(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        """For each group the parameters that moved or are trainable, and how they moved last."""
        self._check_groups()
        at_rest = torch.zeros((), device="cpu")  # of one that the last step left alone
        groups = []
        for group in self.param_groups:
            idle = {int(i) for i in group["cooling_idle"].split(",") if i.isdigit()}
            pairs = [
                (p, at_rest if i in idle else self.state.get(p, {}).get("displacement", at_rest))
                for i, p in enumerate(group["params"])
            ]
            pairs = [(p, dx) for p, dx in pairs if p.requires_grad or dx is not at_rest]
            groups.append(([p for p, _ in pairs], [dx for _, dx in pairs]))
        return groups

    def _units(self, in_units_of_lr: bool) -> list[Number]:
        """For each group what its squared displacements are to be divided by."""
        return [
            scalar(group["cooling_lr"]) if in_units_of_lr else 1.0 for group in self.param_groups
        ]


# What a group publishes, and settings of the cooling, which are checked when they change.
_PUBLISHED = ("cooling_step", "cooling_rho", "cooling_lr", "cooling_idle")
_CHECKED = ("schedule", *COOLING, *FLAGS, "weight_decay", "foreach", "fused", "displacement_dtype")
_KEPT = ("_known", "_last_clock")  # beside what torch copies
_OWN_SCHEDULE = "a function of the step"  # stands for it in a checkpoint
_SPARSE = {
    torch.sparse_coo,
    torch.sparse_csr,
    torch.sparse_csc,
    torch.sparse_bsr,
    torch.sparse_bsc,
}


def _check_form(state_dict: Any) -> None:
    """Refuse what is no checkpoint of this optimizer, before any of it is used."""
    groups = state_dict.get("param_groups") if isinstance(state_dict, dict) else None
    state = state_dict.get("state") if isinstance(state_dict, dict) else None
    if (
        not isinstance(groups, list)
        or not isinstance(state, dict)
        or not all(isinstance(group, dict) and "params" in group for group in groups)
        or not all("cooling_step" in group for group in groups)
    ):
        raise ValueError(
            "state_dict must be of a CoolMomentum: to start anew from the weights of another "
            "optimizer, load the model only and leave this optimizer as it was made"
        )
    listed = {key for group in groups for key in group["params"]}
    for key, entry in state.items():
        if key in listed and not isinstance(entry, dict):
            raise ValueError(f"state_dict must hold a dict for each parameter: {key!r}: {entry!r}")
        if key not in listed and isinstance(entry, dict) and "displacement" in entry:
            raise ValueError(f"state_dict must list in its groups each parameter: {key!r}")


def _continued(own: Group, saved: Group) -> Group:
    """What a group becomes when it continues a saved one; raises if that cannot be."""
    kept = {name: own[name] for name in own if name not in saved}  # say, flags of later versions
    clock = clock_of(saved["cooling_step"])
    # A function of the step is not in the checkpoint.
    if own["schedule"] is not None or saved.get("schedule") is not None:
        cooling = {name: own[name] for name in ("schedule", *COOLING)}
    else:
        cooling = {}
    settings = checked(own | saved | cooling, whole=True)
    cooling = {name: settings[name] for name in ("schedule", *COOLING)}
    return kept | cooling | {"cooling_step": torch.tensor(clock, dtype=torch.int64, device="cpu")}


def _as_clock(value: Any) -> Tensor:
    """A clock that somebody wrote into a group."""
    if isinstance(value, Tensor) and type(value) is not Tensor:
        return value  # of FakeTensorMode, without a value
    return torch.tensor(clock_of(value), dtype=torch.int64, device="cpu")


def _is_good_rate(lr: Any) -> bool:
    """Whether a learning rate needs no closer look; a tensor of one is not waited for."""
    return (type(lr) is float and 0 <= lr < math.inf) or isinstance(lr, Tensor)


def _overlaps(tensor: Tensor) -> bool:
    """Whether some of its numbers share their place in memory."""
    sizes = zip(tensor.stride(), tensor.shape, strict=True)
    return tensor.numel() > 0 and any([stride == 0 and size > 1 for stride, size in sizes])


def _level_of_the_caller() -> int:
    """The stacklevel of a warning that is to name the line that called step."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(
        ("torch.", "coolmomentum.")
    ):
        level, frame = level + 1, frame.f_back
    return level - 1


def _difference(own: Group, saved: Group) -> str:
    """What to warn of when a group continues a saved one that cooled in another way."""
    followed = saved.get("schedule") is not None
    if own["schedule"] is not None:
        return "" if followed else "the checkpoint did not follow this optimizer's own schedule"
    if followed:
        return "the checkpoint followed a schedule of its own, which it does not hold"
    names = [name for name in COOLING if name in saved and saved[name] != own[name]]
    changes = ", ".join(f"{name}={saved[name]!r} replaces {own[name]!r}" for name in names)
    return changes and (
        f"of the checkpoint, {changes}; to train for longer than planned call "
        "optimizer.extend(total_steps)"
    )


def _over(square: Number, lr: Number) -> Number:
    """``square / lr``; where lr is 0 infinite, and 0 at rest."""
    if not isinstance(lr, Tensor) and lr:
        return square / lr
    if not isinstance(lr, Tensor) and not isinstance(square, Tensor):
        return square and math.inf
    quotient: Any = square / lr if isinstance(lr, Tensor) else square * math.inf
    moved = square if isinstance(square, Tensor) else torch.full_like(quotient, square)
    return torch.where(moved == 0, torch.zeros_like(quotient), quotient)


def _size(params: list[Tensor]) -> int:
    """How many real numbers there are in the tensors."""
    if any([param.is_complex() for param in params]):
        return sum(coordinates(param, xp=xp) for param in params)
    return sum([param.numel() for param in params])  # the same, many times faster


def _number(value: float | Tensor) -> float:
    """As ``float(...)``, which warns of a tensor that requires a gradient."""
    return value.item() if isinstance(value, Tensor) else value
