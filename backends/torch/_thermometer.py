"""The thermometer for any optimizer of torch, through the hooks of its step."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, overload

import array_api_compat.torch as xp
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from coolmomentum import _check
from coolmomentum.temperature import coordinates
from coolmomentum.thermometer import (
    EVERY,
    SPAN,
    By,
    Dynamics,
    Layout,
    Sampling,
    Window,
    moments,
    report,
    why_unmeasured,
)
from coolmomentum.torch._dynamics import (
    add_hooks,
    clock_of,
    decay_factor,
    displacement_from_state,
    dynamics_of,
    has_gradient,
    has_masses,
    is_in_state,
    mass_of,
    optimizer_that_steps,
    version_of,
    was_applied,
)
from coolmomentum.torch._optimizer import CoolMomentum
from coolmomentum.torch._paths import Number
from coolmomentum.torch._settings import Group
from coolmomentum.torch._thermometry import (
    all_reduced,
    device_of,
    dot,
    real_part_here,
    sum_dtype,
    wide,
)

Told = float | Callable[[Group], Number] | None  # rho or dt2 as the user tells it


class _Settings(NamedTuple):
    """What a group is set to in a step, taken before it: a hook may change it after the step."""

    dynamics: Dynamics
    lr: Number
    decay: Number  # the factor of decoupled weight decay


class _Before(NamedTuple):
    """What is known of a parameter before a step."""

    copy: Tensor | None  # None where its displacement can be read from the state after the step
    version: int | None
    had_gradient: bool  # or is to have one from a closure


class Thermometer:
    """Temperatures of the walk of any ``torch.optim.Optimizer``, read from its displacements.

    It follows the optimizer from where it is made to :meth:`remove`, or to the end of a ``with``,
    and measures each of the first ten steps, then one in ``every``. The temperature is ``<dx**2> / dt**2`` (Eq. 22), with rho
    and ``dt**2`` by Eqs 14 and 16 of the optimizer's own settings:

    ======================= ======== ============================== ================
    optimizer               rho      dt**2                          mass
    ======================= ======== ============================== ================
    CoolMomentum            rho      lr                             1
    SGD, not nesterov       momentum 2 lr (1 - dampening)/(1 + rho) 1
    Adam, AdamW             beta1    2 lr (1 - beta1) / (1 + beta1) sqrt(v_hat) + eps
    RMSprop                 momentum 2 lr / (1 + momentum)          sqrt(v) + eps
    Adagrad, no lr_decay    0        2 lr                           sqrt(sum) + eps
    any other               NaN      NaN                            1
    ======================= ======== ============================== ================

    **What temperature means for Adam** (RMSprop, Adagrad): each coordinate has a mass of its own,
    and the reading is the mean of ``mass dx**2 / dt**2``. The masses follow the gradients, so this
    is not the temperature of one heat bath: where noise dominates, a coordinate with gradient noise
    of standard deviation sigma reads ``lr sigma / 2``, where that of SGD is proportional to
    ``sigma**2``. Of other optimizers only the rescaled temperature and the correlation are known,
    unless you tell ``rho`` and ``dt2``.

    Parameters
    ----------
    optimizer : what to follow. Only parameters that require a gradient count.
    every : measure one step in this many (the step before it is looked at too).
    span : steps over which the freeze-out meter follows the parameters, a multiple of ``every``.
    rho : momentum coefficient in place of the table's: a number or a function of a parameter group.
    dt2 : squared time step in place of the table's, likewise; masses are then 1. For SGD-like rules
        ``dx = rho dx - lr g`` it is ``lambda group: 2 * group["lr"] / (1 + rho)``.
    also : further tensors to pool in, as ``model.buffers()``, whose temperature is not known; those
        that are not floating are left out. With the statistics of batch normalisation the rescaled
        temperature is what the paper's authors logged, which counts the averaging as heat. They are
        a group of their own, ``"also"``.
    named_parameters : names for the readings ``by="parameter"``, as ``model.named_parameters()``.

    Raises
    ------
    TypeError
        If the optimizer is none, or its step calls no hooks. A wrapper that has the optimizer that
        steps as ``.optimizer`` (Lightning, Fabric, Accelerate) will do.
    ValueError
        If an argument is out of range.

    Notes
    -----
    Nothing waits for the device before a reading. Displacements are read from the state of
    CoolMomentum and of SGD with momentum, and otherwise are the change of the parameters in the
    step, less decoupled weight decay. It keeps one copy of the parameters, from the start of a
    span, and two more during the steps that it looks at. Sharded parameters (DTensor) give the
    global reading, and every process has to take the same steps and read.

    Steps that ``torch.amp.GradScaler`` skips do not count. (Where a fused optimizer of torch's own
    skips them on the accelerator, unknown to the host, they count as steps at rest.) If parameters
    are added, frozen, unfrozen or moved to another device, a new window begins. It never stops a
    training: after an error a new window begins, and the next reading warns. rho and the learning
    rate should change little within a span. Under ``torch.compile`` the hooks run outside of the
    graphs.

    Examples
    --------
    >>> import torch
    >>> from coolmomentum.torch import Thermometer
    >>> x = torch.zeros(1000, requires_grad=True)
    >>> optimizer = torch.optim.SGD([x], lr=0.1, momentum=0.5)
    >>> noise = torch.Generator().manual_seed(0)
    >>> with Thermometer(optimizer) as thermometer:
    ...     for _ in range(1000):
    ...         x.grad = x.detach() + torch.randn(1000, generator=noise)  # of x**2 / 2, and noise
    ...         optimizer.step()
    >>> reading = thermometer.read()
    >>> reading["steps"], reading["rho"], reading["drift"]
    (1000, 0.5, 0.0)
    >>> round(reading["temperature"], 2)  # by Eq. 19, 2/15 * 1.5 / (4 * 0.5) / (1 - 1/30) = 0.103
    0.1
    >>> round(reading["curvature"], 1), round(reading["freeze_out"], 1)  # k dt**2 = 2/15; confined
    (0.1, 0.9)
    """

    _window: Window
    _layout: Layout
    _params: list[Tensor]  # what is followed: the parameters that walk, then the further tensors
    _group_of: list[int]  # the group of each parameter that walks
    _start: list[Tensor] | None  # the parameters at the start of the span
    _previous: list[Tensor] | None  # displacements of the step before, if it was looked at
    _befores: list[_Before] | None  # of the step that is going on, if it is looked at
    _also_before: list[Tensor]  # the further tensors after the step before
    _n: int  # steps since the first window with these parameters began
    _untold: int  # those that the window was not told of
    _warned: bool

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        every: int = EVERY,
        span: int = SPAN,
        rho: Told = None,
        dt2: Told = None,
        also: Iterable[Tensor] = (),
        named_parameters: Iterable[tuple[str, Tensor]] = (),
    ) -> None:
        self._optimizer = optimizer_that_steps(optimizer)
        self._sampling = Sampling(every, span)
        self._rho = rho if rho is None or callable(rho) else _check.half_open("rho", rho, low=-1)
        self._dt2 = dt2 if dt2 is None or callable(dt2) else _check.positive("dt2", dt2)
        self._also = [x for x in also if x.is_floating_point() or x.is_complex()]
        self._names = {param: name for name, param in named_parameters}
        self._depth = 0  # of calls of the step, which may call that of its superclass
        self._why: str | None = None  # something could not be measured
        self._begin()
        self._handles = add_hooks(self._optimizer, self._before, self._after)

    # --- what the user calls --------------------------------------------------------------------

    @overload
    def read(self, by: Literal["all"] = "all", reset: bool = False) -> dict[str, float]: ...
    @overload
    def read(
        self, by: Literal["group", "parameter"], reset: bool = False
    ) -> dict[str | int, dict[str, float]]: ...

    def read(self, by: By = "all", reset: bool = False) -> Any:
        """The readings of the window, which goes on; where sharded, every process has to read.

        Parameters
        ----------
        by : "all" to pool the parameters, "group" or "parameter" for each apart.
        reset : begin a new window afterwards, as :meth:`reset` does.

        Returns
        -------
        dict with "steps" and :data:`coolmomentum.thermometer.READINGS`, which
        :meth:`coolmomentum.thermometer.Window.readings` describes; NaN where something is not
        known. Apart, a dict of such dicts: a group by its "name" or else its index; a parameter by
        its name or else its place among the parameters of the optimizer, counted from 0. Equal
        names get a number, as ``weight#2``.

        Warns
        -----
        UserWarning
            Once, if nothing was measured in the window: the warning says why.
        """
        _check.flag("reset", reset)
        sums = self._window.sums.cpu().double().numpy()  # the one thing that waits
        window = Window(sums, self._window.counts).step(self._untold)
        reading = report(window, self._layout, by)
        if self._params:
            why, self._why = self._why or why_unmeasured(window, self._sampling), None
            if why and not self._warned:
                self._warned = True
                warnings.warn(why, stacklevel=2)
        if reset:
            self.reset()
        return reading

    def reset(self) -> None:
        """Begin a new window; the span of the freeze-out meter goes on."""
        self._window = self._window.step(self._untold, xp=xp).next(xp=xp)
        self._untold = 0

    def remove(self) -> None:
        """Take the hooks away and free the copies; what was seen can still be read."""
        for handle in self._handles:
            handle.remove()
        self._forget()

    def __enter__(self) -> Self:
        """Itself; it is at work since it was made."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """:meth:`remove`."""
        self.remove()

    # --- the hooks ------------------------------------------------------------------------------

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # The hooks run at each level at which torch has wrapped the step. One that raises leaves
        # out those after it, so start anew where there are more calls than levels.
        levels = [vars(kind).get("step") for kind in type(self._optimizer).__mro__]
        deepest = sum([getattr(step, "hooked", False) for step in levels])
        self._depth = self._depth + 1 if self._depth < deepest else 1
        if self._depth == 1:
            self._closure = any(x is not None for x in (*args[1:], kwargs.get("closure")))
            self._guard(self._look)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after(self, *_: Any) -> None:
        self._depth = max(self._depth - 1, -1)
        if self._depth == 0:
            self._guard(self._finish)

    def _guard(self, hook: Callable[[], None]) -> None:
        """Call it: what cannot be measured must not stop the training."""
        try:
            with torch.no_grad():
                hook()
        except Exception as error:
            self._why = f"no reading: {type(error).__name__}: {error}"
            self._begin()

    def _look(self) -> None:
        """Before a step: take what is needed to know its displacements after it."""
        optimizer, n, self._befores = self._optimizer, self._n + 1, None
        self._clock = clock_of(optimizer)
        self._had_gradient = self._closure or has_gradient(optimizer)  # a closure will bring it
        if not self._looks_at(n) and self._start is not None:
            return
        if not self._fits():
            self._begin()
        walking = self._params[: len(self._group_of)]
        if self._start is None:
            self._start = [real_part_here(x).clone() for x in walking]
        self._settings = [self._settings_of(group) for group in optimizer.param_groups]
        self._befores = [
            self._before_of(optimizer.param_groups[i], x)
            for i, x in zip(self._group_of, walking, strict=True)
        ]

    def _finish(self) -> None:
        """After a step: measure it, and keep what the next one is compared with."""
        if not was_applied(self._optimizer, self._clock, self._had_gradient):
            return
        self._n, self._untold = self._n + 1, self._untold + 1
        if self._befores is not None:
            if not self._fits():  # it has changed in the step
                self._begin()
                return
            now = self._displacements(self._befores)
            if self._params and self._sampling.measures(self._n):
                self._measure(now)
            self._previous = self._kept(now) if self._sampling.precedes(self._n) else None
        if self._looks_at(self._n + 1):
            self._also_before = [real_part_here(x).clone() for x in self._also]

    def _looks_at(self, n: int) -> bool:
        return bool(self._sampling.measures(n) or self._sampling.precedes(n))

    # --- what is followed -----------------------------------------------------------------------

    def _begin(self) -> None:
        """Begin a window, and a span, with the parameters that are there."""
        groups = []
        self._params, self._group_of, place = [], [], 0
        for i, group in enumerate(self._optimizer.param_groups):
            names = group.get("param_names", ())
            if len(names) != len(group["params"]):  # edited by hand
                names = range(place, place + len(group["params"]))
            place += len(group["params"])
            named = zip(names, group["params"], strict=True)
            walking = [(self._names.get(x, name), x) for name, x in named if _walks(x)]
            groups.append((group.get("name", i), walking))
            self._group_of += [i] * len(walking)
        if self._also:
            groups.append(("also", [(f"also.{i}", x) for i, x in enumerate(self._also)]))
        self._params = [x for _, members in groups for _, x in members]
        self._layout = Layout.from_groups(
            (label, [(name, coordinates(x, xp=xp)) for name, x in members])
            for label, members in groups
        )
        self._forms = [_form(x) for x in self._params]
        zeros = torch.zeros(len(self._layout), device=device_of(self._params))
        self._window = Window.empty(zeros.to(sum_dtype(zeros)), xp=xp)
        self._n = self._untold = 0
        self._warned = False
        self._forget()
        self._also_before = [real_part_here(x).clone() for x in self._also]

    def _fits(self) -> bool:
        """Whether the parameters are those with which the window began."""
        groups = self._optimizer.param_groups
        followed = [x for group in groups for x in group["params"] if _walks(x)] + self._also
        return (
            len(followed) == len(self._params)
            and all([a is b for a, b in zip(followed, self._params, strict=True)])
            and [_form(x) for x in followed] == self._forms
        )

    def _forget(self) -> None:
        """Free the copies."""
        self._start, self._previous, self._befores, self._also_before = None, None, None, []

    # --- a measurement --------------------------------------------------------------------------

    def _settings_of(self, group: Group) -> _Settings:
        theirs = dynamics_of(self._optimizer, group)
        told = [x(group) if callable(x) else x for x in (self._rho, self._dt2)]
        rho, dt2 = (b if a is None else a for a, b in zip(told, theirs, strict=True))
        lr = group.get("lr")
        lr = _kept_number(lr) if isinstance(lr, float | int | Tensor) else math.nan
        decay = _kept_number(decay_factor(self._optimizer, group))
        return _Settings(Dynamics(_kept_number(rho), _kept_number(dt2)), lr, decay)

    def _before_of(self, group: Group, param: Tensor) -> _Before:
        kept = is_in_state(self._optimizer, group, param)
        copy = None if kept else real_part_here(param).clone()
        had_gradient = self._closure or param.grad is not None
        return _Before(copy, version_of(self._optimizer, group, param), had_gradient)

    def _displacements(self, befores: list[_Before]) -> list[Tensor]:
        """The displacement of each, real and local; those of CoolMomentum are not copied."""
        optimizer, displacements = self._optimizer, []
        for i, x, before in zip(self._group_of, self._params, befores, strict=False):
            settings, group = self._settings[i], optimizer.param_groups[i]
            version, moved = version_of(optimizer, group, x), x.grad is not None
            if not moved:  # or its gradient was dropped after it had moved
                moved = before.had_gradient if version is None else version != before.version
            if before.copy is not None:
                shrunk = settings.decay if moved else 1.0
                dx = _difference(real_part_here(x), before.copy, shrunk)
            elif moved and x in optimizer.state:
                dx = displacement_from_state(optimizer, x, settings.lr)
            else:
                dx = torch.zeros_like(real_part_here(x))
            displacements.append(dx)
        pairs = zip(self._also, self._also_before, strict=True)
        return displacements + [_difference(real_part_here(x), before) for x, before in pairs]

    def _kept(self, displacements: list[Tensor]) -> list[Tensor]:
        """The same for the next step to be compared with, after the state has changed."""
        if isinstance(self._optimizer, CoolMomentum):
            return [dx.clone() for dx in displacements]
        return displacements

    def _measure(self, now: list[Tensor]) -> None:
        sampling, device = self._sampling, device_of(self._params)
        ends = sampling.ends_span(self._n)
        massive = self._dt2 is None and has_masses(self._optimizer)
        table = moments(
            now,
            self._previous or now,
            self._masses() if massive else None,
            self._paths(now) if ends else None,
            dot=lambda a, b: dot(a, b).to(device),
            xp=xp,
        )
        table = all_reduced(self._params, table.T).T
        rho, dt2 = (self._of_each([x.dynamics[i] for x in self._settings]) for i in (0, 1))
        window = self._window.step(self._untold, xp=xp).add(
            table,
            self._layout,
            Dynamics(rho, dt2),
            weight=sampling.weight(self._n),
            paired=self._previous is not None,
            xp=xp,
        )
        if ends:
            window = window.end_span(table, self._layout, rho, xp=xp)
            walking = self._params[: len(self._group_of)]
            self._start = [real_part_here(x).clone() for x in walking]
        self._window, self._untold = window, 0

    def _masses(self) -> Iterator[Number]:
        groups = self._optimizer.param_groups
        for i, x in zip(self._group_of, self._params, strict=False):
            yield mass_of(self._optimizer, groups[i], x)
        yield from (1.0 for _ in self._also)

    def _paths(self, now: list[Tensor]) -> Iterator[Tensor]:
        """The way of each from the start of the span; of what does not walk nothing is known."""
        for x, start in zip(self._params, self._start or (), strict=False):
            yield _difference(real_part_here(x), start)
        yield from now[len(self._group_of) :]

    def _of_each(self, values: list[Number | None]) -> Number | None:
        """A value of each group, for every parameter; one number if that is all there is."""
        if self._also:
            values = [*values, None]
        if not any(isinstance(value, Tensor) for value in values) and len(set(values)) == 1:
            return values[0]
        device = device_of(self._params)
        dtype = sum_dtype(torch.zeros((), device=device))
        # Numbers go over without waiting.
        columns = [
            torch.as_tensor(math.nan if value is None else value, dtype=dtype)
            .to(device, non_blocking=True)
            .expand(len(members))
            for value, members in zip(values, self._layout.members, strict=True)
        ]
        return torch.cat(columns)


def _walks(param: Tensor) -> bool:
    """Whether it moves; a lazy one has no shape yet."""
    return param.requires_grad and not is_lazy(param)


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _difference(after: Tensor, before: Tensor, shrunk: Number = 1.0) -> Tensor:
    """What a parameter moved by, apart from having been shrunk."""
    before = wide(before)
    return wide(after) - (before if _is_one(shrunk) else before * shrunk)


def _is_one(value: Number) -> bool:
    return not isinstance(value, Tensor) and value == 1


def _kept_number(value: Any) -> Any:
    """A number, or a tensor of one that later changes in place leave alone; None stays."""
    if isinstance(value, Tensor):
        return value.detach().reshape(()).clone()
    return None if value is None else float(value)
