"""The schedule of an optimizer: made from what its constructor is given, and saved with it."""

import dataclasses
import inspect
from typing import Any

import keras

from coolmomentum import _check
from coolmomentum.schedules import CoolingSchedule, Law, Schedule, WarmupClock, check_schedule


def make_schedule(
    schedule: Schedule | None,
    total_steps: int | None,
    rho0: float,
    law: Law,
    warmup_steps: int,
    warmup_clock: WarmupClock,
) -> Schedule:
    """The schedule given, or the CoolingSchedule of the other arguments; checked."""
    if schedule is None:
        if total_steps is None:
            raise TypeError(_check.TOTAL_STEPS_MISSING)
        return CoolingSchedule(total_steps, rho0, law, warmup_steps, warmup_clock)
    if not isinstance(schedule, CoolingSchedule):
        steps = 1 if total_steps is None else _check.whole("total_steps", total_steps, 1)
        return check_schedule(schedule, steps)
    if total_steps not in (None, schedule.total_steps):
        raise ValueError(
            f"total_steps must be that of the schedule, {schedule.total_steps}, or not be given: "
            f"{total_steps!r}"
        )
    return schedule


def schedule_config(schedule: Schedule, total_steps: int | None) -> dict[str, Any]:
    """The arguments from which :func:`make_schedule` makes it again, as Keras can write them."""
    if isinstance(schedule, CoolingSchedule):
        return dataclasses.asdict(schedule) | {"schedule": None}
    registered = schedule if inspect.isfunction(schedule) else type(schedule)
    name = keras.saving.get_registered_name(registered)
    if keras.saving.get_registered_object(name) is not registered:
        raise TypeError(
            "schedule must be a CoolingSchedule, or registered with "
            f"keras.saving.register_keras_serializable, to be saved: {schedule!r}"
        )
    serialized = keras.saving.serialize_keras_object(schedule)
    return {"total_steps": total_steps, "schedule": serialized}
