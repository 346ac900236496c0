"""Every kind of leaf: masked, None, integer, scalar, empty, of any dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_tools import double, same, walk

from coolmomentum.jax import CoolMomentumState, cool_momentum, per_leaf, temperature

TX = cool_momentum(0.5, 4, 0.5)  # first update for a gradient of 1: -0.5 * 1.5 / 2 = -0.375


def first(params, gradients, tx=TX):
    """The first update, and the state after it."""
    return tx.update(gradients, tx.init(params), params)


def test_the_state_is_a_clock_and_a_pytree_like_the_parameters():
    """Two fields: an int32 scalar and zeros of the shapes and dtypes of the parameters."""
    params = {"a": jnp.ones((2, 3)), "b": [jnp.ones(4, jnp.bfloat16), (jnp.ones(()),)]}
    state = TX.init(params)
    assert type(state) is CoolMomentumState
    assert state._fields == ("count", "displacement")
    assert same(
        state, CoolMomentumState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))
    )
    assert int(optax.tree.get(state, "count")) == 0


def test_none_among_the_parameters_stays_none():
    """A None is no leaf in JAX, with or without a gradient for the others."""
    params = {"a": None, "b": jnp.ones(2)}
    updates, state = first(params, {"a": None, "b": jnp.ones(2)})
    assert updates["a"] is None
    assert state.displacement["a"] is None
    assert updates["b"].tolist() == [-0.375, -0.375]
    assert optax.apply_updates(params, updates)["a"] is None


def test_a_parameter_without_a_gradient_is_not_touched():
    """Its update is None and its displacement stays, as in the oracle; the clock goes on."""
    params = {"a": jnp.ones(1), "b": jnp.ones(1)}
    _, state = first(params, params)
    updates, later = TX.update({"a": None, "b": jnp.ones(1)}, state, params)
    assert updates["a"] is None
    assert same(later.displacement["a"], state.displacement["a"])
    assert float(later.displacement["b"][0]) != float(state.displacement["b"][0])
    assert int(later.count) == 2


def test_masked_leaves_pass_through_and_have_no_state():
    """optax.masked gives the gradient through where the mask is False."""
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx = optax.masked(TX, {"a": True, "b": False})
    updates, state = first(params, params, tx)
    assert updates["a"].tolist() == [-0.375, -0.375]
    assert updates["b"].tolist() == [1, 1]
    assert isinstance(state.inner_state.displacement["b"], optax.MaskedNode)


@pytest.mark.parametrize("integer_gradient", ["float0", "int32"])
@pytest.mark.parametrize("accumulator_dtype", [None, "float32"])
def test_integer_leaves_do_not_move(integer_gradient, accumulator_dtype):
    """Under jax.grad(allow_int=True) their gradient is float0; the update is an integer 0."""
    params = {"index": jnp.arange(3), "on": jnp.array([True]), "w": jnp.ones(2)}
    gradients = jax.grad(lambda p: jnp.sum(p["w"]), allow_int=True)(params)
    if integer_gradient == "int32":
        gradients = {**gradients, "index": jnp.ones(3, jnp.int32), "on": jnp.array([True])}
    tx = cool_momentum(0.5, 4, 0.5, accumulator_dtype=accumulator_dtype)
    updates, state = first(params, gradients, tx)
    moved = optax.apply_updates(params, updates)
    assert same({**moved, "w": 0}, {**params, "w": 0})
    assert moved["w"].tolist() == [0.625, 0.625]
    assert updates["index"].dtype == jnp.int32
    # they do not count in the temperature: both coordinates of w moved by 0.375
    assert float(temperature(state, 0.5)) == 0.375**2 / 0.5
    assert jax.tree.map(float, per_leaf(temperature, state, 0.5)) == {
        "index": optax.MaskedNode(),
        "on": optax.MaskedNode(),
        "w": 0.375**2 / 0.5,
    }


@pytest.mark.parametrize("one", [1.0, np.float32(1), np.ones((), "float32"), jnp.ones(())])
def test_scalar_parameters(one):
    """Python numbers and NumPy's are parameters as in optax."""
    updates, state = first(one, one)
    assert float(updates) == -0.375
    assert not state.displacement.weak_type
    assert float(optax.apply_updates(one, updates)) == 0.625


@pytest.mark.parametrize("empty", [{}, [], (), None, {"a": {}}])
def test_empty_pytrees(empty):
    """Nothing moves, the clock counts as optax' do, the temperature of nothing is 0."""
    updates, state = first(empty, empty)
    assert updates == empty
    assert int(state.count) == 1
    assert float(temperature(state, 0.5)) == 0


def test_an_array_without_elements():
    """Its shape goes through."""
    updates, state = first(jnp.ones((0, 3)), jnp.ones((0, 3)))
    assert updates.shape == state.displacement.shape == (0, 3)
    assert float(temperature(state, 0.5)) == 0


def test_updates_have_the_dtype_of_the_parameters_or_else_of_the_gradients():
    """bfloat16 gradients of float32 parameters do not round the update."""
    params, gradient = jnp.ones(2), jnp.ones(2, jnp.bfloat16)
    state = TX.init(params)
    assert TX.update(gradient, state, params)[0].dtype == jnp.float32
    assert TX.update(gradient, state)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("params", ["float16", "bfloat16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("accumulator", [None, "bfloat16", "float32", "float64", "complex64"])
@double()
def test_dtypes_are_stable(params, accumulator):
    """Displacements are in accumulator_dtype, updates in the parameters', at rest and after."""
    tx = cool_momentum(0.5, 4, accumulator_dtype=accumulator)
    x = jnp.ones(2, params)
    state = tx.init(x)
    assert state.displacement.dtype == (accumulator or params)
    if accumulator and (params == "complex64") != (accumulator == "complex64"):
        return  # refused by update where it would lose something: see test_jax_arguments
    updates, later = jax.jit(tx.update)(x, state, x)
    assert updates.dtype == params
    assert jax.tree.map(jnp.result_type, later) == jax.tree.map(jnp.result_type, state)


@double()
def test_each_leaf_is_computed_in_its_own_precision():
    """In one tree a float64 leaf has a float64 rho and a float32 leaf the one of float32."""
    tx = cool_momentum(0.1, 1000, 0.99)
    params = {"double": jnp.ones(1), "single": jnp.ones(1, jnp.float32)}
    state = CoolMomentumState(jnp.asarray(100, jnp.int32), params)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    exact = 0.984151068075388865148  # 1 - 0.01**(9 / 10)
    assert abs(float(updates["double"][0]) - exact) < 1e-15
    assert 1e-15 < abs(float(updates["single"][0]) - exact) < 1e-6
    assert updates["single"].dtype == jnp.float32


def test_abstract_parameters_give_an_abstract_state():
    """As optax' own suite asks: init takes a ShapeDtypeStruct, and eval_shape goes through."""
    shape = jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)
    assert TX.init(shape).displacement.shape == (2, 3)
    abstract = jax.eval_shape(TX.init, {"a": shape})
    assert abstract.displacement["a"].dtype == jnp.bfloat16


def test_tree_map_params_knows_the_displacement():
    """Partition specs can be put on the displacement, and the clock told from it."""
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    mapped = optax.tree.map_params(
        TX,
        lambda _, spec: spec,
        TX.init(params),
        {"a": "x", "b": "y"},
        transform_non_params=lambda _: "clock",
    )
    assert mapped == CoolMomentumState("clock", {"a": "x", "b": "y"})


def test_nothing_passed_in_is_changed_and_extra_arguments_are_ignored():
    """The update is a pure function."""
    params = {"w": np.ones(2, "float32")}
    params["w"].flags.writeable = False
    state = TX.init(params)
    one = TX.update(params, state, params)
    two = TX.update(params, state, params, value=1.0, anything="else")
    assert same(one, two)
    assert int(state.count) == 0


def test_vmap_and_scan():
    """An ensemble under vmap and a scanned run are the single runs."""
    xs = jnp.arange(1.0, 4)
    singles = [walk(TX, x, [x, 2 * x])[-1] for x in xs]

    def run(x):
        def step(carry, g):
            updates, state = TX.update(g, carry[1], carry[0])
            return (carry[0] + updates, state), None

        return jax.lax.scan(step, (x, TX.init(x)), jnp.stack([x, 2 * x]))[0]

    together, state = jax.vmap(run)(xs)
    # a handful of float32 roundings of numbers near 1, which the compiler may fuse
    np.testing.assert_allclose(together, [float(x) for x, _ in singles], rtol=1e-6)
    assert state.count.tolist() == [2, 2, 2]
