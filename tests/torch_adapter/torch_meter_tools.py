"""Optimizers of torch that the thermometer is tested on, their decays; readings compared."""

import pytest
import torch

from coolmomentum.torch import CoolMomentum

SHAPES = [(3, 4), (5,), ()]
SGD, ADAM = torch.optim.SGD, torch.optim.Adam

# What each moves by apart from its displacement: the factor of decoupled weight decay.
OPTIMIZERS = {
    "cool": lambda p: CoolMomentum(p, lr=0.05, total_steps=30, rho0=0.9),
    "cool, decoupled decay": lambda p: CoolMomentum(
        p, lr=0.05, total_steps=30, weight_decay=0.1, decoupled_weight_decay=True
    ),
    "cool, capturable": lambda p: CoolMomentum(p, lr=0.05, total_steps=30, capturable=True),
    "sgd": lambda p: SGD(p, lr=0.05),
    "sgd, momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1, dampening=0.3),
    "sgd, maximize": lambda p: SGD(p, lr=0.05, momentum=0.9, maximize=True),
    "sgd, fused": lambda p: SGD(p, lr=0.05, momentum=0.9, fused=True),
    "sgd, foreach": lambda p: SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "sgd, nesterov": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "sgd, tensor lr": lambda p: SGD(p, lr=torch.tensor(0.05), momentum=0.9),
    "adam": lambda p: ADAM(p, lr=0.05),
    "adam, amsgrad": lambda p: ADAM(p, lr=0.05, amsgrad=True, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.5),
    "nadam, decoupled": lambda p: torch.optim.NAdam(
        p, lr=0.05, weight_decay=0.5, decoupled_weight_decay=True
    ),
    "radam, decoupled": lambda p: torch.optim.RAdam(
        p, lr=0.05, weight_decay=0.5, decoupled_weight_decay=True
    ),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.05, weight_decay=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05),
    "rmsprop, centered": lambda p: torch.optim.RMSprop(p, lr=0.05, centered=True, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.05),
}
DECAYS = {
    "cool, decoupled decay": 0.1,
    "adamw": 0.5,
    "nadam, decoupled": 0.5,
    "radam, decoupled": 0.5,
    "adafactor": 0.5,
}


def same_readings(got, expected):
    """Whether readings are the same, and how many steps they are of."""
    assert got.keys() == expected.keys()
    for key, reading in got.items():
        assert reading == pytest.approx(expected[key], rel=1e-12, abs=1e-12, nan_ok=True), key
    assert got["all"]["steps"] > 0
    return True
