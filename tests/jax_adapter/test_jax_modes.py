"""JAX's own modes change nothing: strict promotion, NaN debugging, no jit, keys and Variables."""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exact import LAWS
from flax import nnx
from jax_tools import double, same, walk

from coolmomentum import CoolingSchedule, from_temperature
from coolmomentum.jax import (
    CoolMomentumState,
    cool_momentum,
    export_state,
    import_state,
    per_leaf,
    rescaled_temperature,
    rho,
    step_size,
    temperature,
)

COOLING = CoolingSchedule(6, 0.9)
PARAMS = {
    "single": jnp.array([1.0, -2.0]),
    "half": jnp.ones(3, jnp.bfloat16),
    "less": jnp.ones(2, jnp.float16),
    "complex": jnp.array([1 + 2j, 0.5j]),
    "index": jnp.arange(2),
    "on": jnp.array([True]),
}
strict = partial(jax.numpy_dtype_promotion, "strict")


def trace(tx, params, jit):
    """States and readings of a run of eight steps down x**2 / 2 of the walking parameters."""
    walked, state = [], tx.init(params)
    update = jax.jit(tx.update) if jit else tx.update
    for _ in range(8):
        updates, state = update(params, state, params)
        walked.append((updates, state))
    readings = (
        temperature(state, 0.1),
        rescaled_temperature(state),
        rho(state, COOLING),
        step_size(state, 0.1, COOLING),
        per_leaf(temperature, state, 0.1),
        per_leaf(rho, state, COOLING),
    )
    return walked, readings


# Without hyperparam_dtype optax itself would promote the dtypes of the leaves.
injected = optax.inject_hyperparams(cool_momentum, hyperparam_dtype=jnp.float32)
OPTIMIZERS = {
    "numbers": lambda: cool_momentum(0.1, 6, 0.9, warmup_steps=1),
    "schedules": lambda: cool_momentum(
        optax.linear_schedule(0.1, 0.0, 9), 6, 0.9, law="linear", hold_steps=2
    ),
    "arrays": lambda: cool_momentum(
        jnp.asarray(0.1, jnp.bfloat16), jnp.asarray(6), jnp.asarray(0.9, jnp.bfloat16)
    ),
    "injected": lambda: injected(0.1, 6, 0.9, warmup_steps=2),
    "injected held": lambda: injected(0.1, 6, 0.9, law="exponential", hold_steps=2),
    "injected schedule": lambda: injected(0.1, schedule=COOLING),
    "own schedule": lambda: cool_momentum(0.1, schedule=lambda n: np.float32(0.5) / (1 + n)),
    "a curve": lambda: cool_momentum(0.1, schedule=from_temperature(lambda n: 1 + 1 / (1 + n))),
}


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_strict_promotion_changes_no_bit(make, jit):
    """Of complex, half-precision and integer leaves, and of readings that pool them."""
    expected = trace(make(), PARAMS, jit)
    with strict():
        assert same(trace(make(), PARAMS, jit), expected)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@double()
def test_strict_promotion_changes_no_bit_in_float64(make):
    """Beside float32 leaves, where injected hyperparameters are float64 and int64."""
    params = {"double": jnp.array([1.0, 2.0]), "single": jnp.ones(2, "float32")}
    params["complex"] = jnp.array([1 + 2j])
    expected = trace(make(), params, jit=True)
    with strict():
        assert same(trace(make(), params, jit=True), expected)


@pytest.mark.parametrize("accumulator", ["float32", "bfloat16"])
def test_strict_promotion_with_an_accumulator_of_another_dtype(accumulator):
    """The gradients are widened, not refused."""
    params = {"half": jnp.ones(3, jnp.float16)}
    make = partial(cool_momentum, 0.1, 6, 0.9, accumulator_dtype=accumulator)
    expected = trace(make(), params, jit=True)
    with strict():
        assert same(trace(make(), params, jit=True), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
def test_injected_hyperparameters_in_the_dtype_of_the_parameters(dtype):
    """Strict or not, also those that optax makes complex: the walk of those numbers."""
    x = jnp.ones(2, dtype)
    tx = optax.inject_hyperparams(cool_momentum)(0.25, 8, 0.75, hold_steps=2)  # exact in all
    with strict():
        moved, state = walk(tx, x, [x] * 9)[-1]
    assert state.hyperparams["rho0"].dtype == dtype
    exact, _ = walk(cool_momentum(0.25, 8, 0.75, hold_steps=2), x, [x] * 9)[-1]
    # Coefficients of a traced rho0 are float32, and each step rounds once to the dtype.
    np.testing.assert_allclose(
        np.asarray(moved, complex), np.asarray(exact, complex), rtol=float(jnp.finfo(dtype).eps)
    )


def test_strict_promotion_stays_on_outside():
    """The user's own code is checked as before."""
    tx = cool_momentum(0.1, 6)
    with strict():
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
        with pytest.raises(ValueError, match="strict"):
            jnp.ones(2) * jnp.ones(2, "bfloat16")


@contextlib.contextmanager
def debugging(nans, jit):
    """With jax_debug_nans, and perhaps without jit."""
    with jax.debug_nans(nans), jax.disable_jit(not jit):
        yield


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("settings", [{}, {"warmup_steps": 2}, {"hold_steps": 3}])
@pytest.mark.parametrize("jit", [True, False], ids=["jit", "no jit"])
def test_nan_debugging_finds_no_nan(law, settings, jit):
    """From the start of a warm-up of the learning rate to after the end of the cooling."""
    rates = optax.linear_schedule(0.0, 0.1, 3)
    cooling = CoolingSchedule(6, 0.9, law, **settings)
    params = {"x": jnp.array([1.0, -2.0]), "z": jnp.array([1 + 1j])}
    with debugging(True, jit):
        tx = cool_momentum(rates, schedule=cooling)
        state = tx.init(params)
        assert float(temperature(state, rates)) == 0
        assert jax.tree.map(float, per_leaf(temperature, state, rates)) == {"x": 0, "z": 0}
        for n in range(8):
            updates, state = tx.update(params, state, params)
            assert float(rho(state, cooling)) == pytest.approx(cooling(n + 1), abs=1e-6)
            if n:  # the rate of the first step is 0
                assert float(temperature(state, rates)) > 0
    with debugging(False, jit=True):
        assert same(updates, walk(tx, params, [params] * 8, jit=False)[-1][1].displacement)


def test_before_the_first_step_the_temperature_is_0_whatever_the_learning_rate():
    """Also where that is 0, as at the start of a warm-up, also pooled, also under jit."""
    state = CoolMomentumState(jnp.zeros((), jnp.int32), {"w": jnp.zeros(2)})
    rates = optax.linear_schedule(0.0, 0.1, 3)
    for read in (temperature, jax.jit(temperature, static_argnums=1)):
        assert float(read(state, rates)) == 0
        assert float(read((state, state), 0.0)) == 0
    assert float(per_leaf(temperature, state, rates)["w"]) == 0


def test_after_a_step_with_learning_rate_0():
    """It is 0 where nothing moved, infinite where the momentum did, as in PyTorch and Keras."""
    still = CoolMomentumState(jnp.asarray(1), jnp.zeros(2))
    assert float(temperature(still, optax.linear_schedule(0.0, 0.1, 3))) == 0
    assert float(temperature(CoolMomentumState(jnp.asarray(1), jnp.ones(2)), 0.0)) == np.inf


# --- typed keys among the leaves ------------------------------------------------------------------

KEYS = {"rng": jax.random.key(0), "keys": jax.random.split(jax.random.key(1), 3)}


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("gradient", ["None", "float0", "key"])
@pytest.mark.parametrize("accumulator", [None, "float32"])
def test_a_typed_key_among_the_leaves_does_not_move(jit, gradient, accumulator):
    """Nor does it count: the others move as without it, and are read and exported alone."""
    tx = cool_momentum(0.1, schedule=COOLING, accumulator_dtype=accumulator)
    params = {"w": jnp.array([1.0, -2.0]), **KEYS}

    def step(params, state):
        grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2) / 2, allow_int=True)(params)
        if gradient != "float0":
            grads |= {name: None if gradient == "None" else KEYS[name] for name in KEYS}
        return tx.update(grads, state, params)

    alone = {"w": params["w"]}
    expected, alone_state = tx.update(alone, tx.init(alone), alone)
    updates, state = (jax.jit(step) if jit else step)(params, tx.init(params))
    assert same(updates["w"], expected["w"])
    assert jax.tree.structure(state.displacement) == jax.tree.structure(params)
    assert float(temperature(state, 0.1)) == float(temperature(alone_state, 0.1))
    assert per_leaf(rho, state, COOLING)["rng"] == optax.MaskedNode()
    saved = export_state(state, 0.1, COOLING)
    assert saved.displacements.keys() == {"w"}
    for other in (tx.init(params), jax.eval_shape(tx.init, params)):
        resumed = import_state(other, saved)
        assert same(resumed.displacement["w"], state.displacement["w"])
        assert resumed.displacement["keys"].dtype == KEYS["keys"].dtype


# --- settings of every kind -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "box", [nnx.Variable, nnx.Param, jnp.asarray, np.asarray], ids=lambda box: box.__name__
)
def test_numbers_may_be_arrays_or_variables_of_nnx(box):
    """A Variable can be called, but is no schedule: its value is the number."""

    def number(x):
        return box(jnp.asarray(x))

    plain = cool_momentum(0.25, 8, 0.75, law="linear", warmup_steps=1, hold_steps=2)
    tx = cool_momentum(
        number(0.25),
        number(8),
        number(0.75),
        law="linear",
        warmup_steps=number(1),
        hold_steps=number(2),
    )
    x = jnp.ones(2)
    states = walk(tx, x, [x] * 9)
    # Coefficients of a traced rho0 are float32: some roundings of displacements below 1.
    for (got, _), (exact, _) in zip(states, walk(plain, x, [x] * 9), strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=2e-6)
    state = states[-1][1]
    kelvin = float(temperature(state, 0.25))
    assert float(temperature(state, number(0.25))) == kelvin > 0
    constant = cool_momentum(number(0.25), schedule=number(0.75))
    assert float(constant.update(x, constant.init(x), x)[0][0]) == -0.21875


def test_a_learning_rate_in_a_variable_is_read_in_each_step():
    """It may be set between them."""
    rate = nnx.Variable(jnp.asarray(0.5))
    tx = cool_momentum(rate, 4, 0.0)
    x = jnp.ones(())
    first, state = tx.update(x, tx.init(x), x)
    rate[...] = jnp.asarray(0.25)
    second, state = tx.update(x, state, x)
    assert (float(first), float(second)) == (-0.25, -0.125)
    assert float(temperature(state, rate)) == 0.125**2 / 0.25


@pytest.mark.parametrize("rate", [1, np.float32(1), np.float64(1), np.int64(1), jnp.asarray(1)])
def test_a_learning_rate_may_be_any_number(rate):
    """Python's, NumPy's or an array of no dimension: the first step is that of 1.0."""
    x = jnp.ones(2)
    for make in (cool_momentum, optax.inject_hyperparams(cool_momentum)):
        tx = make(rate, 4, 0.5)
        updates, state = jax.jit(tx.update)(x, tx.init(x), x)
        assert updates.tolist() == [-0.75, -0.75]
        assert float(temperature(state, rate)) == 0.5625
