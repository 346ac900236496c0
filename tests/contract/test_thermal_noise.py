"""One suite for the heat baths of all frameworks: each is the reference, given its own draws."""

import os
from typing import Any, NamedTuple

import numpy as np
import pytest
from exact import U32, U64
from frameworks import framework

from coolmomentum import CoolingSchedule, random_force_scale
from coolmomentum.numpy import CoolMomentum, ThermalNoise

jax, jnp, optax = map(framework, ("jax", "jax.numpy", "optax"))
cool_jax, torch, cool_torch = map(framework, ("coolmomentum.jax", "torch", "coolmomentum.torch"))

SHAPES = ((3, 4), (5,), ())


class Run(NamedTuple):
    """What an optimizer and its bath are told, and the gradients it meets in each step."""

    cooling: CoolingSchedule
    learning_rate: float
    temperature: Any  # a number, or a function of the step
    noise: str
    steps: int = 12

    @property
    def gradients(self) -> list[list[np.ndarray]]:
        """Of order one, and the same for every run."""
        random = np.random.default_rng(7)
        return [[random.standard_normal(shape) for shape in SHAPES] for _ in range(self.steps)]

    def temperature_at(self, step: int) -> float:
        """In the step."""
        return self.temperature(step) if callable(self.temperature) else self.temperature


class Walk(NamedTuple):
    """What came out: for each step a list with an array for each parameter."""

    positions: list[list[np.ndarray]]
    normals: list[list[np.ndarray]]  # xi_{n+1} drawn in step n


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


# --- the frameworks -------------------------------------------------------------------------------


def in_jax(run: Run, *, jit: bool = True, seed: int = 0) -> Walk:
    """A transformation before cool_momentum; its draws are made again from its state."""
    bath = cool_jax.add_thermal_noise(
        run.learning_rate, run.cooling, run.temperature, seed, noise=run.noise
    )
    tx = optax.chain(bath, cool_jax.cool_momentum(run.learning_rate, schedule=run.cooling))
    step = jax.jit(tx.update) if jit else tx.update
    params = [jnp.zeros(shape, jnp.float32) for shape in SHAPES]
    state, positions, normals = tx.init(params), [], []
    for gradients in run.gradients:
        given = [jnp.asarray(g, jnp.float32) for g in gradients]
        key = jax.random.fold_in(state[0].key, state[0].count)
        updates, state = step(given, state, params)
        params = optax.apply_updates(params, updates)
        keys = jax.random.split(key, len(SHAPES))
        drawn = [jax.random.normal(*pair) for pair in zip(keys, SHAPES, strict=True)]
        positions.append([np.asarray(x) for x in params])
        normals.append([np.asarray(x) for x in drawn])
    return Walk(positions, normals)


def in_torch(run: Run, *, seed: int = 0) -> Walk:
    """A bath of the optimizer, which is asked for the numbers that it drew."""
    params = [torch.zeros(shape, requires_grad=True) for shape in SHAPES]
    optimizer = cool_torch.CoolMomentum(params, run.learning_rate, schedule=run.cooling)
    bath = cool_torch.ThermalNoise(optimizer, run.temperature, noise=run.noise, seed=seed)
    positions, normals = [], []
    for n, gradients in enumerate(run.gradients):
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = torch.as_tensor(gradient, dtype=torch.float32)
        optimizer.step()
        positions.append([x.detach().numpy().copy() for x in params])
        drawn = [bath._normals(i, n + 1, x.detach()) for i, x in enumerate(params)]
        normals.append([x.numpy() for x in drawn])
    return Walk(positions, normals)


def in_keras(run: Run, *, seed: int = 0) -> Walk:
    """An optimizer of its own, whose draws are those that it keeps, or makes again if white."""
    import keras

    from coolmomentum.keras import Langevin
    from coolmomentum.keras._langevin import _normals
    from coolmomentum.thermal import draw_key

    variables = [keras.Variable(np.zeros(shape, np.float32)) for shape in SHAPES]
    how = {"schedule": run.cooling, "temperature": run.temperature, "noise": run.noise}
    optimizer = Langevin(run.learning_rate, seed=seed, **how)
    positions, normals = [], []
    for n, gradients in enumerate(run.gradients):
        step = keras.ops.convert_to_tensor(n, keras.backend.standardize_dtype("int"))
        keys = [(draw_key(seed, i, 0), step, shape) for i, shape in enumerate(SHAPES)]
        normals.append([keras.ops.convert_to_numpy(_normals(*key, "float32")) for key in keys])
        optimizer.apply([keras.ops.convert_to_tensor(g, "float32") for g in gradients], variables)
        positions.append([x.numpy().copy() for x in variables])
    return Walk(positions, normals)


FRAMEWORKS = {"jax": in_jax, "torch": in_torch}
if "KERAS_BACKEND" in os.environ:  # a process has one; see test_keras_backends.py
    FRAMEWORKS = {f"keras on {os.environ['KERAS_BACKEND']}": in_keras}


@pytest.fixture(params=FRAMEWORKS.values(), ids=FRAMEWORKS.keys())
def walks(request):
    """What walks in a bath of each framework, in float32."""
    return request.param


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
            error = np.abs(x - y)
            assert (error <= bound).all(), f"step {n}, parameter {i}: {error} > {bound}"


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
