"""The thermometer for any optimizer of torch, through the hooks of its step."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import array_api_compat.torch as xp
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from coolmomentum import _check
from coolmomentum import thermometer as core
from coolmomentum.temperature import coordinates
from coolmomentum.torch import _dynamics as dynamics
from coolmomentum.torch._dynamics import Before, Override, difference
from coolmomentum.torch._noise import NoiseMeter
from coolmomentum.torch._reductions import all_reduced, device_of, dot, local_real_view, sum_dtype
from coolmomentum.torch._tensors import Number


class Thermometer:
    """Temperatures of the walk of any ``torch.optim.Optimizer``, read from its displacements.

    It follows the optimizer from where it is made to :meth:`remove`, or to the end of a ``with``,
    and measures each of the first ten steps, then one in ``every``. The temperature is
    ``<dx**2> / dt**2`` (Eq. 22), with rho and ``dt**2`` by Eqs 14 and 16 of the optimizer's own
    settings:

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
    every : measure one step in this many, after the first ten (the step before is looked at too).
    span : steps over which the freeze-out meter follows the parameters, a multiple of ``every``.
    rho : momentum coefficient in place of the table's: a number or a function of a parameter group.
    dt2 : squared time step in place of the table's, likewise; masses are then 1. For SGD-like rules
        ``dx = rho dx - lr g`` it is ``lambda group: 2 * group["lr"] / (1 + rho)``.
    also : further tensors to pool in, as ``model.buffers()``, whose temperature is not known; those
        that are not floating are left out. With the statistics of batch normalisation the rescaled
        temperature is what the paper's authors logged, which counts the averaging as heat. They are
        a group of their own, ``"also"``.
    named_parameters : names for the readings ``by="parameter"``, as ``model.named_parameters()``.
    gradient_noise : whether the critical batch size is read too, of momenta in 32 bits at least:
        CoolMomentum, SGD with momentum, Adam and AdamW; of others less well, by the gradients that
        they are given, if you tell ``rho``. ``every`` is then 4 at least.
    batch_size : examples in a step, for that: those of all processes and accumulated batches.

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
    span, and two more during the steps that it looks at, or five with ``gradient_noise``. Sharded
    parameters (DTensor) give the global reading, and every process has to take the same steps and
    read.

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

    _window: core.Window
    _n: int  # steps since the parameters are what they are
    _start: list[Tensor] | None  # the parameters where the span began
    _previous: list[Tensor] | None  # displacements of the step before, if it was looked at
    _befores: list[Before] | None  # of the step that is going on, if it is looked at
    _also_before: list[Tensor]  # the further tensors after the step before

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        every: int = core.EVERY,
        span: int = core.SPAN,
        rho: Override = None,
        dt2: Override = None,
        also: Iterable[Tensor] = (),
        named_parameters: Iterable[tuple[str, Tensor]] = (),
        gradient_noise: bool = False,
        batch_size: int | None = None,
    ) -> None:
        self._sampling = core.Sampling(every, span)
        self._rho = rho if rho is None or callable(rho) else _check.half_open("rho", rho, low=-1)
        self._dt2 = dt2 if dt2 is None or callable(dt2) else _check.positive("dt2", dt2)
        self._also = [x for x in also if x.is_floating_point() or x.is_complex()]
        self._names = {param: name for name, param in named_parameters}
        batch_size = core.check_gradient_noise(gradient_noise, batch_size, self._sampling.every)
        if batch_size is not None and self._also:
            raise ValueError("also must be empty with gradient_noise=True: they have no gradients")
        self._noise = None if batch_size is None else NoiseMeter(batch_size)
        self._depth = 0  # of calls of the step, which may call its superclass' step
        self._why: str | None = None  # something could not be measured
        self._warned = False
        self._optimizer, self._handles = dynamics.follow(optimizer, self._before, self._after)
        self._begin()

    # --- what the user calls --------------------------------------------------------------------

    def read(self, by: core.By = "all", reset: bool = False) -> dict[Any, Any]:
        """The readings of the window, which goes on.

        Where parameters are sharded, every process has to read: not under ``if rank == 0``.

        Parameters
        ----------
        by : "all" to pool the parameters, "group" or "parameter" for each apart.
        reset : begin a new window afterwards, as :meth:`reset` does.

        Returns
        -------
        dict with "steps" and :data:`coolmomentum.thermometer.READINGS`, which
        :meth:`coolmomentum.thermometer.Window.readings` describes; NaN where something is not
        known. With ``gradient_noise`` also :data:`coolmomentum.thermometer.NOISE_READINGS`, of
        :meth:`coolmomentum.thermometer.GradientNoise.readings`.
        Apart, a dict of such dicts: a group by its "name" or else its index; a parameter by
        its name or else its place among the parameters of the optimizer, counted from 0. Equal
        names get a number, as ``weight#2``.

        Warns
        -----
        UserWarning
            Once, if nothing was measured in the window, or the walk is more than 5 per cent hotter
            than its bath: the warning says why. Likewise if there is no critical batch size.
        """
        _check.flag("reset", reset)
        sums = self._window.sums.cpu().double().numpy()  # the one thing that waits
        window = core.Window(sums, self._window.counts)
        noise = self._noise.on_host() if self._noise else None
        reading = core.report(window, self._layout, by, noise)
        why = self._why or core.why_unmeasured(self._window, self._sampling)
        why = why or core.why_hotter(core.report(window, self._layout), self._layout)
        if why and self._params and not self._warned:
            self._warned = True
            warnings.warn(why, stacklevel=2)
        elif self._noise and not self._noise.warned and (why := self._noise.why()):
            self._noise.warned = True
            warnings.warn(why, stacklevel=2)
        if reset:
            self.reset()
        return reading

    def reset(self) -> None:
        """Begin a new window; the span of the freeze-out meter goes on."""
        self._window, self._why = self._window.next(xp=xp), None
        if self._noise:
            self._noise.noise = self._noise.noise.next()

    def remove(self) -> None:
        """Take the hooks away and free the copies; what was seen can still be read."""
        for handle in self._handles:
            handle.remove()
        self._forget()

    def __enter__(self) -> Self:
        """Itself; it is at work since it was made."""
        return self

    def __exit__(self, *_: object) -> None:
        """:meth:`remove`."""
        self.remove()

    # --- the hooks ------------------------------------------------------------------------------

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # The hooks run at each level at which torch has wrapped the step. One that raises leaves
        # out those after it, so start anew where there are more calls than levels.
        steps = [vars(kind).get("step") for kind in type(self._optimizer).__mro__]
        levels = sum([getattr(step, "hooked", False) for step in steps])
        self._depth = self._depth + 1 if self._depth < levels else 1
        if self._depth == 1:
            self._closure = any([x is not None for x in (*args[1:], kwargs.get("closure"))])
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
            self._begin()
            self._why = f"no reading: {type(error).__name__}: {error}"

    def _look(self) -> None:
        """Before a step: record the parameters, to know its displacements afterwards."""
        optimizer, self._befores, n = self._optimizer, None, self._n + 1
        self._clock = dynamics.clock_of(optimizer)
        self._gradient = self._closure or dynamics.has_gradient(optimizer)
        if not (self._looks_at(n) or self._noise_of(n)) and self._start is not None:
            return
        if self._forms != [_form(x) for x in self._followed()]:
            self._begin()
        self._start = self._start or self._copies()
        if not self._is_last():  # a later hook may still change what the step does
            return
        groups = optimizer.param_groups
        self._settings = [
            dynamics.settings_of(optimizer, group, self._rho, self._dt2) for group in groups
        ]
        self._bath = dynamics.bath_of(optimizer)
        if noise := self._noise_of(n):
            of_each = [(groups[i], self._settings[i]) for i in self._group_of]
            noise.before(optimizer, of_each, self._closure)
        if not self._looks_at(n):
            return
        self._befores = [
            dynamics.before(optimizer, groups[i], x, self._settings[i], self._closure)
            for i, x in zip(self._group_of, self._params, strict=False)
        ]

    def _finish(self) -> None:
        """After a step: count it and record it, if it was looked at."""
        if not dynamics.was_applied(self._optimizer, self._clock, self._gradient):
            return
        self._n, self._window = self._n + 1, self._window.step(xp=xp)
        noise = self._noise_of(self._n)
        looks = self._befores is not None or noise is not None
        if looks and [*map(id, self._params)] != [*map(id, self._followed())]:
            self._begin()  # changed in the step
            return
        if noise and self._params:
            noise.after(self._optimizer, self._layout, self._sampling.steps_to_noise(self._n))
        if self._befores is not None:
            self._record(self._befores)
        if self._looks_at(self._n + 1):
            self._also_before = [local_real_view(x).clone() for x in self._also]
        if not self._is_last():
            self._handles[0].remove()
            self._handles[0] = self._optimizer.register_step_pre_hook(self._before)

    def _record(self, befores: list[Before]) -> None:
        """Measure the step, and keep the displacements that the next one needs."""
        keep = bool(self._sampling.precedes(self._n))
        pairs = zip(self._params, befores, strict=False)
        now = [dynamics.displacement(self._optimizer, x, before, keep) for x, before in pairs]
        also = zip(self._also, self._also_before, strict=True)
        now += [difference(local_real_view(x), before) for x, before in also]
        if self._params and self._sampling.measures(self._n):
            self._measure(now)
        self._previous = now if keep else None

    def _is_last(self) -> bool:
        """Whether only other thermometers have hooks before the step after this one's."""
        hooks = [*(self._handles[0].hooks_dict_ref() or {}).items()]
        while hooks and hooks[-1][0] != self._handles[0].id:
            if not isinstance(getattr(hooks.pop()[1], "__self__", None), Thermometer):
                return False
        return True

    def _looks_at(self, n: int) -> bool:
        return bool(self._sampling.measures(n) or self._sampling.precedes(n))

    def _noise_of(self, n: int) -> NoiseMeter | None:
        """What looks at the gradients of step n."""
        return self._noise if self._sampling.steps_to_noise(n) < core.BLOCK else None

    # --- the parameters -------------------------------------------------------------------------

    def _begin(self) -> None:
        """Begin a window, and a span, with the parameters that are there."""
        groups, place = list[tuple[Any, list[tuple[Any, Tensor]]]](), 0
        self._group_of: list[int] = []  # of each parameter that walks
        for i, group in enumerate(self._optimizer.param_groups):
            params, names = group["params"], group.get("param_names", ())
            if len(names) != len(params):  # edited by hand
                names = range(place, place + len(params))
            place += len(params)
            named = [(self._names.get(x, k), x) for k, x in zip(names, params, strict=True)]
            groups.append((group.get("name", i), [pair for pair in named if _walks(pair[1])]))
            self._group_of += [i] * len(groups[-1][1])
        if self._also:
            groups.append(("also", [(f"also.{i}", x) for i, x in enumerate(self._also)]))
        self._params = [x for _, pairs in groups for _, x in pairs]  # and the further tensors
        self._forms = [_form(x) for x in self._params]
        self._layout = core.Layout.from_groups(
            (label, [(name, coordinates(x, xp=xp)) for name, x in pairs]) for label, pairs in groups
        )
        zeros = torch.zeros(len(self._layout), device=device_of(self._params))
        self._window = core.Window.empty(zeros.to(sum_dtype(zeros)), xp=xp)
        if self._noise:
            self._noise.begin(self._params, zeros.to(sum_dtype(zeros)))
        self._n = 0
        self._forget()
        self._also_before = [local_real_view(x).clone() for x in self._also]

    def _followed(self) -> list[Tensor]:
        groups = self._optimizer.param_groups
        return [x for group in groups for x in group["params"] if _walks(x)] + self._also

    def _forget(self) -> None:
        """Free the copies."""
        self._start, self._previous, self._befores, self._also_before = None, None, None, []
        if self._noise:
            self._noise.forget()

    def _copies(self) -> list[Tensor]:
        return [local_real_view(x).clone() for x in self._params[: len(self._group_of)]]

    # --- a measurement --------------------------------------------------------------------------

    def _measure(self, now: list[Tensor]) -> None:
        optimizer, sums = self._optimizer, self._window.sums
        ends = self._sampling.ends_span(self._n)
        massive = self._dt2 is None and dynamics.has_masses(optimizer)
        table = core.moments(
            now,
            self._previous or now,
            self._masses() if massive else None,
            self._paths(now) if ends else None,
            dot=dot if sums.device.type == "cpu" else lambda a, b: dot(a, b).to(sums.device),
            xp=xp,
        )
        nothing = [None] * bool(self._also)  # is known of the further tensors
        rho, dt2 = (
            self._layout.spread([x[i] for x in self._settings] + nothing, sums[0, 0], xp)
            for i in (0, 1)
        )
        self._window = self._window.measure(
            all_reduced(self._params, table.T).T,
            self._layout,
            core.Dynamics(rho, dt2, self._bath),
            weight=self._sampling.weight(self._n),
            paired=self._previous is not None,
            xp=xp,
        )
        if ends:
            self._start = self._copies()

    def _masses(self) -> Iterator[Number]:
        groups = self._optimizer.param_groups
        for i, x in zip(self._group_of, self._params, strict=False):
            yield dynamics.mass_of(self._optimizer, groups[i], x)
        yield from [1.0] * len(self._also)

    def _paths(self, now: list[Tensor]) -> Iterator[Tensor]:
        """The way of each from the start of the span; of what does not walk nothing is known."""
        for x, start in zip(self._params, self._start or (), strict=False):
            yield difference(local_real_view(x), start)
        yield from now[len(self._group_of) :]


def _form(tensor: Tensor) -> tuple[Any, ...]:
    """Differs after a tensor is replaced or moved."""
    return id(tensor), tensor.shape, tensor.dtype, tensor.device


def _walks(param: Tensor) -> bool:
    """Whether it moves; a lazy one has no shape yet, and one on the meta device no values."""
    return param.requires_grad and not is_lazy(param) and not param.is_meta
