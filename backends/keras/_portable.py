"""Export and import of the Keras optimizer's state, independent of the framework."""

from typing import Any

import keras
from keras import ops

from coolmomentum.keras._optimizer import CoolMomentum
from coolmomentum.keras._schedule import LARGEST
from coolmomentum.portable import PortableState, require_serialisable, unique


def export_state(optimizer: CoolMomentum) -> PortableState:
    """The state in a form that every adapter reads.

    The path of its variable names a parameter, as ``"dense/kernel"``. The learning rate is Keras'
    own number, a float32. Other state of Keras, such as moving averages, is not exported.

    Parameters
    ----------
    optimizer : one that was built; under mixed precision the ``inner_optimizer``.

    Returns
    -------
    the clock, the schedule, the learning rate, and a displacement for each path

    Raises
    ------
    TypeError
        If the optimizer is another, or its schedule a function of the step.
    ValueError
        If the optimizer was not built, has accumulated only some of the microbatches of a step, or
        two of its variables have the same path.

    Examples
    --------
    >>> import keras
    >>> from coolmomentum.keras import CoolMomentum, export_state
    >>> x = keras.Variable([1.0], name="x")
    >>> optimizer = CoolMomentum(learning_rate=0.25, total_steps=2, rho0=0.75)
    >>> optimizer.apply([x.value + 0], [x])
    >>> saved = export_state(optimizer)
    >>> saved.clock, saved.displacements
    (1, {'x': array([-0.21875], dtype=float32)})
    """
    displacements = _named(optimizer)
    steps = int(ops.convert_to_numpy(optimizer._iterations))
    # Before the first step there is no last learning rate, and 0 would be no unit.
    last = optimizer._last_learning_rate if steps else optimizer.learning_rate
    if steps % _microbatches(optimizer):
        raise ValueError(
            "gradients must not be accumulating when the state is taken: "
            f"{steps % _microbatches(optimizer)} of {_microbatches(optimizer)} microbatches"
        )
    return PortableState(
        clock=int(ops.convert_to_numpy(optimizer.iterations)),
        cooling=require_serialisable(optimizer.schedule),
        learning_rate=float(ops.convert_to_numpy(optimizer.learning_rate)),
        last_learning_rate=float(ops.convert_to_numpy(last)),
        displacements={name: ops.convert_to_numpy(dx) for name, dx in displacements.items()},
    )


def import_state(optimizer: CoolMomentum, saved: PortableState) -> None:
    """Continue the run of another optimizer, from any adapter.

    Parameters
    ----------
    optimizer : built, ``optimizer.build(model.trainable_variables)``, and with the schedule of the
        saved run, ``CoolMomentum(schedule=saved.cooling)``.
    saved : the exported state, whose parameters have the paths of the variables as names.

    Raises
    ------
    TypeError
        If the optimizer is another.
    ValueError
        If the optimizer was not built, names or shapes differ, or it cools in another way. Nothing
        changes then.

    Examples
    --------
    >>> import keras
    >>> from coolmomentum.keras import CoolMomentum, import_state, export_state
    >>> x = keras.Variable([1.0], name="x")
    >>> optimizer = CoolMomentum(learning_rate=0.25, total_steps=2, rho0=0.75)
    >>> optimizer.apply([x.value + 0], [x])
    >>> saved = export_state(optimizer)
    >>> again = CoolMomentum(saved.learning_rate, schedule=saved.cooling)
    >>> again.build([x])
    >>> import_state(again, saved)
    >>> again.temperature() == optimizer.temperature()
    True
    """
    displacements = _named(optimizer)
    shapes = {name: tuple(dx.shape) for name, dx in displacements.items()}
    loaded = saved.displacements_for(shapes, optimizer.schedule)
    microbatches = saved.clock * _microbatches(optimizer)
    if keras.backend.backend() != "tensorflow" and microbatches > LARGEST:
        raise ValueError(f"clock must be <= {LARGEST}, in Keras' int32: {microbatches}")
    optimizer._iterations.assign(microbatches)
    optimizer._last_learning_rate.assign(saved.last_learning_rate)
    for name, dx in displacements.items():
        dx.assign(ops.convert_to_tensor(loaded[name], dtype=dx.dtype))


def _named(optimizer: CoolMomentum) -> dict[str, Any]:
    """The displacements by the paths of their variables; not of variables that Keras overwrites."""
    if not isinstance(optimizer, CoolMomentum):
        raise TypeError(
            "optimizer must be a coolmomentum.keras.CoolMomentum, under mixed precision the "
            f"inner_optimizer: {optimizer!r}"
        )
    if not optimizer.built:
        raise ValueError("the optimizer must be built: optimizer.build(model.trainable_variables)")
    pairs = zip(optimizer._trainable_variables, optimizer._displacements, strict=True)
    named = [(variable.path, dx) for variable, dx in pairs if dx is not None]
    unique([name for name, _ in named])
    return dict(named)


def _microbatches(optimizer: CoolMomentum) -> int:
    return optimizer.gradient_accumulation_steps or 1
