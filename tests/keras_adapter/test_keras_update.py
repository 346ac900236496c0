"""The step: exact trajectories, the float64 oracle, Keras' own SGD, dtypes, missing gradients."""

import math

import exact
import keras
import numpy as np
import pytest
from exact import LAWS, RHO_ROUNDINGS, U32, U64
from keras import ops
from keras_tools import (
    BACKEND,
    SHAPES,
    bound,
    follow,
    gradients,
    numpy,
    oracle_run,
    variables,
)
from trajectories import AUTHORS, RATIONAL

from coolmomentum import CoolingSchedule, from_temperature
from coolmomentum.keras import CoolMomentum

COUPLED = [golden for golden in RATIONAL if not golden.weight_decay]  # Keras' decay is decoupled


def quadratic(optimizer, steps, dtype):
    """The parameter, from 1, after each step on the loss x**2 / 2."""
    (x,) = variables([np.ones(1)], dtype)
    trajectory = []
    for _ in range(steps):
        optimizer.apply([ops.convert_to_tensor(numpy(x))], [x])
        trajectory.append(float(numpy(x)[0]))
    return trajectory


@pytest.mark.parametrize("golden", COUPLED, ids=lambda golden: golden.name)
def test_rational_trajectories(golden, floatx):
    """Trajectories A, B and C, within the running bound of the dtype.

    Beyond the roundings of rho, 8 units for the expm1 and tanh of the backends.
    """
    lr, rho0 = float(golden.learning_rate), float(golden.rho0)
    optimizer = CoolMomentum(lr, golden.total_steps, rho0, law=golden.law)
    unit = U32 if floatx == "float32" else U64
    bounds = exact.trajectory_bounds(
        golden.rhos,
        [1, *golden.xs],
        learning_rate=lr,
        slope=1.0,
        rho_errors=[(RHO_ROUNDINGS[golden.law] + 8) * unit * float(rho) for rho in golden.rhos],
        u=unit,
    )
    ours = quadratic(optimizer, len(golden.xs), floatx)
    for x, expected, close in zip(ours, golden.xs, bounds, strict=True):
        assert x == pytest.approx(float(expected), rel=0, abs=close)
    assert int(optimizer.iterations) == len(golden.xs)


@pytest.mark.parametrize("golden", AUTHORS, ids=lambda golden: golden.name)
def test_the_authors_trajectories(golden, float64):
    """The optimizer walks as the three released classes of the authors did, in float64.

    Six steps, below 40 roundings of numbers below 1; Keras' tanh gives float32 on JAX.
    """
    unit = U32 if BACKEND == "jax" and golden.law == "exponential" else U64
    optimizer = CoolMomentum(0.1, golden.total_steps, float(golden.rho0), law=golden.law)
    ours = quadratic(optimizer, len(golden.printed), "float64")
    np.testing.assert_allclose(ours, golden.printed, rtol=0, atol=40 * unit)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("warmup", [(0, "run"), (4, "run"), (4, "hold")])
def test_it_is_the_oracle(law, warmup, floatx):
    """Through a warm-up and past S, for shapes 0-d, empty and large, with decoupled decay.

    The decay is 1/8 because Keras rounds it to float32.
    """
    cooling = {
        "total_steps": 20,
        "rho0": 0.95,
        "law": law,
        "warmup_steps": warmup[0],
        "warmup_clock": warmup[1],
    }
    starts, grads = gradients(1, seed=1)[0], gradients(30)
    params = variables(starts)
    optimizer = CoolMomentum(0.01, weight_decay=0.125, **cooling)
    follow(optimizer, params, grads)
    decay = {"weight_decay": 0.125, "decoupled_weight_decay": True}
    xs, state = oracle_run(starts, grads, learning_rate=0.01, **cooling, **decay)
    # Keras' tanh gives float32 on JAX, whatever it is given.
    narrow = floatx == "float32" or (BACKEND == "jax" and law == "exponential")
    unit = U32 if narrow else U64
    readings = zip(params, xs, optimizer._displacements, state.displacements, strict=True)
    for param, x, displacement, dx in readings:
        assert keras.backend.standardize_dtype(param.dtype) == floatx
        largest = np.abs(dx).max(initial=0) + 0.01 * 500  # gradients are below 500
        size = 1000 + np.abs(x).max(initial=0)
        np.testing.assert_allclose(
            numpy(param), x, rtol=0, atol=bound(30, size, largest, 0.95, unit)
        )
        np.testing.assert_allclose(
            numpy(displacement), dx, rtol=0, atol=30 * 12 * unit * largest / 0.05
        )
    assert int(optimizer.iterations) == state.step == 30


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_half_precision_computes_in_float32(dtype, weight):
    """Parameter and displacement are each rounded once, from float32 arithmetic."""
    rng = np.random.default_rng(0)
    (x,) = variables([rng.standard_normal(1000) * weight], dtype)
    g = ops.cast(ops.convert_to_tensor(rng.standard_normal(1000)), dtype)
    optimizer = CoolMomentum(0.01, 10, 0.999)
    schedule = CoolingSchedule(10, 0.999)
    epsilon = 2.0**-7 if dtype == "bfloat16" else 2.0**-10
    for n in range(12):
        before = numpy(x), numpy(optimizer._displacements[0]) if n else np.zeros(1000, np.float32)
        optimizer.apply([g], [x])
        rho = np.float32(schedule(n))
        moved = rho * before[1] - np.float32(0.01) * (1 + rho) / 2 * numpy(g)
        # A rounding to the stored dtype is wrong by half an epsilon; rounding inside the step would
        # add as much again. What float32 does differently is 8 roundings of 2**-24.
        for result, expected in ((optimizer._displacements[0], moved), (x, before[0] + moved)):
            assert keras.backend.standardize_dtype(result.dtype) == dtype
            close = epsilon / 2 * np.abs(expected) + 8 * U32 + 2.0**-25  # float16 underflows
            assert np.all(np.abs(numpy(result) - expected) <= close)


def test_gradients_may_have_another_dtype():
    """A float32 variable takes a float16 gradient, and a float64 one a float32 gradient."""
    params = variables([np.ones(3)], "float32") + variables([np.ones(3)], "float16")
    optimizer = CoolMomentum(0.5, 10)
    grads = [ops.cast([1.0, 2.0, 3.0], "float16"), ops.convert_to_tensor([1.0, 2.0, 3.0])]
    optimizer.apply(grads, params)
    expected = 1 - 0.5 * 1.99 / 2 * np.array([1, 2, 3])
    np.testing.assert_allclose(numpy(params[0]), expected, rtol=0, atol=8 * U32)
    np.testing.assert_allclose(numpy(params[1]), expected, rtol=0, atol=2.0**-11)


@pytest.mark.parametrize("momentum", [0.0, 0.875])  # exact: Keras rounds it to float32
@pytest.mark.parametrize("weight_decay", [None, 0.125])
def test_the_constant_law_is_sgd(momentum, weight_decay, floatx):
    """With rho0 = m it is Keras' SGD with learning rate lr (1 + m) / 2.

    Decay is by the learning rate, so the coefficient has to be scaled as well: it is rounded to
    float32, and makes that difference to every step.
    """
    starts, grads = gradients(1, seed=1)[0], gradients(40)
    ours, theirs = variables(starts), variables(starts)
    factor = (1 + momentum) / 2
    cool = CoolMomentum(0.02, 9, momentum, law="constant", weight_decay=weight_decay)
    sgd = keras.optimizers.SGD(
        0.02 * factor, momentum=momentum, weight_decay=weight_decay and weight_decay / factor
    )
    follow(cool, ours, grads)
    follow(sgd, theirs, grads)
    unit = U32 if floatx == "float32" else U64
    for our, their in zip(ours, theirs, strict=True):
        size = 1000 + np.abs(numpy(their)).max(initial=0)
        close = 2 * bound(40, size, 500 * 0.02 / (1 - momentum), momentum, unit)
        if weight_decay:
            close += 40 * 0.02 * weight_decay * U32 * size
        np.testing.assert_allclose(numpy(our), numpy(their), rtol=0, atol=close)


def test_after_the_last_step_it_is_sgd_with_half_the_learning_rate():
    """From S on dx = -lr / 2 g, whatever dx was; a clock that has wrapped is at its start."""
    (x,) = variables([np.ones(1)])
    optimizer = CoolMomentum(0.5, 10)
    optimizer.build([x])
    for clock, expected in ((10, -0.75), (10**9, -0.75), (2**31 - 2, -0.75), (-5, 0.99 * 7)):
        optimizer._iterations.assign(clock)
        optimizer._displacements[0].assign([7.0])
        x.assign([1.0])
        optimizer.apply([ops.convert_to_tensor([3.0 if expected < 0 else 0.0])], [x])
        assert float(numpy(x)[0]) == pytest.approx(1 + expected, rel=4 * U32)


def test_a_parameter_without_a_gradient_is_not_touched():
    """None leaves parameter and displacement as they are, weight decay or not; the clock ticks."""
    params = variables([np.ones(2), np.ones(3)])
    optimizer = CoolMomentum(0.1, 10, weight_decay=0.5)
    follow(optimizer, params, [[np.ones(2), np.ones(3)]])
    before = numpy(params[1]), numpy(optimizer._displacements[1])
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([ops.ones(2), None], params)
    assert int(optimizer.iterations) == 2
    assert np.all(numpy(params[0]) < 0.9)
    np.testing.assert_array_equal(numpy(params[1]), before[0])
    np.testing.assert_array_equal(numpy(optimizer._displacements[1]), before[1])


def test_no_gradients_at_all():
    """An empty list is no step, and a list of None is Keras' error."""
    params = variables([np.ones(2)])
    optimizer = CoolMomentum(0.1, 10)
    optimizer.build(params)
    optimizer.apply([], [])
    assert int(optimizer.iterations) == 0
    with pytest.raises(ValueError, match="No gradients provided for any variable"):
        optimizer.apply([None], params)
    assert int(optimizer.iterations) == 0


def test_the_state_is_one_array_a_variable():
    """Besides clock, learning rate and four numbers there is one displacement for each variable."""
    params = variables([np.zeros(shape) for shape in SHAPES]) + variables([np.zeros(2)], "bfloat16")
    optimizer = CoolMomentum(0.1, 10)
    optimizer.build(params)
    assert len(optimizer.variables) == 6 + len(params)
    for displacement, param in zip(optimizer.variables[6:], params, strict=True):
        assert tuple(displacement.shape) == tuple(param.shape)
        assert displacement.dtype == param.dtype
        assert displacement.path == f"cool_momentum/{param.path}_displacement"
    optimizer.build(params)  # a second time is no new state
    assert len(optimizer.variables) == 6 + len(params)


def test_a_variable_that_keras_overwrites_has_no_state():
    """As in Keras' own optimizers: the scales of float8 layers, which their gradient replaces."""
    params = variables([np.ones(2), np.ones(2)])
    params[0].overwrite_with_gradient = True
    optimizer = CoolMomentum(0.5, 10)
    follow(optimizer, params, [[np.full(2, 3.0), np.ones(2)]])
    np.testing.assert_array_equal(numpy(params[0]), [3.0, 3.0])
    np.testing.assert_allclose(numpy(params[1]), 1 - 0.5 * 1.99 / 2, rtol=4 * U32)
    assert len(optimizer.variables) == 7
    overwritten, moved = optimizer.temperatures().values()
    assert math.isnan(overwritten)
    assert optimizer.temperature() == moved > 0


@pytest.mark.parametrize(
    "schedule",
    [
        lambda n: ops.where(n < 2, 0.5, -0.25),
        lambda n: 0.75,
        lambda n: 0.5 / (1 + n),
        from_temperature(lambda n: 1 + 2 / (1 + n)),
    ],
    ids=["tensor", "number", "quotient", "temperature"],
)
def test_a_schedule_may_be_any_callable(schedule):
    """It gets the clock, as a number that goes with Python's, and gives the rho of each step."""
    (x,) = variables([np.zeros(())])
    optimizer = CoolMomentum(1.0, schedule=schedule)
    assert optimizer.schedule is schedule
    optimizer.build([x])
    for n in range(4):
        optimizer._displacements[0].assign(1.0)
        optimizer.apply([ops.zeros(())], [x])
        moved = float(numpy(optimizer._displacements[0]))  # of 1, without gradient
        assert moved == pytest.approx(float(schedule(n)), rel=4 * U32)


def test_keras_asks_for_variables_it_knows():
    """A variable that it was not built with is refused by name, and nothing changes."""
    known, unknown = variables([np.ones(2)]), variables([np.ones(2)])
    optimizer = CoolMomentum(0.1, 10)
    optimizer.build(known)
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([ops.ones(2)], unknown)
    assert int(optimizer.iterations) == 0


def test_update_step_alone_is_a_step_of_one_variable():
    """Called by itself, as a subclass of Keras' optimizer may, it takes a plain learning rate."""
    x, y = variables([np.ones(2), np.ones(2)])
    one, other = CoolMomentum(0.25, 2, 0.75), CoolMomentum(0.25, 2, 0.75)
    one.build([x])
    one.update_step(ops.ones(2), x, one.learning_rate)
    other.apply([ops.ones(2)], [y])
    np.testing.assert_array_equal(numpy(x), numpy(y))
    assert numpy(x)[0] == 25 / 32
