"""The optax thermometer: closed forms, the core's window, every wrapper, and what a step pays."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exact import U64
from jax import export
from jax_tools import double, same, walk

from coolmomentum import CoolingSchedule, learning_rate_from_sgd
from coolmomentum.jax import (
    ThermometerState,
    adam_thermometer,
    cool_momentum,
    read,
    reset,
    thermometer,
)
from coolmomentum.thermometer import READINGS, Rows, Window, pair_sums

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


def window_of(states, rho, dt2, every, span):
    """The readings of the core's window on NumPy, from the parameters after each step."""
    xs = [[np.asarray(x, np.float64) for x in jax.tree.leaves(params)] for params, _ in states]
    rows = Rows(tuple(x.size for x in xs[0]), (2, 1))
    window, start = Window.empty(np.zeros(len(rows))), xs[0]
    for n in range(1, len(xs)):
        window = window.step()
        if n % every:
            continue
        now, before = (
            [b - a for a, b in zip(xs[i - 1], xs[i], strict=True)] if i else xs[0]
            for i in (n, n - 1)
        )
        window = window.add(
            pair_sums(before, now), rows, rho=rho(n - 1), dt2=dt2, paired=int(n > 1)
        )
        if n % span == 0:
            way = [x - x0 for x, x0 in zip(xs[n], start, strict=True)]
            sums = [[np.sum(y * z) for y, z in zip(way, zs, strict=True)] for zs in (way, now)]
            window, start = window.end_span(*map(np.array, sums), rows, rho=rho(n - 1)), xs[n]
    with np.errstate(divide="ignore", invalid="ignore"):
        return window.read(rows)


@double()
@pytest.mark.parametrize(("every", "span"), [(1, 1), (1, 3), (2, 4), (5, 10)])
def test_it_reads_what_the_window_of_the_core_reads(every, span):
    """In float64, all rows and readings, while rho cools: 40 steps of displacements below 1.

    Those of the oracle are differences of parameters below 4: each is wrong by 4 U64, 40 pairs of
    them, in sums that are divided by displacements of 0.01 and by 1 - rho**2 > 0.19; freeze_out and
    its error divide by a few spans' sums of the same size.
    """
    tx = optax.chain(COOL, thermometer(0.1, COOLING, every=every, span=span))
    params = jax.tree.map(lambda x: x.astype("float64"), PARAMS)
    states = walk(tx, params, gradients(20, "float64"))
    expected = window_of(states, COOLING, 0.1, every, span)
    (_, end), size = states[-1], 40 * 4 * U64 / 0.01 / 0.19 * 10
    for i, (name, got) in enumerate(
        [*read(end, "parameter").items(), *read(end, "group").items(), ("", read(end))]
    ):
        assert name == [*NAMES, "layer", "", ""][i]
        assert got["steps"] == 20
        for reading in READINGS:
            value = expected[reading][i]
            np.testing.assert_allclose(got[reading], value, rtol=size, atol=size, err_msg=reading)


def test_the_temperature_of_a_list():
    """Of two displacements T is 8/3 by Eq. 22 and 2/3 by three points (rationals)."""
    tx = thermometer(0.01, 0.5, every=1)
    state = tx.init(jnp.zeros(3))
    states = []
    for dx in ([0.1, -0.2, 0.3], [0.0, 0.1, -0.1]):
        updates, state = tx.update(jnp.array(dx), state)
        assert same(updates, jnp.array(dx))
        states.append(state)
    first, both = map(read, states)
    assert first["temperature"] == pytest.approx(14 / 3, rel=1e-6)
    assert np.isnan(first["three_point_temperature"])  # it needs two
    assert both["temperature"] == pytest.approx(8 / 3, rel=1e-6)
    assert both["three_point_temperature"] == pytest.approx(2 / 3, rel=1e-6)
    assert both["rho"] == 0.5
    assert np.isnan(both["freeze_out"])  # it needs the parameters
    assert set(both) == {*READINGS, "steps"}


def wander(tx, k, sigma, drift=0.0, steps=1000, size=10_000):
    """The reading of a noisy walk in a parabola, after 500 steps to come to rest."""

    def step(carry, key):
        x, state = carry
        noise = sigma * jax.random.normal(key, x.shape)
        updates, state = tx.update(k * x + noise + drift, state, x)
        return (x + updates, state), None

    @jax.jit
    def run(x, state, keys):
        return jax.lax.scan(step, (x, state), keys)[0]

    x = jnp.zeros(size)
    keys = jax.random.split(jax.random.key(0), 500 + steps)
    x, state = run(x, tx.init(x), keys[:500])
    return read(run(x, reset(state), keys[500:])[1])


@pytest.mark.parametrize(
    ("rho", "dt2", "k", "heat"), [(0.5, 1.0, 1.0, 1.0), (0.9, 0.25, 2.0, 1.5), (0.0, 0.1, 3.0, 1.0)]
)
def test_stationary_walks_have_their_closed_forms(rho, dt2, k, heat):
    """T22 is T / (1 - a/4), by three points T, the correlation rho - (1 + rho) a / 4, k dt**2 a.

    1e6 pairs in hundreds of independent steps: a relative error of 2e-3 each at rho = 0.9, where
    neighbours in the window are 10 steps apart and still alike; five of them are allowed.
    """
    sigma = (heat * 4 * (1 - rho) / (1 + rho) / dt2) ** 0.5  # Eq. 19
    tx = optax.chain(optax.sgd(dt2 * (1 + rho) / 2, momentum=rho), thermometer(dt2, rho, every=10))
    reading, a = wander(tx, k, sigma), k * dt2
    near = {"rel": 0, "abs": 0.01}
    assert reading["temperature"] / heat * (1 - a / 4) == pytest.approx(1, **near)
    assert reading["three_point_temperature"] / heat == pytest.approx(1, **near)
    assert reading["correlation"] == pytest.approx(rho - (1 + rho) * a / 4, **near)
    assert reading["curvature"] == pytest.approx(a, abs=4 * 0.01)
    excess = 1 + rho * a / (2 * (1 - rho))  # of the prediction over Eq. 22, from <g**2>
    assert reading["predicted_temperature"] / reading["temperature"] == pytest.approx(
        excess, rel=0.02
    )
    assert reading["drift"] == 0
    assert reading["freeze_out"] > 0.9
    assert reading["steps"] == 1000


def test_free_diffusion_and_drift_are_told_apart():
    """R is 0 and the flag down where nothing pulls; R is below 0 and the flag up in a drift."""
    tx = optax.chain(
        optax.sgd(0.01, momentum=0.5), thermometer(learning_rate_from_sgd(0.01, 0.5), 0.5, every=1)
    )
    free, pushed = wander(tx, 0.0, 1.0), wander(tx, 0.0, 1.0, drift=0.5)
    assert abs(free["freeze_out"]) < 5 * free["freeze_out_error"] < 0.1
    assert free["drift"] == 0
    assert pushed["freeze_out"] < -1
    assert pushed["drift"] == 1


def test_the_temperature_of_adam_is_half_its_learning_rate_times_sigma():
    """With masses, at b2 = 0.9999 so that they are known to 1 %; 500 + 3000 steps of 10,000."""
    tx = adam_thermometer(optax.adam(1e-3, b2=0.9999), 1e-3, b2=0.9999)
    reading = wander(tx, 0.0, 3.0, steps=3000)
    assert reading["temperature"] == pytest.approx(1.5e-3, rel=0.02)
    assert reading["rho"] == pytest.approx(0.9, rel=1e-6)


# --- wrappers -----------------------------------------------------------------------------------

MASK = {"layer": True, "scale": False}
WRAPPED = {
    "named_chain": optax.named_chain(("a", COOL), ("b", METER)),
    "inject_hyperparams": optax.inject_hyperparams(
        lambda learning_rate: optax.chain(
            cool_momentum(learning_rate, schedule=COOLING),
            thermometer(learning_rate, COOLING, every=2, span=4),
        )
    )(0.1),
    "partition": optax.chain(optax.partition({0: COOL}, jax.tree.map(lambda _: 0, PARAMS)), METER),
    "apply_if_finite": optax.apply_if_finite(TX, 5),
    "masked": optax.masked(TX, jax.tree.map(lambda _: True, PARAMS)),
    "MultiSteps": optax.MultiSteps(TX, 1),
    "flatten": optax.flatten(TX),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_it_reads_the_same_inside_every_wrapper(name):
    """Found wherever it is, and after a reset there empty."""
    _, alone = walk(TX, PARAMS, gradients(8))[-1]
    _, state = walk(WRAPPED[name], PARAMS, gradients(8))[-1]
    # flattened, the coordinates are added in another order; injected, rho is rounded elsewhere
    for reading, value in read(alone).items():
        np.testing.assert_allclose(read(state)[reading], value, rtol=1e-4, atol=1e-5)
    assert read(reset(state))["steps"] == 0


def test_masked_parameters_are_not_there():
    """Nor in the rows."""
    tx = optax.masked(TX, MASK)
    _, state = walk(tx, PARAMS, gradients(4))[-1]
    _, alone = walk(TX, PARAMS, gradients(4))[-1]
    assert list(read(state, "parameter")) == NAMES[:2]
    for name, value in read(alone, "group")["layer"].items():  # compiled into another sum
        np.testing.assert_allclose(read(state)[name], value, rtol=1e-5, atol=1e-6)


def test_of_several_each_is_read_by_itself():
    """As in the groups of a partition."""
    groups = {"layer": "x", "scale": "y"}
    tx = optax.partition({"x": TX, "y": TX}, groups)
    _, state = walk(tx, PARAMS, gradients(4))[-1]
    _, alone = walk(TX, PARAMS, gradients(4))[-1]
    with pytest.raises(ValueError, match="one thermometer in it: 2 found"):
        read(state)
    mine, expected = read(state.inner_states["y"]), read(alone, "parameter")["scale"]
    for name, value in expected.items():  # compiled into another sum
        np.testing.assert_allclose(mine[name], value, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="0 found"):
        read(COOL.init(PARAMS))


def test_microbatches_are_no_steps_and_rejected_steps_change_nothing():
    """MultiSteps counts optimizer steps; apply_if_finite leaves the state as it was."""
    tx = optax.MultiSteps(optax.apply_if_finite(TX, 9), 2)
    twice = [g for g in gradients(6) for _ in range(2)]
    _, state = walk(tx, PARAMS, twice)[-1]
    _, alone = walk(TX, PARAMS, gradients(6))[-1]
    for name, value in read(alone).items():  # the mean of two is rounded
        np.testing.assert_allclose(read(state)[name], value, rtol=1e-4, atol=1e-5)
    bad = jax.tree.map(lambda x: x * jnp.nan, twice[0])
    _, after = walk(tx, PARAMS, [*twice, bad, bad])[-1]
    assert same(after.inner_opt_state.inner_state, state.inner_opt_state.inner_state)


# --- leaves and arguments -------------------------------------------------------------------------


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
    assert state.sums.dtype == jnp.float32


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


# --- what a step pays -----------------------------------------------------------------------------

BIG = {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}


def compiled(tx):
    """A donated step as an executable."""

    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1)).lower(BIG, tx.init(BIG), BIG).compile()


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


def test_nothing_is_traced_again():
    """One trace for measured and other steps."""
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = TX.update(params, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, TX.init(PARAMS)
    for _ in range(9):
        params, state = step(params, state)
    assert len(traces) == 1


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
        state = tx.init(x)
        for _ in range(3):
            updates, state = tx.update(x, state, x)
            x = x + updates
        return x

    with_it, without = (jax.grad(end)(2.0, tx) for tx in (TX, COOL))
    assert float(with_it) == float(without)


def test_under_vmap_each_has_its_window():
    """Two runs at once read as one by one."""
    runs = [gradients(4, seed=seed) for seed in (0, 1)]
    params = jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS)
    state = jax.vmap(TX.init)(params)
    for pair in zip(*runs, strict=True):
        both = jax.tree.map(lambda *x: jnp.stack(x), *pair)
        updates, state = jax.vmap(TX.update)(both, state, params)
        params = optax.apply_updates(params, updates)
    for i, run in enumerate(runs):
        _, alone = walk(TX, PARAMS, run)[-1]
        mine = read(jax.tree.map(lambda x, i=i: x[i], state))
        for name, value in read(alone).items():
            np.testing.assert_allclose(mine[name], value, rtol=1e-5, atol=1e-6)
