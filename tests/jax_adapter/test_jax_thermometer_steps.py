"""The optax thermometer over a run: checkpoints, settings, modes of JAX, what a step pays."""

import contextlib
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from jax import export
from jax_tools import double, same
from meter_tools import (
    COOL,
    COOLING,
    METER,
    METERS,
    PARAMS,
    TX,
    gradients,
    near,
    stepper,
    walk,
)

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
    plain = adam_thermometer(optax.adam(0.1), 0.1)
    numbers = [nnx.Variable(jnp.asarray(y)) for y in (0.1, 0.9, 0.999, 1e-8)]
    boxed = adam_thermometer(optax.adam(0.1), *numbers)
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
        moves = {
            name: x / n if jnp.issubdtype(x.dtype, jnp.inexact) else x
            for name, x in MIXED.items()
            if name != "key"
        }
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

    def make(rate, rho):
        return thermometer(rate, rho)

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
