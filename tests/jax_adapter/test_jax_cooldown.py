"""Cooldown in JAX: the event is in the state; branches, wrappers, and nothing compiled again."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exact import COOLING_LAWS, ONE_OF_COOLING_LAWS

from coolmomentum import HELD, cooled_rho, learning_rate_share
from coolmomentum.jax import (
    CooldownState,
    cool_momentum,
    cooldown,
    start_cooldown,
    stop_cooldown,
)

inject = optax.inject_hyperparams(cool_momentum)
OPTIMIZERS = {
    "cool_momentum": lambda law: inject(0.05, rho0=0.9, law=law, **HELD),
    "adamw": lambda law: optax.chain(optax.adamw(0.05), cooldown(law)),
    "injected adamw": lambda law: optax.chain(
        optax.inject_hyperparams(optax.adamw)(learning_rate=0.05), cooldown(law)
    ),
    "a chain that is injected": lambda law: optax.inject_hyperparams(
        lambda rate: optax.chain(optax.adamw(rate), cooldown(law))
    )(rate=0.05),
    "MultiSteps": lambda law: optax.MultiSteps(
        optax.chain(optax.sgd(0.05, momentum=0.9), cooldown(law)), 2
    ),
    "cool_momentum in a chain": lambda law: optax.chain(
        optax.clip(100.0),
        optax.masked(optax.MultiSteps(OPTIMIZERS["cool_momentum"](law), 2), lambda p: True),
    ),
}
every = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


class Run:
    """A run on a noisy bowl, whose noise depends on the step alone."""

    def __init__(self, make, law="linear"):
        self.tx, self.n = make(law), 0
        self.x = jnp.linspace(-1, 1, 7)
        self.state = self.tx.init(self.x)
        self.step = jax.jit(self._step)

    def _step(self, x, state, n):
        noise = jax.random.normal(jax.random.key(n), x.shape)
        updates, state = self.tx.update(x + noise, state, x)
        return optax.apply_updates(x, updates), state

    def train(self, steps):
        """Train for some steps; gives back the run."""
        for _ in range(steps):
            self.x, self.state = self.step(self.x, self.state, self.n)
            self.n += 1
        return self

    def branch(self):
        """A new run from the state of this one, through NumPy arrays as a checkpoint has them."""
        new = object.__new__(type(self))
        leaves, tree = jax.tree.flatten((self.x, self.state))
        kept = [(np.asarray(x), x.dtype) for x in leaves]
        new.x, new.state = jax.tree.unflatten(tree, [jnp.asarray(x, d) for x, d in kept])
        new.tx, new.n, new.step = self.tx, self.n, jax.jit(self._step)
        return new


@every
def test_branches_of_a_held_checkpoint_are_the_uninterrupted_runs(make):
    """Held for 200 steps, saved, branched at 5 % and at 20 %: the same to the last bit."""
    held = Run(make).train(200)
    for steps in (10, 40):
        whole, branch = Run(make).train(200), held.branch()
        for run in (whole, branch):
            run.state = start_cooldown(run.state, steps)
            run.train(steps)
        assert np.array_equal(whole.x, branch.x)
        assert not np.array_equal(whole.x, held.branch().train(steps).x)


@every
def test_nothing_is_compiled_again(make):
    """To start, to extend and to stop change numbers, not dtypes and weak types."""
    run = Run(make).train(4)
    compiled = run.step._cache_size()
    for tell in (
        lambda state: start_cooldown(state, 10),
        lambda state: start_cooldown(state, 20, law="linear"),
        lambda state: stop_cooldown(state, law="linear"),
        lambda state: start_cooldown(state, 4),
    ):
        run.state = tell(run.state)
        run.train(4)
    assert run.step._cache_size() == compiled


@pytest.mark.parametrize("law", COOLING_LAWS)
def test_updates_follow_the_law(law, jax_x64):
    """In float64 as the core has it; the state says the share of the next step."""
    tx = optax.chain(optax.sgd(0.25), cooldown(law))
    state, one = tx.init(jnp.ones(())), jnp.ones(())
    update, rates = jax.jit(tx.update), []
    for n in range(32):
        if n == 10:
            state = start_cooldown(state, 20)
        assert float(state[1].share) == pytest.approx(
            learning_rate_share(n, 10, 30, law), rel=1e-14
        )
        u, state = update(one, state)
        rates.append(-float(u))
    expected = [0.25 * learning_rate_share(n, 10, 30, law) for n in range(32)]
    np.testing.assert_allclose(rates, expected, rtol=1e-14)
    assert rates[:11] == [0.25] * 11


@pytest.mark.parametrize("law", COOLING_LAWS)
def test_rho_follows_the_law(law, jax_x64):
    """A displacement of 1 without a gradient is rho after the step."""
    tx = inject(0.25, rho0=0.9, law=law, **HELD)
    state, rhos = tx.init(jnp.ones(())), []
    for n in range(32):
        if n == 10:
            state = start_cooldown(state, 20)
        at_one = state._replace(inner_state=state.inner_state._replace(displacement=jnp.ones(())))
        u, state = tx.update(jnp.zeros(()), at_one, jnp.ones(()))
        rhos.append(float(u))
    expected = [cooled_rho(n, 30, 0.9, law, hold_steps=10) for n in range(32)]
    np.testing.assert_allclose(rhos, expected, rtol=1e-14)


@pytest.mark.parametrize("law", COOLING_LAWS)
def test_extended_and_stopped_it_goes_on_from_where_it_is(law):
    """No jump: the next share is the one that was to come; and what is stopped stays."""
    tx = cooldown(law)
    state = start_cooldown(tx.init(jnp.ones(())), 10)
    for _ in range(5):
        _, state = tx.update(jnp.ones(()), state)
    share = float(state.share)
    assert 1 / 199 < share < 1
    for told in (start_cooldown(state, 100), stop_cooldown(state)):
        u, after = tx.update(jnp.ones(()), told)
        assert float(u) == share
    assert float(after.share) == share
    again = start_cooldown(after, 3)
    for _ in range(4):
        u, again = tx.update(jnp.ones(()), again)
    assert float(u) == pytest.approx(1 / 199, rel=2**-22)


def test_rho_goes_on_from_where_it_is():
    """To extend and to stop need the law, which the state of cool_momentum does not have."""
    run = Run(OPTIMIZERS["cool_momentum"])
    run.state = start_cooldown(run.state, 10)
    run.train(5)
    rho = cooled_rho(5, 10, 0.9, "linear", hold_steps=0)
    with pytest.raises(TypeError, match="law must be given"):
        start_cooldown(run.state, 10)
    for told in (
        start_cooldown(run.state, 10, law="linear"),
        stop_cooldown(run.state, law="linear"),
    ):
        assert float(told.hyperparams["rho0"]) == pytest.approx(rho, rel=2**-22)


@every
def test_what_has_cooled_cannot_cool_again(make):
    """It raises, rather than to heat."""
    run = Run(make)
    run.state = start_cooldown(run.state, 2)
    run.train(8)
    with pytest.raises(ValueError, match="cooled already"):
        start_cooldown(run.state, 5, law="linear")


def test_a_held_chain_is_the_chain_without():
    """To the last bit, in every precision."""
    for dtype in (jnp.float32, jnp.bfloat16, jnp.complex64):
        g = jnp.linspace(-1, 1, 9).astype(dtype) / 3
        u, _ = cooldown().update(g, cooldown().init(g))
        assert u.dtype == dtype
        assert np.array_equal(u, g)


def test_integers_are_left_alone():
    """Updates of integer leaves and of none."""
    tx = cooldown()
    updates = {"i": jnp.arange(3), "none": None}
    u, _ = tx.update(updates, tx.init(updates))
    assert u["none"] is None
    assert np.array_equal(u["i"], np.arange(3))


def test_a_train_state():
    """The whole of it may be given."""
    training = pytest.importorskip("flax.training.train_state")
    state = training.TrainState.create(
        apply_fn=lambda: None, params=jnp.ones(3), tx=optax.chain(optax.adam(0.1), cooldown())
    )
    told = start_cooldown(state, 7)
    (event,) = [x for x in told.opt_state if isinstance(x, CooldownState)]
    assert (int(event.hold_steps), int(event.total_steps)) == (0, 7)
    assert told.params is state.params


def test_replicas():
    """A state of several replicas, as vmap and pmap have it, keeps its shape."""
    state = jax.vmap(cooldown().init)(jnp.ones((4, 3)))
    assert start_cooldown(state, 7).total_steps.tolist() == [7] * 4


def test_what_is_refused():
    """Nothing to cool, hyperparameters that are missing, and arguments out of range."""
    with pytest.raises(ValueError, match=ONE_OF_COOLING_LAWS):
        cooldown("constant")
    with pytest.raises(ValueError, match="opt_state must have the state of"):
        start_cooldown(optax.adam(0.1).init(jnp.ones(())), 3)
    with pytest.raises(ValueError, match="opt_state must have the state of"):
        start_cooldown(cool_momentum(0.1, 10).init(jnp.ones(())), 3)
    with pytest.raises(ValueError, match="hold_steps, rho0, total_steps missing"):
        start_cooldown(inject(0.1, law="constant").init(jnp.ones(())), 3)
    state = cooldown().init(jnp.ones(()))
    with pytest.raises(ValueError, match="steps must be >= 1: 0"):
        start_cooldown(state, 0)
    with pytest.raises(ValueError, match="below 2"):
        start_cooldown(state, 2**31)
