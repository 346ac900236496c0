"""The reference optimizer: golden trajectories, its contract, and an SGD it must equal."""

import math
import pickle
import re

import exact
import numpy as np
import pytest
from exact import COOLING_LAWS, LAWS, ONE_OF_LAWS, RHO_ROUNDINGS, U32, U64
from frameworks import framework
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from trajectories import AUTHORS, RATIONAL

from coolmomentum import CoolingSchedule
from coolmomentum.numpy import CoolMomentum, State

torch, jnp = framework("torch"), framework("jax.numpy")


def run(optimizer, params, gradient, steps, state=None):
    """The positions after each step, and the last state; ``gradient(x, n)`` of each array."""
    state, positions = state or optimizer.init(params), []
    for n in range(state.step, state.step + steps):
        params, state = optimizer.step(params, [gradient(x, n) for x in params], state)
        positions.append(params)
    return positions, state


# --- golden trajectories --------------------------------------------------------------------------


def rho_errors(rhos, law, rho0, total_steps):
    """Error of each float64 rho: its roundings, and the rounding of rho0 by the exact law."""
    errors = []
    for n, rho in enumerate(rhos):
        by_rho0 = exact.rho(law, n, total_steps, float(rho0)) - exact.rho(law, n, total_steps, rho0)
        errors.append(abs(float(by_rho0)) + RHO_ROUNDINGS[law] * U64 * float(rho))
    return errors


@pytest.mark.parametrize("golden", RATIONAL, ids=lambda golden: golden.name)
def test_rational_trajectories(library, dtype, golden):
    """Trajectories A, B, B' and C on every library, within the running bound of its dtype."""
    rho0, lr, wd = (float(x) for x in (golden.rho0, golden.learning_rate, golden.weight_decay))
    schedule = {"total_steps": golden.total_steps, "rho0": rho0, "law": golden.law}
    optimizer = CoolMomentum(learning_rate=lr, weight_decay=wd, **schedule)
    start = [library.array([1.0], dtype=dtype)]
    positions, state = run(optimizer, start, lambda x, n: x, len(golden.xs))
    bounds = exact.trajectory_bounds(
        golden.rhos,
        [1, *golden.xs],
        learning_rate=lr,
        slope=1 + wd,
        rho_errors=rho_errors(golden.rhos, golden.law, golden.rho0, golden.total_steps),
        u=U32 if dtype == "float32" else U64,
    )
    for (x,), expected, bound in zip(positions, golden.xs, bounds, strict=True):
        assert library.owns(x)
        assert library.dtype_name(x) == dtype
        assert float(x[0]) == pytest.approx(float(expected), rel=0, abs=bound)
    assert state.step == len(golden.xs)


@pytest.mark.parametrize("golden", AUTHORS, ids=lambda golden: golden.name)
def test_the_authors_trajectories(golden):
    """With dt**2 = 0.1 the optimizer walks as the three released classes of the authors did.

    Both are float64 runs, so twice the running bound.
    """
    optimizer = CoolMomentum(
        learning_rate=0.1, total_steps=golden.total_steps, rho0=float(golden.rho0), law=golden.law
    )
    positions, _ = run(optimizer, [np.asarray(1.0)], lambda x, n: x, len(golden.printed))
    rhos = [
        exact.rho(golden.law, n, golden.total_steps, golden.rho0)
        for n in range(len(golden.printed))
    ]
    bounds = exact.trajectory_bounds(
        rhos,
        [1, *golden.printed],
        learning_rate=0.1,
        slope=1.0,
        rho_errors=rho_errors(rhos, golden.law, golden.rho0, golden.total_steps),
        u=U64,
    )
    for (x,), expected, bound in zip(positions, golden.printed, bounds, strict=True):
        assert float(x) == pytest.approx(expected, rel=0, abs=2 * bound)


def test_temperature_of_the_last_step():
    """The readings are Eq. 22 of the state's displacements, with and without dt**2, pooled."""
    state = State(1, (np.asarray([3.0, 0.0]), np.asarray(4.0)))
    optimizer = CoolMomentum(learning_rate=0.25, total_steps=9)
    assert float(optimizer.rescaled_temperature(state)) == pytest.approx(25 / 3, rel=2 * U64)
    assert float(optimizer.temperature(state)) == pytest.approx(100 / 3, rel=2 * U64)


# --- momentum SGD ---------------------------------------------------------------------------------


def momentum_sgd(x, gradients, *, lr, momentum):
    """The textbook's momentum SGD, with its velocity in units of the gradient."""
    velocity = np.zeros_like(x)
    for g in gradients:
        velocity = momentum * velocity + g
        x = x - lr * velocity
    return x


@given(
    gradients=hnp.arrays(np.float64, (8, 3), elements=st.floats(-1e3, 1e3)),
    momentum=st.floats(0, 0.999),
    lr=st.floats(1e-6, 10),
)
def test_the_constant_law_is_momentum_sgd(gradients, momentum, lr):
    """With rho0 = m it is SGD with learning rate lr (1 + m) / 2, for any gradients.

    In 8 steps each x is a sum of at most 8 * 9 / 2 terms below lr max|g|, each with fewer than 20
    roundings on either side.
    """
    optimizer = CoolMomentum(learning_rate=lr, total_steps=3, rho0=momentum, law="constant")
    positions, _ = run(optimizer, [np.ones(3)], lambda x, n: gradients[n], 8)
    expected = momentum_sgd(np.ones(3), gradients, lr=lr * (1 + momentum) / 2, momentum=momentum)
    size = 1 + 36 * lr * np.max(np.abs(gradients))
    np.testing.assert_allclose(positions[-1][0], expected, rtol=0, atol=2 * 20 * U64 * size)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"maximize": True}], ids=str)
def test_the_constant_law_is_torch_sgd(options):
    """It walks as torch.optim.SGD does, with coupled weight decay and maximize as well."""
    rng = np.random.default_rng(1)
    gradients = rng.standard_normal((50, 4))
    optimizer = CoolMomentum(learning_rate=0.1, total_steps=3, rho0=0.9, law="constant", **options)
    positions, _ = run(optimizer, [np.ones(4)], lambda x, n: gradients[n], 50)
    x = torch.ones(4, dtype=torch.float64, requires_grad=True)
    sgd = torch.optim.SGD([x], lr=0.1 * 1.9 / 2, momentum=0.9, **options)
    for g in gradients:
        x.grad = torch.asarray(g)
        sgd.step()
    # An error of a step lives for 1 / (1 - 0.9) steps: 50 * 10 terms below 1, 20 roundings, twice.
    np.testing.assert_allclose(positions[-1][0], x.detach().numpy(), rtol=0, atol=2e4 * U64)


def test_after_the_last_step_it_is_sgd_with_half_the_learning_rate():
    """From step S on rho is 0: dx = -lr / 2 g, whatever the displacement was."""
    optimizer = CoolMomentum(learning_rate=0.5, total_steps=10)
    state = State(10, (np.asarray([7.0]),))
    (x,), state = optimizer.step([np.asarray([1.0])], [np.asarray([3.0])], state)
    assert (x[0], state.displacements[0][0], state.step) == (0.25, -0.75, 11)


# --- the contract ---------------------------------------------------------------------------------


def test_a_parameter_without_a_gradient_is_not_touched():
    """None leaves parameter and displacement as they are, weight decay or not; the clock ticks."""
    optimizer = CoolMomentum(learning_rate=0.1, total_steps=10, weight_decay=0.5)
    params = [np.ones(2), np.ones(3)]
    state = State(4, (np.full(2, 0.5), np.full(3, 0.5)))
    (moved, still), after = optimizer.step(params, [np.ones(2), None], state)
    assert after.step == 5
    assert np.all(moved != 1.0)
    np.testing.assert_array_equal(still, params[1])
    np.testing.assert_array_equal(after.displacements[1], state.displacements[1])


@pytest.mark.parametrize("gradients", [[None, None], []])
def test_the_clock_counts_applied_steps(gradients):
    """A step without any gradient, or without parameters, is none."""
    optimizer = CoolMomentum(learning_rate=0.1, total_steps=10)
    params = [np.ones(2)] * len(gradients)
    after, state = optimizer.step(params, gradients, optimizer.init(params))
    assert state.step == 0
    assert len(after) == len(gradients)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("warmup_steps", "clock"), [(0, "run"), (2, "run"), (2, "hold")])
def test_rho_follows_the_clock(law, warmup_steps, clock):
    """The step n = 0, 1, ... uses rho of the schedule at n: read before the step is taken."""
    settings = (12, 0.8, law, warmup_steps, clock)
    names = ("total_steps", "rho0", "law", "warmup_steps", "warmup_clock")
    optimizer = CoolMomentum(learning_rate=1.0, **dict(zip(names, settings, strict=True)))
    schedule = CoolingSchedule(*settings)
    x, state = [np.zeros(())], State(0, (np.ones(()),))
    for n in range(15):
        assert optimizer.rho(state) == schedule(n)
        _, after = optimizer.step(x, [np.zeros(())], state)
        assert float(after.displacements[0]) == schedule(n)  # of a displacement 1 without gradient
        state = State(after.step, state.displacements)


def test_a_schedule_may_be_any_callable():
    """A callable step -> rho stands in for the laws."""
    optimizer = CoolMomentum(learning_rate=1.0, schedule=lambda n: 0.5 if n < 3 else -0.25)
    assert [optimizer.rho(State(n, ())) for n in range(5)] == [0.5, 0.5, 0.5, -0.25, -0.25]


def test_nothing_passed_in_is_changed():
    """Read-only parameters, gradients and displacements are fine, and the results are new."""
    arrays = [np.ones(3), np.full(3, 2.0), np.full(3, 0.5)]
    for x in arrays:
        x.flags.writeable = False
    x, g, dx = arrays
    for options in ({}, {"weight_decay": 0.1}, {"maximize": True}):
        optimizer = CoolMomentum(learning_rate=0.1, total_steps=10, **options)
        state = State(2, (dx,))
        (new,), after = optimizer.step([x], [g], state)
        assert not np.shares_memory(new, x)
        assert not np.shares_memory(after.displacements[0], dx)
        assert state == State(2, (dx,))


@pytest.mark.parametrize("stop", [0, 1, 7, 19])
def test_a_pickled_state_resumes_bit_for_bit(library, stop):
    """A run that is saved and resumed at any step is the run that was not."""
    optimizer = CoolMomentum(learning_rate=0.1, total_steps=15, warmup_steps=3, weight_decay=0.01)
    start = [library.array([1.0, -2.0], dtype="float32"), library.array(0.5, dtype="float32")]

    def gradient(x, n):
        return x * (1 + n % 3)

    whole, end = run(optimizer, start, gradient, 20)
    half, state = run(optimizer, start, gradient, stop)
    optimizer, params, state = pickle.loads(
        pickle.dumps((optimizer, half[-1] if half else start, state))
    )
    rest, resumed = run(optimizer, params, gradient, 20 - stop, state)
    assert resumed.step == end.step == 20
    final = zip((*rest[-1], *resumed.displacements), (*whole[-1], *end.displacements), strict=True)
    for x, expected in final:
        np.testing.assert_array_equal(np.asarray(x), np.asarray(expected))


@pytest.mark.parametrize("xp", [torch, jnp], ids=["torch", "jax"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_parameters_keep_their_dtype(xp, dtype):
    """Parameter and displacement stay in half precision, each step rounded once from float32."""
    half = getattr(xp, dtype)
    optimizer = CoolMomentum(learning_rate=0.3, total_steps=7)
    params = [xp.asarray([1.0, -0.7, 0.3], dtype=half)]
    state = optimizer.init(params)
    for n in range(5):
        wide = [xp.asarray(x, dtype=xp.float32) for x in (params[0], state.displacements[0])]
        rho = optimizer.rho(state)
        moved = rho * wide[1] - 0.3 * ((1 + rho) / 2) * wide[0]
        params, state = optimizer.step(params, params, state)
        assert state.step == n + 1
        for result, expected in ((params[0], wide[0] + moved), (state.displacements[0], moved)):
            assert result.dtype == half
            assert bool(xp.all(result == xp.asarray(expected, dtype=half)))


@pytest.mark.parametrize(("lengths"), [(2, 1, 2), (1, 2, 2), (2, 2, 1)], ids=str)
def test_lists_of_different_lengths_are_refused(lengths):
    """Parameters, gradients and displacements belong together."""
    params, gradients, displacements = ([np.ones(2)] * n for n in lengths)
    message = "params, gradients and displacements must be equally many: {}, {} and {}"
    with pytest.raises(ValueError, match=message.format(*lengths)):
        CoolMomentum(total_steps=9).step(params, gradients, State(0, tuple(displacements)))


# --- settings of every kind -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [np.float32, np.float64, np.array, lambda x: jnp.asarray(x), lambda x: torch.tensor(x)],
    ids=["float32", "float64", "array", "jax", "torch"],
)
def test_numbers_of_a_library_are_stored_as_plain_ones(library, number):
    """They walk as the float they are, to the last bit, also on another library's arrays."""
    values = {"learning_rate": 0.1, "rho0": 0.9, "weight_decay": 0.25}
    given = {name: number(value) for name, value in values.items()}
    if number is not np.float32 and number is not np.float64:
        given["rho0"] = 0.9  # a schedule takes arrays as they are
    plain = {name: float(value) for name, value in given.items()}
    start = [library.array([1.0, -2.0], dtype="float32")]
    ends = []
    for settings in (given, plain):
        optimizer = CoolMomentum(total_steps=np.int64(5), **settings)
        assert all(type(getattr(optimizer, name)) is float for name in settings)
        assert type(optimizer.total_steps) is int
        params, _ = run(optimizer, start, lambda x, n: x, 4)
        assert library.owns(params[-1][0])
        ends.append(np.asarray(params[-1][0]))
    np.testing.assert_array_equal(*ends)


def test_a_held_run_is_one_that_was_held_and_then_cooled():
    """The constant law needs no total_steps; the state goes to an optimizer with hold_steps."""
    start = [np.array([1.0, -2.0])]
    for law in COOLING_LAWS:
        told = CoolMomentum(0.1, total_steps=12, rho0=0.9, law=law, hold_steps=5)
        held = CoolMomentum(0.1, rho0=0.9, law="constant")
        positions, _ = run(told, start, lambda x, n: x * (n + 1), 14)
        half, state = run(held, start, lambda x, n: x * (n + 1), 5)
        rest, _ = run(told, half[-1], lambda x, n: x * (n + 1), 9, state)
        np.testing.assert_array_equal([x for (x,) in half + rest], [x for (x,) in positions])
        assert told.rho(State(4, ())) == 0.9
        assert told.rho(State(12, ())) == 0


@pytest.mark.parametrize("law", COOLING_LAWS)
def test_the_largest_totals(law):
    """Held for all but one step of 2**31 - 1, and cooled in that one."""
    optimizer = CoolMomentum(total_steps=2**31 - 1, rho0=0.75, law=law, hold_steps=2**31 - 2)
    assert [optimizer.rho(State(n, ())) for n in (0, 10**9, 2**31 - 3)] == [0.75] * 3
    assert optimizer.rho(State(2**31 - 2, ())) == pytest.approx(0.75, abs=1e-15)
    assert optimizer.rho(State(2**31 - 1, ())) == 0


# --- temperatures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("learning_rate", [0.0, 0.1])
def test_the_temperature_is_0_before_the_first_step(library, learning_rate):
    """Whatever the learning rate."""
    optimizer = CoolMomentum(learning_rate=learning_rate, total_steps=5)
    params = [library.array([1.0, -2.0], dtype="float32"), library.array(0.5, dtype="float32")]
    state = optimizer.init(params)
    assert float(optimizer.temperature(state)) == 0
    assert {i: float(t) for i, t in optimizer.temperatures(state).items()} == {0: 0, 1: 0}


def test_a_step_with_learning_rate_0_has_no_temperature():
    """An error that says so, and no number."""
    optimizer = CoolMomentum(learning_rate=0.0, total_steps=5)
    for read in (optimizer.temperature, optimizer.temperatures):
        with pytest.raises(ValueError, match=r"learning_rate must be finite and > 0: 0\.0"):
            read(State(1, (np.ones(2),)))


def test_temperatures_are_those_of_each_parameter(library):
    """By index; pooled by their coordinates they are the temperature."""
    optimizer = CoolMomentum(learning_rate=0.5, total_steps=5)
    state = State(3, (library.array([1.0, -2.0], dtype="float32"), library.array(3.0, "float32")))
    assert {i: float(t) for i, t in optimizer.temperatures(state).items()} == {0: 5, 1: 18}
    assert float(optimizer.temperature(state)) == pytest.approx((2 * 5 + 18) / 3, rel=1e-6)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([np.ones(2), np.array([1, 2])], r"params[1] must be a floating array: array([1, 2])"),
        ([1.0], "params[0] must be a floating array: 1.0"),
        (np.array([1.0]), "params must be a list of arrays: array([1.])"),
    ],
    ids=["integers", "numbers", "no list"],
)
def test_what_cannot_move_is_refused_at_the_start(params, message):
    """Not with an error of the array library in the first step."""
    with pytest.raises(TypeError, match=re.escape(message)):
        CoolMomentum(total_steps=9).init(params)


@pytest.mark.parametrize("gradient", [[1.0, 2.0], np.array([1, 2])], ids=["list", "integers"])
def test_what_is_no_gradient_is_refused(gradient):
    """By its number."""
    optimizer = CoolMomentum(total_steps=9)
    params = [np.ones(2)]
    with pytest.raises(TypeError, match=r"gradients\[0\] must be a floating array or None: "):
        optimizer.step(params, [gradient], optimizer.init(params))


def test_a_gradient_of_another_shape_is_refused():
    """Even where it could be broadcast."""
    optimizer = CoolMomentum(total_steps=9)
    params = [np.ones(2), np.ones((3, 2))]
    message = re.escape("gradients[1] must have the shape (3, 2): (2,)")
    with pytest.raises(ValueError, match=message):
        optimizer.step(params, [None, np.ones(2)], optimizer.init(params))
    with pytest.raises(
        ValueError, match=re.escape("displacements[0] must have the shape (2,): (1, 2)")
    ):
        optimizer.step(params[:1], [np.ones(2)], State(0, (np.ones((1, 2)),)))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"learning_rate": -0.1}, ValueError, "learning_rate must be finite and >= 0: -0.1"),
        ({"learning_rate": math.inf}, ValueError, "learning_rate must be finite and >= 0: inf"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate must be finite and >= 0: nan"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate must be a real number: 'fast'"),
        ({"learning_rate": None}, TypeError, "learning_rate must be a real number: None"),
        ({"learning_rate": True}, TypeError, "learning_rate must be a real number: True"),
        ({"learning_rate": 1j}, TypeError, "learning_rate must be a real number: 1j"),
        ({"rho0": 1.0}, ValueError, "rho0 must be in [0, 1): 1.0"),
        ({"rho0": -0.5}, ValueError, "rho0 must be in [0, 1): -0.5"),
        ({"total_steps": 0}, ValueError, "total_steps must be >= 1: 0"),
        ({"total_steps": 2.5}, TypeError, "total_steps must be an integer: 2.5"),
        (
            {"total_steps": None},
            TypeError,
            "total_steps is required: the optimizer steps over which rho cools to 0"
            " (or pass a schedule)",
        ),
        ({"warmup_steps": -1}, ValueError, "warmup_steps must be >= 0: -1"),
        ({"warmup_steps": 10}, ValueError, "warmup_steps must be < total_steps = 10: 10"),
        (
            {"law": "cosine"},
            ValueError,
            f"{ONE_OF_LAWS}: 'cosine'",
        ),
        ({"warmup_clock": "stop"}, ValueError, "warmup_clock must be one of run, hold: 'stop'"),
        ({"weight_decay": -1}, ValueError, "weight_decay must be finite and >= 0: -1"),
        ({"weight_decay": []}, TypeError, "weight_decay must be a real number: []"),
        ({"maximize": 1}, TypeError, "maximize must be True or False: 1"),
        (
            {"decoupled_weight_decay": "yes"},
            TypeError,
            "decoupled_weight_decay must be True or False: 'yes'",
        ),
        (
            {"schedule": 0.9},
            TypeError,
            "schedule must be a CoolingSchedule or a function of the step (law names a law): 0.9",
        ),
        ({"schedule": lambda n: 1.0}, ValueError, "schedule(0) must be in [-1, 1): 1.0"),
        ({"schedule": lambda n: n}, ValueError, "schedule(5) must be in [-1, 1): 5"),
        ({"schedule": lambda n: "x"}, TypeError, "schedule(0) must be a real number: 'x'"),
        (
            {"schedule": lambda n: 0.5, "total_steps": -3},
            ValueError,
            "total_steps must be >= 1: -3",
        ),
        (
            {"schedule": lambda n: 0.5, "total_steps": "x"},
            TypeError,
            "total_steps must be an integer: 'x'",
        ),
    ],
)
def test_bad_settings_fail_when_the_optimizer_is_made(settings, error, message):
    """The message has the argument, the rule and the value."""
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        CoolMomentum(**{"total_steps": 10} | settings)


def test_settings_are_keywords():
    """An optimizer is not made by position."""
    with pytest.raises(TypeError, match="positional"):
        CoolMomentum(0.1, 100)


def test_a_complex_gradient_of_a_real_parameter_is_refused():
    """Its imaginary part would be lost."""
    optimizer = CoolMomentum(total_steps=9)
    params = [np.ones(2)]
    with pytest.raises(
        TypeError, match=r"^gradients\[0\] must be real, as params\[0\] is: complex"
    ):
        optimizer.step(params, [np.ones(2) + 2j], optimizer.init(params))
