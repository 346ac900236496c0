"""CoolMomentum as a Keras optimizer: its step, its config, and the readings rho and temperature."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from coolmomentum import _check, _defaults
from coolmomentum.keras._common import Tensor, Variable, path_of, wide_dtype
from coolmomentum.keras._schedule import (
    LARGEST,
    Cooling,
    numbers_of,
    resumed,
    rho_at,
    schedule_config,
    schedule_of,
)
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
from coolmomentum.thermometer.layout import Layout
from coolmomentum.update import next_displacement

if keras.backend.backend() == "torch":
    from coolmomentum.keras._foreach import is_on_host, take_step


class Step(NamedTuple):
    """The coefficients of one step: 0-d tensors in the widest dtype of the variables, or floats."""

    rho: Tensor
    step_size: Tensor  # Eq. 16
    force_scale: Tensor | None = None  # of a heat bath


@keras.saving.register_keras_serializable(package="coolmomentum")
class CoolMomentum(keras.optimizers.Optimizer):  # type: ignore[misc]  # Keras is not typed
    """Momentum SGD whose momentum coefficient cools from rho0 to 0 over total_steps.

    With ``n = iterations``, one step is ``rho = schedule(n)``,
    ``dx = rho dx - learning_rate (1 + rho) / 2 gradient``, ``x = x + dx``. The displacement ``dx``
    is the only state of a variable. With ``law="constant"`` and ``rho0 = m`` this is
    ``keras.optimizers.SGD`` with momentum m and learning rate ``learning_rate (1 + m) / 2``.

    After total_steps rho stays 0: the optimizer is SGD with learning rate ``learning_rate / 2``. To
    train longer call :meth:`extend`. ``iterations`` counts the applied steps. Keras saves it, and
    with it total_steps, hold_steps and rho0: a loaded optimizer cools on as the saved one did. Law
    and warm-up come from the constructor.

    Parameters
    ----------
    learning_rate : base learning rate, the squared time step ``dt**2``: a finite number >= 0, a
        ``keras.optimizers.schedules.LearningRateSchedule``, or a callable without arguments.
    total_steps : optimizer steps over which rho cools to 0, ``epochs * steps_per_epoch``, divided
        by gradient_accumulation_steps if there are any; required but for the constant law, or
        where a schedule is given. On JAX below 2**31, because Keras counts there in int32.
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
    **kwargs : none; Keras refuses other names.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    float16 and bfloat16 variables are updated in float32 arithmetic. A sparse gradient acts as the
    equal dense one, as in ``keras.optimizers.SGD`` with momentum: a row without a gradient goes on
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
        if isinstance(cooling, CoolingSchedule):
            cooling = _countable(CoolingSchedule(**_plain(dataclasses.asdict(cooling))))
        else:
            check_schedule(cooling, total_steps or 1)
        base = {
            "weight_decay": weight_decay,
            "clipnorm": clipnorm,
            "clipvalue": clipvalue,
            "global_clipnorm": global_clipnorm,
            "use_ema": use_ema,
            "ema_momentum": ema_momentum,
            "ema_overwrite_frequency": ema_overwrite_frequency,
            "loss_scale_factor": loss_scale_factor,
            "gradient_accumulation_steps": gradient_accumulation_steps,
            "name": name,
        }
        super().__init__(learning_rate=learning_rate, **_plain(base), **kwargs)
        self._schedule = cooling
        self._total_steps = None if total_steps is None else int(total_steps)
        self._told_the_end = False
        self._displacements: list[Variable | None] = []

    @property
    def schedule(self) -> Schedule:
        """The schedule of rho, a CoolingSchedule or the callable that was given.

        After ``build`` it is read from the variables of the optimizer, which waits for the device.
        """
        if not self.built or not isinstance(self._schedule, CoolingSchedule):
            return self._schedule
        return schedule_of(Cooling(*map(_on_host, self._cooling())), self._schedule)

    def extend(self, total_steps: int) -> None:
        """Cool over another number of steps, with the rho that such a run would have now.

        The law stays and runs over the new total: ``rho = law(iterations)``, higher than before if
        the run gets longer. Nothing is compiled again.

        Parameters
        ----------
        total_steps : counted from step 0, with the steps already taken; at least as many as these.

        Raises
        ------
        TypeError
            If total_steps is not an integer, or the schedule is a function of the step.
        ValueError
            If it is smaller than the steps already taken, or not larger than hold_steps or
            warmup_steps. Nothing changes then.

        Examples
        --------
        >>> optimizer = CoolMomentum(0.1, total_steps=10)
        >>> optimizer.extend(20)
        >>> optimizer.schedule.total_steps
        20
        """
        cooling = self.schedule
        if not isinstance(cooling, CoolingSchedule):
            raise TypeError(
                f"schedule must be a CoolingSchedule to be extended, not a function: {cooling!r}"
            )
        total_steps = _check.integer("total_steps", total_steps, 1)
        taken = int(_on_host(self.iterations))
        if total_steps < taken:
            raise ValueError(
                f"total_steps must be >= {taken}, the steps already taken: {total_steps}"
            )
        self._cool_by(_countable(dataclasses.replace(cooling, total_steps=total_steps)))

    # --- the step -------------------------------------------------------------------------------

    def build(self, variables: list[Variable]) -> None:
        """Make the displacements, of the shapes and dtypes of the variables, and the numbers.

        These always come first and are always four, because Keras loads by position: the learning
        rate of the last step, hold_steps, total_steps, and rho0 with what the laws make of it.
        """
        if self.built:
            return
        dtype = wide_dtype(variables)
        numbers = numbers_of(self._schedule, dtype)
        self._last_learning_rate = self._add_number("last_learning_rate", np.zeros((), dtype))
        self._hold_steps = self._add_number("hold_steps", np.asarray(numbers.hold_steps))
        self._end = self._add_number("total_steps", np.asarray(numbers.total_steps))
        self._rho0 = self._add_number("rho0", numbers.rho0)
        super().build(variables)
        self._displacements = self.add_optimizer_variables(variables, "displacement")

    def _add_number(self, name: str, value: np.ndarray) -> Variable:
        return self.add_variable(
            value.shape,
            # Not assigned afterwards: that would be a part of a graph in which it is built.
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(value, dtype=dtype),
            dtype="int" if value.dtype.kind == "i" else value.dtype.name,
            aggregation="only_first_replica",  # tf.distribute: all replicas have the same
            name=name,
        )

    def _cooling(self) -> Cooling:
        return Cooling(self._hold_steps, self._end, self._rho0)

    def _cool_by(self, schedule: Schedule) -> None:
        self._schedule = schedule
        if self.built:
            for variable, number in zip(
                self._cooling(), numbers_of(schedule, self._rho0.dtype), strict=True
            ):
                variable.assign(number)

    def update_step(
        self, gradient: Tensor, variable: Variable, learning_rate: "Tensor | Step"
    ) -> None:
        """One step of one variable, Eq. 14.

        Parameters
        ----------
        gradient : of the shape of the variable; dense or sparse.
        variable : one that the optimizer was built with.
        learning_rate : of this step; or the coefficients already worked out from it.
        """
        step = self._step_of(learning_rate, [variable])
        dtype = wide_dtype([variable])
        displacement = self._displacements[self._get_variable_index(variable)]
        moved = next_displacement(
            ops.cast(displacement, dtype),
            ops.cast(gradient, dtype),
            rho=ops.cast(step.rho, dtype),
            step_size=ops.cast(step.step_size, dtype),
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
        """All variables; Keras calls it. It computes the coefficients once, not for each variable.

        It passes them on in place of the learning rate: Keras hands that to the replicas of a
        TensorFlow strategy.
        """
        step = self._step_of(learning_rate, trainable_variables)
        if keras.backend.backend() != "torch":
            super()._backend_update_step(grads, trainable_variables, step)
            return
        index = [self._get_variable_index(variable) for variable in trainable_variables]
        take_step(
            [variable.value for variable in trainable_variables],
            grads,
            [self._displacements[i].value for i in index],
            rho=step.rho,
            step_size=step.step_size,
        )

    def _step_of(self, learning_rate: "Tensor | Step", variables: list[Variable]) -> Step:
        """The coefficients of a step, which Keras may have passed on as its learning rate."""
        if isinstance(learning_rate, Step):
            return learning_rate
        return self._step(learning_rate, variables)

    def _step(self, learning_rate: Any, variables: list[Variable]) -> Step:
        """The coefficients of a step; it also stores the learning rate, for the temperature."""
        if keras.backend.backend() == "torch" and is_on_host(self._iterations.value):
            rho, rate = self.rho, float(learning_rate)
            self._last_learning_rate.value.fill_(rate)
            return Step(rho, step_size(rate, rho))
        dtype = wide_dtype(variables)
        # Not _iterations, which counts microbatches when gradients are accumulated.
        rho = self._rho_at(self.iterations, dtype)
        learning_rate = ops.cast(learning_rate, dtype)
        # A copy: on JAX two variables must not have one array.
        kept = ops.copy(ops.cast(learning_rate, self._last_learning_rate.dtype))
        self._last_learning_rate.assign(kept)
        return Step(rho, step_size(learning_rate, rho))

    def _rho_at(self, step: Tensor, dtype: str) -> Tensor:
        return rho_at(self._schedule, self._cooling(), step, dtype)

    # --- the config -----------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, as Keras can write them.

        Raises
        ------
        TypeError
            If the schedule is a callable that is not registered with Keras.
        """
        config: dict[str, Any] = super().get_config()
        return config | schedule_config(self.schedule, self._total_steps)

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "CoolMomentum":
        """The optimizer of a config, without its state."""
        config = dict(config)
        for name in ("schedule", "temperature"):  # functions of the step; Langevin has the second
            if isinstance(config.get(name), dict):
                config[name] = keras.saving.deserialize_keras_object(config[name], custom_objects)
        optimizer: CoolMomentum = super().from_config(config, custom_objects=custom_objects)
        return optimizer

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Load the state of a saved optimizer and cool on as it did; Keras calls it.

        The constant law and a function of the step have no end to load: after such a run this
        optimizer cools as it was constructed.

        Warns
        -----
        UserWarning
            If total_steps, hold_steps or rho0 of the saved optimizer differ from this one's.
        """
        # Not self.schedule: a loss scaler has loaded its variables already.
        own = loaded = self._schedule
        if self.built and len(store.keys()) == len(self.variables):  # else Keras loads nothing
            for i, variable in enumerate(self.variables):
                if tuple(variable.shape) != (shape := np.shape(store[str(i)])):
                    raise ValueError(
                        f"the saved state must be of this optimizer and model: {variable.path} has "
                        f"the shape {tuple(variable.shape)}, what was saved {shape}"
                    )
            index = {id(variable): str(i) for i, variable in enumerate(self.variables)}
            numbers = Cooling(*(np.asarray(store[index[id(v)]]) for v in self._cooling()))
            loaded = resumed(numbers, own)
        super().load_own_variables(store)
        self._cool_by(loaded)
        if loaded != own:
            _warn_of_a_change(own, loaded)

    # --- rho and temperature ----------------------------------------------------------------------

    @property
    def rho(self) -> float:
        """Momentum coefficient that the next step will use.

        Warns
        -----
        UserWarning
            Once, if more than 1.05 total_steps were taken.
        """
        schedule, steps = self.schedule, int(_on_host(self.iterations))
        self._tell_the_end(schedule, steps)
        return float(schedule(steps))

    def temperature(self) -> float:
        """Temperature of the last displacements (Eq. 22), over all variables.

        The mean of ``dx**2`` divided by the learning rate of the last step; 0 before the first.
        """
        return float(_on_host(self.temperature_tensor()))

    def rescaled_temperature(self) -> float:
        """Mean squared displacement ``T dt**2`` of the last step, over all variables."""
        return float(_on_host(self._rescaled_temperature(self._displacements)))

    def temperatures(self) -> dict[str, float]:
        """:meth:`temperature` of each variable by itself, by the path of the variable.

        The order is that of the variables in ``build``, in ``fit`` ``model.trainable_variables``. A
        variable that Keras overwrites with its gradient reads nan. The second variable with the
        same path is ``path#2``, and so on.
        """
        return self._by_path(lambda x: self._over_last_rate(self._rescaled_temperature(x)))

    def rescaled_temperatures(self) -> dict[str, float]:
        """:meth:`rescaled_temperature` of each variable by itself, as :meth:`temperatures`."""
        return self._by_path(self._rescaled_temperature)

    def temperature_tensor(self) -> Tensor:
        """:meth:`temperature` as a 0-d tensor, float32 or better, for use inside a graph."""
        return self._over_last_rate(self._rescaled_temperature(self._displacements))

    def _rescaled_temperature(self, displacements: list[Variable | None]) -> Tensor:
        dtype = wide_dtype(self._trainable_variables)
        moving = [ops.cast(x, dtype) for x in displacements if x is not None]
        if displacements and not moving:
            return ops.cast(float("nan"), dtype)
        return ops.cast(rescaled_temperature(moving, xp=ops), dtype)

    def _over_last_rate(self, reading: Tensor) -> Tensor:
        """The reading over the last learning rate; 0 if nothing moved, without dividing by a 0."""
        if not self.built:
            return reading
        rate = ops.cast(self._last_learning_rate, reading.dtype)
        return reading / ops.where(ops.equal(reading, 0), ops.ones_like(rate), rate)

    def _by_path(self, read: Callable[[list[Variable]], Tensor]) -> dict[str, float]:
        """The reading of each displacement, by the path of its variable."""
        names = Layout.of(map(path_of, self._trainable_variables), sizes=()).parameters
        pairs = zip(names, self._displacements, strict=True)
        return {str(name): float(_on_host(read([dx]))) for name, dx in pairs}

    def _tell_the_end(self, schedule: Schedule, steps: int) -> None:
        """Warn once if a run goes on past its end; called where the host knows the step."""
        if self._told_the_end or not isinstance(schedule, CoolingSchedule):
            return
        end = None if schedule.law == "constant" else schedule.total_steps
        if end is not None and steps > 1.05 * end:
            self._told_the_end = True
            warnings.warn(
                f"{steps} steps were taken, more than total_steps = {end}: rho is "
                "0, plain SGD; to cool over more steps call optimizer.extend(total_steps)",
                stacklevel=3,
            )


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Python numbers in place of NumPy's and of 0-d arrays, so that a config can be written."""
    return {k: v.item() if hasattr(v, "item") else v for k, v in settings.items()}


def _countable(cooling: CoolingSchedule) -> CoolingSchedule:
    backend = keras.backend.backend()
    if backend != "tensorflow" and (cooling.total_steps or 0) > LARGEST:
        raise ValueError(
            f"total_steps must be <= {LARGEST}, the int32 of Keras' counts on {backend}: "
            f"{cooling.total_steps}"
        )
    return cooling


def _warn_of_a_change(own: Any, loaded: Any) -> None:
    old, new = dataclasses.asdict(own), dataclasses.asdict(loaded)
    differ = [name for name in old if new[name] != old[name]]
    changes = [f"{name} is {new[name]}, not {old[name]}" for name in differ]
    way_out = f"; to train longer call optimizer.extend({own.total_steps})"
    warnings.warn(
        f"the optimizer cools on as it was saved: {', '.join(changes)}"
        f"{way_out if 'total_steps' in differ else ''}",
        stacklevel=3,
    )


def _on_host(tensor: Tensor) -> Any:
    """The numbers in a tensor or variable; PyTorch gives them faster than Keras does."""
    if keras.backend.backend() == "torch":
        return (tensor.value if isinstance(tensor, keras.Variable) else tensor).tolist()
    return ops.convert_to_numpy(tensor)
