"""What the callback measures: the window of some variables, from looks at them around a step."""

import math
from typing import Any, NamedTuple

from keras import ops, tree

from coolmomentum import thermometer as core
from coolmomentum.keras._common import Tensor, Variable, path_of, wide_dtype
from coolmomentum.keras._dynamics import rule_of
from coolmomentum.keras._noise import NoiseMeter
from coolmomentum.keras._values import Reader, apart, compiled, iterations, joined, reader


class Snapshot(NamedTuple):
    """The variables before or after a step."""

    values: list[Tensor]  # as a reader gives them
    iterations: Tensor  # shape ()
    rate: Tensor  # shape (): learning rate of the step


class Step(NamedTuple):
    """What a step did."""

    moved: list[Tensor]  # displacements, as a reader gives values
    applied: Tensor  # shape (), bool: a loss scaler skips steps, and the host is not to ask


class Record(NamedTuple):
    """What was measured."""

    window: core.Window
    told: Tensor  # shape (): iterations that the window knows of


class Meter:
    """The window of some variables, and what the next measured step is compared with."""

    def __init__(
        self,
        key: list[Any],
        variables: list[Variable],
        sampling: core.Sampling,
        batch_size: int | None = None,
    ) -> None:
        self.key, self._sampling = key, sampling  # the optimizer, and ids of what it moves
        self._optimizer = optimizer = key[0]
        self._variables, self._dtype = variables, wide_dtype(variables)
        paths = [path_of(x).split("/") for x in variables]
        self.layout = core.Layout.from_paths(paths, [math.prod(x.shape) for x in variables])
        self._decays = [
            bool(id(x) in key and optimizer.weight_decay and optimizer._use_weight_decay(x))
            for x in variables
        ]
        self._rule = rule_of(optimizer, self._dtype)
        self._values = reader(variables, self._dtype)
        self._squares: Reader | None = None
        self._copy = compiled(lambda tensors: tree.map_structure(ops.copy, tensors))
        self._difference, self._measure = compiled(self._step), compiled(self._measured)
        self.noise: NoiseMeter | None = None
        if batch_size is not None:
            about = (self._rule, self.layout, self._dtype, batch_size)
            self.noise = NoiseMeter(optimizer, variables, *about)
        self.begin()

    def begin(self) -> None:
        """Begin anew, without copies."""
        sums = ops.zeros((len(core.SUMS), len(self.layout)), self._dtype)
        window = core.Window(sums, ops.zeros(len(core.COUNTS), "int32"))
        self.record = Record(window, ops.zeros((), "int32"))
        self.batches: int | None = None  # those of a step half accumulated, and all since
        self._before: Snapshot | None = None  # the step that goes on
        self._previous: Step | None = None  # the step before, if it was looked at
        self._start: list[Tensor] | None = None  # the values where the span began
        if self.noise:
            self.noise.begin(sums[0])

    def take_over(self, other: "Meter") -> None:
        """Go on from a meter of more variables, in the batch in which the optimizer was built."""
        if other._before and {*self.key} <= {*other.key}:
            values = zip(other._apart(other._before.values), other._variables, strict=True)
            self._start = joined([x for x, like in values if id(like) in self.key])
            self._before = other._before._replace(values=self._start)
            self.record = other.record._replace(window=self.record.window)
            self.batches = other.batches

    def reset(self) -> None:
        """Begin a window."""
        self.record = self.record._replace(window=self.record.window.next(xp=ops))
        if self.noise:
            self.noise.noise = self.noise.noise.next()

    def looks(self) -> bool:
        """Whether the step that comes is looked at."""
        n = (self.batches or 0) // self._accumulated + 1
        return self._looks_at(n) or self._noise_of(n) is not None

    def _looks_at(self, n: int) -> bool:
        return bool(self._sampling.measures(n) or self._sampling.precedes(n))

    def _noise_of(self, n: int) -> NoiseMeter | None:
        """What looks at the momenta of step n."""
        return self.noise if self._sampling.steps_to_noise(n) < core.BLOCK else None

    def before(self) -> None:
        """Before a batch: keep what its step is compared with."""
        optimizer = self._optimizer
        if self.batches is None:
            self.batches = 0
            if self._accumulated > 1:
                self.batches = int(ops.convert_to_numpy(optimizer._iterations)) % self._accumulated
        # A MultiOptimizer has none. Callbacks may set another one after the step.
        rate = ops.convert_to_tensor(getattr(optimizer, "learning_rate", 0.0))
        rate = ops.cast(rate, self._dtype)
        if self.batches % self._accumulated == 0:
            now = self._now(rate)
            if not self._looks_at(self.batches // self._accumulated + 1):
                now = now._replace(values=[])  # of the momenta alone
            self._before = self._copy(now)
            if self._start is None:
                self._start = self._before.values
                self.record = self.record._replace(told=self._before.iterations)
        elif self._before:
            self._before = self._before._replace(rate=ops.copy(rate))

    def after(self) -> None:
        """After a batch: measure the step if one ended with it."""
        if self.batches is None:  # begun in the midst of a batch
            return
        self.batches += 1
        n, inside = divmod(self.batches, self._accumulated)
        if inside or not self._before or not self._optimizer.built:
            return
        before, self._before = self._before, None
        if noise := self._noise_of(n):
            noise.after(self._sampling.steps_to_noise(n), before.iterations, before.rate)
        if not self._looks_at(n):
            self._previous = None
            return
        previous, self._previous = self._previous, None
        now = self._now(before.rate)
        if self._sampling.measures(n):
            step = self._take(n, previous, before, now)
        else:
            step = self._difference(before, now)
        self._previous = step if self._sampling.precedes(n) else None

    def _take(self, n: int, previous: Step | None, before: Snapshot, now: Snapshot) -> Step:
        """Measure step n."""
        ends = self._sampling.ends_span(n)
        if previous is None:
            zeros = [0 * ops.cast(x, self._dtype) for x in before.values]
            previous = Step(zeros, ops.zeros((), "bool"))
        step: Step
        self.record, step = self._measure(
            self.record,
            self._start if ends else None,
            previous,
            before,
            now,
            self._dynamics(before.rate),
            ops.convert_to_tensor(self._sampling.weight(n)),
        )
        if ends:
            self._start = self._copy(now.values)
        return step

    def _now(self, rate: Tensor) -> Snapshot:
        return Snapshot(self._values(), iterations(self._optimizer), rate)

    @property
    def why_no_noise(self) -> str:
        """Why the gradients are not known, if they are not."""
        return self.noise.why_none if self.noise else ""

    @property
    def _accumulated(self) -> int:
        return self._optimizer.gradient_accumulation_steps or 1

    def _dynamics(self, rate: Tensor) -> tuple[core.Dynamics, list[Tensor] | None]:
        """Rho and dt**2 of the step, and what its masses are made of."""
        rho, dt2, bath = self._rule.dynamics(rate)
        squares = None
        if self._rule.squares and len(self._variables) > len(self.key) - 1:
            dt2 = None  # what does not walk has no mass
        elif self._rule.squares:
            if self._squares is None:
                squares, index = self._rule.squares(), self._optimizer._get_variable_index
                self._squares = reader([squares[index(x)] for x in self._variables], self._dtype)
            squares = self._squares()
        numbers = (rho, dt2, bath and bath.temperature)
        known = [x if x is None else ops.cast(x, self._dtype) for x in numbers]
        return core.Dynamics(*known), squares

    # --- compiled ---------------------------------------------------------------------------------

    def _step(self, before: Snapshot, now: Snapshot) -> Step:
        """The displacements, less decoupled weight decay."""
        shrink = 1 - (self._optimizer.weight_decay or 0) * before.rate
        pairs = zip(self._apart(before.values), self._apart(now.values), self._decays, strict=True)
        moved = [y - (x * shrink if decay else x) for x, y, decay in pairs]
        return Step(joined(moved), ops.equal(now.iterations - before.iterations, 1))

    def _measured(
        self,
        record: Record,
        start: list[Tensor] | None,
        previous: Step,
        before: Snapshot,
        now: Snapshot,
        dynamics: tuple[core.Dynamics, list[Tensor] | None],
        weight: Tensor,
    ) -> tuple[Record, Step]:
        """With one more measured step, which ends a span if the values at its start are given."""
        step = self._step(before, now)
        (how, squares), mass, path = dynamics, None, None
        if self._rule.noise:
            how = how._replace(bath=core.Bath(how.bath, self._rule.noise))
        if squares is not None and self._rule.mass:
            mass = [self._rule.mass(x, now.iterations) for x in self._apart(squares)]
        if start is not None:
            path = [y - x for x, y in zip(self._apart(start), self._apart(now.values), strict=True)]
        moved = self._apart(step.moved), self._apart(previous.moved)
        window = record.window.step(now.iterations - record.told, xp=ops).measure(
            core.moments(*moved, mass, path, xp=ops),
            self.layout,
            how,
            weight=weight,
            paired=previous.applied,
            applied=step.applied,
            xp=ops,
        )
        return Record(window, ops.copy(now.iterations)), step

    def _apart(self, values: list[Tensor]) -> list[Tensor]:
        return apart(values, self.layout.sizes, self._dtype)
