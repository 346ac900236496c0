"""The state of the reference optimizer in no framework's terms."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from coolmomentum._arrays import upcast
from coolmomentum.numpy._optimizer import CoolMomentum, State
from coolmomentum.portable import PortableState, require_serialisable, unique


def export_state(optimizer: CoolMomentum, state: State, names: Sequence[str]) -> PortableState:
    """The state in a form that every adapter reads.

    Parameters
    ----------
    optimizer, state : of the run.
    names : of the parameters, in their order.

    Returns
    -------
    the clock, the schedule, the learning rate, and a displacement for each name

    Raises
    ------
    TypeError
        If the schedule is a function of the step.
    ValueError
        If the names are not one for each parameter, or an array is not real floating.

    Examples
    --------
    >>> import numpy as np
    >>> from coolmomentum.numpy import CoolMomentum, export_state
    >>> optimizer = CoolMomentum(learning_rate=0.25, total_steps=2, rho0=0.75)
    >>> params = [np.asarray([1.0])]
    >>> params, state = optimizer.step(params, params, optimizer.init(params))
    >>> saved = export_state(optimizer, state, ["x"])
    >>> saved.clock, saved.displacements
    (1, {'x': array([-0.21875])})
    """
    named = zip(_names(state, names), state.displacements, strict=True)
    return PortableState(
        clock=state.step,
        cooling=require_serialisable(optimizer._schedule),
        learning_rate=optimizer.learning_rate,
        last_learning_rate=optimizer.learning_rate,
        displacements={name: np.asarray(_plain(dx)) for name, dx in named},
    )


def import_state(
    optimizer: CoolMomentum, state: State, names: Sequence[str], saved: PortableState
) -> State:
    """A state that goes on where another run stood, of whatever adapter.

    Parameters
    ----------
    optimizer : one that cools as that run did.
    state : a state for the parameters, say ``optimizer.init(params)``.
    names : of the parameters, in their order, as they are in the other state.
    saved : the other state.

    Returns
    -------
    its clock and its displacements, in the dtypes of those of ``state``

    Raises
    ------
    ValueError
        If names or shapes differ, or the optimizer cools in another way.

    Examples
    --------
    >>> import numpy as np
    >>> from coolmomentum.numpy import CoolMomentum, import_state, export_state
    >>> optimizer = CoolMomentum(learning_rate=0.25, total_steps=2, rho0=0.75)
    >>> params = [np.asarray([1.0])]
    >>> params, state = optimizer.step(params, params, optimizer.init(params))
    >>> saved = export_state(optimizer, state, ["x"])
    >>> import_state(optimizer, optimizer.init(params), ["x"], saved) == state
    True
    """
    named = dict(zip(_names(state, names), state.displacements, strict=True))
    shapes = {name: tuple(dx.shape) for name, dx in named.items()}
    loaded = saved.displacements_for(shapes, optimizer._schedule)
    return State(
        saved.clock,
        tuple(
            array_namespace(dx).asarray(loaded[name], dtype=dx.dtype, device=device(dx))
            for name, dx in named.items()
        ),
    )


def _plain(displacement: Any) -> Any:
    """Without a graph, and in a dtype of NumPy's where it is a tensor of bfloat16."""
    if hasattr(displacement, "detach"):
        displacement = displacement.detach().cpu()
        return upcast(displacement, array_namespace(displacement))
    return displacement


def _names(state: State, names: Sequence[str]) -> list[str]:
    if len(names) != len(state.displacements):
        raise ValueError(f"names must be one for each of {len(state.displacements)}: {names!r}")
    return unique(list(names))
