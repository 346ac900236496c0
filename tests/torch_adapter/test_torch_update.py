"""The update of the PyTorch adapter: against the oracle, exact trajectories and torch.optim.SGD."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from exact import LAWS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_tools import draw, oracle_of

from coolmomentum import CoolingSchedule, from_temperature, rescaled_temperature
from coolmomentum.numpy import CoolMomentum as Oracle
from coolmomentum.torch import CoolMomentum

PATHS = {
    "default": {},
    "one by one": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
}
path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
law = pytest.mark.parametrize("law", LAWS)


def quadratic(steps, **settings):
    """The parameter, from 1, after each step on the loss x**2 / 2 in float64."""
    x = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    optimizer = CoolMomentum([x], **settings)
    trajectory = []
    for _ in range(steps):
        x.grad = x.detach().clone()
        optimizer.step()
        trajectory.append(x.item())
    return trajectory


# Exact rational trajectories of U = x**2 / 2, x_0 = 1, worked out by hand from Eqs 14, 16, 20, 21.
EXACT = {
    "A: constant": (
        {"lr": 0.1, "rho0": 0.9, "total_steps": 6, "law": "constant"},
        "181/200 29341/40000 4076101/8000000 415196461/1600000000 3146286421/320000000000 "
        "-13811263198019/64000000000000",
    ),
    "B: paper": (
        {"lr": 0.25, "rho0": 0.75, "total_steps": 2},
        "25/32 269/512 1883/4096 13181/32768 92267/262144",
    ),
    "B': coupled weight decay": (
        {"lr": 0.25, "rho0": 0.75, "total_steps": 2, "weight_decay": 0.5},
        "43/64 653/2048 8489/32768 110357/524288",
    ),
    "C: linear": (
        {"lr": 0.1, "rho0": 0.9, "total_steps": 4, "law": "linear"},
        "181/200 45731/62000 363899/682000 2798291/8060000 53167529/161200000 "
        "1010183051/3224000000",
    ),
}


@path
@pytest.mark.parametrize(("settings", "exact"), EXACT.values(), ids=EXACT.keys())
def test_exact_trajectories(path, settings, exact):
    """Every path follows the rational trajectory to the rounding of a few float64 steps."""
    expected = [float(Fraction(x)) for x in exact.split()]
    # Each of at most 6 steps rounds some 5 numbers of size <= 1, and rho0 = 0.9 itself is rounded.
    ours = quadratic(len(expected), **settings, **path)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=40 * 2**-53)


def test_the_authors_linear_schedule():
    """Trajectory C is the output of the authors' `Coollin`, printed in their own precision."""
    authors = [0.905, 0.7375967741935484, 0.5335762463343109, 0.34718250620347396]
    authors += [0.3298233808933003, 0.3133322118486353]
    ours = quadratic(6, lr=0.1, rho0=0.9, total_steps=4, law="linear")
    np.testing.assert_allclose(ours, authors, rtol=0, atol=40 * 2**-53)


def gradients(shapes, steps, dtype, seed=0):
    """Random gradients over many scales, for every step and parameter."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape):
        scale = 10.0 ** torch.randint(-3, 3, (), generator=generator)
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    return [[draw(shape) for shape in shapes] for _ in range(steps)]


def follow(params, optimizer, grads):
    """Step through given gradients."""
    for step_grads in grads:
        for param, grad in zip(params, step_grads, strict=True):
            param.grad = grad
        optimizer.step()


SHAPES = [(3, 4), (), (0,), (1,), (1000,), (5, 1, 17)]
ORACLE_SETTINGS = ["weight_decay", "decoupled_weight_decay", "maximize"]


def compare_with_oracle(dtype, steps=30, **settings):
    """Parameters and displacements of a run, and those of the oracle in float64."""
    grads = gradients(SHAPES, steps, dtype)
    params = [g.clone().requires_grad_() for g in gradients(SHAPES, 1, dtype, seed=1)[0]]
    xs = [p.detach().double().numpy().copy() for p in params]
    cooling = {"total_steps": 20, "lr": 0.01, "rho0": 0.95} | {
        name: settings.pop(name) for name in ("law", "warmup_steps") if name in settings
    }
    optimizer = CoolMomentum(params, **cooling, **settings)
    follow(params, optimizer, grads)
    oracle = oracle_of(**cooling, **{k: v for k, v in settings.items() if k in ORACLE_SETTINGS})
    state = oracle.init(xs)
    for step_grads in grads:
        xs, state = oracle.step(xs, [g.double().numpy() for g in step_grads], state)
    return optimizer, params, xs, state


@path
@law
@pytest.mark.parametrize(
    "decay",
    [
        {},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
        {"weight_decay": 0.1, "maximize": True},
    ],
    ids=["no decay", "coupled", "decoupled", "maximize"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_path_is_the_oracle(path, law, decay, dtype):
    """Past S and through a warm-up, every path gives the oracle's parameters and displacements."""
    optimizer, params, xs, state = compare_with_oracle(
        dtype, law=law, warmup_steps=3, **path, **decay
    )
    eps = torch.finfo(dtype).eps
    # Rounding: each of 30 steps makes at most 6 roundings of numbers no larger than the largest
    # gradient (500), decayed by rho <= 0.95, so that at most 20 steps of them are remembered in a
    # displacement (times eta = 0.01) and all 30 in a parameter (of size <= 1000).
    for param, x, dx in zip(params, xs, state.displacements, strict=True):
        size = 1 + np.abs(x).max(initial=0)
        np.testing.assert_allclose(param.detach().double(), x, rtol=0, atol=180 * eps * size)
        moved = optimizer.state[param]["displacement"].double()
        size = np.abs(dx).max(initial=0) + 500 * 0.01
        np.testing.assert_allclose(moved, dx, rtol=0, atol=20 * 6 * eps * size)
    assert int(optimizer.param_groups[0]["cooling_step"]) == state.step == 30


@path
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("displacement_dtype", [None, torch.float32])
def test_half_precision_computes_in_float32(path, dtype, displacement_dtype):
    """One step rounds parameter and displacement once each, from float32 arithmetic."""
    generator = torch.Generator().manual_seed(0)
    for size in (1, 15, 16, 17, 1000):  # a vector register of bfloat16 holds 16
        x, g = (torch.randn(size, generator=generator).to(dtype) for _ in range(2))
        param = x.clone().requires_grad_()
        settings = {"lr": 0.01, "total_steps": 10, "weight_decay": 0.1, "rho0": 0.999}
        optimizer = CoolMomentum([param], **settings, displacement_dtype=displacement_dtype, **path)
        moved = torch.zeros(size, dtype=displacement_dtype or dtype)
        x = x.clone()
        for n in range(12):
            param.grad = g
            optimizer.step()
            rho = float(np.float32(CoolingSchedule(10, 0.999)(n)))
            slope = g.float() + 0.1 * x.float()
            dx = rho * moved.float() - 0.01 * (1 + rho) / 2 * slope
            # A float32 result next to the middle of two bfloat16 or float16 numbers may fall either
            # way, by one unit of the stored dtype; more would be rounding inside the step.
            unit = torch.finfo(dtype).eps
            torch.testing.assert_close(
                param.detach(), (x.float() + dx).to(dtype), rtol=unit, atol=1e-7
            )
            x, moved = param.detach().clone(), optimizer.state[param]["displacement"].clone()
            torch.testing.assert_close(
                moved, dx.to(moved.dtype), rtol=torch.finfo(moved.dtype).eps * 4, atol=1e-7
            )
        assert moved.dtype == (displacement_dtype or dtype)


@path
def test_rho_and_clock_can_be_read(path):
    """``rho`` and ``"cooling_rho"`` are what the next step will use; no key is called momentum."""
    param = torch.zeros(3, requires_grad=True)
    optimizer = CoolMomentum([param], total_steps=4, rho0=0.9, **path)
    schedule = CoolingSchedule(4, 0.9)
    group = optimizer.param_groups[0]
    for n in range(6):
        assert int(group["cooling_step"]) == n
        # capturable keeps a float32 on the device
        assert float(group["cooling_rho"]) == pytest.approx(schedule(n), abs=1e-7 if path else 0)
        param.grad = torch.ones(3)
        optimizer.step()
    assert not any("momentum" in name for name in group)


@path
def test_schedules_of_groups(path):
    """Each group cools by its own schedule, law, length, object or callable, on one clock."""
    cases = [
        ({"total_steps": 5, "rho0": 0.5}, CoolingSchedule(5, 0.5)),
        ({"law": "linear"}, CoolingSchedule(10, 0.9, law="linear")),
        (
            {"schedule": CoolingSchedule(8, 0.8, warmup_steps=2)},
            CoolingSchedule(8, 0.8, "paper", 2),
        ),
        ({"schedule": lambda n: 0.25 + 0 * n}, lambda n: 0.25),
        ({"schedule": from_temperature(lambda n: 3 + 0 * n)}, lambda n: 0.5),
    ]
    params = [torch.zeros(2, requires_grad=True) for _ in cases]
    groups = [{"params": [p]} | own for p, (own, _) in zip(params, cases, strict=True)]
    optimizer = CoolMomentum(groups, total_steps=10, rho0=0.9, **path)
    for n in range(12):
        for group, (_, schedule) in zip(optimizer.param_groups, cases, strict=True):
            assert int(group["cooling_step"]) == n
            assert float(group["cooling_rho"]) == pytest.approx(schedule(n), abs=1e-7)
        for param in params:
            param.grad = torch.ones(2)
        optimizer.step()


def test_learning_rate_acts_on_new_gradients_only():
    """A change of lr leaves the displacement as it is: dx = rho dx - lr (1 + rho) / 2 g."""
    param = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = CoolMomentum([param], lr=1.0, total_steps=9, rho0=0.5, law="constant")
    follow([param], optimizer, [[torch.ones(1, dtype=torch.float64)]])
    optimizer.param_groups[0]["lr"] = 0.0
    follow([param], optimizer, [[torch.ones(1, dtype=torch.float64)]])
    assert param.item() == -0.75 - 0.375


def test_tiny_learning_rates_keep_their_digits():
    """The fused kernel is left where it would lose eta: 1 - (1 - 1e-12) is 1.00009e-12."""
    for lr in (1e-3, 1e-7, 1e-12, 1e-18):
        param = torch.zeros(64, requires_grad=True)
        optimizer = CoolMomentum([param], lr=lr, total_steps=9, rho0=0.0, fused=True)
        follow([param], optimizer, [[torch.ones(64)]])
        np.testing.assert_allclose(param.detach(), -lr / 2, rtol=2**-22)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(PATHS)),
    st.sampled_from([torch.float64, torch.float32]),
    st.sampled_from(LAWS),
    st.floats(1e-6, 1.0),
    st.floats(0.0, 0.999),
    st.integers(1, 30),
    st.integers(0, 2**31),
)
def test_any_setting_is_the_oracle(path, dtype, law, lr, rho0, total_steps, seed):
    """Whatever the hyperparameters, a path and the oracle differ by rounding."""
    steps = 12
    grads = gradients([(7,), (2, 3)], steps, dtype, seed)
    params = [torch.zeros(s, dtype=dtype, requires_grad=True) for s in [(7,), (2, 3)]]
    xs = [p.detach().double().numpy().copy() for p in params]
    cooling = {"lr": lr, "total_steps": total_steps, "rho0": rho0, "law": law}
    optimizer = CoolMomentum(params, **cooling, **PATHS[path])
    follow(params, optimizer, grads)
    oracle = oracle_of(**cooling)
    state = oracle.init(xs)
    for step_grads in grads:
        xs, state = oracle.step(xs, [g.double().numpy() for g in step_grads], state)
    # Nothing is larger than lr times the sum of |g| over all pairs of steps.
    size = lr * steps**2 * max(float(g.abs().max()) for gs in grads for g in gs)
    for param, x in zip(params, xs, strict=True):
        bound = 6 * steps * torch.finfo(dtype).eps * size
        np.testing.assert_allclose(param.detach().double(), x, rtol=0, atol=bound)


# --- the temperature ----------------------------------------------------------------------------


@path
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_temperature_is_the_mean_squared_change(path, dtype):
    """Eq. 22 over all parameters, and over each, from the changes of the parameters themselves."""
    optimizer, params, _, _ = compare_with_oracle(dtype, **path)
    moved = [optimizer.state[p]["displacement"].double().numpy() for p in params]
    # Squares of float32 numbers, summed in float32 over 1,000 elements.
    rtol = 1e-13 if dtype is torch.float64 else 1000 * 2**-24
    expected = float(rescaled_temperature(moved))
    assert float(optimizer.rescaled_temperature()) == pytest.approx(expected, rel=rtol)
    assert float(optimizer.temperature()) == pytest.approx(expected / 0.01, rel=rtol)
    for i, dx in enumerate(moved):
        one = np.mean(dx**2) if dx.size else 0.0
        assert float(optimizer.rescaled_temperatures()[i]) == pytest.approx(one, rel=rtol)
        assert float(optimizer.temperatures()[i]) == pytest.approx(one / 0.01, rel=rtol)


def test_temperature_of_groups_counts_coordinates():
    """Groups are pooled by their coordinates, each in units of its own learning rate."""
    a, b = torch.zeros(1, requires_grad=True), torch.zeros(3, requires_grad=True)
    optimizer = CoolMomentum(
        [{"params": [a], "lr": 0.5}, {"params": [b], "lr": torch.tensor([[0.25]])}],
        total_steps=2,
        rho0=0.0,
    )
    a.grad, b.grad = torch.full((1,), 4.0), torch.full((3,), 8.0)
    optimizer.step()  # dx = -lr / 2 g = -1
    assert float(optimizer.rescaled_temperature()) == 1.0
    assert float(optimizer.temperature()) == (2 + 3 * 4) / 4
    assert {i: float(t) for i, t in optimizer.temperatures().items()} == {0: 2.0, 1: 4.0}


def test_temperature_of_complex_parameters_has_two_coordinates_each():
    """A complex number walks in a plane: its mean squared displacement is that of two numbers."""
    z = torch.zeros(2, dtype=torch.complex64, requires_grad=True)
    optimizer = CoolMomentum([z], lr=1.0, total_steps=2, rho0=0.0)
    z.grad = torch.tensor([6 + 8j, 0j], dtype=torch.complex64)
    optimizer.step()
    assert float(optimizer.rescaled_temperature()) == 25 / 4


def test_temperature_before_the_first_step_is_zero():
    """At rest, and with nothing that has moved, the temperature is 0."""
    optimizer = CoolMomentum([torch.zeros(2, requires_grad=True)], total_steps=2)
    assert float(optimizer.temperature()) == float(optimizer.rescaled_temperature()) == 0.0
    assert list(map(float, optimizer.temperatures().values())) == [0.0]


@path
def test_temperature_divides_by_the_learning_rate_of_its_step(path):
    """A scheduler that has already set the next learning rate does not change the reading."""
    param = torch.zeros(2, requires_grad=True)
    optimizer = CoolMomentum([param], lr=0.5, total_steps=2, rho0=0.0, **path)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0 if n == 0 else 0.0)
    param.grad = torch.full((2,), 4.0)
    optimizer.step()  # dx = -1
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.0
    assert float(optimizer.temperature()) == 2.0


def test_a_parameter_that_has_met_no_gradient_is_at_rest():
    """It is trainable, so its coordinates count, with displacements of zero: as in the oracle."""
    params = [torch.zeros(2, requires_grad=True) for _ in "ab"]
    params[0].grad = torch.ones(2)
    optimizer = CoolMomentum(params, lr=1.0, total_steps=2, rho0=0.0)
    optimizer.step()
    oracle = Oracle(learning_rate=1.0, total_steps=2, rho0=0.0)
    xs = [np.zeros(2), np.zeros(2)]
    _, state = oracle.step(xs, [np.ones(2), None], oracle.init(xs))
    assert float(optimizer.temperature()) == float(oracle.temperature(state)) == 0.125


def test_temperature_leaves_out_what_is_frozen():
    """A parameter that no longer trains keeps its last displacement but does not walk."""
    a, b = (torch.zeros(1, requires_grad=True) for _ in "ab")
    optimizer = CoolMomentum([a, b], lr=1.0, total_steps=9, rho0=0.0)
    follow([a, b], optimizer, [[torch.ones(1), torch.full((1,), 10.0)]])
    b.requires_grad_(False)
    follow([a, b], optimizer, [[torch.ones(1), None]])
    assert float(optimizer.rescaled_temperature()) == 0.25


def test_decoupled_weight_decay_is_no_displacement():
    """Shrinking the parameter does not heat the walk: with no gradient the temperature is 0."""
    param = torch.ones(3, requires_grad=True)
    optimizer = CoolMomentum(
        [param], total_steps=9, weight_decay=0.5, decoupled_weight_decay=True, lr=0.5
    )
    follow([param], optimizer, [[torch.zeros(3)]])
    assert param.tolist() == [0.75] * 3
    assert float(optimizer.temperature()) == 0.0


@pytest.mark.parametrize("pooled", [False, True])
def test_sums_of_squares_are_right_for_large_tensors(pooled):
    """Over 20 million float32 numbers the relative error stays below 1e-6, in any layout."""
    from coolmomentum.torch import _reductions

    def total(x):
        if pooled:
            return float(_reductions.pooled_sums_of_squares([[x]])[0])
        return float(_reductions.sums_of_squares([x])[0])

    x = torch.rand(20_000_000, generator=torch.Generator().manual_seed(0))
    assert total(x) == pytest.approx(float((x.double() ** 2).sum()), rel=1e-6)
    image = x[:6_000_000].reshape(100, 3, 100, 200)
    last = image.to(memory_format=torch.channels_last)
    assert total(last) == pytest.approx(float((image.double() ** 2).sum()), rel=1e-6)


@pytest.mark.parametrize(
    "kind",
    [
        lambda x: x,
        lambda x: x[:, ::2],
        lambda x: x[0, 0],
        lambda x: x[:0],
        lambda x: x.double(),
        lambda x: x.half(),
        lambda x: x.bfloat16(),
        lambda x: torch.complex(x, 2 * x),
        lambda x: torch.complex(x, 2 * x).conj(),
        lambda x: x.requires_grad_(),
        lambda x: torch.nn.Parameter(x),
    ],
)
def test_a_pooled_sum_of_squares_is_that_of_the_single_ones(kind):
    """For whatever a displacement may be, beside an ordinary one."""
    from coolmomentum.torch import _reductions

    tensors = [kind(draw(30, 40, dtype=torch.float32)), draw(7, dtype=torch.float32, seed=1)]
    exact = sum(float((x.detach().abs().double() ** 2).sum()) for x in tensors)
    with torch.no_grad():
        (pooled,) = _reductions.pooled_sums_of_squares([tensors])
    assert float(pooled) == pytest.approx(exact, rel=1e-6)  # some 10 roundings of 2**-24


def test_no_temperature_at_a_learning_rate_of_zero():
    """Displacements of momentum over a time step of 0 are infinitely hot; at rest it is 0."""
    param = torch.zeros(3, requires_grad=True)
    optimizer = CoolMomentum([param], lr=0.0, total_steps=9)
    readings = []
    for lr in (0.0, 0.1, 0.0):
        optimizer.param_groups[0]["lr"] = lr
        follow([param], optimizer, [[torch.ones(3)]])
        readings.append(float(optimizer.temperature()))
    assert readings[0] == 0
    assert 0 < readings[1] < readings[2] == math.inf
    assert 0 < float(optimizer.rescaled_temperature()) < math.inf


def test_the_temperature_is_where_the_parameters_are():
    """Whatever the default device, and also where the learning rate was 0."""
    param = torch.zeros(3, requires_grad=True)
    optimizer = CoolMomentum([param], lr=0.0, total_steps=9)
    follow([param], optimizer, [[torch.ones(3)]])
    with torch.device("meta"):
        readings = [optimizer.temperature(), optimizer.rescaled_temperature()]
        readings += [optimizer.temperatures()[0], optimizer.rescaled_temperatures()[0]]
    assert {reading.device.type for reading in readings} == {"cpu"}
    assert [float(reading) for reading in readings] == [0.0] * 4
