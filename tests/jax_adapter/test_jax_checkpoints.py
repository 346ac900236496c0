"""Flax and orbax: each example of the README, and a resume that continues bit for bit."""

import pickle

import flax.serialization
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax_tools import same, walk

from coolmomentum import CoolingSchedule
from coolmomentum.jax import CoolMomentumState, cool_momentum, per_leaf, rho, temperature

SCHEDULE = CoolingSchedule(20, 0.9)
TX = optax.chain(optax.clip_by_global_norm(1.0), cool_momentum(0.1, schedule=SCHEDULE))
X = jax.random.normal(jax.random.key(0), (16, 3))
Y = X @ jnp.array([1.0, -2.0, 0.5])


def loss(params):
    """Linear regression."""
    return jnp.mean((X @ params["w"] + params["b"] - Y) ** 2)


PARAMS = {"w": jnp.zeros(3), "b": jnp.zeros(())}


def run(params, state, steps):
    """Train in a jitted step."""

    @jax.jit
    def step(params, state):
        updates, state = TX.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def through_orbax(tree, path):
    """Saved and restored by shapes and dtypes."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "checkpoint", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path / "checkpoint", jax.eval_shape(lambda: tree))


def through_flax(tree, path):
    """As msgpack bytes."""
    return flax.serialization.from_bytes(tree, flax.serialization.to_bytes(tree))


def through_pickle(tree, path):
    """By the name of the class."""
    return pickle.loads(pickle.dumps(tree))


@pytest.mark.parametrize("through", [through_orbax, through_flax, through_pickle])
@pytest.mark.parametrize("at", [0, 7, 20, 23])
def test_a_saved_and_resumed_run_continues_bit_for_bit(through, at, tmp_path):
    """Before, during and after the cooling; the state comes back with its class and dtypes."""
    whole = run(PARAMS, TX.init(PARAMS), 26)
    part = run(PARAMS, TX.init(PARAMS), at)
    params, state = through({"params": part[0], "state": part[1]}, tmp_path).values()
    assert isinstance(state[1], CoolMomentumState)
    assert same((params, state), part)
    assert same(run(params, state, 26 - at), whole)


def test_train_state():
    """Flax's TrainState trains with it, and the readings take the TrainState itself."""
    train = TrainState.create(apply_fn=None, params=PARAMS, tx=TX)
    step = jax.jit(lambda train: train.apply_gradients(grads=jax.grad(loss)(train.params)))
    for _ in range(25):
        train = step(train)
    assert same((train.params, train.opt_state), run(PARAMS, TX.init(PARAMS), 25))
    assert float(temperature(train, 0.1)) == float(temperature(train.opt_state[1], 0.1)) > 0
    assert float(rho(train, SCHEDULE)) == 0


def test_a_train_state_resumes_from_orbax(tmp_path):
    """Bit for bit, after a restore into a fresh TrainState."""
    step = jax.jit(lambda train: train.apply_gradients(grads=jax.grad(loss)(train.params)))
    train = fresh = TrainState.create(apply_fn=None, params=PARAMS, tx=TX)
    for _ in range(7):
        train = step(train)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "train", train)
        checkpointer.wait_until_finished()
        resumed = checkpointer.restore(tmp_path / "train", fresh)
    for _ in range(5):
        train, resumed = step(train), step(resumed)
    assert same(train, resumed)
    assert int(resumed.opt_state[1].count) == 12


def test_nnx_optimizer():
    """flax.nnx.Optimizer walks as a hand-made loop, and its state can be read, also per leaf."""
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    start = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    optimizer = nnx.Optimizer(model, cool_momentum(0.1, schedule=SCHEDULE), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        gradients = nnx.grad(lambda model: jnp.mean((model(X)[:, 0] - Y) ** 2))(model)
        optimizer.update(model, gradients)
        return gradients

    gradients = [nnx.to_pure_dict(step(model, optimizer)) for _ in range(6)]
    params, state = walk(cool_momentum(0.1, schedule=SCHEDULE), start, gradients)[-1]
    moved = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    for name in ("kernel", "bias"):  # compiled as another program: float32 rounding
        assert jnp.allclose(moved[name], params[name], rtol=1e-5, atol=1e-6)
    exact = pytest.approx(float(temperature(state, 0.1)), rel=1e-5)
    assert float(temperature(optimizer.opt_state, 0.1)) == exact
    assert float(rho(optimizer.opt_state, SCHEDULE)) == float(rho(state, SCHEDULE))
    each = nnx.to_pure_dict(per_leaf(temperature, optimizer.opt_state, 0.1))
    assert set(each) == {"kernel", "bias"}
    assert all(float(value) > 0 for value in each.values())


def test_an_nnx_optimizer_resumes_from_orbax(tmp_path):
    """The split-off state of model and optimizer goes through a checkpoint to the bit."""

    def make():
        model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
        return model, nnx.Optimizer(model, TX, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        gradients = nnx.grad(lambda model: jnp.mean((model(X)[:, 0] - Y) ** 2))(model)
        optimizer.update(model, gradients)

    pair, other = make(), make()
    for _ in range(7):
        step(*pair)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "nnx", nnx.to_pure_dict(nnx.state(pair)))
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "nnx", nnx.to_pure_dict(nnx.state(other)))
    target = nnx.state(other)
    nnx.replace_by_pure_dict(target, restored)
    nnx.update(other, target)
    for _ in range(5):
        step(*pair)
        step(*other)
    assert same(nnx.to_pure_dict(nnx.state(pair)), nnx.to_pure_dict(nnx.state(other)))
