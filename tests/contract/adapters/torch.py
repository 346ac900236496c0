"""coolmomentum.torch in the contract suite."""

import io
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from drivers import DTYPES, HALF, Driver, Pool
from exact import U32
from roles import BATH_SHAPES, BathRun, BathWalk, Transfer, names_of

from coolmomentum import CoolingSchedule
from coolmomentum import torch as cool_torch

UNIT = U32  # of the thermometer

# Each program is compiled for one set of shapes and settings, and they all share a code object:
# never fall back to eager because there are many.
torch._dynamo.config.recompile_limit = 10_000
torch._dynamo.config.accumulated_recompile_limit = 10_000


@dataclass
class Torch(Driver):
    """A path of the torch adapter."""

    dtype: str
    settings: dict[str, Any]
    compiled: bool = False
    displacement_dtype: str = ""
    layouts: ClassVar = ("C", "F", "gaps")
    pool: Pool = field(default_factory=Pool)

    def __post_init__(self):
        if self.compiled:
            self.max_compilations, self.cost = 1, 4
            self.layouts = ("C",)  # each layout would compile as well
        if self.compiled or "capturable" in self.settings:
            self.schedule_dtype = "float32"  # PyTorch's integer tensors, combined with floats

    @property
    def unsupported(self):
        unsupported = {}
        if self.dtype == "float16" and not self.settings.get("fused"):
            unsupported["skip"] = "GradScaler refuses gradients in float16"
        if self.compiled:
            unsupported["add"] = "it compiles anew; the step itself is that of the eager paths"
        return unsupported

    def make(self, params, lr, cooling, decay, decoupled=False, maximize=False):
        settings = self.settings | {
            "schedule": cooling,
            "weight_decay": decay,
            "decoupled_weight_decay": decoupled,
            "maximize": maximize,
        }
        if self.displacement_dtype:
            settings["displacement_dtype"] = getattr(torch, self.displacement_dtype)
        return TorchRun(self, [params], lr, settings)

    def momentum_sgd(self, params, gradients, lr, momentum, decay):
        tensors = [_tensor(x, self.dtype).requires_grad_() for x in params]
        sgd = torch.optim.SGD(tensors, lr, momentum=momentum, weight_decay=decay)
        for step in gradients:
            for tensor, gradient in zip(tensors, step, strict=True):
                tensor.grad = _tensor(gradient, self.dtype)
            sgd.step()
        return [tensor.detach().double().numpy() for tensor in tensors]


def _tensor(x, dtype):
    """A tensor with the numbers and the layout of an array."""
    strides = [stride // x.itemsize for stride in x.strides]
    size = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, strides, strict=True))
    memory = torch.zeros(size if x.size else 0, dtype=getattr(torch, dtype))
    return memory.as_strided(x.shape, strides).copy_(torch.tensor(x))


class _TorchProgram:
    """An optimizer with its parameters and the function that steps it."""

    def __init__(self, driver, params, lr, settings):
        tensors = [_tensor(x, driver.dtype).requires_grad_() for x in params]
        self.optimizer = cool_torch.CoolMomentum(tensors, lr, **settings)
        self.take = self.optimizer.step
        if driver.compiled:
            self.take = torch.compile(self.optimizer.step, backend="aot_eager")

    def start(self, params, lr, cooling):
        """As new, but for what is compiled."""
        (group,) = self.optimizer.param_groups
        for tensor, x in zip(group["params"], params, strict=True):
            tensor.detach().copy_(torch.tensor(x))
            if tensor in self.optimizer.state:
                self.optimizer.state[tensor]["displacement"].zero_()
        group["lr"] = lr
        for name, value in (("cooling_step", 0), ("cooling_rho", cooling(0)), ("cooling_lr", 1.0)):
            if isinstance(group[name], torch.Tensor):
                group[name].fill_(value)
            else:
                group[name] = value


class TorchRun:
    """A run of CoolMomentum for PyTorch."""

    def __init__(self, driver, groups, lr, settings):
        self.driver, self.settings, self.lr = driver, settings, lr

        def make():
            return _TorchProgram(driver, groups[0], lr, settings)

        if driver.compiled:
            shapes = tuple(x.shape for x in groups[0])
            # By the identity of a callable, which the program keeps alive.
            key = shapes, *(id(v) if callable(v) else v for v in settings.values())
            if isinstance(settings["schedule"], CoolingSchedule):
                key = shapes, *settings.values()
            self.program = driver.pool.take(self, key, make)
            self.program.start(groups[0], lr, settings["schedule"])
        else:
            self.program = make()
        self.optimizer = self.program.optimizer
        for params in groups[1:]:
            self.add(params)

    @property
    def tensors(self):
        return [tensor for group in self.optimizer.param_groups for tensor in group["params"]]

    def step(self, gradients):
        for tensor, gradient in zip(self.tensors, gradients, strict=True):
            tensor.grad = _tensor(gradient, self.driver.dtype)
        self.program.take()

    def skip(self):
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        self.optimizer.zero_grad()
        scaler.scale(torch.zeros(()))
        for tensor in self.tensors:
            tensor.grad = torch.full_like(tensor, torch.inf)
        scaler.step(self.optimizer)

    def set_lr(self, lr):
        self.lr = lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def add(self, params):
        tensors = [_tensor(x, self.driver.dtype).requires_grad_() for x in params]
        self.optimizer.add_param_group({"params": tensors, "lr": self.lr})

    def params(self):
        return [tensor.detach().double().numpy().copy() for tensor in self.tensors]

    def displacements(self):
        state = self.optimizer.state
        at_rest = {"displacement": torch.zeros(())}
        moved = [state.get(t, at_rest)["displacement"].expand_as(t) for t in self.tensors]
        return [tensor.double().numpy().copy() for tensor in moved]

    def clock(self):
        (clock,) = {int(group["cooling_step"]) for group in self.optimizer.param_groups}
        return clock

    def rho(self):
        (rho,) = {float(group["cooling_rho"]) for group in self.optimizer.param_groups}
        return rho

    def temperature(self):
        return float(self.optimizer.temperature())

    def reloaded(self):
        params = iter(self.params())
        groups = [[next(params) for _ in group["params"]] for group in self.optimizer.param_groups]
        again = TorchRun(self.driver, groups, 0.125, self.settings)
        file = io.BytesIO()
        torch.save(self.optimizer.state_dict(), file)
        file.seek(0)
        again.optimizer.load_state_dict(torch.load(file, weights_only=True))
        again.lr = self.lr
        return again


_PATHS: dict[str, dict[str, Any]] = {
    "default": {},
    "one by one": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
}
DRIVERS = {
    **{
        f"torch, {name}, {dtype}": Torch(dtype, settings)
        for dtype in DTYPES
        for name, settings in _PATHS.items()
    },
    **{
        f"torch, default, {dtype}, float32 displacements": Torch(
            dtype, {}, displacement_dtype="float32"
        )
        for dtype in HALF
    },
    **{f"torch, compiled, {dtype}": Torch(dtype, {}, compiled=True) for dtype in DTYPES},
}


class Moves(Transfer):
    """Moves runs of a path of the torch adapter."""

    def export(self, run):
        """See Transfer."""
        return cool_torch.export_state(run.optimizer, self._named(run))

    def load(self, run, saved):
        """See Transfer."""
        cool_torch.import_state(run.optimizer, self._named(run), saved)

    def _named(self, run):
        return zip(names_of(run.tensors), run.tensors, strict=True)


def rho(**settings):
    """The same of coolmomentum.torch."""
    optimizer = cool_torch.CoolMomentum([torch.zeros(1, requires_grad=True)], **settings)
    return optimizer.rho


def rho_of_a_group(**settings):
    """The same, as settings of a group that replace others of the constructor."""
    group = {"params": [torch.zeros(1, requires_grad=True)]} | settings
    return cool_torch.CoolMomentum([group], schedule=CoolingSchedule(77, 0.7)).rho


RHO = {"torch": rho, "a group of torch": rho_of_a_group}


def read_walk(walk):
    """By hooks on the optimizer."""
    params = [torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in walk.start]
    optimizer = cool_torch.CoolMomentum(params, walk.dt2, schedule=walk.cooling)
    thermometer = cool_torch.Thermometer(optimizer, every=walk.every, span=walk.every)
    for gradients in walk.gradients:
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    return thermometer.read(), list(thermometer.read("parameter").values())


def walk_in_bath(run: BathRun, *, seed: int = 0) -> BathWalk:
    """A bath of the optimizer, which is asked for the numbers that it drew."""
    params = [torch.zeros(shape, requires_grad=True) for shape in BATH_SHAPES]
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
    return BathWalk(positions, normals)
