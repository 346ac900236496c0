"""Inside optax' wrappers cool_momentum moves as it does alone, and counts its own steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_tools import cool_states, double, same, walk

import coolmomentum.numpy
from coolmomentum import CoolingSchedule
from coolmomentum.jax import cool_momentum

PARAMS = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[0.5]])}
TX = cool_momentum(0.1, 6, 0.9)


def gradients(steps, seed=0):
    """Random gradients of PARAMS, one for each step."""
    random = np.random.default_rng(seed)
    shapes = {"a": (2,), "b": (1, 1)}
    return [
        {k: jnp.asarray(random.standard_normal(s), jnp.float32) for k, s in shapes.items()}
        for _ in range(steps)
    ]


def alone(steps, tx=TX):
    """Parameters and state after the steps without a wrapper."""
    return walk(tx, PARAMS, gradients(steps))[-1]


@double()
def test_chained_after_decayed_weights_it_has_coupled_l2():
    """optax.add_decayed_weights before it is the weight_decay of the oracle."""
    g = np.random.default_rng(1).standard_normal((30, 4))
    oracle = coolmomentum.numpy.CoolMomentum(
        learning_rate=0.1, total_steps=20, rho0=0.9, weight_decay=0.3
    )
    exact, state = [np.ones(4)], oracle.init([np.ones(4)])
    for row in g:
        exact, state = oracle.step(exact, [row], state)
    tx = optax.chain(optax.add_decayed_weights(0.3), cool_momentum(0.1, 20, 0.9))
    params, _ = walk(tx, jnp.ones(4), g)[-1]
    np.testing.assert_allclose(params, exact[0], rtol=0, atol=1e-13)


def test_decayed_weights_after_it_are_decoupled():
    """Then the state holds displacements of the walk only, and the parameters shrink besides."""
    shrink = optax.chain(TX, optax.add_decayed_weights(-0.01))
    params, state = walk(shrink, PARAMS, gradients(1))[-1]
    plain, plain_state = alone(1)
    assert same(state[0], plain_state)
    np.testing.assert_allclose(params["a"], plain["a"] - 0.01 * PARAMS["a"], rtol=1e-6)


def test_clipping_before_it_clips_the_gradient():
    """A chain with a clip that does not bite is the optimizer alone, with one more state."""
    params, state = walk(optax.chain(optax.clip(100.0), TX), PARAMS, gradients(8))[-1]
    assert same((params, state[1]), alone(8))


def test_partition_walks_each_group_as_alone_and_all_clocks_agree():
    """Two CoolMomentums, each for one parameter, move them as one with their settings does."""
    other = cool_momentum(0.3, 4, 0.5, law="linear")
    tx = optax.partition({"x": TX, "y": other}, {"a": "x", "b": "y"})
    params, state = walk(tx, PARAMS, gradients(8))[-1]
    assert same(params["a"], alone(8)[0]["a"])
    assert same(params["b"], alone(8, other)[0]["b"])
    assert [int(s.count) for s in cool_states(state.inner_states["x"])] == [8]
    assert [int(s.count) for s in cool_states(state.inner_states["y"])] == [8]


def test_partition_with_a_frozen_group():
    """set_to_zero beside it leaves the other parameters where they are."""
    tx = optax.partition({"x": TX, "frozen": optax.set_to_zero()}, {"a": "x", "b": "frozen"})
    params, _ = walk(tx, PARAMS, gradients(8))[-1]
    assert same(params["b"], PARAMS["b"])
    assert same(params["a"], alone(8)[0]["a"])


HYPERPARAMETERS = [
    {"learning_rate": 0.1, "total_steps": 6, "rho0": 0.9},
    {"learning_rate": 0.1, "total_steps": 6, "rho0": 0.9, "law": "linear", "warmup_steps": 2},
    {
        "learning_rate": 0.1,
        "total_steps": 6,
        "law": "exponential",
        "warmup_steps": 2,
        "warmup_clock": "hold",
    },
    {"learning_rate": 0.1, "total_steps": 6, "rho0": 0.9, "law": "constant"},
    {"learning_rate": optax.linear_schedule(0.1, 0.0, 8), "total_steps": 6},
    {"learning_rate": 0.1, "schedule": CoolingSchedule(6, 0.9)},
    {"learning_rate": 0.1, "schedule": lambda step: 0.5 / (1 + step)},
]


@pytest.mark.parametrize("settings", HYPERPARAMETERS)
def test_injected_hyperparameters_change_nothing(settings):
    """Every number traced, warmup_steps included: the same walk to float32 rounding."""
    injected, state = walk(
        optax.inject_hyperparams(cool_momentum)(**settings), PARAMS, gradients(8)
    )[-1]
    plain, plain_state = alone(8, cool_momentum(**settings))
    # a rho from float32 hyperparameters is right to 1e-6; eight steps of displacements below 1
    for got, exact in zip(jax.tree.leaves(injected), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=2e-5)
    assert int(cool_states(state)[0].count) == int(plain_state.count) == 8


@double()
def test_injected_hyperparameters_in_float64_equal_the_optimizer():
    """With float64 parameters they are float64, and so are the schedule's coefficients."""
    g = np.random.default_rng(2).standard_normal((20, 3))
    plain, _ = walk(cool_momentum(0.1, 15, 0.95), jnp.ones(3), g)[-1]
    injected, _ = walk(optax.inject_hyperparams(cool_momentum)(0.1, 15, 0.95), jnp.ones(3), g)[-1]
    np.testing.assert_allclose(injected, plain, rtol=0, atol=1e-13)


def test_an_injected_hyperparameter_can_be_changed_between_steps():
    """The next step uses the new learning rate, without another compilation."""
    tx = optax.inject_hyperparams(cool_momentum)(0.5, 4, 0.5)
    update = jax.jit(tx.update)
    state = tx.init(jnp.ones(()))
    _, state = update(jnp.ones(()), state, jnp.ones(()))
    state.hyperparams["learning_rate"] = jnp.zeros_like(state.hyperparams["learning_rate"])
    moved, after = update(jnp.ones(()), state, jnp.ones(()))
    rho = float(CoolingSchedule(4, 0.5)(1))
    assert float(moved) == pytest.approx(-0.375 * rho, rel=1e-6)
    assert update._cache_size() == 1
    assert int(cool_states(after)[0].count) == 2


def test_bfloat16_hyperparameters_are_avoided_with_hyperparam_dtype():
    """Else optax makes rho0 = 0.99 a bfloat16, 0.98828125, as the docstring says."""
    dx = jnp.ones((), jnp.bfloat16)

    def rho(**dtype):
        tx = optax.inject_hyperparams(cool_momentum, **dtype)(
            0.1, 10, 0.99, accumulator_dtype="float32"
        )
        state = tx.init(dx)
        state = state._replace(inner_state=state.inner_state._replace(displacement=jnp.ones(())))
        return float(cool_states(tx.update(0 * dx, state, dx)[1])[0].displacement)

    assert rho(hyperparam_dtype=jnp.float32) == pytest.approx(0.99, abs=1e-6)
    assert rho() == pytest.approx(0.98828125, abs=1e-6)


def test_multi_steps_counts_optimizer_steps():
    """Three microbatches are one step of the clock, with their mean gradient."""
    tx = optax.MultiSteps(TX, every_k_schedule=3)
    micro = [jax.tree.map(lambda x, k=k: x + (k - 1), g) for g in gradients(4) for k in range(3)]
    states = walk(tx, PARAMS, micro)
    counts = [int(cool_states(state.inner_opt_state)[0].count) for _, state in states]
    assert counts == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4]
    for got, exact in zip(
        jax.tree.leaves(states[-1][0]), jax.tree.leaves(alone(4)[0]), strict=True
    ):
        np.testing.assert_allclose(got, exact, rtol=1e-5)  # the mean of three is rounded
    assert same(states[1][0], PARAMS)


def cool_by(schedule):
    """CoolMomentum of three microbatches a step, as a factory for inject_hyperparams."""
    return optax.MultiSteps(
        cool_momentum(0.1, schedule=schedule), every_k_schedule=3
    ).gradient_transformation()


WITH_A_SCHEDULE = {
    "MultiSteps outside": optax.MultiSteps(
        optax.inject_hyperparams(cool_momentum)(0.1, schedule=CoolingSchedule(6, 0.9)), 3
    ),
    "static outside": optax.inject_hyperparams(cool_by, static_args="schedule")(
        CoolingSchedule(6, 0.9)
    ),
    "numbers outside": optax.inject_hyperparams(
        lambda learning_rate, total_steps, rho0: optax.MultiSteps(
            cool_momentum(learning_rate, total_steps, rho0), 3
        ).gradient_transformation()
    )(0.1, 6, 0.9),
}


@pytest.mark.parametrize("tx", WITH_A_SCHEDULE.values(), ids=WITH_A_SCHEDULE)
def test_a_schedule_counts_optimizer_steps_inside_multi_steps(tx):
    """Eight steps of three microbatches are the plain run of eight steps."""
    micro = [g for g in gradients(8) for _ in range(3)]
    params, state = walk(tx, PARAMS, micro)[-1]
    assert [int(s.count) for s in cool_states(state)] == [8]
    for got, exact in zip(jax.tree.leaves(params), jax.tree.leaves(alone(8)[0]), strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=2e-5)  # as of injected hyperparameters


def test_a_schedule_injected_around_multi_steps_counts_microbatches():
    """Then it has cooled after two of six steps: optax asks it at its own count."""
    tx = optax.inject_hyperparams(cool_by)(CoolingSchedule(6, 0.9))
    states = [state for _, state in walk(tx, PARAMS, [PARAMS] * 9)]
    assert [int(state.count) for state in states[::3]] == [0, 3, 6, 9]
    assert [int(cool_states(state.inner_state)[0].count) for state in states[::3]] == [0, 1, 2, 3]
    # the rho that the last microbatch of each step was taken with
    rhos = [float(state.hyperparams["schedule"]) for state in states[3::3]]
    assert rhos == pytest.approx([CoolingSchedule(6, 0.9)(n) for n in (2, 5, 8)], abs=1e-6)
    assert rhos[-1] == 0


def test_apply_if_finite_skips_do_not_advance_the_clock():
    """A step with a NaN leaves parameters, displacement and clock as they were, to the bit."""
    tx = optax.apply_if_finite(TX, max_consecutive_errors=5)
    good = gradients(8)
    bad = {"a": jnp.array([1.0, jnp.nan]), "b": jnp.array([[jnp.inf]])}
    states = walk(tx, PARAMS, [good[0], bad, bad, *good[1:]])
    assert same(states[1][1].inner_state, states[3][1].inner_state)
    assert same(states[1][0], states[3][0])
    assert same((states[-1][0], states[-1][1].inner_state), alone(8))


def test_all_wrappers_at_once():
    """MultiSteps over apply_if_finite over a chain with masked injected hyperparameters."""
    inner = optax.chain(
        optax.clip(100.0),
        optax.masked(optax.inject_hyperparams(cool_momentum)(0.1, 6, 0.9), {"a": True, "b": False}),
        optax.masked(optax.set_to_zero(), {"a": False, "b": True}),
    )
    tx = optax.MultiSteps(optax.apply_if_finite(inner, 5), every_k_schedule=2)
    params, state = walk(tx, PARAMS, [g for g in gradients(8) for _ in range(2)])[-1]
    assert [int(s.count) for s in cool_states(state)] == [8]
    assert same(params["b"], PARAMS["b"])
    np.testing.assert_allclose(params["a"], alone(8)[0]["a"], rtol=1e-5)


def test_extra_arguments_reach_the_others_of_a_chain():
    """An optimizer that needs extra arguments may follow it in a chain."""
    tx = optax.chain(TX, optax.contrib.reduce_on_plateau(patience=1))
    state = tx.init(PARAMS)
    updates, _ = tx.update(gradients(1)[0], state, PARAMS, value=jnp.asarray(1.0))
    assert same(updates, TX.update(gradients(1)[0], TX.init(PARAMS), PARAMS)[0])
