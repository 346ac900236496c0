"""CoolMomentum as a torch optimizer: parameter groups, the step, checkpoints, temperature."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable
from operator import is_, itemgetter
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from coolmomentum import _check, _defaults
from coolmomentum.schedules import Law, Schedule, WarmupClock
from coolmomentum.torch import _checkpoint as checkpoint
from coolmomentum.torch import _coefficients as coefficients
from coolmomentum.torch import _validation as validation
from coolmomentum.torch._dispatch import Buckets, DispatchCache, apply_step, bucket_by_kernel
from coolmomentum.torch._kernels import differentiable
from coolmomentum.torch._reductions import sums_of_squares
from coolmomentum.torch._temperature import Moved, apart, mean_squares, moved, pooled
from coolmomentum.torch._tensors import Coefficients, Group, Number, TensorLists, to_local
from coolmomentum.torch._validation import SCHEDULE_KEYS, SETTINGS, checked, plain


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

    _bath: Any = None  # a ThermalNoise, which says so itself
    _cools_when_told = False  # by a Cooldown, which says so itself

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
        defaults = {name: value for name, value in locals().items() if name in SETTINGS}
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
            # A group that comes from another optimizer has the step counter of another run.
            own = {name: x for name, x in param_group.items() if name not in _PUBLISHED}
            param_group = own | checked(own, self.defaults)
        super().add_param_group(param_group)
        try:
            start(self.param_groups[-1], self._running_step())
        except Exception:  # a schedule that takes no tensor, in a capturable step
            del self.param_groups[-1]
            raise
        self._note_settings(len(self.param_groups) - 1)

    def _running_step(self) -> Tensor:
        """A copy of the step counter of a group, or of one that was taken out; 0 at the start."""
        steps = [group.get("cooling_step") for group in self.param_groups]
        steps.append(getattr(self, "_last_step", None))
        running = [step for step in steps if isinstance(step, Tensor)]
        return running[0].clone() if running else torch.zeros((), dtype=torch.int64, device="cpu")

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the step counter and the settings that were checked go along."""
        state: dict[str, Any] = super().__getstate__()
        return state | {name: x for name, x in vars(self).items() if name in _KEPT}

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
            new = group | {"total_steps": total_steps}
            extended.append(validation.checked_cooling(new, whole=True))
        for index, cooling in enumerate(extended):
            self.param_groups[index].update(cooling)
            coefficients.refresh_rho(self.param_groups[index])
            self._note_settings(index)
        if self.defaults["total_steps"] is not None:
            self.defaults["total_steps"] = total_steps
        self.__dict__["_has_warned"] = False

    @property
    def rho(self) -> float | list[float]:
        """Momentum coefficient of the next step; a list with one for each group if they differ.

        NaN where a schedule of your own fails. On an accelerator (capturable) reading it waits.
        """
        self._check_groups()
        rhos = [float(coefficients.next_rho(group)) for group in self.param_groups]
        return rhos[0] if len(set(rhos)) == 1 else rhos

    # --- checkpoints ----------------------------------------------------------------------------

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
                    group["schedule"] = checkpoint.OWN_SCHEDULE
            packed["state"] = plain(packed["state"])

        self._check_groups()
        # A hook that runs first, so that the user's hooks see the checkpoint and may change it.
        with self.register_state_dict_post_hook(without_callables, prepend=True):
            return super().state_dict()

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
        checkpoint.check_form(state_dict)
        seen: dict[str, Any] = {}

        def check(_: Optimizer, loaded: dict[str, Any]) -> None:
            checkpoint.check_form(loaded)
            seen.update(loaded)
            if len(loaded["param_groups"]) != len(before):
                return  # torch refuses it
            groups = zip(before, loaded["param_groups"], strict=True)
            seen["continued"] = [checkpoint.continued(own, saved) for own, saved in groups]
            for param, _group, displacement in checkpoint.displacements_in(
                loaded, self.param_groups
            ):
                self._check_tensor(param, "displacement", displacement, param)

        def restore(_: Optimizer) -> None:
            for group, continued in zip(self.param_groups, seen["continued"], strict=True):
                group.update(continued)
                coefficients.place_step_counter(group)
            for param, group, displacement in checkpoint.displacements_in(seen, self.param_groups):
                # torch has cast it to the dtype of the parameter, which may be narrower.
                dtype = validation.displacement_dtype(param, group)
                self.state[param]["displacement"] = displacement.to(param.device, dtype)
            for index in range(len(self.param_groups)):
                self._note_settings(index)
            self.__dict__.pop("_dispatch", None)  # it holds the old displacements

        # Hooks, because the user's pre-hooks may change the checkpoint, and the user's post-hooks
        # may look at the result.
        with (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ):
            super().load_state_dict(state_dict)
        messages = map(self._difference, before, seen["param_groups"])
        if message := next(filter(None, messages), None):
            warnings.warn(message, stacklevel=2)

    def _difference(self, own: Group, saved: Group) -> str:
        """A warning for a group that a checkpoint cools in another way, or an empty text."""
        if self._cools_when_told:  # held or cooling, it has no other plan
            own = own | {name: saved[name] for name in _TOLD if name in saved}
        return checkpoint.difference(own, saved)

    def _check_tensor(self, param: Tensor, name: str, value: Any, like: Tensor, **how: Any) -> None:
        """Refuse a gradient or displacement that a kernel cannot take with the parameter."""
        try:
            validation.check_tensor(value, like, read_only=name == "gradient", **how)
        except (TypeError, ValueError) as error:
            label = self._labels()[param]
            raise type(error)(f"the {name} of parameter {label!r} {error}") from None

    def _labels(self) -> dict[Tensor, str | int]:
        """Parameters with a label each: their name where it is known, else their place.

        A name that comes again gets a number, ``weight#2``. As the thermometer's Layout, which
        torch.compile cannot trace.
        """
        labels: dict[Tensor, str | int] = {}
        taken: set[str | int] = set()
        names = {name for group in self.param_groups for name in group.get("param_names", ())}
        for group in self.param_groups:
            known = group.get("param_names", ())
            for i, param in enumerate(group["params"]):
                name = label = known[i] if i < len(known) else len(labels)
                count = 1
                while label in taken or (count > 1 and label in names):
                    count += 1
                    label = f"{name}#{count}"
                taken.add(label)
                labels[param] = label
        return labels

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
        past_end = []
        for group, tensors, step, local, buckets in self._prepared():
            if (scale := getattr(self, "grad_scale", None)) is not None:
                for param in tensors.params:
                    to_local(cast(Tensor, param.grad)).div_(scale.reshape(()).to(param.device))
            if group["differentiable"]:
                for param, moved in zip(tensors.params, differentiable(tensors, step), strict=True):
                    self.state[param]["displacement"] = moved
            else:
                apply_step(local, step, buckets)
            if group["cooling_idle"] or len(tensors.params) != len(group["params"]):
                idle = [str(i) for i, param in enumerate(group["params"]) if param.grad is None]
                group["cooling_idle"] = ",".join(idle)
            if coefficients.advance_step(group, step.lr):
                past_end.append(group)
        if past_end:
            self._warn_of_the_end(past_end[0])

    def _prepared(self) -> list[tuple[Group, TensorLists, Coefficients, TensorLists, Buckets]]:
        """The tensors, coefficients and kernels of each group; none if there is no gradient at all.

        Everything that may fail is here, before anything has changed.
        """
        if torch.compiler.is_compiling():
            return self._plan()
        self.__dict__["_fresh"] = fresh = list[Tensor]()  # not in a copy or pickle
        try:
            return self._plan()
        except Exception:
            for param in fresh:
                del self.state[param]["displacement"]
                if not self.state[param]:
                    del self.state[param]
            raise

    def _plan(self) -> list[tuple[Group, TensorLists, Coefficients, TensorLists, Buckets]]:
        every = [TensorLists([], [], []) for _ in self.param_groups]
        for group, tensors in zip(self.param_groups, every, strict=True):
            self._init_group(group, *tensors)
        if not any([tensors.params for tensors in every]) and self._has_parameters():
            return []
        steps = [coefficients.coefficients_for(group) for group in self.param_groups]
        if self._bath is not None:
            every = self._forced(every, steps)
        buckets = [self._bucketed(index, tensors) for index, tensors in enumerate(every)]
        work = zip(self.param_groups, every, steps, buckets, strict=True)
        return [(group, tensors, step, *bucketed) for group, tensors, step, bucketed in work]

    def _forced(self, every: list[TensorLists], steps: list[Coefficients]) -> list[TensorLists]:
        """The lists with other gradients, unscaled, to which the random forces were added."""
        places = self._bath.places()
        scale = getattr(self, "grad_scale", None)
        forced = []
        for group, tensors, step in zip(self.param_groups, every, steps, strict=True):
            grads = tensors.grads
            _refuse_sparse(grads)
            if scale is not None:
                grads = [grad / scale.reshape(()).to(grad.device) for grad in grads]
            grads = self._bath.forced(group, [places[p] for p in tensors.params], grads, step)
            forced.append(tensors._replace(grads=grads))
        return forced

    def _init_group(
        self, group: Group, params: list[Tensor], grads: list[Tensor], displacements: list[Tensor]
    ) -> None:
        """Fill the lists with what has a gradient. torch.compile wants this name and the lists."""
        found = [param.grad for param in group["params"]]
        grads.extend([grad for grad in found if grad is not None])
        params.extend(group["params"])
        if len(grads) < len(found):
            params[:] = [p for p, grad in zip(params, found, strict=True) if grad is not None]
        state = self.state
        try:  # to look each up once: with many small tensors this is a good part of a step
            displacements.extend([*map(_DISPLACEMENT, map(state.__getitem__, params))])
        except KeyError:
            for param in params:
                if "displacement" not in state[param]:
                    state[param]["displacement"] = validation.zero_displacement(param, group)
                    self.__dict__.setdefault("_fresh", []).append(param)
            displacements.extend([state[param]["displacement"] for param in params])

    def _bucketed(self, index: int, tensors: TensorLists) -> tuple[TensorLists, Buckets]:
        """The local parts of the tensors, and the kernel of each.

        The kernels of the last step serve again if the tensors look the same, shapes included.
        """
        group = self.param_groups[index]
        if group["differentiable"]:
            self._check_tensors(group, tensors, tensors)
            return tensors, []
        local = tensors.to_local()
        if torch.compiler.is_compiling():
            self._check_tensors(group, tensors, local)
            return local, bucket_by_kernel(local, group)
        caches: dict[int, DispatchCache] = self.__dict__.setdefault("_dispatch", {})
        if index not in caches or not caches[index].matches(local, group):
            caches.pop(index, None)
            self._check_tensors(group, tensors, local)
            caches[index] = DispatchCache(local, group)
        return local, caches[index].buckets

    def _check_tensors(self, group: Group, tensors: TensorLists, local: TensorLists) -> None:
        """Refuse gradients and displacements that are not of the shape of their parameter.

        Kernels do not look: they would read and write outside of the memory.
        """
        _refuse_sparse(local.grads)
        if group["fused"]:
            validation.check_fused(tensors.params)
        for param, (x, grad, displacement) in zip(tensors.params, local.zipped(), strict=True):
            self._check_tensor(param, "gradient", grad, x, device=x.device)
            self._check_tensor(param, "displacement", displacement, x, device=x.device)
            if not validation.has_a_place_for_each(x):
                raise ValueError(
                    f"parameter {self._labels()[param]!r} must have a place for each number: "
                    f"strides {x.stride()}"
                )

    def _has_parameters(self) -> bool:
        """False in a process that has none, as under ZeroRedundancyOptimizer: it counts on."""
        return any([group["params"] for group in self.param_groups])

    def _check_groups(self) -> None:
        """Check what was edited by hand since the last step, as the constructor checks it."""
        if torch.compiler.is_compiling():
            return
        # Not self.__dict__: Lightning's wrapper poses as this class, and its __dict__ is its own.
        known = getattr(self, "_known", {})
        for index, group in enumerate(self.param_groups):
            noted = known.get(index, [None])
            now = [*map(group.get, _NOTED)]
            is_noted = len(now) == len(noted) and all(map(is_, now, noted))
            if not (is_noted and group.keys() >= _PUBLISHED and _is_good_rate(group.get("lr"))):
                self._adopt(group, *noted)
                self._note_settings(index)

    def _adopt(self, group: Group, schedule: Any, step: Any = None, *_: Any) -> None:
        """Make a group whole that was edited since its schedule, step and the rest were noted."""
        for name, default in self.defaults.items():
            group.setdefault(name, default)
        new = dict(group)
        if step is not None and new["schedule"] is not None and new["schedule"] is not schedule:
            new |= dict.fromkeys(SCHEDULE_KEYS)  # a new schedule replaces the numbers
        group.update(checked(new, whole=True))
        idle = group.get("cooling_idle")
        given = group.get("cooling_step")
        if given is None or given is not step or not group.keys() >= _PUBLISHED:
            counted = self._running_step() if given is None else _as_step_counter(given)
            start(group, counted, group.get("cooling_lr", 1.0))
        group["cooling_idle"] = idle if isinstance(idle, str) else ""
        coefficients.refresh_rho(group)

    def _note_settings(self, index: int) -> None:
        if not hasattr(self, "_known"):
            self._known: dict[int, list[Any]] = {}
        self._known[index] = [*map(self.param_groups[index].get, _NOTED)]
        self.__dict__["_last_step"] = self.param_groups[index]["cooling_step"]

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

    def _is_dry_run(self) -> bool:
        """Whether this is the step by which torch.distributed.checkpoint makes state appear.

        It steps a fresh optimizer with learning rate 0 and gradients of zeros (pytorch#164929),
        which is no step of the run and must not start the clock. A warm-up from learning rate 0 has
        gradients.
        """
        if torch.compiler.is_compiling() or any("displacement" in x for x in self.state.values()):
            return False
        if any(torch.as_tensor(group["lr"]).item() for group in self.param_groups):
            return False
        if not self._has_parameters():  # nothing tells it from a warm-up from 0, which comes first
            return any(int(group["cooling_step"]) for group in self.param_groups)
        every = [param.grad for group in self.param_groups for param in group["params"]]
        grads = [grad for grad in every if grad is not None]
        if any([grad.layout != torch.strided for grad in grads]):
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
        return self._mean(over_lr=True)

    def rescaled_temperature(self) -> Tensor:
        """Mean squared displacement ``T dt**2`` of the last step, over all parameters.

        Returns
        -------
        0-d float64 tensor, as :meth:`temperature`
        """
        return self._mean(over_lr=False)

    def temperatures(self) -> dict[str | int, Tensor]:
        """:meth:`temperature` of each parameter by itself.

        Returns
        -------
        dict of 0-d float64 tensors, by the name of a trainable parameter where the optimizer was
        made with ``model.named_parameters()``, else by its place among the parameters, from 0
        """
        return self._apart(over_lr=True)

    def rescaled_temperatures(self) -> dict[str | int, Tensor]:
        """:meth:`rescaled_temperature` of each parameter by itself, as :meth:`temperatures`."""
        return self._apart(over_lr=False)

    def _mean(self, over_lr: bool) -> Tensor:
        return pooled(mean_squares(self._moved(), over_lr=over_lr))

    def _apart(self, over_lr: bool) -> dict[str | int, Tensor]:
        labels, parts = self._labels(), apart(self._moved())
        sums = mean_squares(parts, over_lr=over_lr)
        pairs = zip(parts, sums, strict=True)
        return {labels[part.params[0]]: pooled([x]) for part, x in pairs}

    def _moved(self) -> list[Moved]:
        self._check_groups()
        return moved(self.param_groups, self.state)


# Keys that a group publishes, and entries that are checked when they change.
_PUBLISHED = {"cooling_step", "cooling_rho", "cooling_lr", "cooling_idle"}
_NOTED = ("schedule", "cooling_step", *SETTINGS[1:-1])  # not lr, which may change in every step
_KEPT = ("_known", "_last_step", "_bath")  # torch copies the rest
_TOLD = ("law", "hold_steps", "total_steps")  # what Cooldown changes
_DISPLACEMENT = itemgetter("displacement")


def start(group: Group, step: Tensor, lr: Number = 1.0) -> None:
    """Let a group begin at a step, and publish its rho and last learning rate.

    At first there is no last learning rate: a displacement of 0 is cold by any but 0.
    """
    group.update(cooling_step=step, cooling_lr=lr, cooling_idle="")
    coefficients.place_step_counter(group)


def _as_step_counter(value: Any) -> Tensor:
    """A number of steps that somebody wrote into a group."""
    if isinstance(value, Tensor) and type(value) is not Tensor:
        return value  # of FakeTensorMode, without a value
    return torch.tensor(validation.checked_step(value), dtype=torch.int64, device="cpu")


def _refuse_sparse(grads: list[Tensor]) -> None:
    if any([grad.layout != torch.strided for grad in grads]):
        raise RuntimeError("CoolMomentum does not support sparse gradients")


def _is_good_rate(lr: Any) -> bool:
    """Whether a learning rate needs no closer look; a tensor of one is not waited for."""
    return (type(lr) is float and 0 <= lr < math.inf) or isinstance(lr, Tensor)


def _level_of_the_caller() -> int:
    """The stacklevel of a warning that is to name the line that called step."""
    names = [info.frame.f_globals.get("__name__", "") for info in inspect.stack(0)]
    ours = ("torch.", "coolmomentum.")
    return next((i for i, name in enumerate(names) if not name.startswith(ours)), len(names))
