"""One suite for the heat baths of all frameworks: each is the reference, given its own draws."""

from typing import Any

import numpy as np
import pytest
from adapters import TESTED
from comparison import assert_within
from exact import U32, U64
from roles import BATH_SHAPES as SHAPES
from roles import BathRun as Run

from coolmomentum import CoolingSchedule, random_force_scale
from coolmomentum.numpy import CoolMomentum, ThermalNoise

ADAPTERS = {name: x for name, x in TESTED.items() if hasattr(x, "walk_in_bath")}


def half(step: Any) -> Any:
    """A bath that cools, in the operators of every framework."""
    return 2.0 / (1 + step)


HOT = CoolingSchedule(12, 0.9, "constant")
RUNS = {
    "averaged": Run(HOT, 0.1, 1.5, "averaged"),
    "white": Run(HOT, 0.1, 1.5, "white"),
    "cooling": Run(CoolingSchedule(12, 0.99), 0.1, 0.3, "averaged"),
    "annealing": Run(CoolingSchedule(12, 0.9, "linear"), 0.02, half, "averaged"),
    "annealing in white noise": Run(HOT, 0.02, half, "white"),
}


@pytest.fixture(params=ADAPTERS.values(), ids=ADAPTERS.keys())
def walks(request):
    """What walks in a bath of each framework, in float32."""
    return request.param.walk_in_bath


# --- the reference --------------------------------------------------------------------------------


def reference(run: Run, normals: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """Positions by NumPy in float64, with those numbers."""
    optimizer = CoolMomentum(learning_rate=run.learning_rate, schedule=run.cooling)

    def drawn(parameter: int, step: int, shape: tuple[int, ...]) -> np.ndarray:
        assert normals[step - 1][parameter].shape == shape
        return normals[step - 1][parameter].astype(np.float64)

    bath = ThermalNoise(run.temperature, noise=run.noise, normals=drawn)
    params = [np.zeros(shape) for shape in SHAPES]
    state, positions = optimizer.init(params), []
    for gradients in run.gradients:
        forced = bath.add(gradients, state, optimizer)
        params, state = optimizer.step(params, forced, state)
        positions.append(params)
    return positions


def bounds(run: Run, normals: list[list[np.ndarray]], u: float) -> list[list[np.ndarray]]:
    """How far from the reference positions may be that are computed with unit roundoff u.

    A displacement has 2 roundings in its friction, 4 in eta and g, 20 in the force (rho and its
    square root, whose 1 - rho**2 loses as many digits as 2 / (1 - rho) says), and one for each of
    two sums; errors go on by rho.
    """
    error, moved, places = ([np.zeros(shape) for shape in SHAPES] for _ in range(3))
    result = []
    for n, (gradients, drawn) in enumerate(zip(run.gradients, normals, strict=True)):
        rho = run.cooling(n)
        eta = run.learning_rate * (1 + rho) / 2
        scale = random_force_scale(run.temperature_at(n), run.learning_rate, rho)
        lost = 20 + 10 / (1 - rho)
        for i, (g, xi) in enumerate(zip(gradients, drawn, strict=True)):
            last = np.abs(normals[n - 1][i]) if n and run.noise == "averaged" else 0.0
            force = scale * (np.abs(xi) + last)
            size = rho * moved[i] + eta * (np.abs(g) + force)
            error[i] = rho * error[i] + u * (
                8 * rho * moved[i] + eta * (8 * np.abs(g) + lost * force)
            )
            moved[i] = size
            places[i] = places[i] + error[i] + u * n * size
        result.append([x + 4 * u for x in places])
    return result


# --- what holds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_it_is_the_reference(walks, run):
    """Positions of every step are within the running bound of float32."""
    found = walks(run)
    expected, allowed = reference(run, found.normals), bounds(run, found.normals, U32)
    for n, step in enumerate(zip(found.positions, expected, allowed, strict=True)):
        for i, (x, y, bound) in enumerate(zip(*step, strict=True)):
            assert_within(x, y, bound, f"parameter {i}", n + 1)


def test_the_bound_is_sharp_enough():
    """It would see an amplitude that is that of the step before, or wrong by one in a thousand."""
    run = RUNS["cooling"]
    normals = [[np.ones(shape) for shape in SHAPES] for _ in range(run.steps)]
    hotter = reference(run._replace(temperature=run.temperature * 1.002), normals)
    expected, allowed = reference(run, normals), bounds(run, normals, U32)
    assert (np.abs(hotter[-1][0] - expected[-1][0]) > 2 * allowed[-1][0]).all()
    exact = bounds(run, normals, U64)
    assert (exact[-1][0] < 1e-6 * allowed[-1][0]).all()


def test_draws_are_unit_normals_of_their_own(walks):
    """Of every parameter and step; mean 0, variance 1, and no two alike."""
    normals = walks(RUNS["averaged"]).normals
    flat = np.concatenate([x.ravel() for step in normals for x in step])
    assert len(np.unique(flat)) == len(flat)
    assert abs(flat.mean()) < 5 / np.sqrt(len(flat))
    assert abs(flat.var() - 1) < 5 * np.sqrt(2 / len(flat))


def test_the_seed_decides(walks):
    """The same seed gives the same bits, another one other numbers."""
    run = RUNS["averaged"]
    first, again, other = walks(run), walks(run), walks(run, seed=1)
    for x, y, z in zip(first.positions[-1], again.positions[-1], other.positions[-1], strict=True):
        assert x.tobytes() == y.tobytes()
        assert (x != z).all()
