"""cool_momentum on eight devices, run by test_jax_sharding.py: sharded as on one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exact import U32
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from coolmomentum import CoolingSchedule
from coolmomentum.jax import (
    CoolMomentumState,
    adam_thermometer,
    cool_momentum,
    import_state,
    per_leaf,
    read,
    rescaled_temperature,
    rho,
    temperature,
    thermometer,
)
from coolmomentum.portable import PortableState

SCHEDULE = CoolingSchedule(6, 0.9)
TX = cool_momentum(0.1, schedule=SCHEDULE)
MESH = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
random = np.random.default_rng(0)
PARAMS = {"w": random.standard_normal((16, 8)).astype("float32"), "b": np.zeros(8, "float32")}
X = random.standard_normal((32, 16)).astype("float32")
Y = random.standard_normal((32, 8)).astype("float32")
STEPS = 8
# The mean gradient is summed in another order: float32 rounding of numbers of order 1, eight steps.
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
# Of readings: a gradient sums 32 rows of 16 products, so a displacement has some 50 roundings, its
# square 100; a sum of 136 squares has 136 more; differences of such sums lose two bits.
near = functools.partial(np.testing.assert_allclose, rtol=1024 * U32, atol=1024 * U32)


def loss(params, x, y):
    """Least squares."""
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def step(params, state, x, y):
    """A train step with its temperature."""
    updates, state = TX.update(jax.grad(loss)(params, x, y), state, params)
    return optax.apply_updates(params, updates), state, temperature(state, 0.1)


def run(params, state, x, y, step):
    """The end of the run and the temperatures on the way."""
    temperatures = []
    for _ in range(STEPS):
        params, state, kelvin = step(params, state, x, y)
        temperatures.append(kelvin)
    return params, state, temperatures


def on_one_device():
    """The same run there."""
    params = jax.tree.map(jnp.asarray, PARAMS)
    return run(params, TX.init(params), X, Y, jax.jit(step))


LAYOUTS = {  # of w and b
    "data parallel": (P(), P()),
    "fully sharded": (P("x", None), P("x")),
    "sharded along the last axis, bias replicated": (P(None, "x"), P()),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("init", [TX.init, jax.jit(TX.init)], ids=["eager", "jit"])
def test_a_sharded_run_is_the_run_on_one_device(layout, init):
    """The displacement lies as its parameter, at rest and after; the temperature is global."""
    place = dict(zip(("w", "b"), (NamedSharding(MESH, spec) for spec in layout), strict=True))
    params = jax.device_put(PARAMS, place)
    batch = jax.device_put((X, Y), NamedSharding(MESH, P("x")))
    state = init(params)
    after, end, temperatures = run(params, state, *batch, jax.jit(step, donate_argnums=(0, 1)))
    exact, exact_state, exact_temperatures = on_one_device()
    jax.tree.map(close, after, exact)
    jax.tree.map(close, end.displacement, exact_state.displacement)
    close(temperatures, exact_temperatures)
    assert temperatures[-1].sharding.is_fully_replicated
    for name, sharding in place.items():
        assert end.displacement[name].sharding.is_equivalent_to(sharding, PARAMS[name].ndim)
        if init is TX.init:  # under jit the compiler is free to place zeros
            rest = init(jax.device_put(PARAMS, place)).displacement[name]
            assert rest.sharding.is_equivalent_to(sharding, PARAMS[name].ndim)


def test_readings_on_the_host_of_sharded_states_are_global():
    """Outside jit too, pooled and per leaf."""
    displacement = jax.device_put(
        {"w": np.arange(16.0, dtype="float32"), "b": np.ones(3, "float32")},
        {"w": NamedSharding(MESH, P("x")), "b": NamedSharding(MESH, P())},
    )
    state = CoolMomentumState(jnp.asarray(1), displacement)
    assert float(rescaled_temperature(state)) == pytest.approx((1240 + 3) / 19, rel=1e-6)
    each = per_leaf(rescaled_temperature, state)
    assert float(each["w"]) == 1240 / 16
    assert float(each["b"]) == 1


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_under_shard_map_the_run_and_the_temperature_are_the_same(layout):
    """Parameters gathered, gradients scattered by hand; each shard reads the global temperature."""
    specs = {"w": layout[0], "b": layout[1]}
    states = CoolMomentumState(P(), specs)

    def gathered(x, spec):
        axes = [i for i, name in enumerate(spec) if name == "x"]
        return lax.all_gather(x, "x", axis=axes[0], tiled=True) if axes else x

    def sharded_step(params, state, x, y):
        def global_loss(params):
            whole = jax.tree.map(gathered, params, specs)
            return lax.pmean(loss(whole, x, y), "x")

        updates, state = TX.update(jax.grad(global_loss)(params), state, params)
        return optax.apply_updates(params, updates), state, temperature(state, 0.1)

    mapped = jax.shard_map(
        sharded_step,
        mesh=MESH,
        in_specs=(specs, states, P("x"), P("x")),
        out_specs=(specs, states, P()),  # P(): JAX has proved that the temperature is the same
    )
    params = jax.tree.map(jnp.asarray, PARAMS)
    after, end, temperatures = run(params, TX.init(params), X, Y, jax.jit(mapped))
    exact, _, exact_temperatures = on_one_device()
    jax.tree.map(close, after, exact)
    close(temperatures, exact_temperatures)
    assert int(end.count) == STEPS


def read_in_shards(displacement, specs, read, **options):
    """A reading in each shard, of a sharded state."""
    mapped = jax.shard_map(
        lambda dx: read(CoolMomentumState(jnp.asarray(1), dx))[None],
        mesh=MESH,
        in_specs=(specs,),
        out_specs=P("x"),
        **options,
    )
    return jax.jit(mapped)(displacement)


def test_under_shard_map_sharded_and_replicated_leaves_are_pooled_by_their_global_sizes():
    """16 coordinates in shards and 3 replicated ones are 19, not 16 + 8 * 3."""

    def read(displacement):
        return rescaled_temperature(CoolMomentumState(jnp.asarray(1), displacement))

    specs = {"w": P("x"), "b": P()}
    mapped = jax.shard_map(read, mesh=MESH, in_specs=(specs,), out_specs=P())
    reading = jax.jit(mapped)({"w": jnp.arange(16.0), "b": jnp.full(3, 2.0)})
    close(reading, (1240 + 12) / 19)


def test_where_jax_does_not_know_what_varies_the_axis_can_be_named():
    """Under check_vma=False, the reading is that of the shard, or with axis_name the global one."""
    displacement = jnp.arange(16.0)
    named = read_in_shards(
        displacement,
        P("x"),
        lambda state: rescaled_temperature(state, axis_name="x"),
        check_vma=False,
    )
    close(named, [1240 / 16] * 8)
    named = read_in_shards(
        displacement, P("x"), lambda state: temperature(state, 0.5, axis_name="x"), check_vma=False
    )
    close(named, [1240 / 8] * 8)
    local = read_in_shards(displacement, P("x"), rescaled_temperature, check_vma=False)
    close(local, [(4 * i**2 + (2 * i + 1) ** 2) / 2 for i in range(8)])


def test_several_states_in_shards_are_pooled_by_their_global_sizes():
    """One state sharded, one replicated."""

    def read(displacement):
        states = [CoolMomentumState(jnp.asarray(1), dx) for dx in displacement]
        return rescaled_temperature(states), rho(states, SCHEDULE)

    mapped = jax.shard_map(read, mesh=MESH, in_specs=((P("x"), P()),), out_specs=P())
    pooled, now = jax.jit(mapped)((jnp.arange(16.0), jnp.full(3, 2.0)))
    close(pooled, (1240 + 12) / 19)
    close(now, SCHEDULE(1))


def test_the_temperature_costs_one_all_reduce():
    """And no parameter is gathered for it."""
    place = {"w": NamedSharding(MESH, P("x", None)), "b": NamedSharding(MESH, P("x"))}
    state = CoolMomentumState(jnp.asarray(1), jax.device_put(PARAMS, place))
    text = jax.jit(lambda state: temperature(state, 0.1)).lower(state).compile().as_text()
    assert sum(" all-reduce(" in line for line in text.splitlines()) == 1
    assert "all-gather" not in text


def test_explicit_axes():
    """With sharding in types the step runs, and the displacement has the type of its parameter."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params = jax.device_put(PARAMS["w"], NamedSharding(mesh, P(None, "x")))
        state = TX.init(params)
        updates, after = jax.jit(TX.update)(params, state, params)
        assert jax.typeof(after.displacement) == jax.typeof(updates) == jax.typeof(params)
        expected = np.mean((0.1 * 0.95 * PARAMS["w"]) ** 2) / 0.1
        close(jax.jit(lambda state: temperature(state, 0.1))(after), expected)


METERED = optax.chain(TX, thermometer(0.1, SCHEDULE, every=2, span=4))


def metered_step(params, state, x, y):
    """A step of the optimizer with its thermometer."""
    updates, state = METERED.update(jax.grad(loss)(params, x, y), state, params)
    return optax.apply_updates(params, updates), state, 0.0


@pytest.fixture(scope="module")
def metered_on_one_device():
    """What it reads there."""
    params = jax.tree.map(jnp.asarray, PARAMS)
    return read(run(params, METERED.init(params), X, Y, jax.jit(metered_step))[1])


@pytest.mark.parametrize("layout", list(LAYOUTS.values())[1:], ids=list(LAYOUTS)[1:])
def test_the_thermometer_reads_all_shards(layout, metered_on_one_device):
    """Under jit, what it reads on one device."""
    place = dict(zip(("w", "b"), (NamedSharding(MESH, spec) for spec in layout), strict=True))
    params = jax.device_put(PARAMS, place)
    batch = jax.device_put((X, Y), NamedSharding(MESH, P("x")))
    _, state, _ = run(params, METERED.init(params), *batch, jax.jit(metered_step))
    for name, value in metered_on_one_device.items():
        near(read(state)[name], value)


def test_the_thermometer_reads_all_shards_under_shard_map(metered_on_one_device):
    """By the axes along which each update varies."""
    specs = {"w": P("x", None), "b": P()}
    states = jax.tree.map(lambda _: P(), jax.eval_shape(METERED.init, PARAMS))
    cool, meter = states
    states = (
        cool._replace(displacement=specs),
        meter._replace(previous=specs, start=specs),
    )

    def gathered(x, spec):
        return lax.all_gather(x, "x", axis=0, tiled=True) if spec else x

    def sharded_step(params, state, x, y):
        def global_loss(params):
            return lax.pmean(loss({k: gathered(v, specs[k]) for k, v in params.items()}, x, y), "x")

        updates, state = METERED.update(jax.grad(global_loss)(params), state, params)
        return optax.apply_updates(params, updates), state, 0.0

    mapped = jax.shard_map(
        sharded_step,
        mesh=MESH,
        in_specs=(specs, states, P("x"), P("x")),
        out_specs=(specs, states, P()),
    )
    params = jax.tree.map(jnp.asarray, PARAMS)
    _, state, _ = run(params, METERED.init(params), X, Y, jax.jit(mapped))
    for name, value in metered_on_one_device.items():
        near(read(state)[name], value)


@pytest.mark.parametrize("adam", [False, True], ids=["cool", "adam"])
def test_the_thermometer_reads_all_shards_on_explicit_axes(adam):
    """With sharding in types, what it reads of whole arrays; a span ends, too."""
    tx = METERED
    if adam:
        tx = adam_thermometer(optax.adam(0.1), 0.1, every=2, span=4)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))

    def end(params):
        state, update = tx.init(params), jax.jit(tx.update)
        for _ in range(4):
            _, state = update(params, state, params)
        return read(state)

    expected = end(jnp.asarray(PARAMS["w"]))
    with jax.set_mesh(mesh):
        got = end(jax.device_put(PARAMS["w"], NamedSharding(mesh, P(None, "x"))))
    for name, value in expected.items():
        near(got[name], value)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("jit", [False, True], ids=["host", "jit"])
def test_an_imported_state_lies_where_the_old_did(kind, jit):
    """Its displacements are sharded as before, traced or not."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    place = NamedSharding(mesh, P("x"))
    state = TX.init({"w": jax.device_put(jnp.zeros(16), place)})
    saved = PortableState(3, SCHEDULE, 0.1, 0.1, {"w": np.arange(16.0)})

    def load(state):
        return import_state(state, saved)

    new = (jax.jit(load) if jit else load)(state)
    assert new.displacement["w"].sharding.is_equivalent_to(place, 1)
    np.testing.assert_array_equal(new.displacement["w"], np.arange(16.0))
    assert int(new.count) == 3
