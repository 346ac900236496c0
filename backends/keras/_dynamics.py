"""How the optimizers of Keras move: rho, dt**2 and masses from their settings."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from coolmomentum.keras._common import Tensor, Variable
from coolmomentum.keras._langevin import Langevin
from coolmomentum.keras._optimizer import CoolMomentum
from coolmomentum.langevin import adam_mass
from coolmomentum.thermal import Noise
from coolmomentum.thermometer import (
    Bath,
    Dynamics,
    Momentum,
    adagrad,
    adam,
    rms_mass,
    rmsprop,
    sgd,
)

known = keras.optimizers


class Rule(NamedTuple):
    """How an optimizer moves; of its last step where it depends on the step."""

    dynamics: Callable[[Tensor], Dynamics]  # of the learning rate
    squares: Callable[[], list[Variable]] | None = None  # what the masses are made of; else 1
    mass: Callable[[Tensor, Tensor], Tensor] | None = None  # of these, after so many steps
    noise: Noise | None = None  # of a heat bath, which a compiled function cannot take
    momenta: Callable[[], list[Variable]] | None = None  # in which the gradients are
    momentum: Callable[[Tensor], Momentum] = lambda _: Momentum()  # how they go on, by the rate
    why_none: str = ""  # why the gradients are not known


def rule_of(optimizer: Any, dtype: str) -> Rule:
    """The rule of a built optimizer; nothing is known of a subclass with a step of its own."""

    def steps_as(kind: Any) -> bool:
        same: bool = getattr(type(optimizer), "update_step", None) is kind.update_step
        return same

    def adams(square: Tensor, steps: Tensor) -> Tensor:
        steps = ops.maximum(ops.cast(steps, dtype), 1)  # a loss scaler may have skipped all
        beta2 = ops.cast(optimizer.beta_2, dtype)
        # Keras adds epsilon to the root before the bias is corrected, Kingma's "epsilon hat".
        return adam_mass(square, beta2, steps, optimizer.epsilon / ops.sqrt(1 - beta2**steps))

    def root(square: Tensor, _: Tensor) -> Tensor:
        return rms_mass(square + optimizer.epsilon)

    def in_bath(rate: Tensor) -> Dynamics:
        n = optimizer.iterations - 1
        bath = Bath(optimizer.bath_temperature(n, dtype), optimizer.noise)
        return Dynamics(optimizer._rho_at(n, dtype), rate, bath)

    def cooling(rate: Tensor) -> Dynamics:
        return Dynamics(optimizer._rho_at(optimizer.iterations - 1, dtype), rate)

    if steps_as(CoolMomentum):
        return Rule(
            cooling,
            momenta=lambda: optimizer._displacements,
            momentum=lambda rate: Momentum.of_displacements(cooling(rate)),
        )
    if steps_as(Langevin):
        return Rule(in_bath, noise=optimizer.noise, why_none="in a heat bath")
    if steps_as(known.SGD) and optimizer.nesterov and optimizer.momentum:
        return Rule(lambda _: Dynamics(), why_none="as Nesterov's is another")
    if steps_as(known.SGD):
        return Rule(
            lambda rate: sgd(rate, optimizer.momentum),
            momenta=(lambda: optimizer.momentums) if optimizer.momentum else None,
            momentum=lambda rate: Momentum(optimizer.momentum, -rate),
            why_none="" if optimizer.momentum else "as SGD has none",
        )
    if steps_as(known.Adam):
        return Rule(
            lambda rate: adam(rate, optimizer.beta_1),
            lambda: optimizer._velocity_hats if optimizer.amsgrad else optimizer._velocities,
            adams,
            momenta=lambda: optimizer._momentums,
            momentum=lambda _: Momentum(optimizer.beta_1, 1 - optimizer.beta_1),
        )
    why_none = f"of {type(optimizer).__name__}"
    if steps_as(known.RMSprop) and not optimizer.centered:
        return Rule(
            lambda rate: rmsprop(rate, optimizer.momentum),
            lambda: optimizer._velocities,
            root,
            why_none=why_none,
        )
    if steps_as(known.Adagrad):
        return Rule(adagrad, lambda: optimizer._accumulators, root, why_none=why_none)
    return Rule(lambda _: Dynamics(), why_none=why_none)
