"""A callback that measures what the steps of any optimizer do, and writes it into the logs.

The arithmetic is that of :mod:`coolmomentum.thermometer`. Only ``on_train_batch_begin`` and the
ends of epochs look at the variables: with a hook at the end of batches Keras would wait for every
batch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from keras import ops, tree

from coolmomentum import _check
from coolmomentum._thermometer_before import (
    EVERY,
    READINGS,
    SPAN,
    Rows,
    Window,
    check_intervals,
    pair_sums,
)
from coolmomentum.keras._optimizer import (
    CoolMomentum,
    Tensor,
    Variable,
    last_learning_rate,
    wide_dtype,
)
from coolmomentum.langevin import adam_mass, learning_rate_from_adam, learning_rate_from_sgd
from coolmomentum.temperature import inner_product, squared_norm

By = Literal["all", "group", "parameter"]
SHOWN = ("rescaled_temperature", "temperature", "rho", "freeze_out")


class Thermometer(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is not typed
    """A thermometer for any optimizer of Keras, on all backends: a window is an epoch.

    It writes its readings into the logs at the end of an epoch, where History, the progress bar
    and all callbacks that come after it in the list find them: put it before CSVLogger and
    TensorBoard. The steps of ``fit`` are not changed, and do not wait for it before their epoch
    ends. One step in ``every`` is measured, by copies of the variables around it.

    Parameters
    ----------
    every : one step in this many is measured; an epoch with fewer steps may read NaN.
    span : steps over which the freeze-out meter follows the variables, a multiple of ``every``; it
        goes on from one epoch to the next.
    readings : what goes into the logs, some of :data:`coolmomentum.thermometer.READINGS`.
    all_weights : count all weights of the model, as the paper's authors do, with the moving
        statistics of batch normalization. These do not walk: as the weights cool they become all
        that is measured, and it looks as if the cooling stopped. Only to compare with the paper.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range; from ``fit`` if ``steps_per_execution`` is not 1, as then
        nothing can be seen between two steps.

    Notes
    -----
    Momentum coefficient and time step are known of CoolMomentum, SGD, Adam, AdamW, RMSprop (not
    centered) and Adagrad, the last four with their masses, the square roots by which they divide a
    gradient. With Nesterov momentum, and of others, what needs them is NaN. Decoupled weight decay
    is no displacement and is taken out, except of the way that the freeze-out meter follows. An
    optimizer with ``ema_overwrite_frequency`` moves its variables besides, and that is measured.

    Examples
    --------
    >>> import keras, numpy as np
    >>> from coolmomentum.keras import Thermometer
    >>> dense = keras.layers.Dense(1, kernel_initializer="ones", use_bias=False)
    >>> model = keras.Sequential([keras.Input((1,)), dense])
    >>> model.compile(keras.optimizers.SGD(0.25), "mse")
    >>> x = np.ones((1, 1))
    >>> history = model.fit(x, 0 * x, callbacks=[Thermometer(every=1)], verbose=0).history
    >>> history["rescaled_temperature"]  # one step of -0.25 * 2
    [0.25]
    """

    def __init__(
        self,
        every: int = EVERY,
        span: int = SPAN,
        *,
        readings: Sequence[str] = SHOWN,
        all_weights: bool = False,
    ) -> None:
        super().__init__()
        self._every, self._span = check_intervals(every, span)
        self._readings = tuple(_check.one_of("readings", name, READINGS) for name in readings)
        self._all_weights = _check.flag("all_weights", all_weights)
        self._closed: tuple[_Names, list[dict[str, float]]] | None = None

    def read(self, by: By = "all") -> dict[str, Any]:
        """All readings of the last epoch that has ended.

        Parameters
        ----------
        by : "all" pools all variables; "parameter" gives each and "group" those of each layer.

        Returns
        -------
        a dict of floats with the readings of :meth:`coolmomentum.thermometer.Window.read` and
        "steps", the steps of the epoch; NaN where something is not known. By group or parameter a
        dict of such dicts, by the paths of the layers or variables.

        Raises
        ------
        RuntimeError
            If no epoch has ended.
        """
        _check.one_of("by", by, ("all", "group", "parameter"))
        if self._closed is None:
            raise RuntimeError("read must come after the end of an epoch: there was none")
        names, readings = self._closed
        if by == "all":
            return readings[-1]
        if by == "parameter":
            return dict(zip(names.parameters, readings, strict=False))
        return dict(zip(names.groups, readings[len(names.parameters) :], strict=False))

    # --- hooks of Keras ---------------------------------------------------------------------------

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget what was measured before."""
        model = self.model
        if model.steps_per_execution != 1:
            raise ValueError(
                "steps_per_execution must be 1 for a Thermometer: "
                f"{model.steps_per_execution}; compile the model with it"
            )
        self._batches = 0
        self._looked = -1
        self._meter: _Meter | None = None

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Look at the variables, if one of the steps around is measured."""
        self._look()
        self._batches += 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Close the window and write its readings into the logs."""
        self._look()
        if self._meter is None:
            return
        self._closed = self._meter.names, self._meter.close()
        if logs is not None:
            logs.update({name: self._closed[1][-1][name] for name in self._readings})

    def _look(self) -> None:
        if self._meter is None:
            model = self.model
            weights = model.weights if self._all_weights else model.trainable_variables
            if not weights:  # not built before its first batch
                self._batches = -1
                return
            moving = {id(x) for x in model.trainable_variables}
            self._meter = _Meter(model.optimizer, _floating(weights), moving, self._span)
        microbatches = self._batches + self._meter.begun
        step, inside = divmod(microbatches, self._meter.accumulated)
        if inside or step == self._looked:
            return
        self._looked = step
        near = [(step + later) % self._every == 0 for later in range(3)]
        if any(near) or step % self._span == 0:
            self.model  # noqa: B018  # on JAX this brings the variables back from the compiled steps
            self._meter.look(step, measured=near[0] and step > 0, next_measured=any(near[1:]))


class _Names(NamedTuple):
    parameters: tuple[str, ...]
    groups: tuple[str, ...]


class _Look(NamedTuple):
    """What is kept of the variables after a step."""

    values: list[Tensor]  # as a reader gives them
    iterations: Tensor  # shape ()
    shrink: Tensor  # shape (): what decoupled weight decay multiplied the variables with


class _Meter:
    """The window, and the looks that the next measured step is compared with."""

    def __init__(
        self, optimizer: Any, variables: list[Variable], moving: set[int], span: int
    ) -> None:
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        self.accumulated = optimizer.gradient_accumulation_steps or 1
        # A step that fit finds half accumulated is not seen whole.
        self.begun = int(ops.convert_to_numpy(optimizer._iterations)) % self.accumulated
        self._optimizer, self._span = optimizer, span
        layers: dict[str, list[Variable]] = {}
        for variable in variables:
            layers.setdefault(variable.path.rpartition("/")[0], []).append(variable)
        self._variables = [variable for layer in layers.values() for variable in layer]
        self.names = _Names(tuple(x.path for x in self._variables), tuple(layers))
        self._rows = Rows(
            tuple(int(np.prod(x.shape)) for x in self._variables),
            tuple(len(layer) for layer in layers.values()),
        )
        self._dtype = wide_dtype(self._variables)
        self._all_move = all(id(x) in moving for x in self._variables)
        decays = [
            bool(id(x) in moving and optimizer.weight_decay and optimizer._use_weight_decay(x))
            for x in self._variables
        ]
        self._values = _reader(self._variables, self._dtype)
        self._state_values: Callable[[], list[Tensor]] | None = None
        self._copy = _compiled(lambda xs: [ops.copy(x) for x in xs])
        self._measure = {
            ends: _compiled(
                functools.partial(
                    _measured, rows=self._rows, decays=decays, dtype=self._dtype, ends=ends
                )
            )
            for ends in (False, True)
        }
        zeros = ops.zeros((len(self._rows),), self._dtype)
        counts = [ops.zeros((), self._dtype) for _ in range(6)]
        self._window = Window(*Window.empty(zeros)[:-6], *counts)
        self._first: Tensor | None = None  # iterations where the window began
        self._looks: list[_Look] = []
        self._start: _Look | None = None

    def look(self, step: int, *, measured: bool, next_measured: bool) -> None:
        """After a step: measure it, and keep what the measured one after it needs."""
        optimizer, ends = self._optimizer, step % self._span == 0
        iterations = ops.copy(ops.convert_to_tensor(optimizer.iterations))
        iterations = ops.cast(iterations, self._dtype)
        shrink = ops.ones((), self._dtype)
        if optimizer.weight_decay:
            rate = ops.cast(last_learning_rate(optimizer, self._dtype), self._dtype)
            shrink = 1 - optimizer.weight_decay * rate
        now = _Look(self._values(), iterations, shrink)
        if self._first is None:
            self._first = iterations
        if measured and self._looks and self._start is not None:
            rho, square_time, state, mass = _motion(optimizer, self._dtype)
            masses = None
            if state is not None and self._all_move:
                if self._state_values is None:
                    index = map(optimizer._get_variable_index, self._variables)
                    self._state_values = _reader([state[i] for i in index], self._dtype)
                masses = [mass(ops.cast(x, self._dtype)) for x in self._state_values()]
            elif state is not None:  # what does not walk has no mass
                square_time = _nan(self._dtype)
            before, after = (*self._looks, self._looks[-1])[:2]  # on the first step there is one
            self._window = self._measure[ends](
                self._window, self._first, self._start, before, after, now, rho, square_time, masses
            )
        if ends or next_measured:
            now = now._replace(values=self._copy(now.values))  # the variables are overwritten
        if next_measured:
            self._looks = [*self._looks[-1:], now]
        if ends:
            self._start = now

    def close(self) -> list[dict[str, float]]:
        """The readings of each row; a new window begins."""
        iterations = ops.cast(ops.convert_to_tensor(self._optimizer.iterations), self._dtype)
        first, self._first = self._first, ops.copy(iterations)
        numbers = tree.map_structure(
            lambda x: np.asarray(ops.convert_to_numpy(x), np.float64), self._window
        )
        self._window = self._window.closed()._replace(
            **{name: ops.zeros((), self._dtype) for name in ("steps", "measured", "pairs", "spans")}
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            readings = numbers.read(self._rows, xp=np)
        steps = float(ops.convert_to_numpy(iterations - first))
        return [
            {name: float(x[i]) for name, x in readings.items()} | {"steps": int(steps)}
            for i in range(len(self._rows))
        ]


def _measured(
    window: Window,
    first: Tensor,
    start: _Look,
    before: _Look,
    after: _Look,
    now: _Look,
    rho: Tensor,
    square_time: Tensor,
    masses: list[Tensor] | None,
    *,
    rows: Rows,
    decays: list[bool],
    dtype: str,
    ends: bool,
) -> Window:
    """The window with one more measured step, that from ``after`` to ``now``."""

    def apart(values: list[Tensor]) -> list[Tensor]:
        if len(values) == len(rows.sizes):
            return values
        pieces: list[Tensor] = ops.split(values[0], np.cumsum(rows.sizes)[:-1].tolist())
        return pieces

    def moved(x: _Look, y: _Look) -> list[Tensor]:
        return [
            ops.cast(b, dtype) - ops.cast(a, dtype) * (y.shrink if decays[i] else 1)
            for i, (a, b) in enumerate(zip(apart(x.values), apart(y.values), strict=True))
        ]

    last, this = moved(before, after), moved(after, now)
    weighted = None
    if masses is not None:
        roots = [ops.sqrt(ops.cast(mass, dtype)) for mass in apart(masses)]
        last_weighted, this_weighted = (
            [x * root for x, root in zip(xs, roots, strict=True)] for xs in (last, this)
        )
        weighted = pair_sums(last_weighted, this_weighted, xp=ops)
    # A loss scaler skips steps; only it knows which, and the host is not to ask.
    applied = ops.equal(now.iterations - after.iterations, 1)
    paired = ops.cast(ops.equal(after.iterations - before.iterations, 1), dtype)
    added = window._replace(
        steps=now.iterations - first, span_steps=now.iterations - start.iterations
    ).add(
        pair_sums(last, this, xp=ops),
        rows,
        rho=rho,
        dt2=square_time,
        weighted=weighted,
        paired=paired,
        xp=ops,
    )
    if ends:
        way = [
            ops.cast(x, dtype) - ops.cast(x0, dtype)
            for x, x0 in zip(apart(now.values), apart(start.values), strict=True)
        ]
        distance = ops.stack([squared_norm(y, xp=ops) for y in way])
        overlap = ops.stack([inner_product(y, dx, xp=ops) for y, dx in zip(way, this, strict=True)])
        added = added.end_span(distance, overlap, rows, rho=rho, xp=ops)
        zero = ops.zeros((), dtype)
        window = window._replace(
            span_squares=window.span_squares * 0, span_steps=zero, span_measured=zero
        )
    chosen: Window = tree.map_structure(
        lambda new, old: ops.where(applied, new, old), added, window
    )
    return chosen


def _reader(variables: list[Variable], dtype: str) -> Callable[[], list[Tensor]]:
    """What gives the values of the variables; on TensorFlow joined to one vector.

    There each argument of a graph takes some 0.1 ms, which for those of a ResNet-20 is half a step.
    """
    if keras.backend.backend() != "tensorflow":
        return lambda: [ops.convert_to_tensor(x) for x in variables]
    import tensorflow as tf

    @tf.function  # type: ignore[untyped-decorator]  # TensorFlow is not typed
    def joined() -> list[Tensor]:
        return [ops.concatenate([ops.reshape(ops.cast(x, dtype), (-1,)) for x in variables])]

    values: Callable[[], list[Tensor]] = joined
    return values


def _compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    """``f`` as one call of the backend."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(f)
    if backend == "tensorflow":
        import tensorflow as tf

        graph: Callable[..., Any] = tf.function(f)
        return graph
    import torch

    return torch.no_grad()(f)


def _floating(weights: list[Variable]) -> list[Variable]:
    return [x for x in weights if "float" in keras.backend.standardize_dtype(x.dtype)]


def _nan(dtype: str) -> Tensor:
    return ops.cast(float("nan"), dtype)


class _Motion(NamedTuple):
    """How the last step of an optimizer moved."""

    rho: Tensor
    square_time: Tensor  # dt**2
    state: list[Variable] | None = None  # what the masses are made of, if they are not 1
    mass: Callable[[Tensor], Tensor] = ops.sqrt


def _motion(optimizer: Any, dtype: str) -> _Motion:
    known = keras.optimizers
    rate = last_learning_rate(optimizer, dtype)

    def of_sgd(momentum: float, rate: Tensor, *masses: Any) -> _Motion:
        square_time = ops.cast(learning_rate_from_sgd(rate, momentum), dtype)
        return _Motion(ops.cast(momentum, dtype), square_time, *masses)

    if isinstance(optimizer, CoolMomentum):
        return _Motion(optimizer._rho_at(optimizer.iterations - 1, dtype), rate)
    if isinstance(optimizer, known.SGD) and not optimizer.nesterov:
        return of_sgd(optimizer.momentum, rate)
    if isinstance(optimizer, known.Adam):
        steps = ops.cast(ops.convert_to_tensor(optimizer.iterations), dtype)
        beta1, beta2 = optimizer.beta_1, ops.cast(optimizer.beta_2, dtype)
        # Keras adds epsilon to the root before the bias is corrected, Kingma's "epsilon hat".
        epsilon = optimizer.epsilon / ops.sqrt(1 - beta2**steps)
        return _Motion(
            ops.cast(beta1, dtype),
            ops.cast(learning_rate_from_adam(rate, beta1), dtype),
            optimizer._velocity_hats if optimizer.amsgrad else optimizer._velocities,
            lambda x: adam_mass(x, beta2, steps, epsilon),
        )
    if isinstance(optimizer, known.RMSprop) and not optimizer.centered:
        squares, momentum = optimizer._velocities, optimizer.momentum
    elif isinstance(optimizer, known.Adagrad):
        squares, momentum = optimizer._accumulators, 0.0
    else:
        return _Motion(_nan(dtype), _nan(dtype))
    return of_sgd(momentum, rate, squares, lambda x: ops.sqrt(x + optimizer.epsilon))
