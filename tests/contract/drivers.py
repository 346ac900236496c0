"""Every path of every adapter behind one small face; a new path joins by a driver and nothing else.

A driver makes runs. A run is an optimizer with its parameters, fed with given gradients; everything
goes in and comes out as NumPy arrays and Python floats.
"""

import collections
import functools
import io
import pickle
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from bounds import RHO, Precision
from frameworks import framework, installed

from coolmomentum import CoolingSchedule
from coolmomentum import numpy as cool_numpy

torch, cool_torch = framework("torch"), framework("coolmomentum.torch")
jax, jnp, optax = framework("jax"), framework("jax.numpy"), framework("optax")
cool_jax = framework("coolmomentum.jax")

Arrays = list[np.ndarray]


class Run(Protocol):
    """One optimizer and its parameters."""

    def step(self, gradients: Arrays) -> None:
        """Take one step."""

    def skip(self) -> None:
        """Meet gradients that are not finite, as mixed precision does, and take no step."""

    def set_lr(self, lr: float) -> None:
        """Use another learning rate from now on."""

    def add(self, params: Arrays) -> None:
        """Go on with these parameters as well."""

    def params(self) -> Arrays:
        """The parameters."""

    def displacements(self) -> Arrays:
        """The last change of each."""

    def clock(self) -> int:
        """Steps taken."""

    def rho(self) -> float:
        """Momentum coefficient that the next step will use."""

    def temperature(self) -> float:
        """Of the last step, pooled."""

    def reloaded(self) -> "Run":
        """A fresh run that was given this one's checkpoint, in the framework's own format."""


class Driver:
    """Makes runs of one path in one dtype; the defaults are those of a path that can do all."""

    dtype: str
    displacement_dtype: str = ""  # if it is not that of the parameters
    flushes: ClassVar[bool] = False  # see Precision
    layouts: ClassVar[Sequence[str]] = ("C",)  # "F" and "gaps" where arrays have strides
    decoupled: ClassVar[bool] = True  # whether it has decoupled weight decay
    maximize: ClassVar[bool] = True
    # How dear a step is. Above 1 the usual run draws fewer examples, always of the same shapes.
    cost: int = 1
    # How many sets of settings it draws from where each compiles anew; 0 for no limit.
    programs: int = 0

    rho_roundings: int = RHO
    schedule_dtype: str = ""

    @property
    def decay_dtype(self) -> str:
        """See Precision; that of the arithmetic."""
        return ""

    @property
    def precision(self) -> Precision:
        """What the bounds follow from."""
        return Precision(
            self.dtype,
            self.displacement_dtype or self.dtype,
            self.flushes,
            self.decay_dtype,
            self.rho_roundings,
            self.schedule_dtype,
        )

    @property
    def half(self) -> bool:
        """Whether it stores what it does not compute in."""
        return self.dtype in HALF

    @property
    def lacks(self) -> Mapping[str, str]:
        """Methods of its runs that the framework has no counterpart of, and why."""
        return {}

    def make(
        self,
        params: Arrays,
        lr: float,
        cooling: Any,
        decay: float,
        decoupled: bool = False,
        maximize: bool = False,
    ) -> Run:
        """A run from ``params`` with coupled or decoupled weight decay, down the gradients or up.

        ``cooling`` is a CoolingSchedule or a callable ``step -> rho``.
        """
        raise NotImplementedError

    def momentum_sgd(
        self, params: Arrays, gradients: Sequence[Arrays], lr: float, momentum: float, decay: float
    ) -> Arrays:
        """Where the framework's own momentum SGD gets to, with coupled weight decay."""
        raise NotImplementedError


class Pool:
    """Programs that are dear to compile, for another run once theirs is gone."""

    def __init__(self) -> None:
        self.idle: dict[Hashable, list[Any]] = collections.defaultdict(list)

    def take(self, owner: object, key: Hashable, make: Callable[[], Any]) -> Any:
        """An idle program of this key, or a new one; it is idle again when ``owner`` is dead."""
        idle = self.idle[key]
        program = idle.pop() if idle else make()
        weakref.finalize(owner, idle.append, program)
        return program


# --- the reference, and NumPy --------------------------------------------------------------------


@dataclass
class Oracle:
    """A float64 run of coolmomentum.numpy, which the others are held to."""

    xs: Arrays
    lr: float
    cooling: Any
    decay: float
    decoupled: bool = False
    maximize: bool = False
    state: Any = field(init=False)

    def __post_init__(self):
        self.xs = list(self.xs)
        self.state = self.optimizer().init(self.xs)

    def optimizer(self) -> cool_numpy.CoolMomentum:
        """With the present learning rate."""
        return cool_numpy.CoolMomentum(
            learning_rate=self.lr,
            schedule=self.cooling,
            weight_decay=self.decay,
            decoupled_weight_decay=self.decoupled,
            maximize=self.maximize,
        )

    def step(self, gradients: Arrays) -> None:
        """Take one step."""
        self.xs, self.state = self.optimizer().step(self.xs, gradients, self.state)

    def add(self, params: Arrays) -> None:
        """More parameters, at rest."""
        at_rest = self.optimizer().init(params).displacements
        self.xs += params
        self.state = self.state._replace(displacements=self.state.displacements + at_rest)


class NumpyRun(Oracle):
    """A run of CoolMomentum for NumPy, in the dtype of its arrays."""

    last_lr = 1.0

    def step(self, gradients):
        super().step([g.astype(x.dtype) for g, x in zip(gradients, self.xs, strict=True)])
        self.last_lr = self.lr

    def skip(self):
        super().step([None for _ in self.xs])

    def set_lr(self, lr):
        self.lr = lr

    def add(self, params):
        super().add([x.astype(self.xs[0].dtype) for x in params])

    def params(self):
        return [x.astype(np.float64) for x in self.xs]

    def displacements(self):
        return [dx.astype(np.float64) for dx in self.state.displacements]

    def clock(self):
        return self.state.step

    def rho(self):
        return self.optimizer().rho(self.state)

    def temperature(self):
        with np.errstate(over="ignore"):
            return float(self.optimizer().rescaled_temperature(self.state)) / self.last_lr

    def reloaded(self):
        return pickle.loads(pickle.dumps(self))


@dataclass
class Numpy(Driver):
    """The reference itself, in the dtypes that NumPy has; it has no bfloat16."""

    dtype: str
    layouts: ClassVar = ("C", "F", "gaps")

    def make(self, params, lr, cooling, decay, decoupled=False, maximize=False):
        xs = [x.astype(self.dtype) for x in params]
        return NumpyRun(xs, lr, cooling, decay, decoupled, maximize)

    def momentum_sgd(self, params, gradients, lr, momentum, decay):
        xs = [x.astype(self.dtype) for x in params]
        buffers = [np.zeros_like(x) for x in xs]
        for step in gradients:
            grads = [g.astype(self.dtype) + decay * x for g, x in zip(step, xs, strict=True)]
            buffers = [momentum * b + g for b, g in zip(buffers, grads, strict=True)]
            xs = [x - lr * b for x, b in zip(xs, buffers, strict=True)]
        return [x.astype(np.float64) for x in xs]


# --- PyTorch ------------------------------------------------------------------------------------


# Each program is compiled for one set of shapes and settings, and they all share a code object:
# never fall back to eager because there are many.
if installed("torch"):
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
            self.programs, self.cost = 1, 4
            self.layouts = ("C",)  # each layout would compile as well
        if self.compiled or "capturable" in self.settings:
            self.schedule_dtype = "float32"  # PyTorch's integer tensors, combined with floats

    @property
    def lacks(self):
        lacks = {}
        if self.dtype == "float16" and not self.settings.get("fused"):
            lacks["skip"] = "GradScaler refuses gradients in float16"
        if self.compiled:
            lacks["add"] = "it compiles anew; the step itself is that of the eager paths"
        return lacks

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


# --- JAX ----------------------------------------------------------------------------------------


@dataclass
class Jax(Driver):
    """The optax transformation; float64 under jax_enable_x64.

    Eagerly the settings are Python numbers. Jitted they are traced, as inject_hyperparams has them,
    so that one program serves all of a law.
    """

    dtype: str
    jitted: bool
    displacement_dtype: str = ""
    flushes: ClassVar = True

    def __post_init__(self):
        self.programs, self.cost = (3, 4) if self.jitted else (0, 2)
        if self.jitted and self.dtype == "float64":
            # XLA's log1p of a traced -rho0, measured: up to 241 u, towards 1 - sqrt(2), where it
            # changes its method. In float32 it is within 4 u.
            self.rho_roundings = RHO + 241

    @property
    def decay_dtype(self):
        return self.dtype  # by optax.add_decayed_weights

    @property
    def lacks(self):
        return {"add": "a state of optax belongs to one tree of parameters"}

    def make(self, params, lr, cooling, decay, decoupled=False, maximize=False):
        traced: dict[str, Any] = {}
        if self.jitted and isinstance(cooling, CoolingSchedule):
            names = ("total_steps", "rho0") + ("warmup_steps",) * bool(cooling.warmup_steps)
            traced = {name: getattr(cooling, name) for name in names}
        fixed = _Fixed(
            cooling if not traced else (cooling.law, cooling.warmup_clock),
            bool(decay),
            decoupled,
            maximize,
            self.displacement_dtype or None,
        )
        with jax.enable_x64(self.dtype == "float64"):
            weights = [jnp.asarray(x, self.dtype) for x in params]
            state = fixed.transformation(lr, decay, traced).init(weights)
        return JaxRun(self, fixed, traced, weights, state, lr, cooling, decay)

    def momentum_sgd(self, params, gradients, lr, momentum, decay):
        with jax.enable_x64(self.dtype == "float64"):
            weights = [jnp.asarray(x, self.dtype) for x in params]
            sgd = optax.chain(optax.add_decayed_weights(decay), optax.sgd(lr, momentum))
            state, update = sgd.init(weights), jax.jit(sgd.update) if self.jitted else sgd.update
            for step in gradients:
                step = [jnp.asarray(g, self.dtype) for g in step]
                updates, state = update(step, state, weights)
                weights = optax.apply_updates(weights, updates)
            return [np.asarray(x, np.float64) for x in weights]


@dataclass(frozen=True)
class _Fixed:
    """What a program is compiled for; the settings are its arguments."""

    cooling: Any  # law and warm-up clock, or the schedule
    decays: bool
    decoupled: bool
    maximize: bool
    accumulator_dtype: str | None

    def transformation(self, lr: Any, decay: Any, traced: dict[str, Any]) -> Any:
        """The optimizer as a user of optax builds it."""
        cooling = self.cooling
        if traced:
            law, clock = cooling
            cooling = CoolingSchedule(**traced, law=law, warmup_clock=clock)
        core = cool_jax.cool_momentum(
            lr, schedule=cooling, accumulator_dtype=self.accumulator_dtype
        )
        parts = [core]
        if self.decays and self.decoupled:
            parts = [core, optax.add_decayed_weights(-lr * decay)]
        elif self.decays:
            parts = [optax.add_decayed_weights(decay), core]
        if self.maximize:
            parts = [optax.scale(-1.0), *parts]
        return optax.chain(*parts)


def _update(fixed, weights, state, gradients, lr, decay, traced):
    updates, state = fixed.transformation(lr, decay, traced).update(gradients, state, weights)
    return optax.apply_updates(weights, updates), state


def _update_if_finite(fixed, weights, state, gradients, lr, decay, traced):
    careful = optax.apply_if_finite(fixed.transformation(lr, decay, traced), 1000)
    outer = careful.init(weights)._replace(inner_state=state)
    updates, outer = careful.update(gradients, outer, weights)
    return optax.apply_updates(weights, updates), outer.inner_state


@functools.cache
def _jitted(update):
    return jax.jit(update, static_argnums=0)


@dataclass
class JaxRun:
    """A run of cool_momentum for JAX."""

    driver: Jax
    fixed: _Fixed
    traced: dict[str, Any]
    weights: list[Any]
    state: Any
    lr: float
    cooling: Any
    decay: float
    last_lr: float = 1.0

    def step(self, gradients):
        self._feed(_jitted(_update) if self.driver.jitted else _update, gradients)
        self.last_lr = self.lr

    def skip(self):
        # Jitted for the eager path too: it is a lax.cond, which compiles at every call.
        self._feed(_jitted(_update_if_finite), [np.full(x.shape, np.inf) for x in self.weights])

    def _feed(self, update, gradients):
        with jax.enable_x64(self.driver.dtype == "float64"):
            gradients = [jnp.asarray(g, self.driver.dtype) for g in gradients]
            self.weights, self.state = update(
                self.fixed, self.weights, self.state, gradients, self.lr, self.decay, self.traced
            )

    def set_lr(self, lr):
        self.lr = lr

    def params(self):
        return [np.asarray(x).astype(np.float64) for x in self.weights]

    def displacements(self):
        return [np.asarray(x).astype(np.float64) for x in self._own_state().displacement]

    def clock(self):
        return int(self._own_state().count)

    def rho(self):
        with jax.enable_x64(self.driver.dtype == "float64"):
            return float(cool_jax.rho(self.state, self.cooling))

    def temperature(self):
        with jax.enable_x64(self.driver.dtype == "float64"):
            return float(cool_jax.temperature(self.state, self.last_lr))

    def reloaded(self):
        leaves, structure = jax.tree.flatten((self.weights, self.state))
        file = io.BytesIO()
        pickle.dump([np.asarray(leaf) for leaf in leaves], file)  # np.savez has no bfloat16
        file.seek(0)
        with jax.enable_x64(self.driver.dtype == "float64"):
            leaves = [jnp.asarray(leaf) for leaf in pickle.load(file)]
        weights, state = jax.tree.unflatten(structure, leaves)
        own = (self.lr, self.cooling, self.decay, self.last_lr)
        return JaxRun(self.driver, self.fixed, self.traced, weights, state, *own)

    def _own_state(self):
        return next(s for s in self.state if isinstance(s, cool_jax.CoolMomentumState))


_TORCH_PATHS: dict[str, dict[str, Any]] = {
    "default": {},
    "one by one": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
}
DTYPES: Sequence[str] = ("float64", "float32", "bfloat16", "float16")
HALF: Sequence[str] = DTYPES[2:]
DRIVERS: dict[str, Driver] = {
    **{f"numpy, {dtype}": Numpy(dtype) for dtype in ("float64", "float32", "float16")},
    **{
        f"torch, {name}, {dtype}": Torch(dtype, settings)
        for dtype in DTYPES
        for name, settings in _TORCH_PATHS.items()
    },
    **{
        f"torch, default, {dtype}, float32 displacements": Torch(
            dtype, {}, displacement_dtype="float32"
        )
        for dtype in HALF
    },
    **{f"torch, compiled, {dtype}": Torch(dtype, {}, compiled=True) for dtype in DTYPES},
    **{
        f"jax, {'jitted' if jitted else 'eager'}, {dtype}": Jax(dtype, jitted)
        for dtype in DTYPES
        for jitted in (False, True)
    },
    **{
        f"jax, jitted, {dtype}, float32 displacements": Jax(dtype, True, "float32")
        for dtype in HALF
    },
}
_NEEDS = {"numpy": ("numpy",), "torch": ("torch",), "jax": ("jax", "optax")}
DRIVERS = {
    name: driver for name, driver in DRIVERS.items() if installed(*_NEEDS[name.split(",")[0]])
}
