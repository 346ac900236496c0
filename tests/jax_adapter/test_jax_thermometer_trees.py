"""The optax thermometer in every wrapper and box: leaves, names and arguments."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax_tools import same
from meter_tools import (
    COOL,
    COOLING,
    METER,
    METERS,
    NAMES,
    PARAMS,
    TX,
    alone,
    gradients,
    near,
    walk,
)

from coolmomentum.jax import (
    adam_thermometer,
    cool_momentum,
    read,
    reset,
    thermometer,
)

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


def grads_of(params, steps=5):
    """Random gradients of any parameters."""
    random = np.random.default_rng(0)

    def make(x):
        return jnp.asarray(random.standard_normal(x.shape), x.dtype)

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
