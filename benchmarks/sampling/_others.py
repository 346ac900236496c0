"""Samplers to be audited: of this package, in five lines, and of packages that may be missing."""

import math
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from benchmarks.sampling._walks import Bathed, Walk
from coolmomentum import rho_from_friction
from coolmomentum.audit import Problem, Sampler
from coolmomentum.thermal import Noise
from coolmomentum.thermometer import Bath, Dynamics

__all__ = ["FRICTION", "PACKAGES", "Contender", "contenders", "installed"]

Array = Any  # a float64 NumPy array
FRICTION = 1.0  # of all that have momentum, in the units of the problems
# Of each package what is imported, and so what must be there.
PACKAGES = {
    "posteriors": ("posteriors", "tensordict", "torchopt", "optree", "torch"),
    "devinterp": ("devinterp", "torch"),
    "blackjax": ("blackjax", "jax"),
}


class Contender(NamedTuple):
    """A sampler at some step size."""

    name: str
    package: str | None  # that it needs beside NumPy
    make: Callable[[float], Sampler]  # from the fraction of the stability limit of dt**2 = 4 / k
    gradients: int = 1  # that a step of the audit takes
    dynamics: Callable[[Problem, float], Dynamics] | None = None  # that the thermometer is told


def installed(package: str) -> str | None:
    """The version of a package, if all it needs is there."""
    if not all(find_spec(name) for name in PACKAGES[package]):
        return None
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def contenders(walk: Walk) -> list[Contender]:
    """All samplers; the walk is that of an adapter of ours."""

    def ours(noise: Noise) -> Contender:
        def dynamics(problem: Problem, fraction: float) -> Dynamics:
            dt2 = 4 * fraction / problem.curvature
            rho = float(rho_from_friction(FRICTION, math.sqrt(dt2)))
            return Dynamics(rho, dt2, Bath(1.0, noise))

        def make(fraction: float) -> Sampler:
            def sample(problem: Problem, x: Array, temperature: float) -> Iterator[Array]:
                how = dynamics(problem, fraction)
                settings = Bathed(how.dt2 or 0.0, how.rho or 0.0, temperature, noise, seed=1)
                return walk(problem.gradient, x, settings)

            return sample

        return Contender(f"ours, {noise} noise", None, make, dynamics=dynamics)

    return [
        ours("averaged"),
        ours("white"),
        Contender("SGLD, five lines", None, _sgld),
        Contender("SGLD of posteriors", "posteriors", _of_posteriors("sgld")),
        Contender("BAOA of posteriors", "posteriors", _of_posteriors("baoa")),
        Contender("SGHMC of posteriors (Euler)", "posteriors", _of_posteriors("sghmc")),
        Contender("SGNHT of devinterp, SGMCMC.sgnht", "devinterp", _sgnht),
        Contender("SGNHT of devinterp, deprecated class", "devinterp", _old_sgnht),
        Contender("SGHMC of blackjax, 10 gradients a call", "blackjax", _sghmc, gradients=10),
    ]


def _sgld(fraction: float) -> Sampler:
    def sample(problem: Problem, x: Array, temperature: float) -> Iterator[Array]:
        random, h = np.random.default_rng(1), 2 * fraction / problem.curvature
        while True:
            x = x - h * problem.gradient(x)
            x = x + math.sqrt(2 * h * temperature) * random.standard_normal(x.shape)
            yield x

    return sample


def _of_posteriors(name: str) -> Callable[[float], Sampler]:
    """Its log-posterior is linear, with the gradient at hand as data: the problems are NumPy's."""

    def make(fraction: float) -> Sampler:
        def sample(problem: Problem, start: Array, temperature: float) -> Iterator[Array]:
            import torch

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = import_module(f"posteriors.sgmcmc.{name}")

            settings: dict[str, Any] = {"lr": 2 * fraction / problem.curvature}
            if name != "sgld":
                dt = math.sqrt(4 * fraction / problem.curvature)
                settings = {"lr": dt, "alpha": FRICTION}
            transform = module.build(
                lambda params, force: ((params * force).sum(), torch.tensor([])),
                temperature=temperature,
                **settings,
            )
            torch.manual_seed(1)
            state = transform.init(torch.from_numpy(start.copy()))
            while True:
                x = state.params.numpy()
                force = torch.from_numpy(-problem.gradient(x))
                state, _ = transform.update(state, force)
                yield state.params.numpy()

        return sample

    return make


def _sgnht(fraction: float) -> Sampler:
    """The overdamped step of devinterp 2: half the learning rate times the gradient."""

    def build(params: list[Any], h: float, nbeta: float) -> Any:
        from devinterp.optim.sgmcmc import SGMCMC

        return SGMCMC.sgnht(params, lr=2 * h / nbeta, nbeta=nbeta)

    return _devinterp(build, lambda problem: 2 * fraction / problem.curvature)


def _old_sgnht(fraction: float) -> Sampler:
    """With momentum; its thermostat is one for all replicas."""

    def build(params: list[Any], dt2: float, nbeta: float) -> Any:
        from devinterp.optim.sgnht import SGNHT

        return SGNHT(params, lr=dt2 / nbeta, nbeta=nbeta)

    return _devinterp(build, lambda problem: 4 * fraction / problem.curvature)


def _devinterp(
    build: Callable[[list[Any], float, float], Any], rate: Callable[[Problem], float]
) -> Sampler:
    def sample(problem: Problem, start: Array, temperature: float) -> Iterator[Array]:
        import torch

        torch.manual_seed(1)
        x = torch.from_numpy(start.copy())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated, and nbeta = 1 is not usual
            optimizer = build([x], rate(problem), 1 / temperature)
        while True:
            x.grad = torch.from_numpy(problem.gradient(x.numpy()))
            optimizer.step()
            yield x.numpy().copy()

    return sample


def _sghmc(fraction: float) -> Sampler:
    """In float32; each call draws new momenta. In the first gradient step of a call none acts."""

    def sample(problem: Problem, start: Array, temperature: float) -> Iterator[Array]:
        import blackjax
        import jax
        import jax.numpy as jnp

        def gradient(x: Array) -> Array:
            with np.errstate(all="ignore"):
                return np.asarray(-problem.gradient(np.asarray(x, np.float64)), np.float32)

        def estimate(x: Any, _: Any) -> Any:
            return jax.pure_callback(gradient, jax.eval_shape(lambda: x), x)

        step_size = math.sqrt(4 * fraction / problem.curvature)
        algorithm = blackjax.sghmc(estimate, num_integration_steps=10, alpha=FRICTION)
        step = jax.jit(algorithm.step)
        x, key = jnp.asarray(start, jnp.float32), jax.random.key(1)
        while True:
            key, own = jax.random.split(key)
            x = step(own, x, 0, step_size, temperature)
            yield np.asarray(x, np.float64)

    return sample
