"""PyTorch: a step by every path, beside torch.optim and other packages, and the temperature."""

import importlib
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.speed.shapes import GROWTH, MODELS, Shapes
from benchmarks.speed.turns import take_turns
from coolmomentum.torch import CoolMomentum, Thermometer

DEVICE = torch.device("cpu")
SGD, FUSED_SGD = "torch.optim.SGD", "torch.optim.SGD, fused"
OURS = "CoolMomentum"
SETTINGS: dict[str, Any] = {"lr": 0.01, "momentum": 0.9}
COOLING: dict[str, Any] = {"lr": 0.01, "total_steps": 10**6}
Make = Callable[[list[torch.Tensor]], torch.optim.Optimizer]

PATHS: dict[str, Make] = {
    OURS: lambda params: CoolMomentum(params, **COOLING),
    f"{OURS}, foreach": lambda params: CoolMomentum(params, **COOLING, foreach=True),
    f"{OURS}, one by one": lambda params: CoolMomentum(
        params, **COOLING, foreach=False, fused=False
    ),
    f"{OURS}, capturable": lambda params: CoolMomentum(params, **COOLING, capturable=True),
    SGD: lambda params: torch.optim.SGD(params, **SETTINGS),
    f"{SGD}, foreach": lambda params: torch.optim.SGD(params, **SETTINGS, foreach=True),
    FUSED_SGD: lambda params: torch.optim.SGD(params, **SETTINGS, fused=True),
    "torch.optim.Adam": lambda params: torch.optim.Adam(params),
    "torch.optim.Adam, fused": lambda params: torch.optim.Adam(params, fused=True),
}
# Momentum SGD of other people, where it can be imported: timm needs a torchvision, which the index
# that PyTorch's CPU build is from may not have for it.
PACKAGES = {
    "heavyball": ("SGD", {"lr": 0.01, "beta": 0.9}),
    "pytorch_optimizer": ("SGDW", SETTINGS),
    "schedulefree": ("SGDScheduleFree", SETTINGS),
    "timm.optim": ("SGDW", SETTINGS),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def gradients(shapes: Shapes) -> list[torch.Tensor]:
    """The same for all contenders."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).mul_(1e-3).to(DEVICE) for shape in shapes]


def optimizer(make: Make, grads: list[torch.Tensor]) -> torch.optim.Optimizer:
    """An optimizer that has its state, with parameters of its own."""
    params: list[torch.Tensor] = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    made = make(params)
    if hasattr(made, "train"):  # schedule-free
        made.train()
    made.step()
    return made


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's own
    """Counts the bytes of the tensors that operators read and write, as their schemas have it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's own
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Once for each tensor that goes in, is changed or comes out."""
        result = function(*args, **kwargs or {})
        if not function.is_view:
            if all(returned.alias_info is None for returned in function._schema.returns):
                self.bytes += weight(result)
            for argument, value in zip(function._schema.arguments, args, strict=False):
                # Fused kernels write gradients only where they unscale them.
                written = argument.alias_info is not None and argument.name != "grads"
                self.bytes += weight(value) * (2 if written else 1)
        return result


def weight(value: Any) -> int:
    """Bytes of all tensors in an argument."""
    return sum(x.nbytes for x in tree_leaves(value) if isinstance(x, torch.Tensor))


def counted(step: Callable[[], object], parameters: int) -> dict[str, float]:
    """Calls of operators at the top level, and the bytes that they move and that they allocate."""
    with Traffic() as traffic:
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as calls:
        step()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as memory:
        step()
    tops = [
        event
        for event in calls.events()
        if event.name.startswith("aten::")
        and (event.cpu_parent is None or not event.cpu_parent.name.startswith("aten::"))
    ]
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in memory.key_averages())
    return {
        "operators": len(tops),
        "bytes a parameter": traffic.bytes / parameters,
        "allocated bytes": allocated,
    }


def sizes(shapes: Shapes) -> dict[str, Any]:
    """What every benchmark says of its parameters."""
    return {"parameters": sum(map(math.prod, shapes)), "tensors": len(shapes)}


@pytest.mark.parametrize("shapes", MODELS.values(), ids=MODELS.keys())
def test_paths(benchmark: Any, shapes: Shapes) -> None:
    """Each path of the step beside those of PyTorch."""
    grads = gradients(shapes)
    steps = {name: optimizer(make, grads).step for name, make in PATHS.items()}
    parameters = sizes(shapes)["parameters"]
    counts = {name: counted(step, parameters) for name, step in steps.items()}
    take_turns(benchmark, steps, baselines=(FUSED_SGD, SGD), counts=counts, **sizes(shapes))


@pytest.mark.parametrize("shapes", list(MODELS.values())[:2], ids=list(MODELS)[:2])
def test_packages(benchmark: Any, shapes: Shapes) -> None:
    """Beside momentum SGD of other packages, as they come."""
    grads = gradients(shapes)
    makes = {OURS: PATHS[OURS], SGD: PATHS[SGD]}
    for package, (name, settings) in PACKAGES.items():
        try:
            kind = getattr(importlib.import_module(package), name)
        except ImportError:
            continue
        makes[f"{package}.{name}"] = partial(kind, **settings)
    steps = {name: with_gradients(optimizer(make, grads), grads) for name, make in makes.items()}
    take_turns(benchmark, steps, baselines=(SGD,), **sizes(shapes))


def with_gradients(stepped: torch.optim.Optimizer, grads: list[torch.Tensor]) -> Callable[[], None]:
    """A step that begins with giving the gradients: heavyball takes them away."""
    params = [param for group in stepped.param_groups for param in group["params"]]

    def step() -> None:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        stepped.step()

    return step


def test_where_the_time_goes(benchmark: Any) -> None:
    """With small tensors: the kernel alone, and as the whole step of an optimizer of PyTorch."""
    shapes = MODELS["65 tensors, 270 thousand"]
    grads = gradients(shapes)

    class Bare(torch.optim.Optimizer):
        """What every optimizer has around its step, and nothing else."""

        def step(self, closure: Any = None) -> Any:
            kernel()

    params, displacements = ([torch.zeros_like(grad) for grad in grads] for _ in range(2))

    def kernel() -> None:
        torch._fused_sgd_(
            params,
            grads,
            displacements,
            weight_decay=0.0,
            momentum=0.9,
            lr=-1.0,
            dampening=1.01,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )

    contenders: dict[str, Callable[[], object]] = {
        "the kernel": kernel,
        "the kernel, in PyTorch's wrapper of a step": Bare(params, {}).step,
        OURS: optimizer(PATHS[OURS], grads).step,
        FUSED_SGD: optimizer(PATHS[FUSED_SGD], grads).step,
    }
    take_turns(benchmark, contenders, baselines=(FUSED_SGD,), **sizes(shapes))


@pytest.mark.parametrize("shapes", MODELS.values(), ids=MODELS.keys())
def test_temperature(benchmark: Any, shapes: Shapes) -> None:
    """Reading the temperature on demand, beside a step and beside one pass over the memory."""
    grads = gradients(shapes)
    ours = optimizer(PATHS[OURS], grads)
    assert isinstance(ours, CoolMomentum)
    flat = torch.cat([grad.ravel() for grad in grads])
    contenders: dict[str, Callable[[], object]] = {
        "temperature()": lambda: float(ours.temperature()),
        "temperatures()": lambda: [float(t) for t in ours.temperatures().values()],
        OURS: ours.step,
        FUSED_SGD: optimizer(PATHS[FUSED_SGD], grads).step,
        "one sum over as much memory": flat.sum,
    }
    take_turns(benchmark, contenders, baselines=(FUSED_SGD,), **sizes(shapes))


@pytest.mark.parametrize("shapes", MODELS.values(), ids=MODELS.keys())
def test_windowed(benchmark: Any, shapes: Shapes) -> None:
    """Ten steps at a time, with a Thermometer that looks at all of them or at one."""
    grads = gradients(shapes)
    windowed = {}
    for name in (OURS, SGD):
        for every in (None, 10, 1):
            stepped = optimizer(PATHS[name], grads)
            if every is not None:
                Thermometer(stepped, every=every)
            label = name if every is None else f"{name}, Thermometer(every={every})"
            windowed[label] = ten(stepped.step)
    take_turns(benchmark, windowed, baselines=(OURS, SGD), steps=10, **sizes(shapes))


def ten(step: Callable[[], object]) -> Callable[[], None]:
    """Ten of them."""

    def steps() -> None:
        for _ in range(10):
            step()

    return steps


def test_in_the_same_pass(benchmark: Any) -> None:
    """torch.compile of a step, alone and with its sum of squares: Inductor reads it once more."""
    (shape,) = shapes = MODELS["1 tensor, 25 million"]
    compilations = torch._dynamo.testing.CompileCounterWithBackend("inductor")

    def step(x: torch.Tensor, g: torch.Tensor, dx: torch.Tensor, rho: torch.Tensor) -> None:
        dx.mul_(rho).sub_(g, alpha=0.005)
        x.add_(dx)

    def measured(
        x: torch.Tensor, g: torch.Tensor, dx: torch.Tensor, rho: torch.Tensor
    ) -> torch.Tensor:
        step(x, g, dx, rho)
        return dx.square().sum()

    rho = torch.tensor(0.9)
    contenders: dict[str, Callable[[], object]] = {}
    counts = {}
    for name, function in {"compiled": step, "compiled, with its temperature": measured}.items():
        compiled = torch.compile(function, backend=compilations)
        tensors = [torch.zeros(shape), *gradients(shapes), torch.zeros(shape), rho]
        contenders[name] = partial(compiled, *tensors)
        start = time.perf_counter()
        contenders[name]()
        counts[name] = {"compile seconds": time.perf_counter() - start}
        before = compilations.frame_count
        for _ in range(3):
            contenders[name]()
        counts[name]["recompilations"] = compilations.frame_count - before
    grads = gradients(shapes)
    for name in (FUSED_SGD, OURS):
        contenders[name] = optimizer(PATHS[name], grads).step
    take_turns(benchmark, contenders, baselines=(FUSED_SGD,), counts=counts, **sizes(shapes))


def test_compiled_step(benchmark: Any) -> None:
    """torch.compile(optimizer.step): how long it compiles, how often, and what it gains."""
    shapes: Shapes = [(1000, 1000)] * 4
    compilations = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    ours = optimizer(PATHS[OURS], gradients(shapes))
    step = torch.compile(ours.step, backend=compilations)
    start = time.perf_counter()
    step()
    ours.param_groups[0]["lr"] *= 0.99
    step()
    counts = {"compile seconds": time.perf_counter() - start}
    before = compilations.frame_count
    for _ in range(20):  # rho cools and the learning rate changes
        ours.param_groups[0]["lr"] *= 0.99
        step()
    counts["recompilations"] = compilations.frame_count - before
    contenders = {
        f"{OURS}, compiled": step,
        OURS: optimizer(PATHS[OURS], gradients(shapes)).step,
        FUSED_SGD: optimizer(PATHS[FUSED_SGD], gradients(shapes)).step,
    }
    take_turns(
        benchmark,
        contenders,
        baselines=(FUSED_SGD,),
        counts={f"{OURS}, compiled": counts},
        **sizes(shapes),
    )


@pytest.mark.parametrize("shapes", GROWTH.values(), ids=GROWTH.keys())
def test_growth(benchmark: Any, shapes: Shapes) -> None:
    """Time of a step against the number of parameters and of tensors."""
    grads = gradients(shapes)
    steps = {name: optimizer(PATHS[name], grads).step for name in (OURS, SGD, FUSED_SGD)}
    take_turns(benchmark, steps, baselines=(FUSED_SGD, SGD), **sizes(shapes))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: never run so far")
@pytest.mark.parametrize("capturable", [False, True], ids=["eager", "CUDA graph"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_billion_on_a_gpu(benchmark: Any, dtype: torch.dtype, capturable: bool) -> None:
    """A step at the speed of a copy, with the temperature: 20 bytes a parameter.

    With bfloat16 parameters 14, where the displacements are float32, and 10 for SGD.
    """
    device = torch.device("cuda")
    grads = [torch.full((10**7,), 1e-3, device=device, dtype=dtype) for _ in range(100)]
    settings = COOLING | {"capturable": capturable, "displacement_dtype": torch.float32}
    makes: dict[str, Make] = {
        OURS: lambda params: CoolMomentum(params, **settings),
        FUSED_SGD: PATHS[FUSED_SGD],
    }
    if dtype == torch.float32 and not capturable:  # what PyTorch's kernel is right for
        makes[f"{OURS}, fused"] = lambda params: CoolMomentum(params, **settings, fused=True)
    contenders: dict[str, Callable[[], object]] = {}
    for name, make in makes.items():
        made = optimizer(make, grads)
        contenders[name] = waiting(captured(made.step) if capturable else made.step)
        if isinstance(made, CoolMomentum):
            step = partial(step_and_temperature, made)
            contenders[f"{name}, temperature in every step"] = waiting(
                captured(step) if capturable else step
            )
    source, target = (torch.zeros(10**9, device=device) for _ in range(2))
    contenders["copy on the GPU"] = waiting(lambda: target.copy_(source))
    take_turns(
        benchmark,
        contenders,
        baselines=("copy on the GPU", FUSED_SGD),
        parameters=10**9,
        tensors=100,
    )


def step_and_temperature(stepped: CoolMomentum) -> torch.Tensor:
    """What a run does that logs it in every step."""
    stepped.step()
    return stepped.temperature()


def captured(step: Callable[[], object]) -> Callable[[], None]:
    """The step as a CUDA graph."""
    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def waiting(call: Callable[[], object]) -> Callable[[], None]:
    """The call, and then a wait for the GPU."""

    def wait() -> None:
        call()
        torch.cuda.synchronize()

    return wait
