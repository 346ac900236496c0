"""Exported and imported states: boxed parameters, abstract, traced and host states, names."""

import dataclasses

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding, PartitionSpec
from jax_tools import cool_states, same, walk

from coolmomentum import CoolingSchedule
from coolmomentum.jax import (
    CoolMomentumState,
    cool_momentum,
    export_state,
    import_state,
    rho,
    temperature,
)
from coolmomentum.portable import PortableState

COOLING = CoolingSchedule(20, 0.9)
TX = optax.chain(optax.clip(9.0), cool_momentum(0.1, schedule=COOLING))
X = jax.random.normal(jax.random.key(0), (16, 3))
Y = X @ jnp.array([[1.0], [-2.0], [0.5]])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Scale:
    """A module whose fields are its leaves, as those of Equinox; one has the name of a box's."""

    value: jax.Array
    bias: jax.Array


def displacements_of(params):
    """Ones for the displacements of the parameters, exported."""
    state = cool_momentum(0.1, 20).init(params)
    return export_state(jax.tree.map(jnp.ones_like, state), 0.1, COOLING).displacements


def saved_for(params, clock=3):
    """A portable state with a different displacement for each parameter."""
    shapes = {name: x.shape for name, x in displacements_of(params).items()}
    random = np.random.default_rng(1)
    moves = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    return PortableState(clock, COOLING, 0.1, 0.1, moves)


# --- names --------------------------------------------------------------------------------------

TREES = {
    "dict": ({"dense": {"kernel": jnp.ones((2, 1))}}, ["dense.kernel"]),
    "FrozenDict": (flax.core.freeze({"dense": {"kernel": jnp.ones(1)}}), ["dense.kernel"]),
    "list and tuple": ({"a": [jnp.ones(1), (jnp.ones(2),)]}, ["a.0", "a.1.0"]),
    "dataclass": ({"scale": Scale(jnp.ones(2), jnp.ones(1))}, ["scale.value", "scale.bias"]),
    "one array": (jnp.ones(2), [""]),
    "Partitioned": ({"w": nn.Partitioned(jnp.ones(2), ("x",))}, ["w"]),
    "LogicallyPartitioned": ({"w": nn.LogicallyPartitioned(jnp.ones(2), ("x",))}, ["w"]),
    "nested boxes": (
        {"w": nn.LogicallyPartitioned(nn.Partitioned(jnp.ones(2), ("x",)), ("y",))},
        ["w"],
    ),
    "nnx.State": (nnx.State({"a": {"b": nnx.Param(jnp.ones(2))}}), ["a.b"]),
    "a tree in a Variable": (
        {"v": nnx.Variable({"a": jnp.ones(2), "b": jnp.ones(1)})},
        ["v.a", "v.b"],
    ),
    "a Variable alone": (nnx.Param(jnp.ones(2)), [""]),
    "a box of a dataclass": (
        {"v": nnx.Variable(Scale(jnp.ones(2), jnp.ones(1)))},
        ["v.value", "v.bias"],
    ),
}


@pytest.mark.parametrize(("params", "names"), TREES.values(), ids=TREES)
def test_names_are_the_paths_of_the_pure_tree(params, names):
    """A box around a parameter is not in its name; a field called value is."""
    assert sorted(displacements_of(params)) == sorted(names)


@pytest.mark.parametrize(("params", "names"), TREES.values(), ids=TREES)
def test_an_imported_state_has_the_structure_of_the_old(params, names):
    """Boxes with their metadata included, and the values are those that were saved."""
    del names
    state, saved = TX.init(params), saved_for(params)
    new = import_state(state, saved)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    again = export_state(new, 0.1, COOLING)
    assert again.clock == 3
    for name, moves in saved.displacements.items():
        np.testing.assert_array_equal(again.displacements[name], moves.astype("float32"))


def test_names_that_collide_are_refused():
    """The error has the name."""
    state = TX.init({"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(1)})
    with pytest.raises(ValueError, match=r"names of parameters must differ: 'a\.b' twice"):
        export_state(state, 0.1, COOLING)
    with pytest.raises(ValueError, match=r"names of parameters must differ: 'a\.b' twice"):
        import_state(state, PortableState(0, COOLING, 0.1, 0.1, {"a.b": np.ones(1)}))


# --- flax ---------------------------------------------------------------------------------------


class Net(nn.Module):
    """A dense layer whose kernel has names for its axes."""

    partitioned: bool

    @nn.compact
    def __call__(self, x):
        """Forward."""
        init = nn.initializers.lecun_normal()
        if self.partitioned:
            init = nn.with_partitioning(init, (None, "x"))
        return nn.Dense(1, kernel_init=init)(x)


def trained(train, steps, partitioned):
    """A TrainState after more steps of least squares."""
    net = Net(partitioned)

    @jax.jit
    def step(train):
        def loss(params):
            return jnp.mean((net.apply({"params": params}, X) - Y) ** 2)

        return train.apply_gradients(grads=jax.grad(loss)(train.params))

    for _ in range(steps):
        train = step(train)
    return train


@pytest.mark.parametrize("source", [False, True], ids=["plain", "partitioned"])
@pytest.mark.parametrize("target", [False, True], ids=["plain", "partitioned"])
def test_a_train_state_goes_on_with_or_without_partitioning(source, target):
    """The names are the same, and the run is the one that did not stop, to the bit."""
    nets = {boxed: Net(boxed).init(jax.random.key(1), X)["params"] for boxed in (False, True)}

    def make(boxed):
        return TrainState.create(apply_fn=None, params=nets[boxed], tx=TX)

    half = trained(make(source), 7, source)
    saved = export_state(half, 0.1, COOLING)
    assert saved.displacements.keys() == {"Dense_0.kernel", "Dense_0.bias"}
    fresh = make(target)
    moved = jax.tree.unflatten(jax.tree.structure(fresh.params), jax.tree.leaves(half.params))
    resumed = import_state(fresh.replace(params=moved), saved)
    assert jax.tree.structure(resumed.opt_state) == jax.tree.structure(fresh.opt_state)
    resumed, whole = trained(resumed, 9, target), trained(half, 9, source)
    for ours, exact in zip(
        jax.tree.leaves((resumed.params, resumed.opt_state)),
        jax.tree.leaves((whole.params, whole.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, exact)


def nnx_pair(seed=0):
    """A model and its optimizer."""
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(seed))
    return model, nnx.Optimizer(model, TX, wrt=nnx.Param)


@nnx.jit
def nnx_step(model, optimizer):
    """A step of least squares."""
    gradients = nnx.grad(lambda model: jnp.mean((model(X) - Y) ** 2))(model)
    optimizer.update(model, gradients)


def test_an_nnx_optimizer_goes_on_bit_for_bit():
    """Its names are those of the pure tree, and the clock stays a Variable of the optimizer."""
    model, optimizer = nnx_pair()
    for _ in range(7):
        nnx_step(model, optimizer)
    saved = export_state(optimizer.opt_state, 0.1, COOLING)
    pure = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert saved.displacements.keys() == pure.keys() == {"kernel", "bias"}
    other, resumed = nnx_pair(seed=1)
    kind = type(cool_states(resumed.opt_state)[0].count)
    nnx.update(other, nnx.state(model))
    resumed.opt_state = import_state(resumed.opt_state, saved)
    assert type(cool_states(resumed.opt_state)[0].count) is kind is not jax.Array
    for _ in range(9):
        nnx_step(model, optimizer)
        nnx_step(other, resumed)
    assert same(nnx.state(other, nnx.Param), nnx.state(model, nnx.Param))
    assert same(resumed.opt_state, optimizer.opt_state)
    assert float(rho(resumed.opt_state, COOLING)) == float(rho(optimizer.opt_state, COOLING)) > 0


def test_an_nnx_optimizer_takes_the_state_of_a_pure_run():
    """As one tree of arrays exports it."""
    model, optimizer = nnx_pair()
    pure = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    gradient = jax.tree.map(jnp.ones_like, pure)
    params, state = walk(TX, pure, [gradient] * 4)[-1]
    nnx.update(model, params)
    optimizer.opt_state = import_state(optimizer.opt_state, export_state(state, 0.1, COOLING))
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    updates, state = TX.update(gradient, state, params)
    assert same(nnx.to_pure_dict(nnx.state(model)), optax.apply_updates(params, updates))
    assert same(jax.tree.leaves(optimizer.opt_state), jax.tree.leaves(state))


# --- where the state is -------------------------------------------------------------------------

PARAMS = {"w": jnp.ones((2, 3)), "half": jnp.ones(2, jnp.bfloat16), "index": jnp.arange(3)}


@pytest.mark.parametrize("params", [PARAMS, {"w": nn.Partitioned(jnp.ones(2), ("x",))}])
def test_an_abstract_state_gives_a_concrete_one(params):
    """The same as the state at rest does."""
    saved = saved_for(params)
    abstract = jax.eval_shape(TX.init, params)
    new = import_state(abstract, saved)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(new))
    assert jax.tree.structure(new) == jax.tree.structure(abstract)
    assert same(new, import_state(TX.init(params), saved))


def test_an_abstract_state_with_shardings_gives_a_sharded_one():
    """Each array lies where its shape says."""
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("x",), ()))
    place = CoolMomentumState(whole, {"w": split})
    abstract = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        cool_momentum(0.1, 20).init({"w": jnp.ones(4)}),
        place,
    )
    new = import_state(abstract, saved_for({"w": jnp.ones(4)}))
    assert jax.tree.map(lambda x: x.sharding, new) == place


def test_a_traced_state_is_imported_under_jit():
    """To the same bits, in the same dtypes."""
    state, saved = TX.init(PARAMS), saved_for(PARAMS)
    assert same(
        jax.jit(lambda state: import_state(state, saved))(state), import_state(state, saved)
    )


def test_a_traced_state_is_imported_under_jit_in_an_nnx_optimizer():
    """Inside nnx.jit, where the leaves of the Variables are traced."""
    model, optimizer = nnx_pair()
    saved = saved_for(nnx.state(model, nnx.Param))

    @nnx.jit
    def load(optimizer):
        new = import_state(optimizer.opt_state, saved)
        nnx.update(optimizer.opt_state, nnx.state(new))

    expected = import_state(optimizer.opt_state, saved)
    load(optimizer)
    assert same(optimizer.opt_state, expected)


def test_a_host_state_stays_on_the_host():
    """NumPy arrays for NumPy arrays, also of bfloat16; the run goes on as from the device."""
    saved = saved_for(PARAMS)
    on_device = import_state(TX.init(PARAMS), saved)
    on_host = import_state(jax.device_get(TX.init(PARAMS)), saved)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(on_host))
    assert same(on_host, on_device)
    for update in (TX.update, jax.jit(TX.update)):
        assert same(update(PARAMS, on_host, PARAMS), update(PARAMS, on_device, PARAMS))
    assert float(temperature(on_host, 0.1)) == float(temperature(on_device, 0.1))
    assert export_state(on_host, 0.1, COOLING).clock == 3


def test_an_imported_state_is_not_compiled_for_anew():
    """Nor is one of a run that was jitted from its start."""
    tx = cool_momentum(0.1, schedule=COOLING)  # of its own: jit keeps one cache for a function
    update = jax.jit(tx.update)
    _, state = update(PARAMS, tx.init(PARAMS), PARAMS)
    _, state = update(PARAMS, import_state(state, saved_for(PARAMS)), PARAMS)
    assert update._cache_size() == 1
    assert int(cool_states(state)[0].count) == 4


@pytest.mark.parametrize(
    "learning_rate",
    [0.25, 1, np.float32(0.25), np.array(0.25), jnp.asarray(0.25), nnx.Variable(jnp.asarray(0.25))],
    ids=lambda value: type(value).__name__,
)
def test_a_learning_rate_of_any_kind_is_exported_as_a_number(learning_rate):
    """As the optimizer takes it."""
    saved = export_state(TX.init(PARAMS), learning_rate, COOLING)
    expected = 1.0 if learning_rate == 1 else 0.25
    assert (saved.learning_rate, saved.last_learning_rate) == (expected, expected)
    assert type(saved.learning_rate) is float
