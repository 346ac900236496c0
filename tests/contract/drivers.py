"""Every path of every adapter behind one small face; a new path joins by a driver and nothing else.

A driver makes runs. A run is an optimizer with its parameters, fed with given gradients; everything
goes in and comes out as NumPy arrays and Python floats.
"""

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from coolmomentum import CoolingSchedule
from coolmomentum import jax as cool_jax
from coolmomentum import numpy as cool_numpy
from coolmomentum import torch as cool_torch

Arrays = list[np.ndarray]


class Run(Protocol):
    """One optimizer and its parameters."""

    def step(self, gradients: Arrays) -> None:
        """Take one step."""

    def skip(self) -> None:
        """Meet gradients that are not finite, as mixed precision does, and take no step."""

    def set_lr(self, lr: float) -> None:
        """Use another learning rate from now on."""

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


class Driver(Protocol):
    """Makes runs of one path in one dtype."""

    dtype: str

    def make(self, params: Arrays, lr: float, cooling: CoolingSchedule, decay: float) -> Run:
        """A run from ``params`` with coupled weight decay."""


# --- PyTorch ------------------------------------------------------------------------------------


@dataclass
class Torch:
    """A path of the torch adapter."""

    dtype: str
    settings: dict[str, Any]
    compiled: bool = False

    def make(self, params: Arrays, lr: float, cooling: CoolingSchedule, decay: float) -> "TorchRun":
        """See Driver."""
        dtype = getattr(torch, self.dtype)
        tensors = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in params]
        settings = {"lr": lr, "schedule": cooling, "weight_decay": decay} | self.settings
        return TorchRun(tensors, settings, self.compiled)


class TorchRun:
    """A run of CoolMomentum for PyTorch."""

    def __init__(self, tensors: list[torch.Tensor], settings: dict[str, Any], compiled: bool):
        self.tensors, self.settings, self.compiled = tensors, settings, compiled
        self.optimizer = cool_torch.CoolMomentum(tensors, **settings)
        self.take = self.optimizer.step
        if compiled:
            torch._dynamo.reset()  # or the runs before this one use up its recompilations
            self.take = torch.compile(self.optimizer.step, backend="aot_eager")

    def step(self, gradients):
        for tensor, gradient in zip(self.tensors, gradients, strict=True):
            tensor.grad = torch.tensor(gradient, dtype=tensor.dtype)
        self.take()

    def skip(self):
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        loss = sum((tensor * torch.inf).sum() for tensor in self.tensors)
        self.optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(self.optimizer)

    def set_lr(self, lr):
        self.optimizer.param_groups[0]["lr"] = lr

    def params(self):
        return [tensor.detach().double().numpy().copy() for tensor in self.tensors]

    def displacements(self):
        state = self.optimizer.state
        at_rest = {"displacement": torch.zeros(())}
        moved = [state.get(t, at_rest)["displacement"].expand_as(t) for t in self.tensors]
        return [tensor.double().numpy().copy() for tensor in moved]

    def clock(self):
        return int(self.optimizer.param_groups[0]["step"])

    def rho(self):
        return float(self.optimizer.param_groups[0]["rho"])

    def temperature(self):
        return float(self.optimizer.temperature())

    def reloaded(self):
        tensors = [tensor.detach().clone().requires_grad_() for tensor in self.tensors]
        again = TorchRun(tensors, self.settings, self.compiled)
        file = io.BytesIO()
        torch.save(self.optimizer.state_dict(), file)
        file.seek(0)
        again.optimizer.load_state_dict(torch.load(file, weights_only=True))
        return again


# --- JAX ----------------------------------------------------------------------------------------


@dataclass
class Jax:
    """The optax transformation, eager or jitted; float64 under jax_enable_x64."""

    dtype: str
    jitted: bool

    def make(self, params: Arrays, lr: float, cooling: CoolingSchedule, decay: float) -> "JaxRun":
        """See Driver."""
        with jax.enable_x64(self.dtype == "float64"):
            weights = [jnp.asarray(x, self.dtype) for x in params]
            state = _transformation(lr, cooling, decay).init(weights)
        return JaxRun(self, weights, state, lr, cooling, decay)


def _transformation(lr: Any, cooling: CoolingSchedule, decay: float) -> Any:
    inner = optax.chain(
        optax.add_decayed_weights(decay), cool_jax.cool_momentum(lr, schedule=cooling)
    )
    return optax.apply_if_finite(inner, max_consecutive_errors=1000)


def _update(cooling, decay, weights, state, gradients, lr):
    updates, state = _transformation(lr, cooling, decay).update(gradients, state, weights)
    return optax.apply_updates(weights, updates), state


_jitted_update = functools.partial(jax.jit, static_argnums=(0, 1))(_update)


@dataclass
class JaxRun:
    """A run of cool_momentum for JAX."""

    driver: Jax
    weights: list[jax.Array]
    state: Any
    lr: float
    cooling: CoolingSchedule
    decay: float
    last_lr: float = 0.0

    def step(self, gradients):
        self.last_lr = self.lr
        update = _jitted_update if self.driver.jitted else _update
        with jax.enable_x64(self.driver.dtype == "float64"):
            gradients = [jnp.asarray(g, self.driver.dtype) for g in gradients]
            lr = jnp.asarray(self.lr, self.driver.dtype)
            self.weights, self.state = update(
                self.cooling, self.decay, self.weights, self.state, gradients, lr
            )

    def skip(self):
        last_lr = self.last_lr
        self.step([np.full(x.shape, np.inf) for x in self.weights])
        self.last_lr = last_lr

    def set_lr(self, lr):
        self.lr = lr

    def params(self):
        return [np.asarray(x, np.float64) for x in self.weights]

    def displacements(self):
        return [np.asarray(x, np.float64) for x in self._own_state().displacement]

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
        np.savez(file, *leaves)
        file.seek(0)
        with jax.enable_x64(self.driver.dtype == "float64"), np.load(file) as saved:
            leaves = [jnp.asarray(saved[name]) for name in saved.files]
        weights, state = jax.tree.unflatten(structure, leaves)
        own = (self.lr, self.cooling, self.decay, self.last_lr)
        return JaxRun(self.driver, weights, state, *own)

    def _own_state(self):
        return self.state.inner_state[1]


# --- the reference ------------------------------------------------------------------------------


@dataclass
class Oracle:
    """A float64 run of coolmomentum.numpy, which the others are held to."""

    xs: Arrays
    lr: float
    cooling: CoolingSchedule
    decay: float
    state: Any = field(init=False)

    def __post_init__(self):
        self.state = self.optimizer().init(self.xs)

    def optimizer(self) -> cool_numpy.CoolMomentum:
        """With the present learning rate."""
        return cool_numpy.CoolMomentum(lr=self.lr, schedule=self.cooling, weight_decay=self.decay)

    def step(self, gradients: Arrays) -> None:
        """Take one step."""
        self.xs, self.state = self.optimizer().step(self.xs, gradients, self.state)


_TORCH_PATHS: dict[str, dict[str, Any]] = {
    "default": {},
    "one by one": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
}
DTYPES: Sequence[str] = ("float64", "float32")
DRIVERS: dict[str, Driver] = {
    **{
        f"torch, {name}, {dtype}": Torch(dtype, settings)
        for dtype in DTYPES
        for name, settings in _TORCH_PATHS.items()
    },
    **{f"torch, compiled, {dtype}": Torch(dtype, {}, compiled=True) for dtype in DTYPES},
    **{
        f"jax, {'jitted' if jitted else 'eager'}, {dtype}": Jax(dtype, jitted)
        for dtype in DTYPES
        for jitted in (False, True)
    },
}
