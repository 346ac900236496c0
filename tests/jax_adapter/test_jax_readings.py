"""Readings of the state: rho, step size and temperature, pooled and per leaf, from any wrapper."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_tools import double, walk

import coolmomentum.numpy
from coolmomentum import CoolingSchedule
from coolmomentum.jax import (
    CoolMomentumState,
    cool_momentum,
    per_leaf,
    rescaled_temperature,
    rho,
    step_size,
    temperature,
)

SCHEDULE = CoolingSchedule(10, 0.9)
PARAMS = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[0.5]])}
TX = cool_momentum(0.1, schedule=SCHEDULE)

WRAPPED = {
    "alone": TX,
    "chain": optax.chain(optax.clip(9.0), optax.chain(TX, optax.identity())),
    "named_chain": optax.named_chain(("clip", optax.clip(9.0)), ("cool", TX)),
    "masked": optax.masked(TX, {"a": True, "b": True}),
    "partition": optax.partition({"x": TX, "y": TX}, {"a": "x", "b": "y"}),
    "inject_hyperparams": optax.inject_hyperparams(cool_momentum)(0.1, 10, 0.9),
    "MultiSteps": optax.MultiSteps(TX, every_k_schedule=1),
    "apply_if_finite": optax.apply_if_finite(TX, 3),
    "all": optax.MultiSteps(
        optax.apply_if_finite(
            optax.chain(
                optax.clip(9.0),
                optax.partition(
                    {"x": optax.inject_hyperparams(cool_momentum)(0.1, 10, 0.9), "y": TX},
                    {"a": "x", "b": "y"},
                ),
            ),
            3,
        ),
        every_k_schedule=1,
    ),
}


def displaced(*arrays, count=1):
    """A state with given displacements."""
    return CoolMomentumState(jnp.asarray(count, jnp.int32), list(map(jnp.asarray, arrays)))


def close(value):
    """To the few roundings of a float32 sum."""
    return pytest.approx(value, rel=1e-6)


def test_the_temperature_of_a_list_is_the_exact_rational():
    """(.1, -.2, .3) and a 0 at dt^2 = 1/100 have T = 7/2: .14 / 4 * 100."""
    state = displaced([0.1, -0.2, 0.3], 0.0)
    assert float(temperature(state, 0.01)) == close(3.5)
    assert float(rescaled_temperature(state)) == close(0.035)


@pytest.mark.parametrize("tx", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("jit", [False, True])
def test_the_state_is_found_in_every_wrapper(tx, jit):
    """The readings are those of the parameters' own changes and of the schedule at step 3."""
    gradients = [jax.tree.map(lambda x, k=k: (k + 1) * x, PARAMS) for k in range(3)]
    states = walk(tx, PARAMS, gradients)
    before, (after, opt_state) = states[-2][0], states[-1]
    moves = {k: np.asarray(after[k] - before[k], "float64") for k in PARAMS}
    exact_t = (np.sum(moves["a"] ** 2) + np.sum(moves["b"] ** 2)) / 3 / 0.1

    def read(state):
        return {
            "rho": rho(state, SCHEDULE),
            "step_size": step_size(state, 0.1, SCHEDULE),
            "temperature": temperature(state, 0.1),
            "rescaled": rescaled_temperature(state),
            "each": per_leaf(temperature, state, 0.1),
            "each_rho": per_leaf(rho, state, SCHEDULE),
        }

    readings = (jax.jit(read) if jit else read)(opt_state)
    exact_rho = 1 - 0.1 * 10 ** (3 / 10)
    # the changes of the parameters are rounded to their last bits, 1e-7 of displacements over 0.1
    assert float(readings["temperature"]) == pytest.approx(exact_t, rel=1e-5)
    assert float(readings["rescaled"]) == pytest.approx(exact_t * 0.1, rel=1e-5)
    assert float(readings["rho"]) == pytest.approx(exact_rho, abs=1e-6)
    assert float(readings["step_size"]) == pytest.approx(0.1 * (1 + exact_rho) / 2, abs=1e-7)
    for name in PARAMS:
        each = np.mean(moves[name] ** 2) / 0.1
        assert float(readings["each"][name]) == pytest.approx(each, rel=1e-5)
        assert float(readings["each_rho"][name]) == pytest.approx(exact_rho, abs=1e-6)
    assert all(x.shape == () and x.dtype == jnp.float32 for x in jax.tree.leaves(readings))


@double()
def test_in_float64_the_temperature_is_the_one_of_the_oracle():
    """To rounding, after every step."""
    g = np.random.default_rng(0).standard_normal((12, 2, 5))
    oracle = coolmomentum.numpy.CoolMomentum(learning_rate=0.1, total_steps=10, rho0=0.9)
    params, exact = [np.ones(5)] * 2, oracle.init([np.ones(5)] * 2)
    states = walk(TX, [jnp.ones(5)] * 2, [list(map(jnp.asarray, pair)) for pair in g])
    for pair, (_, state) in zip(g, states[1:], strict=True):
        params, exact = oracle.step(params, list(pair), exact)
        reading = temperature(state, 0.1)
        assert reading.dtype == jnp.float64
        assert float(reading) == pytest.approx(float(oracle.temperature(exact)), rel=1e-12)
        assert float(rho(state, SCHEDULE)) == pytest.approx(oracle.rho(exact), rel=1e-14)


def test_several_states_are_pooled_by_their_coordinates():
    """Three coordinates with the mean square 4 and one with 8 have the mean 5."""
    states = {"first": displaced([2.0, 2.0, 2.0]), "second": (displaced(math.sqrt(8)),)}
    assert float(rescaled_temperature(states)) == close(5)
    assert float(temperature(states, 0.5)) == close(10)


def test_an_empty_state_beside_another_does_not_count():
    """A group of partition without parameters changes nothing."""
    states = (displaced(), displaced([2.0]), displaced(jnp.arange(3)))
    assert float(rescaled_temperature(states)) == close(4)
    assert float(rho(states, SCHEDULE)) == float(rho(states[1], SCHEDULE))


def test_equal_readings_of_several_states_pool_to_that_reading_exactly():
    """One clock for all groups gives one rho, to the last bit."""
    states = [displaced(jnp.ones(n), count=7) for n in (1, 3, 7, 100)]
    assert float(rho(states, SCHEDULE)) == float(rho(states[0], SCHEDULE))


def test_each_state_is_read_at_its_own_clock():
    """With clocks 2 and 4, of 1 and 3 coordinates, rho and learning rate are weighted so."""
    states = displaced([1.0], count=2), displaced([1.0, 1.0, 1.0], count=4)
    exact = (SCHEDULE(2) + 3 * SCHEDULE(4)) / 4
    assert float(rho(states, SCHEDULE)) == pytest.approx(exact, abs=1e-6)
    rates = optax.linear_schedule(1.0, 0.0, 10)  # 0.9 and 0.7 were the last steps'
    assert float(temperature(states, rates)) == close((1 / 0.9 + 3 / 0.7) / 4)


def test_a_learning_rate_schedule_is_read_at_the_last_step_and_the_step_size_at_the_next():
    """The displacement was made with the rate of the step before the clock."""
    state = displaced([1.0], count=3)
    rates = optax.piecewise_constant_schedule(0.5, {3: 0.1})  # 0.5 at step 2, 0.05 from step 3 on
    assert float(temperature(state, rates)) == close(2)
    assert float(step_size(state, rates, SCHEDULE)) == close(0.05 * (1 + SCHEDULE(3)) / 2)
    assert float(temperature(displaced([0.0], count=0), rates)) == 0


def test_callable_schedules_can_be_read():
    """As the optimizer takes them."""
    state = displaced([1.0], count=3)
    assert float(rho(state, lambda step: 1 / (1 + step))) == 0.25


def test_a_complex_number_is_two_coordinates():
    """|3 + 4i|^2 = 25 over 2."""
    assert float(rescaled_temperature(displaced([3 + 4j]))) == close(12.5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_displacements_are_summed_in_float32(dtype):
    """The squares of 5000 halves neither overflow nor stall."""
    reading = rescaled_temperature(displaced(jnp.full(5000, 300.0, dtype)))
    assert reading.dtype == jnp.float32
    assert float(reading) == close(300.0**2)


def test_per_leaf_is_a_tree_like_the_parameters_where_partition_splits_whole_branches():
    """A label on a branch covers all below it, as in the documentation of optax.partition."""
    params = {"gen": {"w": jnp.ones(2), "b": jnp.ones(1)}, "disc": [jnp.ones(3)], "no": jnp.ones(1)}
    tx = optax.partition(
        {"g": TX, "d": cool_momentum(0.1, 10, 0.5), "-": optax.set_to_zero()},
        {"gen": "g", "disc": "d", "no": "-"},
    )
    _, opt_state = walk(tx, params, [params])[-1]
    readings = jax.tree.map(float, per_leaf(temperature, opt_state, 0.1))
    hot, cold = 0.1 * (1.9 / 2) ** 2, 0.1 * (1.5 / 2) ** 2  # (lr (1 + rho0) / 2)^2 / lr
    assert readings == {
        "gen": {"w": close(hot), "b": close(hot)},
        "disc": [close(cold)],
        "no": optax.MaskedNode(),
    }


@pytest.mark.parametrize(
    "states",
    [
        (displaced([1.0]), displaced([1.0])),
        (displaced([1.0]), displaced([1.0], [2.0])),
        (CoolMomentumState(jnp.asarray(1), jnp.ones(1)), displaced([1.0])),
    ],
)
def test_per_leaf_refuses_states_that_do_not_share_one_tree(states):
    """Two optimizers for one parameter, or two models."""
    with pytest.raises(ValueError, match="opt_state must hold each parameter of one parameter"):
        per_leaf(temperature, states, 0.1)
