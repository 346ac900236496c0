"""What JAX alone has of a heat bath: its state under jit, vmap, sharding, and at a restart."""

import functools
import io
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax_tools import double, same, walk

from coolmomentum.jax import (
    add_thermal_noise,
    cool_momentum,
    langevin,
    read,
    thermometer,
)

PARAMS = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(4)}
GRADIENTS = [jax.tree.map(lambda x, n=n: jnp.full_like(x, 0.1 * n), PARAMS) for n in range(8)]
TX = langevin(0.1, 1.5, 0.9, key=3)


@pytest.mark.parametrize("noise", ["averaged", "white"])
def test_a_restored_run_draws_the_same_numbers(noise):
    """After a pickle of the key's data and of the other arrays, bit for bit."""
    tx = langevin(0.1, lambda n: 2.0 / (1 + n), 0.9, key=3, noise=noise)
    whole = walk(tx, PARAMS, GRADIENTS)
    params, state = whole[4]
    state = (state[0]._replace(key=jax.random.key_data(state[0].key)), *state[1:])
    file = io.BytesIO(pickle.dumps(jax.tree.map(np.asarray, (params, state))))
    params, state = jax.tree.map(jnp.asarray, pickle.load(file))
    state = (state[0]._replace(key=jax.random.wrap_key_data(state[0].key)), *state[1:])
    step = jax.jit(tx.update)
    for gradient, (expected, _) in zip(GRADIENTS[4:], whole[5:], strict=True):
        updates, state = step(gradient, state, params)
        params = optax.apply_updates(params, updates)
        assert same(params, expected)


def test_vmap_over_keys_gives_chains_of_their_own():
    """Each is the chain that runs alone with its key: ``update`` reads the key of the state."""
    keys = jax.random.split(jax.random.key(5), 4)

    def chain(key, other):
        tx = add_thermal_noise(0.1, 0.9, 1.0, key)
        state = tx.init(PARAMS)
        step = add_thermal_noise(0.1, 0.9, 1.0, other).update  # whose closure has another key
        return step(GRADIENTS[0], state, PARAMS)[0]

    together = jax.vmap(chain, in_axes=(0, None))(keys, jax.random.key(6))
    for i, key in enumerate(keys):
        alone = chain(key, jax.random.key(7))
        np.testing.assert_array_equal(together["w"][i], alone["w"])
    assert len(np.unique(np.asarray(together["b"]))) == 16


def test_old_keys_are_keys():
    """The same as the typed one of the same seed, and as the seed; injected ones as well."""
    drawn = []
    for key in (3, np.int64(3), jax.random.key(3), jax.random.PRNGKey(3), np.uint32([0, 3])):
        tx = add_thermal_noise(0.1, 0.9, 1.0, key)
        drawn.append(tx.update(GRADIENTS[0], tx.init(PARAMS), PARAMS)[0])
    inject = optax.inject_hyperparams(add_thermal_noise, static_args=("noise",))
    for key in (3, jax.random.key(3), jax.random.PRNGKey(3)):
        tx = inject(learning_rate=0.1, rho=0.9, temperature=1.0, key=key)
        drawn.append(tx.update(GRADIENTS[0], tx.init(PARAMS), PARAMS)[0])
    assert all(same(x, drawn[0]) for x in drawn[:5])
    for x in drawn[5:]:  # whose numbers are float32 arrays, the others' Python's own
        np.testing.assert_allclose(x["w"], drawn[0]["w"], rtol=1e-6)


def test_it_compiles_once():
    """The state keeps its types from the first step on."""
    traces = []

    @jax.jit
    def step(gradient, state, params):
        traces.append(1)
        return TX.update(gradient, state, params)

    state = TX.init(PARAMS)
    for gradient in GRADIENTS:
        _, state = step(gradient, state, PARAMS)
    assert len(traces) == 1


def test_one_normal_number_for_each_coordinate_of_a_step():
    """Averaged noise keeps the numbers of the step before: nothing is drawn twice."""
    tx = add_thermal_noise(0.1, 0.9, 1.0, 0)
    jaxpr = jax.make_jaxpr(tx.update)(GRADIENTS[0], tx.init(PARAMS), PARAMS)
    bits = [e for e in _equations(jaxpr.jaxpr) if e.primitive.name == "random_bits"]
    assert sum(int(np.prod(e.outvars[0].aval.shape)) for e in bits) == 3 * 2 + 4


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def test_what_does_not_move_feels_no_force():
    """Integers, PRNG keys, masked leaves and None pass, and float16 comes out in float32."""
    params = {"i": jnp.arange(3), "k": jax.random.key(1), "h": jnp.zeros(2, jnp.float16)}
    gradients = {"i": np.zeros(3, jax.dtypes.float0), "k": params["k"], "h": params["h"]}
    tx = add_thermal_noise(0.1, 0.9, 1.0, 0)
    forced, state = tx.update(gradients | {"i": jnp.arange(3)}, tx.init(params), params)
    np.testing.assert_array_equal(forced["i"], jnp.arange(3))
    assert forced["h"].dtype == jnp.float32
    assert (forced["h"] != 0).all()
    forced, _ = tx.update({"i": None, "k": params["k"], "h": None}, state, params)
    assert forced["i"] is None
    assert forced["h"] is None
    masked = optax.masked(tx, {"a": True, "b": False})
    pair = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    forced, _ = masked.update(pair, masked.init(pair), pair)
    assert (forced["a"] != 0).all()
    assert (forced["b"] == 0).all()


def test_complex_parameters_feel_it_in_both_parts():
    """Each part of ``k |x|**2 / 2`` has the temperature, within 5 standard errors of 20,000."""
    tx = langevin(0.5, 2.0, 0.5, key=0)

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(x, state, x)
        return (optax.apply_updates(x, updates), state), None

    x = jnp.zeros(20_000, jnp.complex64)
    (x, _), _ = jax.lax.scan(step, (x, tx.init(x)), length=60)
    for part in (x.real, x.imag):
        assert float(jnp.mean(part**2)) == pytest.approx(2.0, rel=5 * (2 / 20_000) ** 0.5)


@double()
def test_float64_parameters_draw_in_float64():
    """Scale and numbers, and the learning rate that is kept."""
    tx = add_thermal_noise(0.1, 0.9, 1.0, 0)
    state = tx.init(jnp.zeros(3))
    forced, state = tx.update(jnp.zeros(3), state)
    assert forced.dtype == state.normals.dtype == state.learning_rate.dtype == jnp.float64


def test_a_learning_rate_that_is_injected_is_remembered():
    """The force of a step knows the rate of the step before, whatever sets it."""
    tx = optax.inject_hyperparams(functools.partial(add_thermal_noise, key=0, noise="white"))(
        learning_rate=0.2, rho=0.5, temperature=1.0
    )
    state = tx.init(jnp.zeros(50_000))
    _, state = tx.update(jnp.zeros(50_000), state)
    state.hyperparams["learning_rate"] = jnp.asarray(0.1)
    force, _ = tx.update(jnp.zeros(50_000), state)
    expected = 0.1 * (1 - 0.25 * 2) / (0.1 * 0.75) ** 2  # T lr (1 - rho**2 last / lr) / eta**2
    assert float(jnp.var(force)) == pytest.approx(expected, rel=5 * (2 / 50_000) ** 0.5)


def test_a_sharded_parameter_draws_its_part_of_one_stream():
    """On one device and on a mesh of all the numbers are the same bits."""
    mesh = jax.make_mesh((len(jax.devices()),), ("x",))
    tx = add_thermal_noise(0.1, 0.9, 1.0, 0)
    zeros = jnp.zeros((8 * len(jax.devices()), 3))
    split = jax.device_put(zeros, NamedSharding(mesh, PartitionSpec("x")))
    one, _ = jax.jit(tx.update)(zeros, tx.init(zeros), zeros)
    many, _ = jax.jit(tx.update)(split, tx.init(split), split)
    np.testing.assert_array_equal(np.asarray(one), np.asarray(many))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-0.1, 0.9, 1.0, 0), ValueError, "learning_rate must be finite and >= 0: -0.1"),
        ((0.1, 1.0, 1.0, 0), ValueError, r"rho must be in \[-1, 1\): 1.0"),
        ((0.1, 0.9, -1.0, 0), ValueError, "temperature must be finite and >= 0: -1.0"),
        ((0.1, 0.9, "hot", 0), TypeError, "temperature must be a real number: 'hot'"),
        ((0.1, 0.9, 1.0, 0.5), TypeError, "key must be an integer: 0.5"),
    ],
)
def test_bad_arguments(arguments, error, message):
    """They fail at construction."""
    with pytest.raises(error, match=message):
        add_thermal_noise(*arguments)
    with pytest.raises(ValueError, match="noise must be one of averaged, white: 'pink'"):
        add_thermal_noise(0.1, 0.9, 1.0, 0, noise="pink")


# --- the thermometer ------------------------------------------------------------------------------


def sampled(k, told, *, temperature=2.0, noise="averaged", heat=0.0):
    """The reading of 20,000 walkers after 100 steps on ``k x**2 / 2``, perhaps with other noise."""
    bath = add_thermal_noise(0.5, 0.5, temperature, 0, noise=noise)
    meter = thermometer(0.5, 0.5, every=1, span=20, **told)
    tx = optax.chain(bath, cool_momentum(0.5, schedule=lambda n: 0.5), meter)

    def step(carry, key):
        x, state = carry
        g = k * x + heat * jax.random.normal(key, x.shape)
        updates, state = tx.update(g, state, x)
        return (optax.apply_updates(x, updates), state), None

    x = jnp.zeros(20_000)
    (_, state), _ = jax.lax.scan(step, (x, tx.init(x)), jax.random.split(jax.random.key(1), 200))
    return state


def test_the_thermometer_reads_the_bath():
    """The ratio is 1, within the scatter of 4e5 squares and the start from rest; k dt**2 is 2."""
    found = read(sampled(4.0, {"temperature": 2.0}))
    assert found["bath_ratio"] == pytest.approx(1, abs=0.01)
    assert found["curvature"] == pytest.approx(2, abs=0.03)
    white = sampled(4.0, {"temperature": 2.0, "noise": "white"}, noise="white")
    with pytest.warns(UserWarning, match="the step is too large for the loss"):
        found = read(white)
    assert found["bath_ratio"] == pytest.approx(2, rel=0.01)  # 1 / (1 - k dt**2 / 4)
    assert found["three_point_temperature"] == pytest.approx(2, rel=0.01)


def test_it_warns_of_a_walk_hotter_than_its_bath():
    """Noise of the gradient heats it; the warning says what that may be."""
    with pytest.warns(UserWarning, match="times as hot as its bath: minibatch gradients"):
        assert read(sampled(4.0, {"temperature": 2.0}, heat=2.0))["bath_ratio"] > 1.2


def test_without_a_bath_there_is_no_ratio():
    """It reads NaN, and nothing warns."""
    assert np.isnan(read(sampled(4.0, {}))["bath_ratio"])
