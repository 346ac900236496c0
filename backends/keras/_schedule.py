"""How an optimizer stores its schedule: in its config, and as numbers in its variables.

A compiled step reads the numbers, so that a changed schedule needs no recompilation. The law and
the warm-up are constants of the compiled step.
"""

import dataclasses
import inspect
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from coolmomentum.schedules import CoolingSchedule, LawNumbers, Schedule, cooled_rho

if keras.backend.backend() == "jax":
    # keras.ops returns float32 for float64 there, in tanh for one.
    import jax.numpy as xp
else:
    xp = ops

Tensor = Any  # a tensor of the backend

LARGEST = 2**31 - 1  # Keras on JAX counts steps in int32
PIECES = 3  # float32 numbers that a float64 is the sum of


class Cooling(NamedTuple):
    """The numbers of a schedule: Python numbers and an array, tensors, or variables."""

    hold_steps: Any  # integer
    total_steps: Any  # integer
    rho0: Any  # floating, shape (6,): its LawNumbers, and two numbers with its remaining digits


# The constant law: with these numbers every other law equals it.
ENDLESS = LARGEST - 1, LARGEST


def numbers_of(schedule: Schedule, dtype: str) -> Cooling:
    """What the variables hold for a schedule; rho0 is 0 for a function of the step."""
    if not isinstance(schedule, CoolingSchedule):
        return Cooling(*ENDLESS, np.zeros(len(LawNumbers._fields) + PIECES - 1, dtype))
    pieces: list[Any] = []
    for _ in range(PIECES):
        pieces.append(np.asarray(schedule.rho0 - sum(map(float, pieces)), dtype))
    rho0 = np.array([*LawNumbers.of(schedule.rho0), *pieces[1:]], dtype)
    if schedule.law == "constant":
        return Cooling(*ENDLESS, rho0)
    return Cooling(schedule.hold_steps, schedule.total_steps, rho0)


def schedule_of(numbers: Cooling, like: CoolingSchedule) -> CoolingSchedule:
    """The schedule with these numbers, on the host, and the law and warm-up of ``like``."""
    first, *_, second, third = numbers.rho0
    changes: dict[str, Any] = {"rho0": float(first) + float(second) + float(third)}
    if like.law != "constant":
        changes |= {"hold_steps": int(numbers.hold_steps), "total_steps": int(numbers.total_steps)}
    if all(getattr(like, name) == value for name, value in changes.items()):
        return like
    return dataclasses.replace(like, **changes)


def resumed(numbers: Cooling, own: Schedule) -> Schedule:
    """The schedule of an optimizer that loads these numbers; its own if they do not say one."""
    endless = (int(numbers.hold_steps), int(numbers.total_steps)) == ENDLESS
    if not isinstance(own, CoolingSchedule) or not np.any(numbers.rho0):
        return own
    return own if endless and own.law != "constant" else schedule_of(numbers, own)


def rho_at(schedule: Schedule, numbers: Cooling, step: Tensor, dtype: str) -> Tensor:
    """Momentum coefficient of a step, inside a compiled step too."""
    step = ops.convert_to_tensor(step)
    if not isinstance(schedule, CoolingSchedule):
        # TensorFlow has no operators between its integers and Python floats.
        return ops.cast(schedule(ops.cast(step, dtype)), dtype)
    hold_steps, total_steps, rho0 = map(ops.convert_to_tensor, numbers)
    rho0 = ops.cast(rho0, dtype)
    return cooled_rho(
        step,
        total_steps,
        LawNumbers(*(rho0[i] for i in range(len(LawNumbers._fields)))),
        schedule.law,
        schedule.warmup_steps,
        schedule.warmup_clock,
        hold_steps,
        dtype=dtype,
        xp=xp,
    )


def schedule_config(schedule: Schedule, total_steps: int | None) -> dict[str, Any]:
    """The arguments of the constructor for this schedule, in a form that Keras can serialize."""
    if isinstance(schedule, CoolingSchedule):
        return dataclasses.asdict(schedule) | {"schedule": None}
    serialized = registered("schedule", schedule, "a CoolingSchedule, or ")
    return {"total_steps": total_steps, "schedule": serialized}


def registered(name: str, value: Any, others: str = "") -> Any:
    """A function of the step in a form that Keras can serialize; it must be registered."""
    kind = value if inspect.isfunction(value) else type(value)
    if keras.saving.get_registered_object(keras.saving.get_registered_name(kind)) is not kind:
        raise TypeError(
            f"{name} must be {others}registered with "
            f"keras.saving.register_keras_serializable, to be saved: {value!r}"
        )
    return keras.saving.serialize_keras_object(value)
