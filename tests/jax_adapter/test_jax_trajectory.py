"""The trajectories of cool_momentum are those of the paper and of the NumPy oracle."""

import dataclasses
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exact import LAWS
from hypothesis import given, settings
from hypothesis import strategies as st
from jax_tools import double, walk

import coolmomentum.numpy
from coolmomentum import CoolingSchedule, from_temperature
from coolmomentum.jax import CoolMomentumState, cool_momentum, rho

# x_1, x_2, ... on U = x^2 / 2 from x_0 = 1 at rest, as fractions by hand
GOLDEN = {
    "constant": (
        {"learning_rate": 0.1, "total_steps": 9, "rho0": 0.9, "law": "constant"},
        0.0,
        "181/200 29341/40000 4076101/8000000 415196461/1600000000 3146286421/320000000000"
        " -13811263198019/64000000000000",
    ),
    "paper": (
        {"learning_rate": 0.25, "total_steps": 2, "rho0": 0.75},
        0.0,
        "25/32 269/512 1883/4096 13181/32768 92267/262144",
    ),
    "coupled weight decay": (
        {"learning_rate": 0.25, "total_steps": 2, "rho0": 0.75},
        0.5,
        "43/64 653/2048 8489/32768 110357/524288",
    ),
    "linear": (
        {"learning_rate": 0.1, "total_steps": 4, "rho0": 0.9, "law": "linear"},
        0.0,
        "181/200 45731/62000 363899/682000 2798291/8060000 53167529/161200000"
        " 1010183051/3224000000",
    ),
}


def coupled(settings, weight_decay):
    """The optimizer with coupled L2."""
    tx = cool_momentum(**settings)
    return optax.chain(optax.add_decayed_weights(weight_decay), tx) if weight_decay else tx


@pytest.mark.parametrize(("settings", "weight_decay", "exact"), GOLDEN.values(), ids=GOLDEN)
@pytest.mark.parametrize("jit", [True, False])
@double()
def test_golden_rational_trajectories(settings, weight_decay, exact, jit):
    """The rational trajectories come out to a few ulp in float64."""
    tx = coupled(settings, weight_decay)
    x, state = jnp.ones(1), tx.init(jnp.ones(1))
    update = jax.jit(tx.update) if jit else tx.update
    for value in exact.split():
        updates, state = update(x, state, x)
        x = optax.apply_updates(x, updates)
        # numbers of at most 1, a handful of roundings a step, six steps
        assert abs(float(x[0]) - float(Fraction(value))) < 30 * 2**-53


def test_the_first_update_is_the_one_of_the_docstring():
    """With lr 0.25 and rho 0.75 a gradient of 1 moves by -0.21875, and so does the state."""
    tx = cool_momentum(0.25, 2, rho0=0.75)
    updates, state = tx.update(jnp.ones(()), tx.init(jnp.ones(())), jnp.ones(()))
    assert float(updates) == -0.21875
    assert float(state.displacement) == -0.21875
    assert int(state.count) == 1


runs = st.fixed_dictionaries(
    {
        "learning_rate": st.floats(1e-6, 10),
        "total_steps": st.integers(2, 10**7),
        "rho0": st.floats(0, 0.999),
        "law": st.sampled_from(LAWS),
        "warmup_steps": st.integers(0, 1),
        "warmup_clock": st.sampled_from(["run", "hold"]),
    }
)


@given(
    run=runs,
    time=st.floats(0, 1.2),
    shape=st.sampled_from([(), (3,), (2, 3), (0, 4)]),
    scale=st.floats(1e-8, 1e8),
    dtype=st.sampled_from(["float64", "float32", "complex128"]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_one_step_from_anywhere_is_the_step_of_the_oracle(run, time, shape, scale, dtype, seed):
    """From any displacement at any step: float64 to a few ulp, float32 to the 1e-6 of its rho."""
    random = np.random.default_rng(seed)
    dx, g, x = (scale * random.standard_normal(shape).astype(dtype) for _ in range(3))
    if dtype == "complex128":
        dx, g = dx * (1 + 2j), g * (2 - 1j)
    n = int(time * run["total_steps"])
    oracle = coolmomentum.numpy.CoolMomentum(**run)
    wide = np.float64 if dtype == "float32" else dtype
    _, exact = oracle.step(
        [x.astype(wide)], [g.astype(wide)], oracle.init([])._replace(step=n, displacements=(dx,))
    )
    with double():
        tx = cool_momentum(
            run["learning_rate"],
            run["total_steps"],
            run["rho0"],
            law=run["law"],
            warmup_steps=run["warmup_steps"],
            warmup_clock=run["warmup_clock"],
        )
        state = CoolMomentumState(jnp.asarray(n, jnp.int32), jnp.asarray(dx))
        updates, after = tx.update(jnp.asarray(g), state, jnp.asarray(x))
    assert updates.dtype == after.displacement.dtype == dtype
    assert after.count.dtype == jnp.int32
    np.testing.assert_array_equal(updates, after.displacement)
    # Two terms. float64: rho differs by the two expm1 or tanh (4 eps), then 4 roundings.
    # float32: rho and the step size are right to 1e-6, then 4 roundings of 6e-8.
    size = np.abs(dx).astype("float64") + run["learning_rate"] * np.abs(g).astype("float64")
    bound = 8 * 2**-52 if dtype != "float32" else 1.3e-6
    assert np.all(np.abs(np.asarray(updates) - exact.displacements[0]) <= bound * size)


def trajectory_of_oracle(optimizer, x, gradients, learning_rates=None):
    """Parameter and displacement of the NumPy reference after the gradients."""
    params, state = [x], optimizer.init([x])
    for n, g in enumerate(gradients):
        if learning_rates is not None:
            optimizer = dataclasses.replace(optimizer, learning_rate=learning_rates(n))
        params, state = optimizer.step(params, [g], state)
    return params[0], state.displacements[0]


@pytest.mark.parametrize("law", LAWS)
@double()
def test_a_float64_run_is_the_run_of_the_oracle(law):
    """A hundred steps through the end of the cooling end where the oracle's end, to rounding."""
    gradients = np.random.default_rng(1).standard_normal((100, 5))
    oracle = coolmomentum.numpy.CoolMomentum(learning_rate=0.1, total_steps=80, rho0=0.95, law=law)
    x, dx = trajectory_of_oracle(oracle, np.ones(5), gradients)
    params, state = walk(cool_momentum(0.1, 80, 0.95, law=law), jnp.ones(5), gradients)[-1]
    # 8 eps a step on displacements below 10, a hundred steps, summed up 20-fold by the momentum
    np.testing.assert_allclose(params, x, rtol=0, atol=8 * 2**-52 * 10 * 100 * 20)
    np.testing.assert_allclose(state.displacement, dx, rtol=0, atol=8 * 2**-52 * 10 * 20)


@double()
def test_a_learning_rate_schedule_acts_inside_the_displacement():
    """The rate of each step is the schedule's at the clock, as for an oracle told so each step."""
    rates = optax.cosine_decay_schedule(0.1, decay_steps=50)
    gradients = np.random.default_rng(2).standard_normal((40, 5))
    oracle = coolmomentum.numpy.CoolMomentum(total_steps=30, rho0=0.9)
    exact = trajectory_of_oracle(
        oracle, np.ones(5), gradients, lambda n: 0.05 * (1 + np.cos(np.pi * n / 50))
    )
    params, state = walk(cool_momentum(rates, 30, 0.9), jnp.ones(5), gradients)[-1]
    np.testing.assert_allclose(params, exact[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(state.displacement, exact[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "schedule",
    [
        CoolingSchedule(30, 0.9, "linear", warmup_steps=4),
        from_temperature(lambda step: 1 + 18 * 0.9**step),
        lambda step: 0.9 * (1 - step / 100),
    ],
    ids=["CoolingSchedule", "from_temperature", "callable"],
)
@double()
def test_schedules_of_the_user_equal_the_oracle_with_them(schedule):
    """In float64, although int32 / int is float32 in JAX."""
    gradients = np.random.default_rng(3).standard_normal((40, 5))
    oracle = coolmomentum.numpy.CoolMomentum(learning_rate=0.1, schedule=schedule)
    exact = trajectory_of_oracle(oracle, np.ones(5), gradients)
    params, state = walk(cool_momentum(0.1, schedule=schedule), jnp.ones(5), gradients)[-1]
    np.testing.assert_allclose(params, exact[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(state.displacement, exact[1], rtol=0, atol=1e-14)


def test_after_the_last_step_it_is_sgd_with_half_the_rate():
    """The displacement is forgotten, exactly."""
    tx = cool_momentum(0.5, 3)
    state = CoolMomentumState(jnp.asarray(3, jnp.int32), jnp.full(2, 7.0))
    updates, _ = tx.update(jnp.array([1.0, -2.0]), state, jnp.zeros(2))
    assert updates.tolist() == [-0.25, 0.5]


@pytest.mark.parametrize("n", [0, 1, 4_999_999, 5_000_000, 9_999_000, 9_999_999, 10_000_000])
@pytest.mark.parametrize("law", LAWS)
def test_float32_rho_is_right_in_a_run_of_ten_million_steps(law, n):
    """With x64 off the factor of the displacement is within 1e-6 of the exact rho, 0 at the end."""
    schedule = CoolingSchedule(10**7, 0.99, law)
    state = CoolMomentumState(jnp.asarray(n, jnp.int32), jnp.ones(()))
    tx = cool_momentum(0.1, schedule=schedule)
    factor, _ = jax.jit(tx.update)(jnp.zeros(()), state)
    assert factor.dtype == jnp.float32
    assert abs(float(factor) - schedule(n)) < 1e-6  # of Python floats: exact to 1e-15
    assert float(factor) == float(jax.jit(rho, static_argnums=1)(state, schedule))
    if law != "constant":
        assert (float(factor) == 0) == (n == 10**7)


def test_the_clock_saturates_and_rho_stays_0():
    """At 2**31 - 1 steps the clock stands and the run goes on as SGD."""
    tx = cool_momentum(0.5, 10)
    state = CoolMomentumState(jnp.asarray(2**31 - 1, jnp.int32), jnp.ones(()))
    for _ in range(3):
        updates, state = tx.update(jnp.ones(()), state)
        assert int(state.count) == 2**31 - 1
        assert float(updates) == -0.25


@pytest.mark.parametrize(
    ("dtype", "digits"), [("bfloat16", 8), ("float16", 11), ("float8_e5m2", 3)]
)
def test_low_precision_is_for_storing_not_for_computing(dtype, digits):
    """An update is the exact one rounded once to the dtype of the parameters."""
    random = np.random.default_rng(5)
    dx, g = (jnp.asarray(random.standard_normal(1000), dtype) for _ in range(2))
    tx = cool_momentum(0.1, 100)
    updates, state = tx.update(g, CoolMomentumState(jnp.asarray(50, jnp.int32), dx), dx)
    assert updates.dtype == state.displacement.dtype == dtype
    wide_dx, wide_g = np.asarray(dx, "float64"), np.asarray(g, "float64")
    exact = 0.9 * wide_dx - 0.1 * 1.9 / 2 * wide_g  # rho is 0.9 at half time
    error = np.abs(np.asarray(updates, "float64") - exact)
    # half a unit in the last place, and of the smallest normal number of float8, 2**-14
    half = 2.0**-digits * np.maximum(np.abs(exact), 2.0**-14)
    assert np.all(error <= half + 1e-6 * (np.abs(wide_dx) + np.abs(wide_g)))


def test_a_float32_accumulator_follows_float32_to_the_end():
    """With accumulator_dtype bfloat16 parameters have the displacements of float32 ones."""
    gradients = [jnp.asarray(g, jnp.bfloat16) for g in np.linspace(-1, 1, 30)]
    tx = cool_momentum(0.1, 30, accumulator_dtype="float32")
    low = walk(tx, jnp.ones((), jnp.bfloat16), gradients)[-1][1].displacement
    full = walk(cool_momentum(0.1, 30), jnp.ones(()), gradients)[-1][1].displacement
    assert low.dtype == jnp.float32
    assert float(low) == float(full)


@double()
def test_a_complex_parameter_walks_as_its_two_real_parts():
    """Nothing mixes the real and the imaginary part."""
    random = np.random.default_rng(6)
    gradients = random.standard_normal((20, 3)) + 1j * random.standard_normal((20, 3))
    tx = cool_momentum(0.1, 15)
    both, _ = walk(tx, jnp.zeros(3, complex), gradients)[-1]
    np.testing.assert_allclose(both.real, walk(tx, jnp.zeros(3), gradients.real)[-1][0], rtol=1e-13)
    np.testing.assert_allclose(both.imag, walk(tx, jnp.zeros(3), gradients.imag)[-1][0], rtol=1e-13)
