"""How the schedule of an optimizer is saved with it."""

import dataclasses
import inspect
from typing import Any

import keras

from coolmomentum.schedules import CoolingSchedule, Schedule


def schedule_config(schedule: Schedule, total_steps: int | None) -> dict[str, Any]:
    """The arguments that mean this schedule to the constructor, as Keras can write them."""
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
