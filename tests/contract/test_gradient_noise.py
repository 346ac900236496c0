"""One suite for the gradient noise of all frameworks: each reads what its gradients say.

Each optimizer is given gradients that do not depend on the parameters. The reference forms, in
float64, their products and the mean gradient that a momentum remembers, without any optimizer.
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
jax, jnp, optax, cool_jax = map(framework, ("jax", "jax.numpy", "optax", "coolmomentum.jax"))

RHO, RATE, EVERY, BATCH = 0.9, 0.125, 5, 64
NOISE = {"gradient_noise": True, "batch_size": BATCH}


def gradients(seed=0, steps=60):
    """Of three parameters: a mean that changes slowly, and noise."""
    random = np.random.default_rng(seed)
    shapes = (3,), (2, 4), ()
    means = [1 + random.random(shape) for shape in shapes]
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


def in_jax(steps, kind):
    """Last in the chain, around Adam, or first."""
    dt2, told = learning_rate_from_sgd(RATE, RHO), {"every": EVERY, **NOISE}
    cooling = CoolingSchedule(10**6, RHO, "constant")
    tx = {
        "cool": lambda: optax.chain(
            cool_jax.cool_momentum(RATE, schedule=cooling),
            cool_jax.thermometer(RATE, cooling, span=EVERY, **told),
        ),
        "sgd": lambda: optax.chain(
            optax.sgd(RATE, RHO), cool_jax.thermometer(dt2, RHO, span=EVERY, **told)
        ),
        "adam": lambda: cool_jax.adam_thermometer(
            optax.adam(RATE, RHO, 0.99), RATE, RHO, 0.99, span=EVERY, **told
        ),
        "other": lambda: optax.chain(
            cool_jax.gradient_thermometer(RHO, BATCH, every=EVERY), optax.lion(RATE, RHO)
        ),
    }[kind]()
    params = [jnp.zeros(x.shape) for x in steps[0]]
    state, update = tx.init(params), jax.jit(tx.update)
    for given in steps:
        _, state = update([jnp.asarray(x, jnp.float32) for x in given], state, params)
    return [cool_jax.read(state), *cool_jax.read(state, "parameter").values()]


def in_keras(steps, kind):
    """A callback of fit, in which the gradients are the batches."""
    import keras

    from coolmomentum.keras import CoolMomentum, Thermometer

    shapes = [x.shape for x in steps[0]]
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()

    class Given(keras.layers.Layer):
        def build(self, _):
            self.ws = [self.add_weight(shape=shape, initializer="zeros") for shape in shapes]

        def call(self, x):
            flat = keras.ops.concatenate([keras.ops.reshape(w, (-1,)) for w in self.ws])
            return keras.ops.sum(x * flat, axis=-1)

    model = keras.Sequential([keras.Input((ends[-1],)), Given()])
    thermometer = Thermometer(EVERY, EVERY, **NOISE)
    optimizer = {
        "cool": lambda: CoolMomentum(RATE, schedule=CoolingSchedule(10**6, RHO, "constant")),
        "sgd": lambda: keras.optimizers.SGD(RATE, momentum=RHO),
        "adam": lambda: keras.optimizers.AdamW(RATE, beta_1=RHO, beta_2=0.99),
    }[kind]()
    is_jax = keras.backend.backend() == "jax"
    model.compile(optimizer, lambda _, out: out, jit_compile=is_jax)
    batches = np.array([np.concatenate([x.ravel() for x in step]) for step in steps])
    how = {"batch_size": 1, "shuffle": False, "verbose": 0, "callbacks": [thermometer]}
    model.fit(batches.astype("float32"), np.zeros(len(batches)), **how)
    return [thermometer.read(), *thermometer.read("parameter").values()]


FRAMEWORKS = {"numpy": (in_numpy, U64), "torch": (in_torch, U32), "jax": (in_jax, U32)}
KINDS = dict.fromkeys(FRAMEWORKS, ("cool", "sgd", "adam", "other")) | {"numpy": ("cool",)}
if "KERAS_BACKEND" in os.environ:  # a process has one; see test_keras_backends.py
    name = f"keras on {os.environ['KERAS_BACKEND']}"
    FRAMEWORKS, KINDS = {name: (in_keras, U32)}, {name: ("cool", "sgd", "adam")}
ALL = [
    pytest.param(read, u, kind, id=f"{name} {kind}")
    for name, (read, u) in FRAMEWORKS.items()
    for kind in KINDS[name]
]


def near(exact, u):
    """Within the roundings.

    A gradient is the difference of momenta up to 10 times larger, each of some 3 roundings: 60 u.
    |G|**2 is a sum of products with factors up to 3.6, of numbers up to 4 times larger; what is
    left of the squares for the noise is 1/50 of them, and for the error bar less.
    """
    return pytest.approx([exact[name] for name in NOISE_READINGS], rel=2e4 * u, nan_ok=False)


@pytest.mark.parametrize(("read", "u", "kind"), ALL)
def test_it_reads_what_the_gradients_say(read, u, kind):
    """In each framework, for each kind of optimizer."""
    steps = gradients()
    expected = reference(steps, remembers=kind != "other")
    for found, exact in zip(read(steps, kind), expected, strict=True):
        assert [found[name] for name in NOISE_READINGS] == near(exact, u)
