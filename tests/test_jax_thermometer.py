"""The optax thermometer: closed forms, the core's window, every wrapper, and what a step pays."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exact import U32, U64
from jax import export
from jax_tools import double, same

from coolmomentum import CoolingSchedule, learning_rate_from_sgd
from coolmomentum._thermometer_before import READINGS, Rows, Window, pair_sums
from coolmomentum.jax import (
    ThermometerState,
    adam_thermometer,
    cool_momentum,
    read,
    reset,
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
@pytest.mark.parametrize(("every", "span"), [(1, 1), (1, 3), (5, 10)])
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
    state, update = tx.init(jnp.zeros(3)), jax.jit(tx.update)
    states = []
    for dx in ([0.1, -0.2, 0.3], [0.0, 0.1, -0.1]):
        updates, state = update(jnp.array(dx), state)
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


def sgd(rho, dt2):
    """Of Eq. 16; its settings are traced, so that it is compiled once for all walks."""
    eta = dt2 * (1 + rho) / 2
    return optax.chain(optax.sgd(eta, momentum=rho), thermometer(dt2, rho))


@functools.partial(jax.jit, static_argnames="make")
def wandering(x, state, keys, settings, k, sigma, drift, *, make):
    """More steps of a noisy walk in a parabola."""
    tx = make(*settings)

    def step(carry, key):
        x, state = carry
        updates, state = tx.update(
            k * x + sigma * jax.random.normal(key, x.shape) + drift, state, x
        )
        return (x + updates, state), None

    return jax.lax.scan(step, (x, state), keys)[0]


def wander(make, settings, k, sigma, drift=0.0, steps=1000, size=10_000):
    """The reading of a noisy walk in a parabola, after 500 steps to come to rest."""
    x = jnp.zeros(size)
    state = make(*settings).init(x)
    for i, keys in enumerate(jax.random.split(jax.random.key(0), (1 + steps // 500, 500))):
        x, state = wandering(x, state, keys, settings, k, sigma, drift, make=make)
        if i == 0:
            state = reset(state)
    return read(state)


@pytest.mark.parametrize(
    ("rho", "dt2", "k", "heat"), [(0.5, 1.0, 1.0, 1.0), (0.9, 0.25, 2.0, 1.5), (0.0, 0.1, 3.0, 1.0)]
)
def test_stationary_walks_have_their_closed_forms(rho, dt2, k, heat):
    """T22 is T / (1 - a/4), by three points T, the correlation rho - (1 + rho) a / 4, k dt**2 a.

    1e6 pairs in hundreds of independent steps: a relative error of 2e-3 each at rho = 0.9, where
    neighbours in the window are 10 steps apart and still alike; five of them are allowed.
    """
    sigma = (heat * 4 * (1 - rho) / (1 + rho) / dt2) ** 0.5  # Eq. 19
    reading, a = wander(sgd, (rho, dt2), k, sigma), k * dt2
    near = {"rel": 0, "abs": 0.01}
    assert reading["temperature"] / heat * (1 - a / 4) == pytest.approx(1, **near)
    assert reading["three_point_temperature"] / heat == pytest.approx(1, **near)
    assert reading["correlation"] == pytest.approx(rho - (1 + rho) * a / 4, **near)
    assert reading["curvature"] == pytest.approx(a, abs=4 * 0.01)
    excess = 1 + rho * a / (2 * (1 - rho))  # of the prediction over Eq. 22, from <g**2>
    assert reading["predicted_temperature"] / reading["temperature"] == pytest.approx(
        excess, rel=2 * 0.01
    )
    assert reading["drift"] == 0
    assert reading["freeze_out"] > 0.9
    assert reading["steps"] == 1000


def test_free_diffusion_and_drift_are_told_apart():
    """R is 0 and the flag down where nothing pulls; R is below 0 and the flag up in a drift."""
    settings = 0.5, learning_rate_from_sgd(0.01, 0.5)
    free, pushed = wander(sgd, settings, 0.0, 1.0), wander(sgd, settings, 0.0, 1.0, drift=0.5)
    assert abs(free["freeze_out"]) < 5 * free["freeze_out_error"] < 0.1
    assert free["drift"] == 0
    assert pushed["freeze_out"] < -1
    assert pushed["drift"] == 1


def adam(learning_rate):
    """With a second moment that is known well."""
    return adam_thermometer(optax.adam(learning_rate, b2=0.9999), learning_rate, b2=0.9999)


def test_the_temperature_of_adam_is_half_its_learning_rate_times_sigma():
    """With masses, at b2 = 0.9999: n > 500 gradients are in the second moment.

    The temperature is then low by 1 / (4 n), below 5e-4: 3/4 - 1 of 1/n, for the second moment's
    own scatter and for what it shares with the first. Its mean is of 3e6 squares, whose neighbours
    10 steps apart share 0.9**20: four standard errors are 4 sqrt(2 (1 + 2 * 0.14) / 3e6).
    """
    reading = wander(adam, (1e-3,), 0.0, 3.0, steps=3000)
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


# --- wrappers -----------------------------------------------------------------------------------

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
    """On any step; those of optax.sgd are its momentum times the learning rate, ours the state."""
    params = jnp.ones(10**5)
    executable = compiled(optax.chain(optimizer, thermometer(0.1, COOLING)), params)
    allocated = executable.memory_analysis().temp_size_in_bytes - arrays * params.nbytes
    assert 0 <= allocated < params.nbytes / 10  # scalars


def test_nothing_is_traced_again():
    """One trace for measured and other steps."""
    alone(8)
    assert stepper(TX)._cache_size() == 1


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
