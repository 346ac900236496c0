"""A callback that measures what the steps of any optimizer do, and writes it into the logs."""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops, tree

from coolmomentum import _check
from coolmomentum import thermometer as core
from coolmomentum._arrays import bits, namespace
from coolmomentum.keras._common import Tensor, Variable, path_of, wide_dtype
from coolmomentum.keras._dynamics import rule_of

SHOWN = ("rescaled_temperature", "temperature", "rho", "freeze_out")
Seen = tuple[core.Window, core.Layout, core.GradientNoise | None]
JAX, TENSORFLOW = (keras.backend.backend() == name for name in ("jax", "tensorflow"))


class Thermometer(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is not typed
    """A thermometer for any optimizer of Keras, on all backends: a window is an epoch.

    It writes its readings into the logs at the end of an epoch, where History, the progress bar
    and all callbacks that come after it in the list find them: put it before CSVLogger and
    TensorBoard. Readings that do not exist are left out. It does not change the steps of ``fit``,
    and they do not wait for it before their epoch ends. It measures each of the first ten steps,
    then one in ``every``, by copies of the variables around it.

    Parameters
    ----------
    every : measure one step in this many, after the first ten.
    span : steps over which the freeze-out meter follows the variables, a multiple of ``every``; it
        goes on from one epoch to the next, and begins anew in each ``fit``.
    optimizer : the optimizer to follow; by default the one of the model. Name it where your own
        ``train_step`` lets another one step, as in a GAN.
    readings : what goes into the logs, some of :data:`coolmomentum.thermometer.READINGS`.
    all_weights : count all weights of the model, as the paper's authors do, with the moving
        statistics of batch normalization. These do not walk: as the weights cool they become all
        that is measured, and it looks as if the cooling stopped. Only to compare with the paper.
    gradient_noise : whether the critical batch size is read too, of CoolMomentum, SGD with
        momentum, Adam and AdamW, with momenta in 32 bits at least; ``every`` is then 4 at least.
    batch_size : examples in a step, for that: those of all replicas and accumulated batches.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range; from ``fit`` if ``steps_per_execution`` is not 1, as then
        nothing can be seen between two steps.

    Notes
    -----
    Momentum coefficient and time step are known of CoolMomentum, SGD, Adam, AdamW, RMSprop (not
    centered) and Adagrad, the last four with their masses, the square roots by which they divide a
    gradient. With Nesterov momentum, and of others, what needs them is NaN. ``MultiOptimizer`` is
    another; name one of its ``optimizers`` to measure its part. Decoupled weight decay is no
    displacement and is taken out, except of the way that the freeze-out meter follows. An
    optimizer with ``ema_overwrite_frequency`` moves its variables besides, and that is measured.

    It sees a step from just before to just after ``model.train_function``, so other callbacks may
    set the learning rate or swap the weights at any time and in any order. In a loop of your own
    around ``train_on_batch`` call ``set_model``, ``on_train_begin``, before each batch
    ``on_train_batch_begin``, and :meth:`reset` where a window begins. It never stops a training:
    what cannot be measured reads NaN, and one warning says why.

    ``copy.deepcopy`` and ``pickle`` give a thermometer with the settings and the last readings.

    Examples
    --------
    >>> import keras, numpy as np
    >>> from coolmomentum.keras import Thermometer
    >>> dense = keras.layers.Dense(1, kernel_initializer="ones", use_bias=False)
    >>> model = keras.Sequential([keras.Input((1,)), dense])
    >>> model.compile(keras.optimizers.SGD(0.25), "mse")
    >>> x, thermometer = np.ones((1, 1)), Thermometer()
    >>> history = model.fit(x, 0 * x, callbacks=[thermometer], verbose=0).history
    >>> history["rescaled_temperature"]  # one step of -0.25 * 2
    [0.25]
    >>> thermometer.read()["temperature"]  # over the squared time step, 2 * 0.25
    0.5
    """

    def __init__(
        self,
        every: int = core.EVERY,
        span: int = core.SPAN,
        optimizer: keras.optimizers.Optimizer | None = None,
        *,
        readings: Sequence[str] = SHOWN,
        all_weights: bool = False,
        gradient_noise: bool = False,
        batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self._sampling = core.Sampling(every, span)
        if optimizer is not None and not isinstance(optimizer, keras.optimizers.Optimizer):
            raise TypeError(f"optimizer must be a keras.optimizers.Optimizer: {optimizer!r}")
        self._optimizer = optimizer
        self._all_weights = _check.flag("all_weights", all_weights)
        every = self._sampling.every
        self._batch_size = core.check_gradient_noise(gradient_noise, batch_size, every)
        if gradient_noise and all_weights:
            raise ValueError("all_weights must be False with gradient_noise=True: True")
        allowed = (*core.READINGS, *(core.NOISE_READINGS if gradient_noise else ()))
        self._readings = tuple(_check.one_of("readings", x, allowed) for x in readings)
        self._seen = self._nothing()  # the last window
        self._trainer: Any = None  # the model, while it is trained
        self._meter: _Meter | None = None
        self._begun: Tensor = None  # iterations where the window began
        self._batches, self._error, self._waits, self._warned = 0, "", False, False
        self._warned_of_noise = False

    # --- what the user calls ----------------------------------------------------------------------

    def read(self, by: core.By = "all", reset: bool = False) -> dict[str, Any]:
        """The readings of the window, which goes on; after ``fit`` those of its last epoch.

        Parameters
        ----------
        by : "all" pools all variables; "parameter" gives each and "group" those of each layer.
        reset : begin a new window afterwards, as :meth:`reset` does.

        Returns
        -------
        dict with "steps" and :data:`coolmomentum.thermometer.READINGS`, which
        :meth:`coolmomentum.thermometer.Window.readings` describes; NaN where something is not
        known. With ``gradient_noise`` also :data:`coolmomentum.thermometer.NOISE_READINGS`, of
        :meth:`coolmomentum.thermometer.GradientNoise.readings`.
        By group or parameter a dict of such dicts, by the paths of the layers or variables. Equal
        paths get a number, as ``tower/fc#2``.

        Warns
        -----
        UserWarning
            Once, if nothing was measured in the window, or the walk is more than 5 per cent hotter
            than its bath: the warning says why.
        """
        _check.flag("reset", reset)
        window, layout, noise = self._on_host()
        reading = core.report(window, layout, by, noise)
        why = self._why(window) or core.why_hotter(core.report(window, layout), layout)
        if why and not self._warned:
            self._warned = True
            warnings.warn(why, stacklevel=2)
        elif noise and window.counts[0] and not self._warned_of_noise:
            why = noise.why_unknown(self._meter.why_no_noise if self._meter else "")
            self._warned_of_noise = why is not None
            if why:
                warnings.warn(why, stacklevel=2)
        if reset:
            self.reset()
        return reading

    def reset(self) -> None:
        """Begin a new window; the span of the freeze-out meter goes on. An epoch begins with it."""
        self._seen, self._batches, self._error = self._nothing(), 0, ""
        if self._trainer:
            self._begun = _iterations(self._followed())
            if self._meter:
                self._meter.reset()

    # --- hooks of Keras ---------------------------------------------------------------------------

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget what was measured before."""
        model = self.model
        if model.steps_per_execution != 1:
            raise ValueError(
                "steps_per_execution must be 1 for a Thermometer: "
                f"{model.steps_per_execution}; compile the model with it"
            )
        if self._optimizer is None and model.optimizer is None:
            raise ValueError("optimizer must be given where the model has none: None")
        self._trainer, self._waits = model, False
        if self._meter:
            self._meter.begin()
        self.reset()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin a window."""
        self.reset()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Put the next call of the model's train_function between two looks at the variables."""
        model = self._trainer
        if self._waits:  # for a call that did not come: the loop does not train by it
            return
        if model.train_function is None:
            model.make_train_function()
        function, self._waits = model.train_function, True

        def seen(*arguments: Any) -> Any:
            model.train_function, self._waits = function, False
            looks = self._meter is None or self._meter.looks()
            if looks:
                self._look(_Meter.before, arguments[0])
            result = function(*arguments)
            self._batches += 1
            if looks:
                self._look(_Meter.after, result[1] if JAX else None)
            elif self._meter and self._meter.batches is not None:
                self._meter.batches += 1
            return result

        model.train_function = seen

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the readings into the logs."""
        reading = core.known(self.read())
        if logs is not None:
            logs.update({name: reading[name] for name in self._readings if name in reading})

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Keep the last readings, and follow the model no longer."""
        self._seen, self._trainer = self._on_host(), None
        if self._meter:
            self._meter.begin()  # frees the copies

    # --- the rest ---------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """A copy has the settings and the last readings, and follows no model yet."""
        run = dict.fromkeys(("_trainer", "_meter", "_begun", "_model"))
        return self.__dict__ | run | {"_seen": self._on_host(), "_waits": False}

    def _followed(self) -> Any:
        optimizer = self._optimizer or self._trainer.optimizer
        return getattr(optimizer, "inner_optimizer", optimizer)

    def _look(self, hook: "Callable[[_Meter], None]", state: Any) -> None:
        """Call a hook of the meter: what cannot be measured must not stop the training."""
        if self._error:
            return
        try:
            with _values_of(self._trainer, state):
                self._follow()
                if self._meter:
                    hook(self._meter)
        except Exception as error:
            self._meter = None
            self._error = f"no reading: {type(error).__name__}: {error}"

    def _follow(self) -> None:
        """Begin anew if the optimizer or its variables have changed."""
        optimizer, model = self._followed(), self._trainer
        moving = optimizer._trainable_variables if optimizer.built else model.trainable_variables
        moving = [x for x in moving if _walks(x)]
        key = [optimizer, *map(id, moving)]
        if self._meter and self._meter.key == key:
            return
        if self._meter and self._meter.key[0] is not optimizer:
            self._begun, self._batches = _iterations(optimizer), 0
        others = [x for x in model.weights if id(x) not in key] if self._all_weights else []
        variables = moving + [x for x in others if _is_floating(x)]
        before = self._meter
        batch = self._batch_size
        self._meter = _Meter(key, variables, self._sampling, batch) if variables else None
        if before and self._meter:
            self._meter.take_over(before)

    def _nothing(self) -> Seen:
        noise = self._batch_size and core.GradientNoise.empty(np.zeros(1), self._batch_size)
        return core.Window.empty(np.zeros(1)), core.Layout((), ()), noise or None

    def _on_host(self) -> Seen:
        if self._trainer is None:
            return self._seen
        self.model  # noqa: B018  # on JAX this brings the variables back from the compiled steps
        (sums, counts), layout, noise = self._nothing()
        if self._meter:
            sums, counts = map(ops.convert_to_numpy, self._meter.record.window)
            layout = self._meter.layout
            if self._meter.noise:
                noise = core.GradientNoise(*map(ops.convert_to_numpy, self._meter.noise))
        steps = int(ops.convert_to_numpy(_iterations(self._followed()) - self._begun))
        return core.Window(sums, np.array([steps, *counts[1:]])), layout, noise

    def _why(self, window: core.Window) -> str | None:
        """Why the window reads NaN throughout; None if it does not."""
        steps, batches = int(window.counts[0]), self._batches
        if self._error or window.counts[1] or not steps + batches:
            return self._error
        if 0 < steps <= batches:
            return core.why_unmeasured(window, self._sampling)
        return (
            f"no reading: the optimizer took {steps} steps in {batches} batches, and one in each "
            "can be measured; if another optimizer steps, name it: Thermometer(optimizer=...)"
        )


class _Snapshot(NamedTuple):
    """The variables before or after a step."""

    values: list[Tensor]  # as a reader gives them
    iterations: Tensor  # shape ()
    rate: Tensor  # shape (): learning rate of the step


class _Step(NamedTuple):
    """What a step did."""

    moved: list[Tensor]  # displacements, as a reader gives values
    applied: Tensor  # shape (), bool: a loss scaler skips steps, and the host is not to ask


class _Record(NamedTuple):
    """What was measured."""

    window: core.Window
    told: Tensor  # shape (): iterations that the window knows of


class _Kept(NamedTuple):
    """What is kept of a step for the gradient noise."""

    momenta: list[Tensor]  # after the step, as a reader gives values
    rule: core.Momentum
    before: Tensor  # shape (): iterations before the step
    after: Tensor


class _Meter:
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
        self._values = _reader(variables, self._dtype)
        self._squares: Callable[[], list[Tensor]] | None = None
        self._copy = _compiled(lambda tensors: tree.map_structure(ops.copy, tensors))
        self._difference, self._measure = _compiled(self._step), _compiled(self._measured)
        self._batch_size, self.why_no_noise = batch_size, self._rule.why_none
        self._momenta: Callable[[], list[Tensor]] | None = None
        self._measure_noise = _compiled(self._noise_measured)
        self.begin()

    def begin(self) -> None:
        """Begin anew, without copies."""
        sums = ops.zeros((len(core.SUMS), len(self.layout)), self._dtype)
        window = core.Window(sums, ops.zeros(len(core.COUNTS), "int32"))
        self.record = _Record(window, ops.zeros((), "int32"))
        self.batches: int | None = None  # those of a step half accumulated, and all since
        self._before: _Snapshot | None = None  # the step that goes on
        self._previous: _Step | None = None  # the step before, if it was looked at
        self._start: list[Tensor] | None = None  # the values where the span began
        self.noise: core.GradientNoise | None = None
        self._kept: list[_Kept] = []  # of the last steps, the newest first
        if self._batch_size:
            empty = core.GradientNoise.empty(sums[0], self._batch_size, xp=ops)
            self.noise = core.GradientNoise(
                empty.sums, ops.zeros(1, "int32"), ops.convert_to_tensor(self._batch_size, "int32")
            )

    def take_over(self, other: "_Meter") -> None:
        """Go on from a meter of more variables, in the batch in which the optimizer was built."""
        if other._before and {*self.key} <= {*other.key}:
            values = other._apart(other._before.values)
            chosen = [
                x for x, like in zip(values, other._variables, strict=True) if id(like) in self.key
            ]
            self._start = self._joined(chosen)
            self._before = other._before._replace(values=self._start)
            self.batches, self.record = (
                other.batches,
                other.record._replace(window=self.record.window),
            )

    def reset(self) -> None:
        """Begin a window."""
        self.record = self.record._replace(window=self.record.window.next(xp=ops))
        self.noise = self.noise and self.noise.next()

    def looks(self) -> bool:
        """Whether the step that comes is looked at."""
        n = (self.batches or 0) // self._accumulated + 1
        return self._looks_at(n) or self._noise_looks_at(n)

    def _looks_at(self, n: int) -> bool:
        return bool(self._sampling.measures(n) or self._sampling.precedes(n))

    def _noise_looks_at(self, n: int) -> bool:
        return bool(self.noise) and self._sampling.steps_to_noise(n) < core.BLOCK

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
        if self._noise_looks_at(n):
            self._keep(self._sampling.steps_to_noise(n), before)
        if not self._looks_at(n):
            self._previous = None
            return
        previous, self._previous = self._previous, None
        now = self._now(before.rate)
        if self._sampling.measures(n):
            ends = self._sampling.ends_span(n)
            self.record, step = self._measure(
                self.record,
                self._start if ends else None,
                previous
                or _Step(
                    [0 * ops.cast(x, self._dtype) for x in before.values], ops.zeros((), "bool")
                ),
                before,
                now,
                self._dynamics(before.rate),
                ops.convert_to_tensor(self._sampling.weight(n)),
            )
            if ends:
                self._start = self._copy(now.values)
        else:
            step = self._difference(before, now)
        self._previous = step if self._sampling.precedes(n) else None

    def _keep(self, ahead: int, before: _Snapshot) -> None:
        """Keep the momenta of a step for one so many steps later, or measure the gradient noise."""
        if self.why_no_noise or self._rule.momenta is None:
            return
        if self._momenta is None:
            all_of_them, index = self._rule.momenta(), self._optimizer._get_variable_index
            chosen = [all_of_them[index(x)] for x in self._variables]
            if any(bits(keras.backend.standardize_dtype(x.dtype)) < 32 for x in chosen):
                self.why_no_noise = "in 16 bits"
                return
            self._momenta = _reader(chosen, self._dtype)
        rule = self._rule.momentum(before.rate)
        kept = _Kept(
            self._momenta() if ahead == 0 else self._copy(self._momenta()),
            core.Momentum(*(ops.cast(x, self._dtype) for x in rule)),
            before.iterations,
            _iterations(self._optimizer),
        )
        self._kept = [kept, *self._kept][: core.BLOCK]
        if ahead == 0:
            if len(self._kept) == core.BLOCK:
                self.noise = self._measure_noise(self.noise, self._kept)
            self._kept = []

    def _now(self, rate: Tensor) -> _Snapshot:
        return _Snapshot(self._values(), _iterations(self._optimizer), rate)

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
                self._squares = _reader([squares[index(x)] for x in self._variables], self._dtype)
            squares = self._squares()
        numbers = (rho, dt2, bath and bath.temperature)
        known = [x if x is None else ops.cast(x, self._dtype) for x in numbers]
        return core.Dynamics(*known), squares

    # --- compiled ---------------------------------------------------------------------------------

    def _step(self, before: _Snapshot, now: _Snapshot) -> _Step:
        """The displacements, less decoupled weight decay."""
        shrink = 1 - (self._optimizer.weight_decay or 0) * before.rate
        pairs = zip(self._apart(before.values), self._apart(now.values), self._decays, strict=True)
        moved = [y - (x * shrink if decay else x) for x, y, decay in pairs]
        return _Step(self._joined(moved), ops.equal(now.iterations - before.iterations, 1))

    def _measured(
        self,
        record: _Record,
        start: list[Tensor] | None,
        previous: _Step,
        before: _Snapshot,
        now: _Snapshot,
        dynamics: tuple[core.Dynamics, list[Tensor] | None],
        weight: Tensor,
    ) -> tuple[_Record, _Step]:
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
        return _Record(window, ops.copy(now.iterations)), step

    def _noise_measured(self, noise: core.GradientNoise, kept: list[_Kept]) -> core.GradientNoise:
        """With one more measured step."""
        applied = ops.ones((), "bool")
        for step in kept[:-1]:
            applied = ops.logical_and(applied, ops.equal(step.after - step.before, 1))
        momenta, rules = [self._apart(x.momenta) for x in kept], [x.rule for x in kept[:-1]]
        # On PyTorch each operation is a call, and by way of Keras takes twice as long.
        xp = ops if JAX or TENSORFLOW else namespace(noise.sums)
        how: dict[str, Any] = {"dot": lambda x, y: xp.sum(x * y), "xp": xp}
        return noise.measure(momenta, rules, self.layout, applied=applied, **how)

    def _apart(self, values: list[Tensor]) -> list[Tensor]:
        """An array for each variable, in the dtype to compute in."""
        if len(values) < len(self.layout.sizes):
            values = ops.split(values[0], np.cumsum(self.layout.sizes)[:-1].tolist())
        return [ops.cast(x, self._dtype) for x in values]

    def _joined(self, values: list[Tensor]) -> list[Tensor]:
        return [ops.concatenate(values)] if TENSORFLOW else values


def _reader(variables: list[Variable], dtype: str) -> Callable[[], list[Tensor]]:
    """What gives the values of the variables; on TensorFlow joined to one vector.

    There each argument of a graph takes some 0.1 ms, which for those of a ResNet-20 is half a step.
    """
    if not TENSORFLOW:
        return lambda: [ops.convert_to_tensor(x) for x in variables]
    import tensorflow as tf

    @tf.function  # type: ignore[untyped-decorator]  # TensorFlow is not typed
    def joined() -> list[Tensor]:
        return [ops.concatenate([ops.reshape(ops.cast(x, dtype), (-1,)) for x in variables])]

    values: Callable[[], list[Tensor]] = joined
    return values


def _compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    """``f`` as one call of the backend."""
    compiled: Callable[..., Any]
    if JAX:
        import jax

        compiled = jax.jit(f)
    elif TENSORFLOW:
        import tensorflow as tf

        compiled = tf.function(f)
    else:
        import torch

        compiled = torch.no_grad()(f)
    return compiled


def _values_of(model: Any, state: Any) -> AbstractContextManager[Any]:
    """Where the variables have the values of a compiled step: on JAX they do not hold them."""
    if not JAX:
        return nullcontext()
    lists = model.trainable_variables, model.non_trainable_variables, model.optimizer.variables
    scope: AbstractContextManager[Any] = keras.StatelessScope(
        [*chain.from_iterable(map(zip, lists, state))]
    )
    return scope


def _iterations(optimizer: Any) -> Tensor:
    # A copy: to TensorFlow a variable is a tensor, whose value it would ask the device for.
    return ops.copy(ops.convert_to_tensor(optimizer.iterations))


def _walks(variable: Variable) -> bool:
    """Whether steps move it; not what Keras overwrites with its gradient, or is frozen."""
    overwritten = getattr(variable, "overwrite_with_gradient", False)
    return bool(_is_floating(variable) and variable.trainable and not overwritten)


def _is_floating(variable: Variable) -> bool:
    return "float" in keras.backend.standardize_dtype(variable.dtype)
