"""Who competes: optimizers with their ways to anneal, as numbers for every step of a run.

A rule's learning rates and momenta are tables in NumPy, made once for all frameworks. CoolMomentum
makes its own rho; its table is there to be recorded and to predict the temperature.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coolmomentum import CoolingSchedule, Law, matched_sgd_learning_rate

__all__ = [
    "EPSILON",
    "RULES",
    "TUNED",
    "Rule",
    "Settings",
    "impossible",
    "learning_rates",
    "momenta",
]

TUNED = "tuned"  # stands in a config for what the tuning chooses

EPSILON = 1e-7  # of Adam, AdamW and RMSprop; Keras' default, which the paper's scripts use
STEPS = ((0.4, 0.1), (0.6, 0.01), (0.8, 0.001), (0.9, 0.0005))  # after that share of the epochs
CONTROL_MOMENTUM = 0.9  # of the SGD whose learning rate is matched


class Settings(NamedTuple):
    """A rule and its numbers."""

    rule: str
    lr: float  # base learning rate
    momentum: float  # rho0, momentum or beta1
    weight_decay: float = 0.0  # decoupled, of AdamW only


class Rule(NamedTuple):
    """An optimizer and what anneals it."""

    optimizer: str  # "coolmomentum", "sgd", "adam", "adamw" or "rmsprop"
    curve: str = "constant"  # of the learning rate: "constant", "step", "cosine" or "matched"
    law: Law = "constant"  # of the momentum; only CoolMomentum and Demon change theirs


RULES = {
    "coolmomentum": Rule("coolmomentum", law="paper"),
    "coolmomentum-linear": Rule("coolmomentum", law="linear"),
    "coolmomentum-exponential": Rule("coolmomentum", law="exponential"),
    "coolmomentum-constant": Rule("coolmomentum"),
    "sgd": Rule("sgd"),
    "sgd-step": Rule("sgd", "step"),
    "sgd-cosine": Rule("sgd", "cosine"),
    "sgd-matched": Rule("sgd", "matched"),
    "demon": Rule("sgd", law="linear"),
    "adam": Rule("adam"),
    "adam-step": Rule("adam", "step"),
    "adam-cosine": Rule("adam", "cosine"),
    "adamw": Rule("adamw"),
    "adamw-cosine": Rule("adamw", "cosine"),
    "rmsprop": Rule("rmsprop"),
}


def impossible(rule: str, framework: str) -> str | None:
    """Why a framework cannot train by a rule, if so."""
    if rule not in RULES:
        return f"rule must be one of {', '.join(RULES)}: {rule}"
    if rule == "demon" and framework.startswith("keras"):
        return "demon is not to be had: the momentum of Keras' SGD cannot change"
    return None


def learning_rates(settings: Settings, epochs: int, steps: int) -> NDArray[np.float64]:
    """The learning rate of every step, (epochs, steps).

    Examples
    --------
    >>> learning_rates(Settings("sgd-step", 1.0, 0.9), epochs=10, steps=1).ravel().tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.001]
    """
    curve = RULES[settings.rule].curve
    progress = np.arange(epochs * steps) / (epochs * steps)
    if curve == "cosine":
        factors = (1 + np.cos(np.pi * progress)) / 2
    elif curve == "step":
        epoch = np.arange(epochs * steps) // steps
        factors = np.ones(epochs * steps)
        for share, factor in STEPS:  # as the paper's scripts: after epoch 80 of 0 to 199
            factors[epoch > share * epochs] = factor
    elif curve == "matched":
        rho = np.asarray(_schedule("paper", settings, epochs * steps)(np.arange(epochs * steps)))
        factors = matched_sgd_learning_rate(1.0, rho, CONTROL_MOMENTUM)
    else:
        factors = np.ones(epochs * steps)
    return settings.lr * factors.reshape(epochs, steps)


def momenta(settings: Settings, epochs: int, steps: int) -> NDArray[np.float64]:
    """The rho, momentum or beta1 of every step, (epochs, steps)."""
    rule = RULES[settings.rule]
    if rule.curve == "matched":
        return np.full((epochs, steps), CONTROL_MOMENTUM)
    schedule = _schedule(rule.law, settings, epochs * steps)
    rho: NDArray[np.float64] = schedule(np.arange(epochs * steps))
    return rho.reshape(epochs, steps)


def _schedule(law: Law, settings: Settings, total_steps: int) -> CoolingSchedule:
    return CoolingSchedule(total_steps, settings.momentum, law)
