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
    """The rule of an optimizer; nothing is known of a subclass with a step of its own."""
    step = getattr(type(optimizer), "update_step", None)
    rule = next((rule for kind, rule in RULES.items() if kind.update_step is step), _unknown)
    return rule(optimizer, dtype)


def _unknown(optimizer: Any, _: str) -> Rule:
    return Rule(lambda _: Dynamics(), why_none=f"of {type(optimizer).__name__}")


def _cool_momentum(optimizer: Any, dtype: str) -> Rule:
    def dynamics(rate: Tensor) -> Dynamics:
        return Dynamics(optimizer._rho_at(optimizer.iterations - 1, dtype), rate)

    return Rule(
        dynamics,
        momenta=lambda: optimizer._displacements,
        momentum=lambda rate: Momentum.of_displacements(dynamics(rate)),
    )


def _langevin(optimizer: Any, dtype: str) -> Rule:
    def dynamics(rate: Tensor) -> Dynamics:
        n = optimizer.iterations - 1
        bath = Bath(optimizer.bath_temperature(n, dtype), optimizer.noise)
        return Dynamics(optimizer._rho_at(n, dtype), rate, bath)

    return Rule(dynamics, noise=optimizer.noise, why_none="in a heat bath")


def _sgd(optimizer: Any, _: str) -> Rule:
    if optimizer.nesterov and optimizer.momentum:
        return Rule(lambda _: Dynamics(), why_none="as Nesterov's is another")
    return Rule(
        lambda rate: sgd(rate, optimizer.momentum),
        momenta=(lambda: optimizer.momentums) if optimizer.momentum else None,
        momentum=lambda rate: Momentum(optimizer.momentum, -rate),
        why_none="" if optimizer.momentum else "as SGD has none",
    )


def _adam(optimizer: Any, dtype: str) -> Rule:
    def mass(square: Tensor, steps: Tensor) -> Tensor:
        steps = ops.maximum(ops.cast(steps, dtype), 1)  # a loss scaler may have skipped all
        beta2 = ops.cast(optimizer.beta_2, dtype)
        # Keras adds epsilon to the root before the bias is corrected, Kingma's "epsilon hat".
        return adam_mass(square, beta2, steps, optimizer.epsilon / ops.sqrt(1 - beta2**steps))

    return Rule(
        lambda rate: adam(rate, optimizer.beta_1),
        lambda: optimizer._velocity_hats if optimizer.amsgrad else optimizer._velocities,
        mass,
        momenta=lambda: optimizer._momentums,
        momentum=lambda _: Momentum(optimizer.beta_1, 1 - optimizer.beta_1),
    )


def _rmsprop(optimizer: Any, dtype: str) -> Rule:
    if optimizer.centered:
        return _unknown(optimizer, dtype)
    return _by_root(optimizer, "_velocities", lambda x: rmsprop(x, optimizer.momentum))


def _adagrad(optimizer: Any, _: str) -> Rule:
    return _by_root(optimizer, "_accumulators", adagrad)


def _by_root(optimizer: Any, squares: str, dynamics: Callable[[Tensor], Dynamics]) -> Rule:
    """Where the gradient is divided by the root of what this attribute has, once it is built."""
    return _unknown(optimizer, "")._replace(
        dynamics=dynamics,
        squares=lambda: getattr(optimizer, squares),
        mass=lambda square, _: rms_mass(square + optimizer.epsilon),
    )


RULES: dict[Any, Callable[[Any, str], Rule]] = {
    CoolMomentum: _cool_momentum,
    Langevin: _langevin,
    known.SGD: _sgd,
    known.Adam: _adam,  # and AdamW
    known.RMSprop: _rmsprop,
    known.Adagrad: _adagrad,
}
