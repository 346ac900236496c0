"""The optax thermometer: the NumPy reference, every wrapper and box, and what a step pays."""

import contextlib
import functools
import re
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exact import U32, U64
from flax import nnx, serialization
from jax import export
from jax_tools import double, same

from coolmomentum import CoolingSchedule
from coolmomentum.jax import (
    ThermometerState,
    adam_thermometer,
    cool_momentum,
    export_state,
    import_state,
    read,
    reset,
    thermometer,
)
from coolmomentum.numpy import Thermometer

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


# --- wrappers ------------------------------------------------------------------------------------

INJECTED = optax.inject_hyperparams(
    lambda learning_rate: optax.chain(
        cool_momentum(learning_rate, schedule=COOLING),
        thermometer(learning_rate, COOLING, every=2, span=4),
    )
)
WRAPPED = {  # MultiSteps, apply_if_finite, partition and masked have their own tests
    "inject_hyperparams": INJECTED(0.1),
    "flatten and named_chain": optax.flatten(optax.named_chain(("a", COOL), ("b", METER))),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_it_reads_the_same_inside_every_wrapper(name):
    """Found wherever it is, and after a reset there empty."""
    _, state = walk(WRAPPED[name], PARAMS, gradients(8))[-1]
    near(read(state), read(alone(8)))
    assert read(jax.jit(reset)(state))["steps"] == 0


def test_masked_parameters_are_not_there():
    """Nor in the rows."""
    tx = optax.masked(TX, {"layer": True, "scale": False})
    _, state = walk(tx, PARAMS, gradients(4))[-1]
    assert list(read(state, "parameter")) == NAMES[:2]
    near(read(state), read(alone(4), "group")["layer"])


def test_of_several_each_is_read_by_itself():
    """As in the groups of a partition; others may have none."""
    tx = optax.partition({"x": TX, "y": COOL}, {"layer": "x", "scale": "y"})
    _, state = walk(tx, PARAMS, gradients(4))[-1]
    mine = state.inner_states["x"]
    near(read(mine), read(alone(4), "group")["layer"])
    near(read(state), read(mine))
    with pytest.raises(ValueError, match="one thermometer in it: 2 found"):
        read((mine, mine))
    with pytest.raises(ValueError, match="0 found"):
        read(state.inner_states["y"])


def test_microbatches_are_no_steps_and_rejected_steps_change_nothing():
    """MultiSteps counts optimizer steps; apply_if_finite leaves the state as it was."""
    tx = optax.MultiSteps(optax.apply_if_finite(TX, 9), 2)
    twice = [g for g in gradients(8) for _ in range(2)]
    bad = jax.tree.map(lambda x: x * jnp.nan, twice[0])
    states = walk(tx, PARAMS, [*twice, bad, bad])
    (_, state), (_, after) = states[-3], states[-1]
    near(read(state), read(alone(8)))
    assert same(after.inner_opt_state.inner_state, state.inner_opt_state.inner_state)


# --- leaves and arguments ------------------------------------------------------------------------


def test_leaves_that_do_not_walk_and_leaves_without_gradient():
    """Integers are no coordinates, complex numbers two; a None has not moved."""
    params = {"c": jnp.ones(2, jnp.complex64), "h": jnp.ones(2, jnp.bfloat16), "i": jnp.arange(3)}
    params["n"] = jnp.ones(4)
    tx = thermometer(1.0, 0.0, every=1)
    updates = {
        "c": jnp.full(2, 3 + 4j),
        "h": jnp.full(2, 2.0, jnp.bfloat16),
        "i": jnp.zeros(3, int),
    }
    updates["n"] = None
    out, state = jax.jit(tx.update)(updates, tx.init(params), params)
    assert same(out, updates)
    each = {name: x["rescaled_temperature"] for name, x in read(state, "parameter").items()}
    assert each == {"c": 12.5, "h": 4.0, "n": 0.0}
    assert read(state)["rescaled_temperature"] == pytest.approx((50 + 8) / 10)
    assert state.window.sums.dtype == jnp.float32


@pytest.mark.parametrize("params", [{}, None, {"i": jnp.arange(3)}], ids=str)
def test_an_empty_tree_reads_nan(params):
    """Nothing walks."""
    tx = thermometer(every=1)
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert read(state)["steps"] == 1
    assert np.isnan(read(state)["temperature"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every must be >= 1: 0"),
        ({"every": 3, "span": 10}, "span must be a multiple of every, 3: 10"),
        ({"learning_rate": 0.0}, "learning_rate must be finite and > 0"),
        ({"rho": 1.0}, r"rho must be in \[-1, 1\): 1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    """Fail where they enter."""
    with pytest.raises(ValueError, match=message):
        thermometer(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate must be finite and >= 0"),
        ({"b1": 1.0}, r"b1 must be in \[0, 1\): 1.0"),
        ({"b2": -0.5}, r"b2 must be in \[0, 1\): -0.5"),
        ({"eps": float("nan")}, "eps must be finite and >= 0: nan"),
    ],
)
def test_bad_arguments_of_adam(arguments, message):
    """The same."""
    with pytest.raises(ValueError, match=message):
        adam_thermometer(optax.adam(0.1), **{"learning_rate": 0.1, **arguments})


@pytest.mark.parametrize(
    "make", [thermometer, functools.partial(adam_thermometer, optax.adam(0.1))]
)
def test_a_text_is_no_setting(make):
    """Nor is True."""
    for setting in ("0.1", True):
        with pytest.raises(TypeError, match="learning_rate must be a real number"):
            make(setting)


# --- names and boxes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "names", "groups"),
    [
        ({"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}, ["a/b", "a/b#2"], ["a", ""]),
        ({"a": [jnp.ones(1)], "a/0": jnp.ones(1)}, ["a/0", "a/0#2"], ["a", ""]),
        (
            {"a": {"b/c": jnp.ones(1)}, "a/b": {"c": jnp.ones(1)}},
            ["a/b/c", "a/b/c#2"],
            ["a", "a/b"],
        ),
    ],
)
def test_equal_names_keep_their_rows(params, names, groups):
    """Names that are joined alike get a number; the second leaf moves 2."""
    tx = thermometer()
    moves = jax.tree.unflatten(jax.tree.structure(params), [jnp.ones(1), jnp.full(1, 2.0)])
    _, state = walk(tx, params, [moves])[-1]
    rows = read(state, "parameter")
    assert list(rows) == names
    assert [x["rescaled_temperature"] for x in rows.values()] == [1.0, 4.0]
    assert list(read(state, "group")) == groups


class Block(nnx.Module):
    """Two layers in a node."""

    def __init__(self, rngs):
        self.inner = nnx.Linear(3, 4, rngs=rngs)
        self.outer = nnx.Linear(4, 1, rngs=rngs)


BLOCK_NAMES = [f"{x}/{y}" for x in ("inner", "outer") for y in ("bias", "kernel")]
METERS = {
    "cool": TX,
    "alone": optax.chain(optax.sgd(0.1), thermometer(0.2, 0.0)),
    "adam": adam_thermometer(optax.adam(0.1), 0.1),
    "frozen adam": adam_thermometer(
        optax.masked(optax.adam(0.1), lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)), 0.1
    ),
}


def grads_of(params, steps=5):
    """Random gradients of any parameters."""
    random = np.random.default_rng(0)
    make = lambda x: jnp.asarray(random.standard_normal(x.shape), x.dtype)  # noqa: E731
    return [jax.tree.map(make, params) for _ in range(steps)]


@pytest.mark.parametrize("tx", METERS.values(), ids=METERS)
def test_in_an_nnx_optimizer_it_reads_what_it_reads_of_the_pure_tree(tx):
    """Its init sees Variables and its update arrays; a reset and another step go on."""
    model = Block(nnx.Rngs(0))
    pure = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    step = nnx.jit(lambda model, optimizer, grads: optimizer.update(model, grads))
    for grads in grads_of(nnx.state(model, nnx.Param)):
        step(model, optimizer, grads)
    _, expected = walk(tx, pure, grads_of(pure))[-1]
    for by in ("group", "parameter"):
        got, rows = read(optimizer.opt_state, by), read(expected, by)
        assert list(got) == list(rows)
        for name, row in rows.items():
            near(got[name], row)
    near(read(optimizer.opt_state), read(expected))
    optimizer.opt_state = nnx.data(reset(optimizer.opt_state))
    assert read(optimizer.opt_state)["steps"] == 0
    step(model, optimizer, grads)
    assert read(optimizer.opt_state)["steps"] == 1


def test_the_names_of_an_nnx_model():
    """Without ``value``."""
    optimizer = nnx.Optimizer(Block(nnx.Rngs(0)), TX, wrt=nnx.Param)
    assert list(read(optimizer.opt_state, "parameter")) == BLOCK_NAMES
    assert list(read(optimizer.opt_state, "group")) == ["inner", "outer"]
    linear = nnx.Optimizer(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), TX, wrt=nnx.Param)
    assert list(read(linear.opt_state, "parameter")) == ["bias", "kernel"]


def test_the_layout_depends_on_init_alone():
    """A thermometer that was made of Variables measures pure updates."""
    state = nnx.state(Block(nnx.Rngs(0)), nnx.Param)
    pure = nnx.to_pure_dict(state)
    tx = thermometer()
    _, seen = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, pure), tx.init(state), pure)
    rows = read(seen, "parameter")
    assert list(rows) == BLOCK_NAMES
    assert [row["rescaled_temperature"] for row in rows.values()] == [1.0] * 4


def test_updates_of_another_tree_are_refused():
    """In one line that counts the leaves."""
    tx = thermometer()
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"must have the leaves of init: 2, not 3"):
        tx.update(PARAMS["layer"], state, PARAMS["layer"])


@pytest.mark.parametrize(
    ("tx", "box"),
    [(METERS["cool"], nn.with_partitioning), (METERS["frozen adam"], nn.with_logical_partitioning)],
)
def test_partitioned_parameters_of_linen_read_as_plain_ones(box, tx):
    """The boxes are in no name and in no group."""

    def dense(init):
        return nn.Sequential([nn.Dense(4, kernel_init=init), nn.Dense(1)])

    init, x = nn.initializers.normal(), jnp.ones((1, 3))
    boxed = dense(box(init, (None, "x"))).init(jax.random.key(0), x)["params"]
    plain = dense(init).init(jax.random.key(0), x)["params"]
    got, expected = (walk(tx, params, grads_of(params))[-1][1] for params in (boxed, plain))
    assert any(
        isinstance(node, nn.meta.AxisMetadata)
        for node in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))
    )
    for by in ("group", "parameter"):
        rows = read(expected, by)
        assert list(read(got, by)) == list(rows)
        for name, row in rows.items():
            near(read(got, by)[name], row)


def test_a_field_called_value_is_in_the_names():
    """A key of a dict is no box."""
    state = thermometer().init({"value": jnp.ones(1), "a": {"value": jnp.ones(1)}})
    assert list(read(state, "parameter")) == ["a/value", "value"]


# --- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tx", METERS.values(), ids=METERS)
def test_a_state_goes_through_the_serialisation_of_flax(tx):
    """To the same bits."""
    _, state = walk(tx, PARAMS, gradients(2))[-1]
    restored = serialization.from_bytes(tx.init(PARAMS), serialization.to_bytes(state))
    assert same(restored, state)


def test_an_exported_step_takes_the_state_as_it_is():
    """From its bytes, and goes on to the same bits."""
    (gradient,) = gradients(1)
    tx = optax.chain(COOL, METER)  # optax' own states are not registered
    _, state = walk(TX, PARAMS, gradients(2))[-1]
    program = export.export(jax.jit(tx.update))(gradient, state, PARAMS)
    again = export.deserialize(program.serialize())
    assert same(again.call(gradient, state, PARAMS), jax.jit(tx.update)(gradient, state, PARAMS))


def test_an_imported_state_keeps_the_thermometer_beside_it():
    """In the chain of an nnx.Optimizer: the walk is replaced, the window goes on."""
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    grads = nnx.state(model, nnx.Param)
    optimizer.update(model, grads)
    saved = export_state(optimizer.opt_state, 0.1, COOLING)
    assert saved.displacements.keys() == {"bias", "kernel"}
    optimizer.opt_state = nnx.data(import_state(optimizer.opt_state, saved))
    optimizer.update(model, grads)
    assert read(optimizer.opt_state)["steps"] == 2
    assert read(optimizer.opt_state)["rescaled_temperature"] > 0


# --- which steps, and with which settings --------------------------------------------------------


def test_each_of_the_first_ten_steps_is_measured_and_then_one_in_every():
    """Step n moves n, and stands for the steps since the measured one before."""
    tx, x = thermometer(every=5, span=5), jnp.ones(1)
    _, state = walk(tx, x, [n * x for n in range(1, 23)])[-1]
    squares = sum(n**2 for n in range(1, 11)) + 5 * (15**2 + 20**2)
    assert read(state)["rescaled_temperature"] == pytest.approx(squares / 20, rel=1e-6)
    assert read(state)["steps"] == 22


def test_a_window_in_which_nothing_was_measured_says_so():
    """Once for a reading, in words that say what to do; other windows do not warn."""
    tx, x = thermometer(1.0, 0.5), jnp.ones(2)
    states = [state for _, state in walk(tx, x, [x] * 14)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(read(states[2])["temperature"])  # after two steps
        assert read(states[2])["correlation"] == pytest.approx(1, abs=1e-6)
        assert np.isnan(read(states[0])["temperature"])  # no step yet
    empty = reset(states[10])
    for _ in range(4):
        empty = stepper(tx)(x, empty, x)[1]
    with pytest.warns(UserWarning, match="none of the 4 steps of this window was measured") as seen:
        reading = read(empty)
    assert reading["steps"] == 4
    assert np.isnan(reading["temperature"])
    assert len(seen) == 1
    assert seen[0].filename == __file__


RATES = optax.linear_schedule(0.0, 0.5, 5)  # a warm-up from 0


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(cool_momentum(RATES, schedule=COOLING), thermometer(RATES, COOLING)),
        optax.inject_hyperparams(
            lambda rate: optax.chain(
                cool_momentum(rate, schedule=COOLING), thermometer(rate, COOLING)
            )
        )(RATES),
        adam_thermometer(optax.adam(RATES), RATES),
    ],
    ids=["schedule", "injected", "adam"],
)
def test_a_warm_up_from_0_begins_at_temperature_0(tx):
    """The first step moves nothing at dt**2 = 0, and the later ones have temperatures."""
    (_, one), (_, three) = (walk(tx, PARAMS, gradients(n))[-1] for n in (1, 3))
    assert read(one)["temperature"] == 0
    assert 0 < read(three)["temperature"] < np.inf


def test_the_rate_is_that_of_the_step():
    """Plain SGD of gradients of 1 moves by its rate r, which reads r**2 / dt**2 = r / 2 a step."""
    rates = optax.exponential_decay(1.0, 1, 0.1)
    tx = optax.chain(optax.sgd(rates), thermometer(lambda n: 2 * rates(n), 0.0))
    x = jnp.ones(3)
    _, state = walk(tx, x, [x] * 3)[-1]
    assert read(state)["temperature"] == pytest.approx((1 + 0.1 + 0.01) / 3 / 2, rel=1e-5)


def test_a_learning_rate_in_a_variable_is_read_in_each_step():
    """It can be called, but is no schedule; so it is with rho, and with Adam's."""
    rate, rho, x = nnx.Variable(jnp.asarray(0.5)), nnx.Variable(jnp.asarray(0.25)), jnp.ones(2)
    tx = thermometer(rate, rho)
    _, state = tx.update(x, tx.init(x), x)
    assert (read(state)["temperature"], read(state)["rho"]) == (2.0, 0.25)
    rate[...] = jnp.asarray(0.25)
    _, state = tx.update(x, reset(state), x)
    assert read(state)["temperature"] == 4.0
    number = lambda y: nnx.Variable(jnp.asarray(y))  # noqa: E731
    plain = adam_thermometer(optax.adam(0.1), 0.1)
    boxed = adam_thermometer(optax.adam(0.1), *map(number, (0.1, 0.9, 0.999, 1e-8)))
    near(*(read(tx.update(x, tx.init(x), x)[1]) for tx in (boxed, plain)))


# --- JAX's own modes -----------------------------------------------------------------------------

MIXED = {
    "complex": jnp.array([1 + 2j, 0.5j]),
    "half": jnp.ones(3, jnp.bfloat16),
    "index": jnp.arange(2),
    "key": jax.random.key(0),
    "single": jnp.array([1.0, -2.0]),
}


@contextlib.contextmanager
def modes(nans, jit, promotion):
    """JAX under its debuggers and with its strict dtypes."""
    with jax.debug_nans(nans), jax.disable_jit(not jit), jax.numpy_dtype_promotion(promotion):
        yield


def mixed_walk(tx):
    """The readings of a few steps of leaves of every kind, at the end of two spans."""
    state, update = tx.init(MIXED), jax.jit(tx.update)
    for n in range(1, 5):
        step = lambda x, n=n: x / n if jnp.issubdtype(x.dtype, jnp.inexact) else x  # noqa: E731
        moves = {name: step(x) for name, x in MIXED.items() if name != "key"}
        _, state = update(moves | {"key": None}, state, MIXED)
    return [read(state), *read(state, "parameter").values()]


@pytest.mark.parametrize(
    "mode", [(True, True, "standard"), (True, False, "standard"), (False, True, "strict")]
)
@pytest.mark.parametrize(
    "settings",
    [(), (0.1, COOLING), (optax.linear_schedule(0.0, 0.1, 3), lambda n: np.float32(0.5) / (1 + n))],
    ids=["unknown", "cooling", "functions"],
)
def test_the_modes_of_jax_change_no_reading(mode, settings):
    """No NaN before a reading, no promotion that the strict mode refuses, leaves of every kind."""
    expected = mixed_walk(thermometer(*settings, every=2, span=2))
    with modes(*mode):
        got = mixed_walk(thermometer(*settings, every=2, span=2))
    for a, b in zip(got, expected, strict=True):
        near(a, b)


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "no jit"])
@pytest.mark.parametrize("make", [optax.adam, optax.amsgrad])
def test_nan_debugging_finds_no_nan_in_adam(jit, make):
    """Also in bfloat16 and in complex numbers, each alone: optax itself promotes beside others."""
    for leaf in ("half", "complex", "single"):
        x = {"w": MIXED[leaf]}

        def seen(x=x):
            tx = adam_thermometer(make(0.1), 0.1)
            update, state = jax.jit(tx.update), tx.init(x)
            for _ in range(2):
                _, state = update(x, state, x)
            return read(state)

        expected = seen()
        with jax.debug_nans(True), jax.disable_jit(not jit):
            near(seen(), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
def test_injected_settings_in_the_dtype_of_the_parameters(dtype):
    """Strict or not: powers of two are exact in each of them."""
    x = jnp.ones(2, dtype)
    make = lambda rate, rho: thermometer(rate, rho)  # noqa: E731
    tx = optax.inject_hyperparams(make)(rate=0.25, rho=0.5)
    with jax.numpy_dtype_promotion("strict"):
        _, state = jax.jit(tx.update)(x, tx.init(x), x)
        reading = read(state)
    assert state.hyperparams["rate"].dtype == dtype
    mean = 0.5 if dtype == "complex64" else 1.0  # a complex number is two coordinates
    assert (reading["temperature"], reading["rho"]) == (mean / 0.25, 0.5)


# --- what a step pays ----------------------------------------------------------------------------

BIG = {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}


def compiled(tx, params=BIG):
    """A donated step as an executable."""

    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params), params).compile()


@pytest.mark.parametrize(
    "tx", [optax.chain(COOL, thermometer(0.1, COOLING)), optax.chain(optax.sgd(0.1, 0.9), METER)]
)
def test_a_step_that_is_not_measured_copies_no_parameter(tx):
    """All copies of arrays are in the loops, which few steps enter; all is donated."""
    executable = compiled(tx)
    entry = re.split(r"\nENTRY ", executable.as_text())[1]
    assert not re.findall(r"= f32\[(?:64,32|32)\]\S* copy\(", entry)
    state = jax.tree.leaves((BIG, tx.init(BIG)))
    assert executable.memory_analysis().alias_size_in_bytes == sum(x.nbytes for x in state)


@pytest.mark.skipif(
    jax.__version_info__ < (0, 10, 2),
    reason="XLA takes room for three arrays more with JAX 0.8.0, 0.9.0 and 0.10.0",
)
@pytest.mark.parametrize(
    ("optimizer", "arrays"), [(COOL, 0), (optax.sgd(0.1, 0.9), 1)], ids=["cool", "sgd"]
)
def test_no_array_is_allocated_but_for_updates_that_no_state_holds(optimizer, arrays):
    """On any step; those of optax.sgd are its momentum times the learning rate, ours the state.

    The choice that ours pass under jit would be an array: the thermometer looks behind it.
    """
    params = jnp.ones(10**5)
    executable = compiled(optax.chain(optimizer, thermometer(0.1, COOLING)), params)
    allocated = executable.memory_analysis().temp_size_in_bytes - arrays * params.nbytes
    assert 0 <= allocated < params.nbytes / 10  # scalars


def test_nothing_is_traced_again():
    """One trace for measured and other steps."""
    step, run = stepper.__wrapped__(TX), (PARAMS, TX.init(PARAMS))
    for gradient in gradients(13):
        run = step(*run, gradient)
    assert step._cache_size() == 1


@double()
def test_it_exports_for_tpu_without_float64():
    """With x64 on, a float32 step has no float64, no callback and no dynamic shape."""
    params = jax.tree.map(lambda x: x.astype("float32"), BIG)
    program = export.export(jax.jit(TX.update), platforms=("cpu", "cuda", "tpu"))(
        params, TX.init(params), params
    )
    text = re.sub(r"loc\(.*?\)|#loc.*", "", program.mlir_module())
    assert not re.search(r"\bf64\b|xf64\b|custom_call|tensor<[^>]*\?", text)
    assert isinstance(jax.eval_shape(TX.init, params)[1], ThermometerState)


def test_derivatives_go_through_the_updates():
    """As without it, for those who differentiate a training run."""

    def end(x, tx):
        def step(carry, _):
            x, state = carry
            updates, state = tx.update(x, state, x)
            return (x + updates, state), None

        return jax.lax.scan(step, (x, tx.init(x)), length=3)[0][0]

    with_it, without = (jax.jit(jax.grad(end), static_argnums=1)(2.0, tx) for tx in (TX, COOL))
    assert float(with_it) == float(without)


def test_under_vmap_each_has_its_window():
    """Two runs at once read as one by one."""
    runs = [gradients(4), jax.tree.map(lambda x: 2 * x, gradients(4))]
    params = jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS)
    state = jax.vmap(TX.init)(params)
    step = jax.jit(jax.vmap(stepper(TX).__wrapped__))
    for pair in zip(*runs, strict=True):
        params, state = step(params, state, jax.tree.map(lambda *x: jnp.stack(x), *pair))
    for i, run in enumerate(runs):
        _, single = walk(TX, PARAMS, run)[-1]
        near(read(jax.tree.map(lambda x, i=i: x[i], state)), read(single))
