"""The state of the torch optimizer in no framework's terms."""

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from coolmomentum.portable import PortableState, require_serialisable, unique
from coolmomentum.schedules import CoolingSchedule, Schedule
from coolmomentum.torch._dynamics import unwrapped_cool_momentum
from coolmomentum.torch._optimizer import CoolMomentum, start
from coolmomentum.torch._tensors import HALF, Group
from coolmomentum.torch._validation import SCHEDULE_KEYS, zero_displacement

NamedParameters = Iterable[tuple[str, Tensor]]
T = TypeVar("T")


def export_state(optimizer: Optimizer, named_parameters: NamedParameters) -> PortableState:
    """The state in a form that every adapter reads.

    Parameters
    ----------
    optimizer : of the run, or a wrapper of it, of Accelerate, Lightning or Fabric. All parameter
        groups have one learning rate and one cooling.
    named_parameters : ``model.named_parameters()``, or other pairs of a name and a parameter. Those
        that the optimizer does not have are left out.

    Returns
    -------
    the clock, the schedule, the learning rate, and a displacement for each name

    Raises
    ------
    TypeError
        If the optimizer is another, or its schedule a function of the step.
    ValueError
        If a parameter of the optimizer has no name, is complex or sharded, or the groups differ.

    Examples
    --------
    >>> import torch
    >>> from coolmomentum.torch import CoolMomentum, export_state
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> optimizer = CoolMomentum(model.parameters(), lr=0.25, total_steps=2, rho0=0.75)
    >>> model(torch.ones(1)).backward()
    >>> optimizer.step()
    >>> saved = export_state(optimizer, model.named_parameters())
    >>> saved.clock, saved.displacements
    (1, {'weight': array([[-0.21875]], dtype=float32)})
    """
    inner = unwrapped_cool_momentum(optimizer)
    inner._check_groups()
    named, groups = _named(inner, named_parameters), inner.param_groups
    coolings = [require_serialisable(_cooling(group)) for group in groups]
    return PortableState(
        clock=_one_for_all("cooling_step", [int(group["cooling_step"]) for group in groups]),
        cooling=_one_for_all("the cooling", coolings),
        learning_rate=_one_for_all("lr", [float(group["lr"]) for group in groups]),
        last_learning_rate=_one_for_all(
            "last_lr", [float(group["cooling_lr"]) for group in groups]
        ),
        displacements={name: _displacement(inner, x) for name, (x, _) in named.items()},
    )


def import_state(
    optimizer: Optimizer, named_parameters: NamedParameters, saved: PortableState
) -> None:
    """Go on where another run stood, of whatever adapter.

    Parameters
    ----------
    optimizer : one that cools as that run did, ``CoolMomentum(..., schedule=saved.cooling)``. Its
        own learning rate and other settings stay.
    named_parameters : as in :func:`export_state`, with the names that are in the other state.
    saved : the other state.

    Raises
    ------
    TypeError
        If the optimizer is another.
    ValueError
        If names or shapes differ, a parameter is sharded, or a parameter group cools in another
        way. Nothing has been changed then.

    Examples
    --------
    >>> import torch
    >>> from coolmomentum.torch import CoolMomentum, import_state, export_state
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> optimizer = CoolMomentum(model.parameters(), lr=0.25, total_steps=2, rho0=0.75)
    >>> model(torch.ones(1)).backward()
    >>> optimizer.step()
    >>> saved = export_state(optimizer, model.named_parameters())
    >>> again = CoolMomentum(model.parameters(), saved.learning_rate, schedule=saved.cooling)
    >>> import_state(again, model.named_parameters(), saved)
    >>> again.temperature() == optimizer.temperature()
    tensor(True)
    """
    inner = unwrapped_cool_momentum(optimizer)
    named = _named(inner, named_parameters)
    shapes = {name: tuple(param.shape) for name, (param, _) in named.items()}
    for group in inner.param_groups:
        loaded = saved.displacements_for(shapes, _cooling(group))
    for name, (param, group) in named.items():
        displacement = zero_displacement(param, group)
        inner.state[param]["displacement"] = displacement.copy_(torch.from_numpy(loaded[name]))
    for group in inner.param_groups:
        step = torch.tensor(saved.clock, dtype=torch.int64, device="cpu")
        start(group, step, saved.last_learning_rate)
    inner._check_groups()


def _named(
    optimizer: CoolMomentum, named_parameters: NamedParameters
) -> dict[str, tuple[Tensor, Group]]:
    """The parameters of the optimizer and their groups, by name."""
    names: dict[Tensor, str] = {param: name for name, param in named_parameters}
    groups = {param: group for group in optimizer.param_groups for param in group["params"]}
    for param in groups:
        if param not in names:
            raise ValueError(
                "named_parameters must have every parameter of the optimizer: "
                f"one of shape {tuple(param.shape)} has no name"
            )
        if hasattr(param, "to_local"):
            raise ValueError(
                f"parameters must be whole, and {names[param]!r} is sharded: use "
                "torch.distributed.checkpoint, or gather it first"
            )
    unique([names[param] for param in groups])
    return {names[param]: (param, group) for param, group in groups.items()}


def _cooling(group: Group) -> Schedule:
    schedule: Schedule | None = group["schedule"]
    return schedule or CoolingSchedule(**{name: group[name] for name in SCHEDULE_KEYS})


def _one_for_all(name: str, values: list[T]) -> T:
    first, *others = values
    if any(other != first for other in others):
        raise ValueError(f"{name} must be that of all parameter groups to be exported: {values}")
    return first


def _displacement(optimizer: CoolMomentum, param: Tensor) -> np.ndarray:
    """Zeros where it has not moved; a parameter's state may hold another's entries only."""
    zeros = torch.zeros(param.shape, dtype=torch.float32, device="cpu")
    displacement: Tensor = optimizer.state.get(param, {}).get("displacement", zeros)
    half = displacement.dtype in HALF  # NumPy has no bfloat16
    values: np.ndarray = (displacement.float() if half else displacement).detach().cpu().numpy()
    return values
