"""Hold hot, cool when told: a callback for CoolMomentum and for any other optimizer."""

import dataclasses
from typing import Any

import keras
from keras import ops

from coolmomentum import _check
from coolmomentum.cooldown import COLDEST, HELD, learning_rate_share
from coolmomentum.keras._optimizer import CoolMomentum, _countable, _on_host
from coolmomentum.keras._schedule import xp  # type: ignore[attr-defined]  # it is chosen there, by the backend, and not exported
from coolmomentum.schedules import COOLING_LAWS, CoolingSchedule, Law


class Cooldown(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is not typed
    """Callback that holds until it is told to cool: for CoolMomentum or any other optimizer.

    CoolMomentum then cools its rho to 0, and its learning rate stays. The learning rate of another
    optimizer falls to 1/199 of its value: by :func:`coolmomentum.learning_rate_share`, along the
    temperature that the same law gives from rho0 = 0.99. Held and then cooled is a run whose
    learning rate decays; it buys no accuracy over one that was planned. It is for runs whose end is
    not known: a held checkpoint can be cooled as often as you like, and trained on.

    It counts the steps of the optimizer. It sets variables, so nothing is compiled again and
    nothing waits, but for :meth:`start` and :meth:`stop`. With ``steps_per_execution`` a learning
    rate is set as often as Keras calls, which CoolMomentum does not need.

    Parameters
    ----------
    start_at : optimizer steps after which it starts to cool, an integer >= 1; or call
        :meth:`start`, from another callback say.
    steps : over which to cool, an integer >= 1; with start_at.
    law : "linear", "exponential" or "paper". If None, linear, and that of a CoolMomentum, which has
        its own.
    learning_rate : the held one, > 0; only to go on, with an optimizer other than CoolMomentum,
        from a checkpoint that cooled already. Else it is the optimizer's.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range. When training begins, if the learning rate is a schedule, a
        CoolMomentum is not held (make it with ``**coolmomentum.HELD`` and a law that cools), or
        start_at has passed.

    Examples
    --------
    >>> import keras, numpy as np
    >>> from coolmomentum.keras import Cooldown
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(0.25), "mse")
    >>> x = np.ones((20, 2), "float32")
    >>> cooldown = Cooldown(start_at=10, steps=10)
    >>> _ = model.fit(x, x[:, :1], batch_size=1, verbose=0, callbacks=[cooldown])
    >>> round(float(model.optimizer.learning_rate), 4)  # of the 20th step
    0.0261
    """

    def __init__(
        self,
        start_at: int | None = None,
        steps: int | None = None,
        *,
        law: Law | None = None,
        learning_rate: float | None = None,
    ) -> None:
        super().__init__()
        if (start_at is None) != (steps is None):
            raise TypeError(
                f"start_at and steps must be given together: {start_at!r} and {steps!r}"
            )
        self._event: tuple[int, int] | None = None
        if start_at is not None and steps is not None:
            start_at = _check.integer("start_at", start_at, 1)
            self._event = _checked(start_at, _check.integer("steps", steps, 1))
        if law is not None:
            _check.one_of("law", law, COOLING_LAWS)
        if learning_rate is not None:
            _check.positive("learning_rate", learning_rate)
        self.law: Law | None = law
        self.learning_rate = learning_rate
        self._held = 1.0  # share of the learning rate until the event
        self._optimizer: Any = None

    # --- told -----------------------------------------------------------------------------------

    def start(self, steps: int) -> None:
        """Cool from now on, from the temperature that there is; again, to extend what is left.

        Parameters
        ----------
        steps : of the optimizer over which to cool, an integer >= 1.

        Raises
        ------
        RuntimeError
            Before training has begun.
        TypeError, ValueError
            If steps is out of range, or it has cooled already. Nothing has been changed then.
        """
        steps = _check.integer("steps", steps, 1)
        taken = self._steps_taken()
        event = _checked(taken, steps)
        if isinstance(self._optimizer, CoolMomentum):
            self._cool_rho(event)
            return
        share = self._share(taken)
        if share <= COLDEST:
            raise ValueError(f"{_COOLED}: the learning rate is 1/199 of what it was")
        self._event, self._held = event, share

    def stop(self) -> None:
        """Stop to cool, and hold the temperature that there is until it is started again.

        Raises
        ------
        RuntimeError
            Before training has begun.
        """
        taken = self._steps_taken()
        if isinstance(self._optimizer, CoolMomentum):
            self._cool_rho(None)
        else:
            self._event, self._held = None, self._share(taken)

    def _steps_taken(self) -> int:
        if self._optimizer is None:
            raise RuntimeError("Cooldown must be among the callbacks of a fit that has begun")
        return int(_on_host(self._of_model().iterations))

    def _of_model(self) -> Any:
        """The optimizer, out of its loss scaler.

        On JAX its variables are elsewhere in training, and Keras brings them to who asks for the
        model: ask anew before they are read or set.
        """
        optimizer = self.model.optimizer
        return getattr(optimizer, "inner_optimizer", optimizer)

    def _cool_rho(self, event: tuple[int, int] | None) -> None:
        """Let a CoolMomentum cool from the rho it has, or hold it."""
        schedule = self._optimizer.schedule
        rho, taken = schedule.rho0, int(_on_host(self._optimizer.iterations))
        if taken > schedule.hold_steps:
            rho = dataclasses.replace(schedule, warmup_steps=0)(taken)
        if event and rho == 0:
            raise ValueError(f"{_COOLED}: rho is 0")
        hold, end = event or HELD.values()
        told = dataclasses.replace(schedule, rho0=rho, hold_steps=hold, total_steps=end)
        self._optimizer._cool_by(_countable(told))

    # --- in training ----------------------------------------------------------------------------

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Called by Keras: checks the optimizer; the same may go on with the same callback."""
        optimizer = self._of_model()
        taken = int(_on_host(optimizer.iterations))
        self._at_most, self._seen = taken, 0
        if optimizer is self._optimizer:
            return
        if isinstance(optimizer, CoolMomentum):
            schedule = _held_schedule(optimizer, self.law)
            self._optimizer = optimizer
            self._plan_rho(schedule, taken)
            return
        rate = optimizer.learning_rate
        if not isinstance(rate, keras.Variable):
            raise ValueError(
                "learning_rate must be a number, which Cooldown can set, not a schedule: "
                f"{type(optimizer).__name__}"
            )
        if self._event and taken > self._event[0] and self.learning_rate is None:
            raise ValueError(
                f"start_at = {self._event[0]} must not have passed, or learning_rate must say what "
                f"was held: {taken} steps were taken"
            )
        self._rate = float(_on_host(rate)) if self.learning_rate is None else self.learning_rate
        self._optimizer = optimizer

    def _plan_rho(self, schedule: CoolingSchedule, taken: int) -> None:
        told = schedule.hold_steps, schedule.total_steps
        if self._event is None or told == self._event:  # it goes on from a checkpoint
            return
        if told != tuple(HELD.values()) or taken > self._event[0]:
            self._optimizer = None
            raise ValueError(
                f"start_at = {self._event[0]} must not have passed: {taken} steps were taken, "
                f"hold_steps = {told[0]}"
            )
        self._cool_rho(self._event)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Called by Keras: sets the learning rate of the step that comes next."""
        if isinstance(self._optimizer, CoolMomentum) or (self._event is None and self._held == 1):
            return
        # It counts no fewer than the optimizer, which may skip or accumulate.
        if self._event is not None and self._at_most + self._seen < self._event[0]:
            return
        optimizer = self._of_model()
        rate, step = optimizer.learning_rate, ops.convert_to_tensor(optimizer.iterations)
        dtype = keras.backend.standardize_dtype(rate.dtype)
        rate.assign(self._rate * self._share(step, dtype=dtype, xp=xp))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Called by Keras: counts, without a look at the device."""
        self._seen = batch + 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Called by Keras: batches count from 0 in the next epoch."""
        self._at_most, self._seen = self._at_most + self._seen, 0

    def _share(self, step: Any, **to: Any) -> Any:
        hold, end = self._event or HELD.values()
        return learning_rate_share(step, hold, end, self.law or "linear", self._held, **to)


_COOLED = "it has cooled already, load a held checkpoint"


def _checked(start: int, steps: int) -> tuple[int, int]:
    if start + steps >= HELD["hold_steps"]:
        raise ValueError(f"steps must end below 2**31 - 2, from step {start}: {steps}")
    return start, start + steps


def _held_schedule(optimizer: CoolMomentum, law: Law | None) -> CoolingSchedule:
    schedule = optimizer.schedule
    if not isinstance(schedule, CoolingSchedule) or schedule.law == "constant":
        raise ValueError(
            "CoolMomentum must have a law to cool by, and **coolmomentum.HELD: law='linear' say, "
            f"as it is compiled in: {schedule!r}"
        )
    if schedule.hold_steps == 0:
        raise ValueError(
            "CoolMomentum must be held, by **coolmomentum.HELD, or it cools by itself: "
            f"total_steps={schedule.total_steps}"
        )
    if law is not None and law != schedule.law:
        raise ValueError(f"law must be that of the CoolMomentum, {schedule.law!r}: {law!r}")
    return schedule
