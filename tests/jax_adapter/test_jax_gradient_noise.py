"""The gradient noise in JAX: settings, wrappers, what is not known, and what a step pays."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import export
from jax_tools import double

from coolmomentum import CoolingSchedule, learning_rate_from_sgd
from coolmomentum.jax import (
    GradientNoiseState,
    NoisyThermometerState,
    ThermometerState,
    adam_thermometer,
    cool_momentum,
    gradient_thermometer,
    read,
    reset,
    thermometer,
)
from coolmomentum.langevin import step_size
from coolmomentum.thermometer import NOISE_READINGS, GradientNoise, Layout, noise_moments

NOISE = {"gradient_noise": True, "batch_size": 64, "every": 4, "span": 4}
PARAMS = {"layer": {"b": jnp.zeros(2), "w": jnp.zeros((2, 3))}, "scale": jnp.zeros(3)}
HOT = CoolingSchedule(10**6, 0.9, "constant")
CHAINS = {
    "cool": optax.chain(cool_momentum(0.1, schedule=HOT), thermometer(0.1, HOT, **NOISE)),
    "sgd": optax.chain(
        optax.sgd(0.1, 0.9), thermometer(learning_rate_from_sgd(0.1, 0.9), 0.9, **NOISE)
    ),
    "adam": adam_thermometer(optax.adam(0.1), 0.1, **NOISE),
    "first": optax.chain(gradient_thermometer(0.9, 64, every=4), optax.lion(0.1)),
}


def gradients(steps=40, seed=0):
    """Of PARAMS in each step, near 1."""
    random = np.random.default_rng(seed)
    return [
        jax.tree.map(lambda x: 1 + random.normal(0, 0.1, x.shape), PARAMS) for _ in range(steps)
    ]


@functools.cache
def updater(tx):
    """A jitted update: to compile one takes two seconds, so the tests share them."""
    return jax.jit(tx.update)


def walk(tx, given, params=PARAMS, update=None):
    """The state after all steps."""
    state, update = tx.init(params), update or updater(tx)
    for g in given:
        g = jax.tree.map(lambda a, x: jnp.asarray(a, x.dtype), g, params)
        _, state = update(g, state, params)
    return state


def expected(given, rho=lambda n: 0.9, scale=lambda n: 1.0, remembers=True, begin=0):
    """The readings of all parameters after step ``begin``, from the gradients.

    The momentum takes them in by ``rho`` and ``scale``, which are those after so many steps.
    """
    leaves = [jax.tree.leaves(g) for g in given]
    layout = Layout.of(range(len(leaves[0])), [x.size for x in leaves[0]])
    noise, momenta = GradientNoise.empty(np.zeros(len(layout)), 64), [0 * x for x in leaves[0]]
    for n, now in enumerate(leaves):
        if n + 1 > begin and (n + 1) % 4 == 0:
            mean = [(1 - rho(n)) / scale(n - 1) * p for p in momenta] if remembers else None
            triples = zip(now, leaves[n - 1], leaves[n - 2], strict=True)
            noise = noise.add(noise_moments(triples, mean), layout, rho(n))
        momenta = [rho(n) * p + scale(n) * g for p, g in zip(momenta, now, strict=True)]
    return {name: float(x[-1]) for name, x in noise.readings().items()}


def of_noise(state):
    """Those readings alone."""
    reading = read(state)
    return {name: reading[name] for name in NOISE_READINGS}


def near(exact):
    """Within the roundings of tests/contract/test_gradient_noise.py, where noise is 1/100."""
    return pytest.approx(exact, rel=2e-3)


# --- settings -------------------------------------------------------------------------------------


def test_a_learning_rate_of_sgd_that_changes_fast_does_not_matter():
    """The displacements of optax.sgd are its momentum times the learning rate, which it forgets."""
    given = gradients()

    def rate(n):
        return 0.1 / (1 + n)

    def dt2(n):
        return learning_rate_from_sgd(rate(n), 0.9)

    tx = optax.chain(optax.sgd(rate, 0.9), thermometer(dt2, 0.9, **NOISE))
    assert of_noise(walk(tx, given)) == near(expected(given))


def test_a_warm_up_from_0_does_not_matter():
    """A block with a step of learning rate 0 is left out: the first of eleven."""
    given = gradients(44)

    def rate(n):
        return 0.1 * (n >= 3)

    schedule = CoolingSchedule(10**6, 0.9, "constant")
    tx = optax.chain(cool_momentum(rate, schedule=schedule), thermometer(rate, schedule, **NOISE))
    state = walk(tx, given)
    assert int(state[1].noise.noise.counts[0]) == 10
    # The momentum begins with the fourth gradient.
    seen = [*(jax.tree.map(np.zeros_like, g) for g in given[:3]), *given[3:]]
    assert of_noise(state) == near(expected(seen, begin=4))


def test_as_rho_cools_the_gradients_are_the_same():
    """From 0.9 to 0.6: the mean in the momentum counts each gradient with the rho of its steps."""
    given, cooling = gradients(), CoolingSchedule(100, 0.9, "linear")
    tx = optax.chain(cool_momentum(0.1, schedule=cooling), thermometer(0.1, cooling, **NOISE))
    exact = expected(given, cooling, lambda n: -step_size(0.1, cooling(n)))
    assert of_noise(walk(tx, given)) == near(exact)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: thermometer(0.1, 0.9, gradient_noise=True), "batch_size must be given with"),
        (lambda: thermometer(0.1, 0.9, batch_size=8), "batch_size needs gradient_noise=True: 8"),
        (lambda: thermometer(None, 0.9, **NOISE), "learning_rate must be given with"),
        (lambda: thermometer(0.1, None, **NOISE), "rho must be given with gradient_noise=True"),
        (lambda: thermometer(0.1, 0.9, temperature=1.0, **NOISE), "temperature must be None with"),
        (
            lambda: adam_thermometer(optax.adam(0.1), 0.1, **NOISE | {"every": 2}),
            "every must be >=",
        ),
        (lambda: gradient_thermometer(0.9, 0), "batch_size must be >= 1: 0"),
        (lambda: gradient_thermometer(1.0, 8), "rho must be in"),
    ],
)
def test_arguments_are_checked_when_it_is_made(make, error):
    """In one line with name, rule and value."""
    with pytest.raises(ValueError, match=f"^{error}"):
        make()


def test_without_it_the_state_is_the_one_it_was():
    """Two arrays for each parameter, in a state of the same type."""
    _, state = optax.chain(cool_momentum(0.1, schedule=HOT), thermometer(0.1, HOT)).init(PARAMS)
    assert type(state) is ThermometerState
    assert len(jax.tree.leaves(state)) == 3 + 2 * len(jax.tree.leaves(PARAMS))
    noisy = CHAINS["cool"].init(PARAMS)[1]
    assert type(noisy) is NoisyThermometerState
    assert jax.tree.structure(noisy.thermometer) == jax.tree.structure(state)
    assert len(jax.tree.leaves(noisy.noise)) == 5 + 2 * len(jax.tree.leaves(PARAMS))


# --- reading --------------------------------------------------------------------------------------


def test_by_parameter_and_group():
    """By the names of the tree."""
    given = gradients()
    state = walk(CHAINS["cool"], given)
    assert list(read(state, "parameter")) == ["layer/b", "layer/w", "scale"]
    alone = expected([g["scale"] for g in given])
    found = read(state, "parameter")["scale"]
    assert {name: found[name] for name in NOISE_READINGS} == near(alone)
    found = read(state, "group")["layer"]
    both = expected([g["layer"] for g in given])
    assert {name: found[name] for name in NOISE_READINGS} == near(both)


@pytest.mark.parametrize("name", CHAINS)
def test_a_reset_begins_a_window(name):
    """Which reads what its own steps say."""
    update = updater(CHAINS[name])
    state = walk(CHAINS[name], gradients(40), update=update)
    state = reset(state)
    (noise,) = (x for x in jax.tree.leaves(state, is_leaf=is_noise) if is_noise(x))
    assert not noise.noise.sums.any()
    with pytest.warns(UserWarning, match="^no critical_batch_size: 0 steps of this window"):
        assert read(state)["steps"] == 0
    others = gradients(40, seed=1)
    for g in others:
        _, state = update(jax.tree.map(jnp.float32, g), state, PARAMS)
    assert read(state)["steps"] == 40
    exact = expected([*gradients(40), *others], remembers=name != "first", begin=40)
    assert of_noise(state) == near(exact)


def is_noise(x):
    """Whether it is such a state."""
    return isinstance(x, GradientNoiseState)


def test_only_gradients_read_nothing_else():
    """First in the chain it knows no displacements, and says nothing of them."""
    reading = read(walk(CHAINS["first"], gradients()))
    assert reading["steps"] == 40
    assert math.isnan(reading["rescaled_temperature"])
    assert reading["critical_batch_size"] >= 0


def test_two_of_them_are_not_one():
    """As of thermometers; nor are they with a thermometer beside them."""
    two = optax.chain(gradient_thermometer(0.9, 8), gradient_thermometer(0.9, 8))
    for tx in (two, optax.chain(two, thermometer())):
        with pytest.raises(ValueError, match="have the state of one thermometer in it: 2 found"):
            read(tx.init(PARAMS))


def test_one_of_other_parameters_is_another():
    """What a thermometer of one group read would stand beside the noise of another."""
    groups = {
        "measured": optax.chain(optax.sgd(0.1), thermometer(0.1, 0.0)),
        "first": CHAINS["first"],
    }
    labels = dict(zip(PARAMS, groups, strict=False))
    tx = optax.partition(groups, labels)
    with pytest.raises(ValueError, match="must be of the same parameters: read the state of each"):
        read(tx.init({name: PARAMS[name] for name in labels}))


def test_displacements_of_16_bits_are_not_read():
    """What they round away would count as noise."""
    params = jax.tree.map(lambda x: x.astype("bfloat16"), PARAMS)
    state = walk(CHAINS["cool"], gradients(), params, jax.jit(CHAINS["cool"].update))
    with pytest.warns(UserWarning, match=r"^no critical_batch_size: .* not known, in 16 bits$"):
        assert math.isnan(read(state)["gradient_noise"])


def test_a_momentum_below_a_half_is_not_enough():
    """The reading warns and says so."""
    tx = optax.chain(optax.sgd(0.1), thermometer(0.2, 0.0, **NOISE))
    with pytest.warns(UserWarning, match="below 0.5"):
        assert math.isnan(read(walk(tx, gradients()))["critical_batch_size"])


# --- wrappers and compilation ---------------------------------------------------------------------


def test_in_an_optimizer_of_nnx():
    """Whose state is in boxes; a reset leaves it so."""

    class Net(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.zeros(3))

    net, given = Net(), [{"w": g["scale"]} for g in gradients()]
    optimizer = nnx.Optimizer(net, CHAINS["cool"], wrt=nnx.Param)

    @nnx.jit
    def step(net, optimizer, g):
        gradient = nnx.grad(lambda net: jnp.sum(net.w[...] * g))(net)
        optimizer.update(net, gradient)

    for g in given:
        step(net, optimizer, jnp.asarray(g["w"], jnp.float32))
    found, exact = read(optimizer.opt_state), expected(given)
    assert {name: found[name] for name in NOISE_READINGS} == near(exact)
    optimizer.opt_state = reset(optimizer.opt_state)
    for _ in range(4):
        step(net, optimizer, jnp.ones(3))
    with pytest.warns(UserWarning, match="1 steps of this window were measured"):
        assert read(optimizer.opt_state)["steps"] == 4


@pytest.mark.parametrize("name", CHAINS)
def test_under_strict_promotion_in_float64_and_in_a_scan(name):
    """The same readings, more exactly, and no NaN on the way."""
    given = gradients()
    # Adam's own bias correction is not for strict promotion.
    promotion = jax.numpy_dtype_promotion("standard" if name == "adam" else "strict")
    with jax.enable_x64(True), promotion, jax.debug_nans(True):
        params = jax.tree.map(lambda x: x.astype("float64"), PARAMS)
        steps = jax.tree.map(lambda *g: jnp.stack(g), *given)

        def step(state, g):
            return CHAINS[name].update(g, state, params)[1], None

        state, _ = jax.jit(lambda s: jax.lax.scan(step, s, steps))(CHAINS[name].init(params))
        found = of_noise(state)
    assert found == pytest.approx(expected(given, remembers=name != "first"), rel=1e-9)


@pytest.mark.parametrize("name", ["cool", "adam"])
def test_nothing_is_traced_again(name):
    """One trace for measured and other steps, and after a reset."""
    traces = []

    def update(*arguments):
        traces.append(name)
        return CHAINS[name].update(*arguments)

    update = jax.jit(update)
    state = reset(walk(CHAINS[name], gradients(8), update=update))
    update(jax.tree.map(jnp.float32, gradients(1)[0]), state, PARAMS)
    assert traces == [name]


BIG = {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}


@pytest.mark.parametrize("name", ["cool", "sgd", "adam"])
def test_a_step_that_is_not_measured_copies_no_parameter(name):
    """All copies of arrays are in the loops, which few steps enter; all arrays are donated."""
    tx = CHAINS[name]

    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(BIG, tx.init(BIG), BIG)
    executable = lowered.compile()
    entry = re.split(r"\nENTRY ", executable.as_text())[1]
    assert not re.findall(r"= f32\[(?:64,32|32)\]\S* copy\(", entry)
    state = jax.tree.leaves((BIG, tx.init(BIG)))
    missed = sum(x.nbytes for x in state) - executable.memory_analysis().alias_size_in_bytes
    assert 0 <= missed <= 8  # a clock


def test_it_exports_without_callbacks():
    """A state goes through export, by the names of its types."""
    tx = CHAINS["cool"]
    program = export.export(jax.jit(tx.update), platforms=("cpu", "cuda", "tpu"))(
        BIG, tx.init(BIG), BIG
    )
    assert export.deserialize(program.serialize()).in_tree == program.in_tree
    assert "custom_call" not in re.sub(r"loc\(.*?\)|#loc.*", "", program.mlir_module())


@double()
def test_float64_is_not_needed():
    """With x64 on a float32 state stays in float32."""
    params = jax.tree.map(lambda x: x.astype("float32"), PARAMS)
    state = walk(CHAINS["cool"], gradients(4), params, jax.jit(CHAINS["cool"].update))
    assert {x.dtype.name for x in jax.tree.leaves(state)} == {"float32", "int32"}


def test_shards_are_added_up():
    """Under vmap with a named axis each part has the readings of the whole."""
    given = gradients()
    tx = optax.chain(
        cool_momentum(0.1, schedule=HOT), thermometer(0.1, HOT, **NOISE, axis_name="x")
    )
    parts = [jnp.asarray(g["scale"], jnp.float32)[:, None] for g in given]
    params = jnp.zeros((3, 1))
    state = jax.vmap(tx.init)(params)
    update = jax.jit(jax.vmap(tx.update, axis_name="x"))
    for part in parts:
        _, state = update(part, state, params)
    one = jax.tree.map(lambda x: x[0], state)
    found = {name: read(one)[name] for name in NOISE_READINGS}
    assert found == near(expected([g["scale"] for g in given]))
