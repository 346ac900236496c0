"""Runs whose end is not known at the start: held, cooled when told, and made longer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exact import COOLING_LAWS
from jax_tools import cool_states, double, same, walk

import coolmomentum.numpy
from coolmomentum import CoolingSchedule
from coolmomentum.jax import CoolMomentumState, cool_momentum, rho

PARAMS = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[0.5]])}
END = 2**31 - 1  # the largest clock


def gradients(steps):
    """Random gradients of PARAMS, one for each step."""
    random = np.random.default_rng(0)
    shapes = {"a": (2,), "b": (1, 1)}
    return [
        {k: jnp.asarray(random.standard_normal(s), jnp.float32) for k, s in shapes.items()}
        for _ in range(steps)
    ]


def go_on(tx, params, state, gradients):
    """The end of a run from a state."""
    step = jax.jit(lambda params, state, g: _step(tx, params, state, g))
    for g in gradients:
        params, state = step(params, state, g)
    return params, state


def _step(tx, params, state, g):
    updates, state = tx.update(g, state, params)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("law", COOLING_LAWS)
def test_held_and_then_cooled_is_the_run_that_knew_it_all_along(law):
    """The constant law needs no total_steps; the state goes to an optimizer with hold_steps."""
    told = cool_momentum(0.1, 12, 0.9, law=law, hold_steps=5)
    held = cool_momentum(0.1, None, 0.9, law="constant")
    exact = walk(told, PARAMS, gradients(14))
    params, state = walk(held, PARAMS, gradients(5))[-1]
    assert same((params, state), exact[5])
    assert same(go_on(told, params, state, gradients(14)[5:]), exact[-1])
    cooling = CoolingSchedule(12, 0.9, law, hold_steps=5)
    assert float(rho(exact[4][1], cooling)) == np.float32(0.9)  # of the last step that is held
    assert float(rho(exact[5][1], cooling)) == pytest.approx(0.9, abs=1e-7)  # by the law


@pytest.mark.parametrize("law", COOLING_LAWS)
@double()
def test_a_held_run_is_that_of_the_oracle(law):
    """To rounding, from the first step to after the last."""
    g = np.random.default_rng(1).standard_normal((14, 3))
    settings = {"total_steps": 12, "rho0": 0.9, "law": law, "hold_steps": 5}
    oracle = coolmomentum.numpy.CoolMomentum(0.1, **settings)
    exact, state = [np.ones(3)], oracle.init([np.ones(3)])
    for row in g:
        exact, state = oracle.step(exact, [row], state)
    params, end = walk(cool_momentum(0.1, **settings), jnp.ones(3), g)[-1]
    np.testing.assert_allclose(params, exact[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(end.displacement, state.displacements[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("law", COOLING_LAWS)
def test_injected_hold_and_total_steps_are_set_without_another_compilation(law):
    """A run held by the largest clocks, told at step 5 to cool until 12, is the one that knew."""
    inject = optax.inject_hyperparams(cool_momentum)
    tx = inject(0.1, END, 0.9, law=law, hold_steps=END - 1)
    step = jax.jit(lambda params, state, g: _step(tx, params, state, g))
    params, state = PARAMS, tx.init(PARAMS)
    for n, g in enumerate(gradients(14)):
        if n == 5:
            for name, steps in (("hold_steps", 5), ("total_steps", 12)):
                state.hyperparams[name] = jnp.asarray(steps)  # weakly typed, as optax made it
        params, state = step(params, state, g)
    assert step._cache_size() == 1
    told = walk(inject(0.1, 12, 0.9, law=law, hold_steps=5), PARAMS, gradients(14))[-1]
    assert same((params, cool_states(state)), (told[0], cool_states(told[1])))
    plain, _ = walk(cool_momentum(0.1, 12, 0.9, law=law, hold_steps=5), PARAMS, gradients(14))[-1]
    for got, exact in zip(jax.tree.leaves(params), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=2e-5)  # rho of a float32 rho0: 1e-6


@pytest.mark.parametrize("law", COOLING_LAWS)
@pytest.mark.parametrize("total", [END, END + 1, 2**40])
def test_the_largest_totals(law, total):
    """Held for all but a step of the largest clock, or cooling over more than it can count."""
    clocks = jnp.array([0, 10**6, END - 2, END - 1, END], jnp.int32)
    for settings in ({"hold_steps": total - 1}, {}):
        cooling = CoolingSchedule(total, 0.75, law, **settings)
        tx = cool_momentum(1.0, schedule=cooling)
        states = CoolMomentumState(clocks, jnp.ones(5))
        rhos, _ = jax.vmap(tx.update)(jnp.zeros(5), states)
        exact = [cooling(int(n)) for n in clocks]
        np.testing.assert_allclose(rhos, exact, rtol=0, atol=1e-6)
        if settings and total == END:
            assert exact[:3] == rhos[:3].tolist() == [0.75] * 3
            assert exact[-1] == float(rhos[-1]) == 0


@pytest.mark.parametrize("law", COOLING_LAWS)
@pytest.mark.parametrize("at", [7, 20, 23])
def test_a_run_made_longer_goes_on_where_the_longer_run_would_be(law, at):
    """Build with the new total_steps and keep the state: from there on it is the longer's rho."""
    short, long = CoolingSchedule(20, 0.9, law), CoolingSchedule(40, 0.9, law)
    params, state = walk(cool_momentum(0.1, schedule=short), PARAMS, gradients(at))[-1]
    assert float(rho(state, long)) == pytest.approx(long(at), abs=1e-6)
    after = go_on(cool_momentum(0.1, schedule=long), params, state, gradients(42)[at:])

    def both(step):
        by = [cooling(step, dtype=jnp.float32, xp=jnp) for cooling in (short, long)]
        return jnp.where(step < at, *by)

    assert same(after, walk(cool_momentum(0.1, schedule=both), PARAMS, gradients(42))[-1])
    assert float(rho(after[1], long)) == 0


def test_an_injected_run_is_made_longer_in_its_state():
    """total_steps is a number there, and the step is not compiled anew."""
    tx = optax.inject_hyperparams(cool_momentum)(0.1, 20, 0.9)
    update = jax.jit(tx.update)
    _, state = walk(tx, PARAMS, gradients(7))[-1]
    _, longer = walk(optax.inject_hyperparams(cool_momentum)(0.1, 40, 0.9), PARAMS, gradients(7))[
        -1
    ]
    update(PARAMS, state, PARAMS)
    state.hyperparams["total_steps"] = jnp.asarray(40)
    longer = longer._replace(inner_state=state.inner_state)
    assert same(update(PARAMS, state, PARAMS), update(PARAMS, longer, PARAMS))
    assert update._cache_size() == 1
