"""The state of the Keras optimizer in no framework's terms."""

from typing import Any

from keras import ops

from coolmomentum.checkpoint import NeutralState, carried, unique
from coolmomentum.keras._optimizer import CoolMomentum


def neutral_state(optimizer: CoolMomentum) -> NeutralState:
    """The state in a form that every adapter reads.

    A parameter is named by the path of its variable, as ``"dense/kernel"``. The learning rate is
    that of Keras, in float32. What else Keras keeps, such as moving averages, is not carried.

    Parameters
    ----------
    optimizer : one that was built; under mixed precision the ``inner_optimizer``.

    Raises
    ------
    TypeError
        If the schedule is a function of the step.
    ValueError
        If the optimizer was not built, is in the midst of accumulating gradients, or two of its
        variables have one path.

    Examples
    --------
    >>> import keras
    >>> from coolmomentum.keras import CoolMomentum, load_neutral_state, neutral_state
    >>> x = keras.Variable([1.0], name="x")
    >>> optimizer = CoolMomentum(learning_rate=0.25, total_steps=2, rho0=0.75)
    >>> optimizer.apply([x.value + 0], [x])
    >>> neutral = neutral_state(optimizer)
    >>> neutral.clock, neutral.displacements
    (1, {'x': array([-0.21875], dtype=float32)})
    >>> again = CoolMomentum(neutral.learning_rate, schedule=neutral.cooling)
    >>> again.build([x])
    >>> load_neutral_state(again, neutral)
    >>> again.temperature() == optimizer.temperature()
    True
    """
    displacements = _named(optimizer)
    steps = int(ops.convert_to_numpy(optimizer._iterations))
    if steps % _microbatches(optimizer):
        raise ValueError(
            "gradients must not be accumulating when the state is taken: "
            f"{steps % _microbatches(optimizer)} of {_microbatches(optimizer)} microbatches"
        )
    return NeutralState(
        clock=int(ops.convert_to_numpy(optimizer.iterations)),
        cooling=carried(optimizer.schedule),
        learning_rate=float(ops.convert_to_numpy(optimizer.learning_rate)),
        last_learning_rate=float(ops.convert_to_numpy(optimizer._last_learning_rate())),
        displacements={name: ops.convert_to_numpy(dx) for name, dx in displacements.items()},
    )


def load_neutral_state(optimizer: CoolMomentum, neutral: NeutralState) -> None:
    """Go on where another run stood, of whatever adapter.

    Parameters
    ----------
    optimizer : one that cools as that run did, ``CoolMomentum(schedule=neutral.cooling)``, and was
        built: ``optimizer.build(model.trainable_variables)``.
    neutral : the other state, its parameters named by the paths of the variables.

    Raises
    ------
    ValueError
        If the optimizer was not built, names or shapes differ, or it cools in another way. Nothing
        has been changed then.
    """
    displacements = _named(optimizer)
    shapes = {name: tuple(dx.shape) for name, dx in displacements.items()}
    loaded = neutral.displacements_for(shapes, optimizer.schedule)
    optimizer._iterations.assign(neutral.clock * _microbatches(optimizer))
    for name, dx in displacements.items():
        dx.assign(ops.convert_to_tensor(loaded[name], dtype=dx.dtype))


def _named(optimizer: CoolMomentum) -> dict[str, Any]:
    """The displacements by the paths of their variables; without those that Keras overwrites."""
    if not optimizer.built:
        raise ValueError("the optimizer must be built: optimizer.build(model.trainable_variables)")
    pairs = zip(optimizer._trainable_variables, optimizer._displacements, strict=True)
    named = [(variable.path, dx) for variable, dx in pairs if dx is not None]
    unique([name for name, _ in named])
    return dict(named)


def _microbatches(optimizer: CoolMomentum) -> int:
    return optimizer.gradient_accumulation_steps or 1
