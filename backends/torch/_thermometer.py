"""The thermometer for any optimizer of torch, through the hooks of its step."""

import math
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Literal, Self, overload

import array_api_compat.torch as xp
import torch
from torch import Tensor
from torch.optim import Optimizer

from coolmomentum import _check
from coolmomentum._thermometer_before import EVERY, SPAN, PairSums, Rows, Window, check_intervals
from coolmomentum.temperature import coordinates
from coolmomentum.torch._motion import (
    Motion,
    clock_of,
    displaced,
    has_masses,
    is_in_state,
    mass_of,
    motion_of,
    shrinkage,
    was_applied,
)
from coolmomentum.torch._optimizer import CoolMomentum
from coolmomentum.torch._paths import Number
from coolmomentum.torch._settings import Group
from coolmomentum.torch._thermometry import (
    device_of,
    real_part_here,
    sum_dtype,
    sums_of_products,
    wide,
)

Told = float | Callable[[Group], Number] | None  # rho or dt2 as the user tells it
Pair = tuple[Tensor, Tensor]


class Thermometer:
    """Temperatures of the walk of any ``torch.optim.Optimizer``, read from its displacements.

    It follows the optimizer from where it is made to :meth:`close`, or to the end of a ``with``,
    and looks at one step in ``every``. The temperature is ``<dx**2> / dt**2`` (Eq. 22), with rho
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
    TypeError, ValueError
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
    are added, frozen or unfrozen, a new window begins. rho and the learning rate should change
    little within a span. Under ``torch.compile`` the hooks run outside of the graphs.

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
    _start: list[Tensor] | None  # the parameters at the start of the span
    _previous: list[Tensor] | None  # displacements of the step before, if it was looked at
    _copies: list[Tensor | None]  # the parameters before the step that is going on, where needed
    _also_before: list[Tensor]  # the further tensors after the step before

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
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer: {optimizer!r}")
        self._every, self._span = check_intervals(every, span)
        self._rho = rho if rho is None or callable(rho) else _check.half_open("rho", rho, low=-1)
        self._dt2 = dt2 if dt2 is None or callable(dt2) else _check.positive("dt2", dt2)
        self._also = [x for x in also if x.is_floating_point() or x.is_complex()]
        self._names = {param: name for name, param in named_parameters}
        self._optimizer = optimizer
        self._in_step = False
        self._begin()
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    # --- what the user calls --------------------------------------------------------------------

    @overload
    def read(self, by: Literal["all"] = "all") -> dict[str, float]: ...
    @overload
    def read(self, by: Literal["group", "parameter"]) -> dict[str | int, dict[str, float]]: ...

    def read(self, by: Literal["all", "group", "parameter"] = "all") -> Any:
        """The readings of the steps since the last reading, and an end of this window.

        Parameters
        ----------
        by : "all" to pool the parameters, "group" or "parameter" for each apart.

        Returns
        -------
        dict with "steps" and :data:`coolmomentum.thermometer.READINGS`, which
        :meth:`coolmomentum.thermometer.Window.read` describes; NaN where something is not known.
        Apart, a dict of such dicts: a group by its "name" or else its index; a parameter by its
        name or else its place among the parameters of the optimizer, counted from 0.
        """
        reading = self.peek(by)
        self._window = self._window.closed()
        return reading

    @overload
    def peek(self, by: Literal["all"] = "all") -> dict[str, float]: ...
    @overload
    def peek(self, by: Literal["group", "parameter"]) -> dict[str | int, dict[str, float]]: ...

    def peek(self, by: Literal["all", "group", "parameter"] = "all") -> Any:
        """As :meth:`read`, but the window goes on."""
        _check.one_of("by", by, ("all", "group", "parameter"))
        readings = self._window.read(self._rows, xp=xp)
        table = torch.stack(list(readings.values()), dim=1).tolist()  # the one thing that waits
        rows = [{"steps": self._window.steps} | dict(zip(readings, x, strict=True)) for x in table]
        if by == "all":
            return rows[-1]
        if by == "parameter":
            return dict(zip(self._labels, rows, strict=False))
        return dict(zip(self._group_labels, rows[len(self._params) :], strict=False))

    def close(self) -> None:
        """Leave the optimizer alone and free the copies; what was seen can still be read."""
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
        """:meth:`close`."""
        self.close()

    # --- the hooks ------------------------------------------------------------------------------

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        self._in_step = True
        self._clock = clock_of(optimizer)
        if not (self._looks_at(self._window.span_steps + 1) or self._start is None):
            return
        if [id(x) for x in self._params] != [id(x) for x in self._followed()]:
            self._begin()
        if self._start is None:
            self._start = [real_part_here(x).clone() for x in self._walking()]
        if self._looks_at(self._window.span_steps + 1):
            in_state = [is_in_state(optimizer, group) for group in optimizer.param_groups]
            self._copies = [
                None if in_state[i] else real_part_here(x).clone()
                for i, x in zip(self._group_of, self._walking(), strict=True)
            ]
            self._motions = [self._motion(group) for group in optimizer.param_groups]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        # A step that calls that of its superclass may call the hooks twice, and one that raises
        # leaves this one out.
        if not self._in_step:
            return
        self._in_step = False
        if not was_applied(optimizer, self._clock):
            return
        self._window = self._window.step()
        step = int(self._window.span_steps)
        if self._looks_at(step):
            with torch.no_grad():
                now = self._displacements(optimizer)
                if step % self._every == 0:
                    self._measure(now)
                self._previous = self._kept(now) if self._looks_at_next(step) else None
            self._copies = []
        if self._looks_at(int(self._window.span_steps) + 1):
            self._also_before = [real_part_here(x).clone() for x in self._also]

    def _looks_at(self, step: int) -> bool:
        """Whether it needs the displacements of this step of a span, or of the one after it."""
        return step % self._every == 0 or self._looks_at_next(step)

    def _looks_at_next(self, step: int) -> bool:
        return (step + 1) % self._every == 0

    # --- what is followed -----------------------------------------------------------------------

    def _begin(self) -> None:
        """Begin a window, and a span, with the parameters that are there."""
        groups = self._optimizer.param_groups
        self._params = self._followed()
        walking = [[x for x in group["params"] if x.requires_grad] for group in groups]
        self._group_of = [i for i, params in enumerate(walking) for _ in params]
        counts = [len(params) for params in walking] + [len(self._also)] * bool(self._also)
        self._rows = Rows(tuple(coordinates(x, xp=xp) for x in self._params), tuple(counts))
        device = device_of(self._params)
        zeros = torch.zeros(len(self._rows), device=device)
        self._window = Window.empty(zeros.to(sum_dtype(zeros)))
        self._labels = self._parameter_labels()
        self._group_labels = [group.get("name", i) for i, group in enumerate(groups)]
        self._group_labels += ["also"] * bool(self._also)
        self._forget()
        self._also_before = [real_part_here(x).clone() for x in self._also]

    def _forget(self) -> None:
        """Free the copies."""
        self._start, self._previous, self._copies, self._also_before = None, None, [], []

    def _followed(self) -> list[Tensor]:
        groups = self._optimizer.param_groups
        return [x for group in groups for x in group["params"] if x.requires_grad] + self._also

    def _walking(self) -> list[Tensor]:
        return self._params[: len(self._group_of)]

    def _parameter_labels(self) -> list[str | int]:
        place, labels = 0, dict[Tensor, str | int]()
        for group in self._optimizer.param_groups:
            names = group.get("param_names", range(place, place + len(group["params"])))
            labels |= dict(zip(group["params"], names, strict=True))
            place += len(group["params"])
        labels |= {x: f"also.{i}" for i, x in enumerate(self._also)} | self._names
        return [labels[x] for x in self._params]

    # --- a measurement --------------------------------------------------------------------------

    def _motion(self, group: Group) -> Motion:
        motion = motion_of(self._optimizer, group)
        rho, dt2 = (
            theirs if ours is None else ours(group) if callable(ours) else ours
            for ours, theirs in ((self._rho, motion.rho), (self._dt2, motion.dt2))
        )
        return Motion(_kept_number(rho), _kept_number(dt2))

    def _displacements(self, optimizer: Optimizer) -> list[Tensor]:
        """The displacement of each, real and local; those of CoolMomentum are not copied."""
        groups = optimizer.param_groups
        moved = []
        for i, x, before in zip(self._group_of, self._walking(), self._copies, strict=True):
            if before is None:
                moved.append(displaced(optimizer, groups[i], x))
            else:
                shrunk = shrinkage(optimizer, groups[i]) if x.grad is not None else 1.0
                moved.append(_difference(real_part_here(x), before, shrunk))
        pairs = zip(self._also, self._also_before, strict=True)
        return moved + [_difference(real_part_here(x), before) for x, before in pairs]

    def _kept(self, displacements: list[Tensor]) -> list[Tensor]:
        """The same for the next step to be compared with, after the state has changed."""
        if isinstance(self._optimizer, CoolMomentum):
            return [dx.clone() for dx in displacements]
        return displacements

    def _measure(self, now: list[Tensor]) -> None:
        paired = self._previous is not None
        ends = self._window.span_steps == self._span
        massive = self._dt2 is None and has_masses(self._optimizer)
        pairs = self._pairs(now, self._previous or now, massive, ends)
        width = 3 + 3 * massive + 2 * ends
        sums = sums_of_products(self._params, pairs, width=width).unbind(1)
        rho = self._per_parameter([motion.rho for motion in self._motions])
        self._window = self._window.add(
            PairSums(*sums[:3]),
            self._rows,
            rho=rho,
            dt2=self._per_parameter([motion.dt2 for motion in self._motions]),
            weighted=PairSums(*sums[3:6]) if massive else None,
            paired=int(paired),
            xp=xp,
        )
        if ends:
            distance, overlap = sums[-2:]
            self._window = self._window.end_span(distance, overlap, self._rows, rho=rho, xp=xp)
            self._start = [real_part_here(x).clone() for x in self._walking()]

    def _pairs(
        self, now: list[Tensor], before: list[Tensor], massive: bool, ends: bool
    ) -> Iterator[list[Pair]]:
        """What to multiply for each parameter, made one after the other."""
        groups = self._optimizer.param_groups
        for k, (x, a, b) in enumerate(zip(self._params, now, before, strict=True)):
            walks = k < len(self._group_of)
            row = [(a, a), (b, b), (a, b)]
            if massive:
                m = mass_of(self._optimizer, groups[self._group_of[k]], x) if walks else 1.0
                row += [(m * a, a), (m * b, b), (m * a, b)]
            if ends:
                y = _difference(real_part_here(x), self._start[k]) if walks and self._start else a
                row += [(y, y), (y, a)]
            yield row

    def _per_parameter(self, values: list[Number]) -> Number:
        """A value of each group, for every parameter; one number if that is all there is."""
        if self._also:
            values = [*values, math.nan]
        if not any(isinstance(value, Tensor) for value in values) and len(set(values)) == 1:
            return values[0]
        device = device_of(self._params)
        like = torch.zeros((), device=device)
        counts = self._rows.groups
        # Numbers go over without waiting.
        columns = [
            torch.as_tensor(value, dtype=sum_dtype(like)).to(device, non_blocking=True)
            for value in values
        ]
        return torch.cat([x.expand(n) for x, n in zip(columns, counts, strict=True)])


def _difference(after: Tensor, before: Tensor, shrunk: Number = 1.0) -> Tensor:
    """What a parameter moved by, apart from having been shrunk."""
    before = wide(before)
    return wide(after) - (before if _is_one(shrunk) else before * shrunk)


def _is_one(value: Number) -> bool:
    return not isinstance(value, Tensor) and value == 1


def _kept_number(value: Number) -> Number:
    """A number, or a tensor of one that later changes in place leave alone."""
    return value.detach().reshape(()).clone() if isinstance(value, Tensor) else float(value)
