"""What XLA makes of a train step: its cost, its memory, its compilations, and exports to TPU."""

import gc
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from jax_tools import double, same

from coolmomentum import CoolingSchedule
from coolmomentum.jax import (
    _kept,
    cool_momentum,
    per_leaf,
    rho,
    step_size,
    temperature,
    thermometer,
)

SCHEDULE = CoolingSchedule(100)
TX = cool_momentum(0.1, schedule=SCHEDULE)
PARAMS = {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}
SIZE = 4 * (64 * 32 + 32)  # bytes of the parameters


def stepper(tx, read=lambda state: None):
    """A train step with its gradients given; what ``read`` gives is thrown away."""

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        read(state)
        return optax.apply_updates(params, updates), state

    return step


def compiled(step, params=PARAMS, tx=TX, **options):
    """The step as an executable."""
    return jax.jit(step, **options).lower(params, tx.init(params), params).compile()


def cost(step, tx=TX):
    """Flops and bytes that XLA counts."""
    analysis = compiled(step, tx=tx).cost_analysis()
    return analysis["flops"], analysis["bytes accessed"]


def read_all(state):
    """Every reading there is."""
    return (
        temperature(state, 0.1),
        per_leaf(temperature, state, 0.1),
        rho(state, SCHEDULE),
        step_size(state, 0.1, SCHEDULE),
    )


def test_a_step_that_nobody_reads_pays_nothing():
    """Thrown away, the readings cost no flop and no byte; returned, a sum of squares."""
    plain = cost(stepper(TX))
    assert cost(stepper(TX, read_all)) == plain

    def with_reading(params, state, gradients):
        params, state = stepper(TX)(params, state, gradients)
        return params, state, temperature(state, 0.1)

    assert cost(with_reading)[0] > plain[0] + SIZE / 4  # the control: a flop an element at least


def test_a_step_costs_what_one_of_optax_sgd_costs():
    """But for scalars and a choice: the same passes over parameters, gradients and momentum."""
    sgd = optax.sgd(0.1, momentum=0.9)
    flops, memory = cost(stepper(TX))
    sgd_flops, sgd_memory = cost(stepper(sgd), tx=sgd)
    assert flops - sgd_flops - SIZE / 4 < 100  # XLA counts the choice of each update as a flop
    assert memory - sgd_memory < 400


def test_a_donated_step_makes_no_copy():
    """Parameters and displacements are updated in place; without donation they are not."""
    memory = compiled(stepper(TX), donate_argnums=(0, 1)).memory_analysis()
    assert memory.alias_size_in_bytes == 2 * SIZE + 4  # parameters, displacements and clock
    assert memory.temp_size_in_bytes < 200  # scalars
    copied = compiled(stepper(TX)).memory_analysis()
    assert copied.alias_size_in_bytes == 0


def loops(step, params, tx):
    """How many loops over arrays the donated step is compiled to, and copies of arrays."""
    text = compiled(step, params, tx, donate_argnums=(0, 1)).as_text()
    entry = text[text.index("\nENTRY") :]
    results = re.findall(r"= \w+\[(\d[\d,]*)\]\S* (\w+)\(", entry)
    return Counter(kind for _, kind in results if kind != "parameter")


@pytest.mark.parametrize("leaves", [1, 3])
def test_a_leaf_is_two_loops_as_in_optax_sgd(leaves):
    """One makes the displacement, one the parameter: on the CPU, XLA makes no two in one loop."""
    params = {f"layer {i}": jnp.ones((8, i + 2)) for i in range(leaves)}
    sgd = optax.sgd(0.1, momentum=0.9)
    assert loops(stepper(TX), params, TX) == {"fusion": 2 * leaves}
    assert loops(stepper(sgd), params, sgd) == {"fusion": 2 * leaves}


def test_the_addition_of_updates_has_a_scalar_in_its_loop():
    """XLA's emitter for a bare addition on the CPU takes an eighth longer; optax.sgd has none."""
    text = compiled(stepper(TX), donate_argnums=(0, 1)).as_text()
    kernel = r" = f32\[64,32\]\S* "
    added = [loop for loop in text.split("\n\n") if re.search(f"ROOT .*{kernel}add", loop)]
    assert len(added) == 1  # the loop of the displacement subtracts
    assert re.search(f"{kernel}select", added[0])


def test_what_is_known_of_the_updates_ends_with_their_trace():
    """A thermometer finds the displacement of an update by it; it keeps no tracer alive."""
    tx = optax.chain(TX, thermometer(0.1, SCHEDULE))
    jax.jit(stepper(tx)).lower(PARAMS, tx.init(PARAMS), PARAMS)
    gc.collect()
    assert not _kept._CHOSEN


def test_nothing_is_known_of_the_updates_of_a_step_that_raised():
    """Whose trace nobody clears, and whose tracers hold one another."""

    def broken(gradients, state, params):
        updates, state = TX.update(gradients, state, params)
        optax.apply_updates(params, updates)
        raise RuntimeError("after the update")

    with pytest.raises(RuntimeError, match="after the update"):
        jax.jit(broken).lower(PARAMS, TX.init(PARAMS), PARAMS)
    gc.collect()
    assert not _kept._CHOSEN


def test_the_choice_is_taken_at_any_count():
    """Whatever a state that somebody made says: eager and compiled steps are the same."""
    state = TX.init(PARAMS)._replace(count=jnp.asarray(-1, jnp.int32))
    updates, _ = jax.jit(TX.update)(PARAMS, state, PARAMS)
    expected, _ = TX.update(PARAMS, state, PARAMS)
    for found, eager in zip(*map(jax.tree.leaves, (updates, expected)), strict=True):
        np.testing.assert_allclose(found, eager, rtol=1e-6)
        assert np.all(np.asarray(found) != 0)


def test_outside_of_jit_the_update_is_the_displacement():
    """There is no choice to be made where nothing is compiled."""
    updates, state = TX.update(PARAMS, TX.init(PARAMS), PARAMS)
    assert same(updates, state.displacement)
    assert not _kept._CHOSEN


def test_a_donated_state_is_gone():
    """And the step that donated it is the step that did not."""
    params, state = jax.tree.map(jnp.copy, (PARAMS, TX.init(PARAMS)))
    kept = jax.jit(stepper(TX))(params, state, PARAMS)
    moved = jax.jit(stepper(TX), donate_argnums=(0, 1))(params, state, PARAMS)
    assert all(x.is_deleted() for x in jax.tree.leaves((params, state)))
    assert same(moved, kept)


@pytest.mark.parametrize(
    "learning_rate", [0.1, optax.cosine_decay_schedule(0.1, 10)], ids=["constant", "schedule"]
)
@pytest.mark.parametrize("params", [PARAMS, jnp.ones(())], ids=["tree", "scalar"])
def test_nothing_is_traced_again_while_rho_cools(params, learning_rate):
    """One trace for a run through the end of the cooling."""
    tx = cool_momentum(learning_rate, 5)
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        return stepper(tx)(params, state, params)

    state = tx.init(params)
    for _ in range(10):
        params, state = step(params, state)
    assert len(traces) == 1
    assert int(state.count) == 10


# --- export -------------------------------------------------------------------------------------


def train_step(params, state, x, y):
    """Forward, backward and update of a small network, with a temperature."""

    def loss(params):
        hidden = jnp.tanh(x @ params["kernel"] + params["bias"])
        return jnp.mean((hidden - y) ** 2)

    value, gradients = jax.value_and_grad(loss)(params)
    updates, state = TX.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    return params, state, value, temperature(state, 0.1)


def arguments(dtype="float32"):
    """Of the train step."""
    params = jax.tree.map(lambda x: x.astype(dtype) / 10, PARAMS)
    return params, TX.init(params), jnp.ones((8, 64), dtype), jnp.ones((8, 32), dtype)


def stablehlo(exported):
    """The program without the names of places in the source, which may say anything."""
    return re.sub(r"loc\(.*?\)|#loc.*", "", exported.mlir_module())


def tells(text):
    """What a TPU must not find in a program."""
    return {
        "float64": bool(re.search(r"\bf64\b|xf64\b", text)),
        "callback": "custom_call" in text or "infeed" in text or "outfeed" in text,
        "dynamic shape": bool(re.search(r"tensor<[^>]*\?|stablehlo\.dynamic_", text)),
    }


CLEAN = {"float64": False, "callback": False, "dynamic shape": False}
PLATFORMS = ("cpu", "cuda", "tpu")


def exported(f, *args):
    """The program for every platform."""
    return export.export(jax.jit(f), platforms=PLATFORMS)(*args)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_train_step_exports_for_cpu_cuda_and_tpu(dtype):
    """Its StableHLO has no float64, no host callback and no dynamic shape."""
    program = exported(train_step, *arguments(dtype))
    assert program.platforms == PLATFORMS
    assert tells(stablehlo(program)) == CLEAN


@double()
def test_with_x64_on_a_float32_step_still_has_no_float64():
    """Neither rho nor a learning-rate schedule brings one in (of optax' own, cosine would)."""
    tx = cool_momentum(optax.linear_schedule(0.1, 0.0, 50), schedule=SCHEDULE)
    params = jax.tree.map(lambda x: x.astype("float32"), PARAMS)
    step = stepper(tx, read_all)
    text = stablehlo(exported(lambda p, s: (step(p, s, p), read_all(s)), params, tx.init(params)))
    assert not tells(text)["float64"]


def test_the_tells_are_seen_where_they_are():
    """The control: programs with each of them."""
    with double():
        wide = exported(stepper(TX), *[jnp.ones(3), TX.init(jnp.ones(3)), jnp.ones(3)])
    assert tells(stablehlo(wide)) == {**CLEAN, "float64": True}

    def calls_back(x):
        jax.debug.callback(lambda x: None, x)
        return x

    # not exported: JAX lowers no callback for a TPU on a host without one
    text = jax.jit(calls_back).lower(jnp.ones(3)).as_text()
    assert tells(text) == {**CLEAN, "callback": True}

    batch = jax.ShapeDtypeStruct(export.symbolic_shape("b, 3"), jnp.float32)
    assert tells(stablehlo(exported(lambda x: x + 1, batch)))["dynamic shape"]


def test_an_exported_step_can_be_saved_and_run():
    """The state's named tuple is known to jax.export; the result is the jitted step's."""
    pytest.importorskip("flatbuffers", reason="jax.export writes its files with flatbuffers")
    program = export.deserialize(exported(train_step, *arguments()).serialize())
    result = program.call(*arguments())
    assert type(result[1]) is type(TX.init(PARAMS))
    assert same(result, jax.jit(train_step)(*arguments()))
