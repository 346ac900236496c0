"""What the tests of the optax thermometer share: parameters, chains, and a walk of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from exact import U32

from coolmomentum import CoolingSchedule
from coolmomentum.jax import (
    adam_thermometer,
    cool_momentum,
    thermometer,
)

PARAMS = {"layer": {"b": jnp.array([1.0, -2.0]), "w": jnp.array([[0.5]])}, "scale": jnp.ones(3)}
NAMES = ["layer/b", "layer/w", "scale"]
COOLING = CoolingSchedule(30, 0.9)
COOL = cool_momentum(0.1, schedule=COOLING)
METER = thermometer(0.1, COOLING, every=2, span=4)
TX = optax.chain(COOL, METER)


def gradients(steps, dtype="float32", seed=0):
    """Random gradients of PARAMS, one for each step."""
    random = np.random.default_rng(seed)
    return [
        jax.tree.map(lambda x: jnp.asarray(random.standard_normal(x.shape), dtype), PARAMS)
        for _ in range(steps)
    ]


@functools.cache
def stepper(tx):
    """A jitted step: to compile one takes two seconds, so the tests share them."""

    @jax.jit
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return step


def walk(tx, params, gradients):
    """Parameters and state before the first step and after each."""
    states = [(params, tx.init(params))]
    for gradient in gradients:
        states.append(stepper(tx)(*states[-1], gradient))
    return states


@functools.cache
def alone(steps):
    """The state after some steps of a bare chain, with which the others are compared."""
    return walk(TX, PARAMS, gradients(steps))[-1][1]


def near(got, expected):
    """Whether readings are the same but for the order of float32 sums.

    Displacements of order 0.1 are sums of up to 8 terms, each wrong by some 4 roundings; squares,
    products and sums add some 16; three points and predicted subtract like numbers and divide by
    1 - rho**2 > 0.19, and the rest by no less: 64 roundings in 0.19, at most tenfold by cancelling.
    """
    assert got.keys() == expected.keys()
    size = 64 * U32 / 0.19 * 10
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=size, atol=size, err_msg=name)


METERS = {
    "cool": TX,
    "alone": optax.chain(optax.sgd(0.1), thermometer(0.2, 0.0)),
    "adam": adam_thermometer(optax.adam(0.1), 0.1),
    "frozen adam": adam_thermometer(
        optax.masked(optax.adam(0.1), lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)), 0.1
    ),
}
