"""What the tests of the torch adapter share: the paths of a step, and runs beside the oracle."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from coolmomentum.numpy import CoolMomentum as Oracle

PATHS = {
    "default": {},
    "one by one": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
}
path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
unfused_path = pytest.mark.parametrize(
    "path",
    [p for name, p in PATHS.items() if name != "fused"],
    ids=[p for p in PATHS if p != "fused"],
)


def _in_accelerate(optimizer):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.Accelerator(cpu=True).prepare(optimizer)


def _in_lightning(optimizer):
    return pytest.importorskip("pytorch_lightning.core.optimizer").LightningOptimizer(optimizer)


def _in_fabric(optimizer):
    return pytest.importorskip("lightning_fabric.wrappers")._FabricOptimizer(optimizer, None)


# Those of Lightning and Fabric pose as the class of the optimizer in them.
WRAPPERS = {"Accelerate": _in_accelerate, "Lightning": _in_lightning, "Fabric": _in_fabric}
wrapped = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())


def draw(*shape, dtype=torch.float64, seed=0):
    """Normal random numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def parameters(*shapes, dtype=torch.float64):
    """Leaf tensors of normal random numbers."""
    return [draw(*shape, dtype=dtype, seed=i).requires_grad_() for i, shape in enumerate(shapes)]


def gradients(params, steps):
    """For every step, a normal random gradient for each parameter."""
    return [
        [draw(*p.shape, dtype=p.dtype, seed=1000 * n + i + 7) for i, p in enumerate(params)]
        for n in range(steps)
    ]


def follow(params, optimizer, grads):
    """Step through given gradients; None is no gradient."""
    for step_grads in grads:
        for param, grad in zip(params, step_grads, strict=True):
            param.grad = grad
        optimizer.step()


def displacements(params, optimizer):
    """The displacement of each parameter."""
    return [optimizer.state[param]["displacement"] for param in params]


def same(tensors, others):
    """Whether they are equal bit for bit, and in dtype."""
    pairs = list(zip(tensors, others, strict=True))
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def clock(optimizer):
    """The clock, the same in all groups."""
    (steps,) = {int(group["cooling_step"]) for group in optimizer.param_groups}
    return steps


def oracle_of(lr=0.01, **settings):
    """The reference optimizer in the words of torch."""
    return Oracle(learning_rate=lr, **settings)


def exact(params, grads, lrs=None, **settings):
    """Parameters and displacements after the oracle's steps in float64, its lr as lrs says."""
    xs = [_wide(param) for param in params]
    oracle = oracle_of(**settings)
    state = oracle.init(xs)
    for n, step_grads in enumerate(grads):
        oracle = replace(oracle, learning_rate=lrs[n]) if lrs else oracle
        xs, state = oracle.step(xs, [None if g is None else _wide(g) for g in step_grads], state)
    return xs, state.displacements


def assert_rounded(ours, exactly, steps):
    """Ours is the float64 result up to the rounding of as many steps, with rho <= 1/2 in them.

    A step makes at most 6 roundings, by eps / 2 each, of numbers that are below 1 plus the largest
    result. A displacement hands on at most half of its error, so what is added to a parameter in
    one step is off by twice that, and a parameter sums it up.
    """
    for our, wanted in zip(ours, exactly, strict=True):
        size = 1 + np.abs(wanted).max(initial=0.0)
        bound = 6 * steps * torch.finfo(our.dtype).eps * size
        np.testing.assert_allclose(_wide(our), wanted, rtol=0, atol=bound)


def _wide(tensor):
    tensor = tensor.detach()
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64).numpy().copy()
