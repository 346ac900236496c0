"""A callback that measures what the steps of any optimizer do, and writes it into the logs."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from coolmomentum import _check
from coolmomentum import thermometer as core
from coolmomentum.keras._common import Tensor
from coolmomentum.keras._meter import Meter
from coolmomentum.keras._values import JAX, in_step, is_floating, iterations, walks

SHOWN = ("rescaled_temperature", "temperature", "rho", "freeze_out")
Seen = tuple[core.Window, core.Layout, core.GradientNoise | None]


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
        self._meter: Meter | None = None
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
            self._begun = iterations(self._followed())
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
                self._look(Meter.before, arguments[0])
            result = function(*arguments)
            self._batches += 1
            if looks:
                self._look(Meter.after, result[1] if JAX else None)
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

    def _look(self, hook: Callable[[Meter], None], state: Any) -> None:
        """Call a hook of the meter: what cannot be measured must not stop the training."""
        if self._error:
            return
        try:
            with in_step(self._trainer, state):
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
        moving = [x for x in moving if walks(x)]
        key = [optimizer, *map(id, moving)]
        if self._meter and self._meter.key == key:
            return
        if self._meter and self._meter.key[0] is not optimizer:
            self._begun, self._batches = iterations(optimizer), 0
        others = [x for x in model.weights if id(x) not in key] if self._all_weights else []
        variables = moving + [x for x in others if is_floating(x)]
        before = self._meter
        batch = self._batch_size
        self._meter = Meter(key, variables, self._sampling, batch) if variables else None
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
                noise = core.GradientNoise(*map(ops.convert_to_numpy, self._meter.noise.noise))
        steps = int(ops.convert_to_numpy(iterations(self._followed()) - self._begun))
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
