"""On a GPU: what the other tests hold on a CPU, and what only a GPU can show.

The references are NumPy's, in float64. ``python -m benchmarks.gpu`` runs this file alone on a
borrowed machine, without the fixtures and the packages of the other tests, and with
``COOLMOMENTUM_GPU=cuda``: there must be a GPU. With ``cpu`` all is rehearsed that is not CUDA's.
"""

import os

import numpy as np
import pytest

from coolmomentum import CoolingSchedule

torch = pytest.importorskip("torch")
from coolmomentum.torch import CoolMomentum, Thermometer  # noqa: E402

DEVICE = os.environ.get("COOLMOMENTUM_GPU", "cuda")
CUDA = DEVICE == "cuda"
REQUIRED = "COOLMOMENTUM_GPU" in os.environ
if not (REQUIRED or torch.cuda.is_available()):
    pytest.skip("no GPU", allow_module_level=True)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # frameworks warn of their own ways
]
only_cuda = pytest.mark.skipif(not CUDA, reason="a CPU has no streams")

SHAPES = [(3, 4), (5,), (), (1000,), (8, 4, 3, 3)]
STEPS, LR, RHO0 = 10, 0.5, 0.9
PATHS = {
    "default": {},
    "foreach": {"foreach": True},
    "one by one": {"foreach": False, "fused": False},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
    "capturable, foreach": {"capturable": True, "foreach": True},
    "capturable, one by one": {"capturable": True, "foreach": False, "fused": False},
    "capturable, fused": {"capturable": True, "fused": True},
}
TERMS = {
    "plain": {},
    "coupled": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "maximize": {"maximize": True},
}
LAWS = ["paper", "linear"]
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def numbers(seed: int) -> list[np.ndarray]:
    """One array for each shape, of eighths, which all dtypes have exactly."""
    random = np.random.default_rng(seed)
    return [np.asarray(random.integers(-16, 17, shape) / 8) for shape in SHAPES]


def reference(
    law: str = "paper",
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Parameters and displacements after all steps: Eqs 14 and 16, in float64."""
    rho = CoolingSchedule(STEPS, RHO0, law)
    x, dx = numbers(0), [np.zeros(shape) for shape in SHAPES]
    for n in range(STEPS):
        eta = LR * (1 + float(rho(n))) / 2
        for i, g in enumerate(numbers(n + 1)):
            slope = -g if maximize else g
            if decoupled_weight_decay:
                x[i] = x[i] * (1 - LR * weight_decay)
            else:
                slope = slope + weight_decay * x[i]
            dx[i] = float(rho(n)) * dx[i] - eta * slope
            x[i] = x[i] + dx[i]
    return x, dx


def parameters(dtype: torch.dtype) -> list[torch.Tensor]:
    """Those that all runs start from."""
    made = [torch.tensor(x, dtype=dtype, device=DEVICE) for x in numbers(0)]
    return [param.requires_grad_() for param in made]


def give(params: list[torch.Tensor], seed: int, scale: float = 1.0) -> None:
    """Gradients, in the memory of those before: a captured step has that address."""
    for param, g in zip(params, numbers(seed), strict=True):
        if param.grad is None:
            param.grad = torch.zeros_like(param)
        param.grad.copy_(torch.from_numpy(np.asarray(g * scale)))


def make(params: list[torch.Tensor], **settings: object) -> CoolMomentum:
    """An optimizer for the run of the reference."""
    return CoolMomentum(params, lr=LR, total_steps=STEPS, rho0=RHO0, **settings)


def close(params: list[torch.Tensor], expected: list[np.ndarray]) -> None:
    """To one rounding a step of the largest number, and of the displacements that remember it."""
    unit = max(float(np.abs(x).max()) for x in expected)
    atol = 2 * STEPS * unit * torch.finfo(params[0].dtype).eps / 2
    for param, x in zip(params, expected, strict=True):
        found = param.detach().cpu().double().numpy()
        np.testing.assert_allclose(found, x, rtol=0, atol=atol)


@each_path
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_run_is_that_of_numpy(dtype: torch.dtype, terms: dict, path: dict) -> None:
    """Ten steps by each path, for each dtype and term, on the device."""
    if "fused" in path and path["fused"] and not CUDA and dtype not in (torch.float32,):
        pytest.skip("the fused kernel of the CPU is for float32")
    for law in LAWS:
        params = parameters(dtype)
        optimizer = make(params, law=law, **terms, **path)
        for n in range(STEPS):
            give(params, n + 1)
            optimizer.step()
        close(params, reference(law, **terms)[0])
        assert {param.device.type for param in params} == {DEVICE}


@pytest.mark.parametrize("path", [{}, {"foreach": True}, {"capturable": True}])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_displacements_of_half_precision(dtype: torch.dtype, path: dict) -> None:
    """The same run; what is stored in float32 is."""
    params = parameters(dtype)
    optimizer = make(params, displacement_dtype=torch.float32, **path)
    for n in range(STEPS):
        give(params, n + 1)
        optimizer.step()
    close(params, reference()[0])
    kept = [x.dtype for s in optimizer.state.values() for x in s.values() if torch.is_tensor(x)]
    assert kept
    assert set(kept) == {torch.float32}


@each_path
def test_temperatures_are_those_of_numpy(path: dict) -> None:
    """Of the optimizer and of the thermometer: the mean square of the last displacements."""
    params = parameters(torch.float32)
    optimizer = make(params, **path)
    with Thermometer(optimizer) as thermometer:
        for n in range(STEPS):
            give(params, n + 1)
            optimizer.step()
            if n == STEPS - 2:
                thermometer.read(reset=True)
        read = thermometer.read()
    squares = np.concatenate([dx.ravel() ** 2 for dx in reference()[1]])
    assert float(optimizer.temperature()) == pytest.approx(squares.mean() / LR, rel=1e-5)
    assert float(read["rescaled_temperature"]) == pytest.approx(squares.mean(), rel=1e-4)


@pytest.mark.parametrize("path", [{}, {"foreach": True}, {"fused": True}, {"capturable": True}])
def test_a_checkpoint_goes_on_to_the_bit(path: dict) -> None:
    """Also one that was on a CPU in between."""
    whole = parameters(torch.float32)
    optimizer = make(whole, **path)
    for n in range(STEPS):
        if n == STEPS // 2:
            state = _on_cpu(optimizer.state_dict())
            place = [x.detach().clone() for x in whole]
        give(whole, n + 1)
        optimizer.step()
    resumed = [x.requires_grad_() for x in place]
    other = make(resumed, **path)
    other.load_state_dict(state)
    for n in range(STEPS // 2, STEPS):
        give(resumed, n + 1)
        other.step()
    for one, two in zip(whole, resumed, strict=True):
        assert torch.equal(one, two)


def _on_cpu(value: object) -> object:
    if torch.is_tensor(value):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {k: _on_cpu(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_on_cpu(v) for v in value]
    return value


@pytest.mark.parametrize("path", [{}, {"foreach": True}, {"fused": True}])
def test_scaled_gradients_make_the_same_run(path: dict) -> None:
    """torch.amp.GradScaler unscales; a step with infinite gradients is left out, clock and all."""
    params = parameters(torch.float32)
    optimizer = make(params, **path)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=8.0, growth_interval=10**6)
    for n in range(STEPS):
        scaler.scale(torch.ones((), device=DEVICE))  # which makes its tensors
        if n == 3:
            for param in params:
                param.grad.fill_(torch.inf)
            scaler.step(optimizer)
            scaler.update()
        give(params, n + 1, scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
    close(params, reference()[0])
    assert scaler.get_scale() == 4.0  # halved once


@only_cuda
@each_path
def test_a_step_never_waits(path: dict) -> None:
    """PyTorch itself raises where the host would wait for the device."""
    params = parameters(torch.float32)
    optimizer = make(params, **path)
    give(params, 1)
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@only_cuda
@pytest.mark.parametrize("path", [{}, {"foreach": True}, {"foreach": False}, {"fused": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_step_makes_the_same_run(dtype: torch.dtype, path: dict) -> None:
    """Two steps in a warm-up, one recorded, the others replayed: rho falls within the graph."""
    params = parameters(dtype)
    optimizer = make(params, capturable=True, **path)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for n in range(2):
            give(params, n + 1)
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # records, and makes no step
        optimizer.step()
    for n in range(2, STEPS):
        give(params, n + 1)
        graph.replay()
    torch.cuda.synchronize()
    close(params, reference()[0])
    squares = np.concatenate([dx.ravel() ** 2 for dx in reference()[1]])
    rel = 1e-5 if dtype == torch.float32 else 0.05
    assert float(optimizer.temperature()) == pytest.approx(squares.mean() / LR, rel=rel)


@only_cuda
def test_the_benchmark_trains_in_a_graph_as_without() -> None:
    """The gradient of ResNet-20 for two batches, recorded and not: to float32's roundings."""
    training = pytest.importorskip("benchmarks.training._torch")
    from benchmarks.training._data import simulated
    from benchmarks.training._networks import initial_weights
    from benchmarks.training._problem import Problem, epoch_of
    from benchmarks.training._rules import Settings

    images = simulated()
    problem = Problem("resnet20", images.training, images.test, 1, 16, augment=True)
    trainer = training.TorchTrainer(problem, Settings("coolmomentum", 0.01, 0.9), DEVICE)
    trainer.start(initial_weights("resnet20", problem.shape, problem.classes, 0))
    trainer._model.train()
    for batch in trainer._split(epoch_of(problem, 0, 0).batches)[:2]:
        loss, eager = float(trainer._backward(*batch)), trainer._gradient().clone()
        assert float(trainer._gradient_of(*batch)) == pytest.approx(loss, rel=1e-3)
        difference = (trainer._gradient() - eager).norm() / eager.norm()
        assert float(difference) < 1e-2  # TF32, and sums in any order


# --- JAX ------------------------------------------------------------------------------------------


def _jax_device():  # type: ignore[no-untyped-def]
    jax = pytest.importorskip("jax")
    pytest.importorskip("optax")
    try:
        return jax.devices("gpu" if CUDA else "cpu")[0]
    except RuntimeError:
        if REQUIRED:
            raise
        pytest.skip("this JAX has no GPU")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("law", LAWS)
def test_a_run_in_jax_is_that_of_numpy(law: str, dtype: str) -> None:
    """A loop of all steps as one program, in which nothing asks the host."""
    device = _jax_device()
    import jax
    import jax.numpy as jnp
    import optax

    from coolmomentum.jax import cool_momentum, rescaled_temperature

    optimizer = cool_momentum(LR, STEPS, RHO0, law=law)

    def run(params, gradients):  # type: ignore[no-untyped-def]
        def step(carried, g):  # type: ignore[no-untyped-def]
            params, state = carried
            updates, state = optimizer.update(g, state, params)
            return (optax.apply_updates(params, updates), state), None

        carried = params, optimizer.init(params)
        (params, state), _ = jax.lax.scan(step, carried, gradients)
        return params, rescaled_temperature(state)

    with jax.default_device(device):
        params = [jnp.asarray(x, dtype) for x in numbers(0)]
        every = zip(*(numbers(n + 1) for n in range(STEPS)), strict=True)
        gradients = [jnp.asarray(np.stack(each), dtype) for each in every]
        program = jax.jit(run).lower(params, gradients)
        assert "callback" not in program.as_text()
        found, temperature = program.compile()(params, gradients)
    expected, moved = reference(law)
    unit = max(float(np.abs(x).max()) for x in expected)
    for x, y in zip(found, expected, strict=True):
        assert {each.platform for each in x.devices()} == {device.platform}
        atol = 2 * STEPS * unit * float(jnp.finfo(dtype).eps) / 2
        np.testing.assert_allclose(np.asarray(x, np.float64), y, rtol=0, atol=atol)
    squares = np.concatenate([dx.ravel() ** 2 for dx in moved])
    assert float(temperature) == pytest.approx(
        squares.mean(), rel=1e-5 if dtype == "float32" else 0.05
    )
