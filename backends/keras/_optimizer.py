"""CoolMomentum as a Keras optimizer: the step, the config, and rho and temperature to be read."""

from typing import Any, NamedTuple

import keras
from keras import ops

from coolmomentum import _check, _defaults
from coolmomentum.keras._schedule import schedule_config
from coolmomentum.langevin import step_size
from coolmomentum.schedules import (
    CoolingSchedule,
    Law,
    Schedule,
    WarmupClock,
    check_schedule,
    resolve_schedule,
)
from coolmomentum.temperature import rescaled_temperature
from coolmomentum.update import next_displacement

if keras.backend.backend() == "torch":
    from coolmomentum.keras._foreach import is_on_host, take_step

# What the laws are computed by. On JAX its own functions, which the core finds by itself: those of
# keras.ops make float32 of float64 there, tanh for one.
_LAWS_BY = None if keras.backend.backend() == "jax" else ops

Tensor = Any  # a tensor of the backend
Variable = Any  # a keras.Variable; within TensorFlow's step, a tf.Variable


class _Step(NamedTuple):
    """The coefficients of one step: 0-d tensors in the widest dtype of the variables, or floats."""

    rho: Tensor
    step_size: Tensor  # Eq. 16


@keras.saving.register_keras_serializable(package="coolmomentum")
class CoolMomentum(keras.optimizers.Optimizer):  # type: ignore[misc]  # Keras is not typed
    """Momentum SGD whose momentum coefficient cools from rho0 to 0 over total_steps.

    With ``n = iterations``, one step is ``rho = schedule(n)``,
    ``dx = rho dx - learning_rate (1 + rho) / 2 gradient``, ``x = x + dx``. The displacement ``dx``
    is the only state of a variable. With ``law="constant"`` and ``rho0 = m`` this is
    ``keras.optimizers.SGD`` with momentum m and learning rate ``learning_rate (1 + m) / 2``.

    After total_steps rho stays 0: plain SGD with learning rate ``learning_rate / 2``. The clock is
    ``iterations``, which counts the steps that were applied and is saved with the optimizer.

    Parameters
    ----------
    learning_rate : base learning rate, the squared time step ``dt**2``: a finite number >= 0, a
        ``keras.optimizers.schedules.LearningRateSchedule``, or a callable without arguments.
    total_steps : optimizer steps over which rho cools to 0, ``epochs * steps_per_epoch``, divided
        by gradient_accumulation_steps if there are any; required unless a schedule is given.
    rho0 : initial momentum coefficient, in [0, 1).
    law : "paper", "linear", "exponential" or "constant", see :class:`coolmomentum.CoolingSchedule`.
    warmup_steps : steps at the start with rho = 0, in [0, total_steps).
    warmup_clock : "run" lets the cooling clock run on during the warm-up, "hold" starts it after.
    hold_steps : steps at the start with rho = rho0, before the law begins, in [0, total_steps).
    schedule : a :class:`coolmomentum.CoolingSchedule`, or any callable ``step -> rho`` in [-1, 1),
        in place of the six arguments before. A callable gets a Python int, or inside a step a 0-d
        floating tensor. To be saved it has to be registered with
        ``keras.saving.register_keras_serializable``.
    weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, \
ema_overwrite_frequency, loss_scale_factor, gradient_accumulation_steps, name : as for every
        optimizer of Keras; weight decay is decoupled, and no displacement.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    float16 and bfloat16 variables are updated in float32 arithmetic. Sparse gradients are those of
    a dense gradient, as with momentum in ``keras.optimizers.SGD``: a row without a gradient goes on
    with its momentum.

    Under ``mixed_float16`` Keras wraps the optimizer: read ``optimizer.inner_optimizer``.

    Examples
    --------
    >>> import keras
    >>> from coolmomentum.keras import CoolMomentum
    >>> x = keras.Variable([1.0])
    >>> optimizer = CoolMomentum(learning_rate=0.25, total_steps=2, rho0=0.75)
    >>> for _ in range(2):
    ...     optimizer.apply([x.value + 0], [x])  # the gradient of x**2 / 2
    >>> float(x.numpy()[0]), optimizer.rho, optimizer.temperature()
    (0.525390625, 0.0, 0.261856079...)
    """

    def __init__(
        self,
        learning_rate: Any = _defaults.LEARNING_RATE,
        total_steps: int | None = None,
        rho0: float | None = None,
        *,
        law: Law | None = None,
        warmup_steps: int | None = None,
        warmup_clock: WarmupClock | None = None,
        hold_steps: int | None = None,
        schedule: Schedule | None = None,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str = "cool_momentum",
        **kwargs: Any,
    ) -> None:
        if not callable(learning_rate):
            learning_rate = _check.non_negative("learning_rate", learning_rate)
        cooling = resolve_schedule(
            schedule,
            total_steps=total_steps,
            rho0=rho0,
            law=law,
            warmup_steps=warmup_steps,
            warmup_clock=warmup_clock,
            hold_steps=hold_steps,
        )
        if not isinstance(cooling, CoolingSchedule):
            check_schedule(cooling, total_steps or 1)
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
            **kwargs,
        )
        self._schedule = cooling
        self._total_steps = total_steps
        self._displacements: list[Variable | None] = []

    @property
    def schedule(self) -> Schedule:
        """The schedule of rho: a CoolingSchedule, or the callable that was given."""
        return self._schedule

    # --- the step -------------------------------------------------------------------------------

    def build(self, variables: list[Variable]) -> None:
        """Make the displacements, of the shapes and dtypes of the variables."""
        if self.built:
            return
        super().build(variables)
        self._displacements = self.add_optimizer_variables(variables, "displacement")

    def update_step(
        self, gradient: Tensor, variable: Variable, learning_rate: "Tensor | _Step"
    ) -> None:
        """One step of one variable, Eq. 14.

        Parameters
        ----------
        gradient : of the shape of the variable; dense or sparse.
        variable : one that the optimizer was built with.
        learning_rate : of this step; or the coefficients already worked out from it.
        """
        if not isinstance(learning_rate, _Step):
            learning_rate = self._step(learning_rate, [variable])
        dtype = wide_dtype([variable])
        displacement = self._displacements[self._get_variable_index(variable)]
        moved = next_displacement(
            ops.cast(displacement, dtype),
            ops.cast(gradient, dtype),
            rho=ops.cast(learning_rate.rho, dtype),
            step_size=ops.cast(learning_rate.step_size, dtype),
            xp=ops,
        )
        self.assign(displacement, moved)
        if keras.backend.standardize_dtype(variable.dtype) == dtype:
            self.assign_add(variable, moved)
        else:  # assign_add would round the displacement to half precision first
            self.assign(variable, ops.add(ops.cast(variable, dtype), moved))

    def _backend_update_step(
        self, grads: list[Tensor], trainable_variables: list[Variable], learning_rate: Any
    ) -> None:
        """All variables, called by Keras: the coefficients are worked out once, not for each.

        In place of the learning rate they go the way that Keras has for it, through the replicas of
        a TensorFlow strategy.
        """
        if keras.backend.backend() != "torch":
            step = self._step(learning_rate, trainable_variables)
            super()._backend_update_step(grads, trainable_variables, step)
            return
        if is_on_host(self._iterations.value):
            rho = float(self._schedule(int(self.iterations)))
            step = _Step(rho, step_size(float(learning_rate), rho))
        else:
            step = self._step(learning_rate, trainable_variables)
        index = [self._get_variable_index(variable) for variable in trainable_variables]
        take_step(
            [variable.value for variable in trainable_variables],
            grads,
            [self._displacements[i].value for i in index],
            **step._asdict(),
        )

    def _step(self, learning_rate: Any, variables: list[Variable]) -> _Step:
        dtype = wide_dtype(variables)
        rho = self._rho(dtype)
        return _Step(rho, step_size(ops.cast(learning_rate, dtype), rho))

    def _rho(self, dtype: str) -> Tensor:
        # Not _iterations, which counts microbatches when gradients are accumulated.
        return rho_at(self._schedule, self.iterations, dtype)

    # --- the config -----------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, as Keras can write them.

        Raises
        ------
        TypeError
            If the schedule is a callable that is not registered with Keras.
        """
        config: dict[str, Any] = super().get_config()
        return config | schedule_config(self._schedule, self._total_steps)

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "CoolMomentum":
        """The optimizer of a config, without its state."""
        config = dict(config)
        if isinstance(config.get("schedule"), dict):
            config["schedule"] = keras.saving.deserialize_keras_object(
                config["schedule"], custom_objects=custom_objects
            )
        optimizer: CoolMomentum = super().from_config(config, custom_objects=custom_objects)
        return optimizer

    # --- rho and temperature ----------------------------------------------------------------------

    @property
    def rho(self) -> float:
        """Momentum coefficient that the next step will use."""
        return float(self._schedule(int(ops.convert_to_numpy(self.iterations))))

    def temperature(self) -> float:
        """Temperature of the last displacements (Eq. 22), over all variables.

        The mean of ``dx**2`` over the learning rate of the last step. Before the first step 0.
        """
        return _number(self.temperature_tensor())

    def rescaled_temperature(self) -> float:
        """Mean squared displacement ``T dt**2`` of the last step, over all variables."""
        return _number(self.rescaled_temperature_tensor())

    def temperatures(self) -> list[float]:
        """:meth:`temperature` of each variable by itself.

        In the order of the variables that the optimizer was built with, which in ``fit`` are
        ``model.trainable_variables``; nan for one that Keras overwrites with its gradient.
        """
        return [_number(reading) for reading in self.temperature_tensors()]

    def rescaled_temperatures(self) -> list[float]:
        """:meth:`rescaled_temperature` of each variable by itself, as :meth:`temperatures`."""
        return [_number(reading) for reading in self.rescaled_temperature_tensors()]

    def rho_tensor(self) -> Tensor:
        """:attr:`rho` as a 0-d tensor, for use inside a graph."""
        return self._rho(wide_dtype(self._trainable_variables))

    def temperature_tensor(self) -> Tensor:
        """:meth:`temperature` as a 0-d tensor, float32 or better, for use inside a graph."""
        return self.rescaled_temperature_tensor() / self._last_learning_rate()

    def rescaled_temperature_tensor(self) -> Tensor:
        """:meth:`rescaled_temperature` as a 0-d tensor, float32 or better."""
        dtype = wide_dtype(self._trainable_variables)
        displacements = [ops.cast(x, dtype) for x in self._displacements if x is not None]
        return ops.cast(rescaled_temperature(displacements, xp=ops), dtype)

    def temperature_tensors(self) -> list[Tensor]:
        """:meth:`temperatures` as 0-d tensors."""
        learning_rate = self._last_learning_rate()
        return [reading / learning_rate for reading in self.rescaled_temperature_tensors()]

    def rescaled_temperature_tensors(self) -> list[Tensor]:
        """:meth:`rescaled_temperatures` as 0-d tensors."""
        dtype = wide_dtype(self._trainable_variables)
        return [
            ops.cast(
                float("nan") if x is None else rescaled_temperature(ops.cast(x, dtype), xp=ops),
                dtype,
            )
            for x in self._displacements
        ]

    def _last_learning_rate(self) -> Tensor:
        return last_learning_rate(self, wide_dtype(self._trainable_variables))


def rho_at(schedule: Schedule, step: Tensor, dtype: str) -> Tensor:
    """Momentum coefficient of a step."""
    step = ops.convert_to_tensor(step)
    if isinstance(schedule, CoolingSchedule):
        return schedule(step, dtype=dtype, xp=_LAWS_BY)
    # TensorFlow has no operators between its integers and Python floats.
    return ops.cast(schedule(ops.cast(step, dtype)), dtype)


def last_learning_rate(optimizer: keras.optimizers.Optimizer, dtype: str) -> Tensor:
    """That of the last step of an optimizer: a schedule has moved on since."""
    learning_rate = optimizer._learning_rate
    if isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        # It counts microbatches; the last one before a step is the one that the step saw.
        microbatches = optimizer.iterations * (optimizer.gradient_accumulation_steps or 1)
        value = learning_rate(ops.maximum(microbatches - 1, 0))
    else:
        value = optimizer.learning_rate
    return ops.cast(value, dtype)


def wide_dtype(variables: list[Variable]) -> str:
    """The dtype to compute in: float64 if a variable has it, else float32."""
    dtypes = {keras.backend.standardize_dtype(variable.dtype) for variable in variables}
    return "float64" if "float64" in dtypes else "float32"


def _number(tensor: Tensor) -> float:
    return float(ops.convert_to_numpy(tensor))
