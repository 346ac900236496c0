"""The optax thermometer: what the NumPy reference reads, and the masses of Adam."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exact import U32, U64
from jax_tools import double
from meter_tools import COOL, COOLING, NAMES, PARAMS, gradients, near, walk

from coolmomentum.jax import (
    adam_thermometer,
    read,
    reset,
    thermometer,
)
from coolmomentum.numpy import Thermometer


def read_in_numpy(states, leaves, every, span):
    """What the NumPy thermometer reads of some leaves, from the parameters after each step."""
    meter = Thermometer(every, span)
    xs = [[np.asarray(jax.tree.leaves(params)[i]) for i in leaves] for params, _ in states]
    seen = meter.init(xs[0])
    for n, x in enumerate(xs[1:]):
        seen = meter.update(seen, x, rho=COOLING(n), learning_rate=0.1)
    return meter.read(seen)


@double()
@pytest.mark.parametrize(("every", "span"), [(1, 1), (1, 3), (5, 10)])
def test_it_reads_what_the_numpy_thermometer_reads(every, span):
    """In float64, of parameters, groups and all, while rho cools: 20 steps, displacements below 1.

    Those of the oracle are differences of parameters below 4: each is wrong by 4 U64, 40 pairs of
    them, in sums that are divided by displacements of 0.01 and by 1 - rho**2 > 0.19; freeze_out and
    its error divide by a few spans' sums of the same size.
    """
    tx = optax.chain(COOL, thermometer(0.1, COOLING, every=every, span=span))
    params = jax.tree.map(lambda x: x.astype("float64"), PARAMS)
    states = walk(tx, params, gradients(20, "float64"))
    (_, end), size = states[-1], 40 * 4 * U64 / 0.01 / 0.19 * 10
    got = [*read(end, "parameter").items(), *read(end, "group").items(), ("", read(end))]
    for i, leaves in enumerate([(0,), (1,), (2,), (0, 1), (2,), (0, 1, 2)]):
        name, readings = got[i]
        assert name == [*NAMES, "layer", "", ""][i]
        expected = read_in_numpy(states, leaves, every, span)
        assert readings.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(readings[key], value, rtol=size, atol=size, err_msg=key)


@functools.partial(jax.jit, static_argnames="make")
def wandering(x, state, keys, settings, sigma, *, make):
    """More steps of free diffusion."""
    tx = make(*settings)

    def step(carry, key):
        x, state = carry
        updates, state = tx.update(sigma * jax.random.normal(key, x.shape), state, x)
        return (x + updates, state), None

    return jax.lax.scan(step, (x, state), keys)[0]


def wander(make, settings, sigma, steps, size=10_000):
    """The reading of free diffusion, after 500 steps to come to rest."""
    x = jnp.zeros(size)
    state = make(*settings).init(x)
    for i, keys in enumerate(jax.random.split(jax.random.key(0), (1 + steps // 500, 500))):
        x, state = wandering(x, state, keys, settings, sigma, make=make)
        if i == 0:
            state = reset(state)
    return read(state)


def adam(learning_rate):
    """With a second moment that is known well."""
    return adam_thermometer(optax.adam(learning_rate, b2=0.9999), learning_rate, b2=0.9999)


def test_the_temperature_of_adam_is_half_its_learning_rate_times_sigma():
    """With masses, at b2 = 0.9999: n > 500 gradients are in the second moment.

    The temperature is then low by 1 / (4 n), below 5e-4: 3/4 - 1 of 1/n, for the second moment's
    own scatter and for what it shares with the first. Its mean is of 3e6 squares, whose neighbours
    10 steps apart share 0.9**20: four standard errors are 4 sqrt(2 (1 + 2 * 0.14) / 3e6).
    """
    reading = wander(adam, (1e-3,), 3.0, steps=3000)
    assert reading["temperature"] == pytest.approx(1.5e-3, rel=5e-4 + 4 * (2.56 / 3e6) ** 0.5)
    assert reading["rho"] == pytest.approx(0.9, rel=301 * U32)  # a sum of 300


def test_the_masses_of_the_first_steps():
    """In the first steps, where the bias is large: sqrt(nu_hat) + eps with nu_hat in float64.

    Three steps of displacements below 0.1: some 30 roundings each in the moments, and the bias
    1 - b2**n is a difference near 1e-3 of a float32 b2**n, wrong by n U32: n U32 / 1e-3 relative.
    """
    tx = adam_thermometer(optax.adam(0.1, eps=0.5), 0.1, eps=0.5, every=1)
    params, grads = jnp.zeros(3), [jnp.array([3.0, -0.1, 0.0]) * n for n in (1, 2, 3)]
    states = walk(tx, params, grads)
    nu, energies = np.zeros(3), []
    for n, (g, (old, _), (new, _)) in enumerate(zip(grads, states, states[1:], strict=False), 1):
        nu = 0.999 * nu + 0.001 * np.square(np.asarray(g, np.float64))
        dx = np.asarray(new, np.float64) - np.asarray(old, np.float64)
        energies.append(np.mean((np.sqrt(nu / (1 - 0.999**n)) + 0.5) * dx**2))
    size = 3 * U32 / 1e-3 + 64 * U32
    reading = read(states[-1][1])
    expected = np.mean(energies) / (2 * 0.1 * 0.1 / 1.9)
    assert reading["temperature"] == pytest.approx(expected, rel=size)


@double()
def test_the_masses_of_amsgrad():
    """The root of the largest second moment so far, which falls behind after a large gradient."""
    tx = adam_thermometer(optax.amsgrad(0.1, eps=0.5), 0.1, eps=0.5, every=1)
    params, grads = jnp.zeros(2), [jnp.array([3.0, -0.1]) / n**3 for n in (1, 2, 3)]
    states = walk(tx, params, grads)
    nu, most, energies = np.zeros(2), np.zeros(2), []
    for n, (g, (old, _), (new, _)) in enumerate(zip(grads, states, states[1:], strict=False), 1):
        nu = 0.999 * nu + 0.001 * np.square(np.asarray(g))
        most = np.maximum(most, nu / (1 - 0.999**n))
        energies.append(np.mean((np.sqrt(most) + 0.5) * np.square(new - old)))
    expected = np.mean(energies) / (2 * 0.1 * 0.1 / 1.9)
    # 1 - 0.999**n is wrong by U64 / 1e-3, and a displacement by U64 / 0.01.
    assert read(states[-1][1])["temperature"] == pytest.approx(expected, rel=1000 * U64 / 1e-3)


FROZEN = {  # optax' ways to train the layer and not the scale; what is frozen has no mass
    "partition": lambda adam: optax.partition(
        {"train": adam, "freeze": optax.set_to_zero()}, {"layer": "train", "scale": "freeze"}
    ),
    "partition by leaves": lambda adam: optax.partition(
        {"train": adam, "freeze": optax.set_to_zero()},
        {"layer": {"b": "train", "w": "train"}, "scale": "freeze"},
    ),
    "masked": lambda adam: optax.masked(adam, {"layer": True, "scale": False}),
    "masked by a function": lambda adam: optax.masked(
        adam, lambda tree: {name: name == "layer" for name in tree}
    ),
}


@pytest.mark.parametrize(
    ("make", "adam"),
    [
        *((make, optax.adam(0.1)) for make in FROZEN.values()),
        (FROZEN["masked"], optax.amsgrad(0.1)),
    ],
    ids=[*FROZEN, "amsgrad masked"],
)
def test_parameters_without_a_mass_do_not_count(make, adam):
    """Adam for some of the parameters is read as Adam for those alone."""
    grads = gradients(3)
    _, state = walk(adam_thermometer(make(adam), 0.1), PARAMS, grads)[-1]
    alone = adam_thermometer(adam, 0.1)
    layers = [{"layer": g["layer"]} for g in grads]
    _, expected = walk(alone, {"layer": PARAMS["layer"]}, layers)[-1]
    assert list(read(state, "parameter")) == NAMES[:2]
    near(read(state), read(expected))
    near(read(state, "parameter")["layer/w"], read(expected, "parameter")["layer/w"])


def test_integers_and_what_an_outer_mask_hides_have_no_mass():
    """The others are read as without them."""
    tx, grads = adam_thermometer(optax.adam(0.1), 0.1), gradients(3)
    params = {"a": jnp.arange(2), **PARAMS, "z": jnp.ones(2)}
    outer = optax.masked(tx, {"a": True, "layer": True, "scale": True, "z": False})
    _, expected = walk(tx, PARAMS, grads)[-1]
    more = [{"a": jnp.zeros(2, int), **g, "z": jnp.ones(2)} for g in grads]
    _, state = walk(outer, params, more)[-1]
    near(read(state), read(expected))
    assert list(read(state, "parameter")) == NAMES


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.1),
        optax.partition({"x": optax.adam(1.0), "y": optax.adam(0.1)}, {"layer": "x", "scale": "y"}),
    ],
    ids=["none", "two"],
)
def test_what_has_not_one_adam_is_refused_at_the_start(optimizer):
    """By init."""
    with pytest.raises(
        ValueError, match=r"optimizer must have one ScaleByAdamState .*: [02] found"
    ):
        adam_thermometer(optimizer, 0.1).init(PARAMS)
