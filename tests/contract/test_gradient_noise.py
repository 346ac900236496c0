"""One suite for the gradient noise of all frameworks: each reads what its gradients say, in float64.

Each optimizer is given gradients that do not depend on the parameters. The reference forms their
products, and the mean gradient that a momentum remembers, without any optimizer.
"""

import math
import os

import numpy as np
import pytest
from exact import U32, U64
from frameworks import framework

from coolmomentum import CoolingSchedule, learning_rate_from_sgd
from coolmomentum import numpy as cool_numpy
from coolmomentum.thermometer import NOISE_READINGS, GradientNoise, Layout, noise_moments

torch, cool_torch = framework("torch"), framework("coolmomentum.torch")
jnp, optax, cool_jax = map(framework, ("jax.numpy", "optax", "coolmomentum.jax"))

RHO, RATE, EVERY, BATCH = 0.9, 0.125, 5, 64
NOISE = {"gradient_noise": True, "batch_size": BATCH}


def gradients(seed=0, steps=60):
    """Of three parameters: a mean that changes slowly, and noise."""
    random = np.random.default_rng(seed)
    shapes = (3,), (2, 4), ()
    means = [random.standard_normal(shape) for shape in shapes]
    return [
        [(1 + n / 100) * m + random.normal(0, 0.3, m.shape) for m in means] for n in range(steps)
    ]


def reference(steps, rho=RHO, remembers=True):
    """The readings of all parameters, then of each, in float64."""
    shapes = [x.shape for x in steps[0]]
    layout = Layout.of(range(3), map(math.prod, shapes))
    noise, mean = GradientNoise.empty(np.zeros(4), BATCH), [np.zeros(shape) for shape in shapes]
    for n, now in enumerate(steps, 1):
        if n % EVERY == 0:
            triples = zip(now, steps[n - 2], steps[n - 3], strict=True)
            noise = noise.add(noise_moments(triples, mean if remembers else None), layout, rho)
        mean = [rho * m + (1 - rho) * g for m, g in zip(mean, now, strict=True)]
    readings = noise.readings()
    return [{name: readings[name][i] for name in NOISE_READINGS} for i in (-1, 0, 1, 2)]


def in_numpy(steps, _):
    """CoolMomentum alone."""
    optimizer = cool_numpy.CoolMomentum(learning_rate=RATE, schedule=lambda step: RHO)
    thermometer = cool_numpy.Thermometer(EVERY, EVERY, **NOISE)
    params = [np.zeros_like(x) for x in steps[0]]
    state, seen = optimizer.init(params), thermometer.init(params)
    for given in steps:
        params, state = optimizer.step(params, given, state)
        seen = thermometer.update(seen, params, rho=RHO, learning_rate=RATE)
    return [thermometer.read(seen), *thermometer.read(seen, "parameter").values()]


def in_torch(steps, kind):
    """By the hooks of the optimizer."""
    params = [torch.zeros(x.shape, requires_grad=True) for x in steps[0]]
    optimizer = {
        "cool": lambda: cool_torch.CoolMomentum(
            params, RATE, schedule=CoolingSchedule(10**6, RHO, "constant")
        ),
        "sgd": lambda: torch.optim.SGD(params, RATE, momentum=RHO),
        "adam": lambda: torch.optim.Adam(params, RATE, betas=(RHO, 0.99)),
        "other": lambda: torch.optim.Adadelta(params, RATE),
    }[kind]()
    told = {"rho": RHO} if kind == "other" else {}
    thermometer = cool_torch.Thermometer(optimizer, every=EVERY, span=EVERY, **NOISE, **told)
    for given in steps:
        for param, gradient in zip(params, given, strict=True):
            param.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    return [thermometer.read(), *thermometer.read("parameter").values()]


FRAMEWORKS = {"numpy": (in_numpy, U64), "torch": (in_torch, U32)}
KINDS = "cool", "sgd", "adam", "other"
ALL = [
    pytest.param(read, u, kind, id=f"{name} {kind}")
    for name, (read, u) in FRAMEWORKS.items()
    for kind in (KINDS[:1] if name == "numpy" else KINDS)
]


@pytest.mark.parametrize(("read", "u", "kind"), ALL)
def test_it_reads_what_the_gradients_say(read, u, kind):
    """In each framework, for each kind of optimizer."""
    steps = gradients()
    for found, expected in zip(read(steps, kind), reference(steps, remembers=kind != "other")):
        assert found | expected == pytest.approx(found, rel=1000 * u, nan_ok=True)
        print(found, expected)
