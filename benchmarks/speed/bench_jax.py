"""JAX: a jitted and donated step beside optax, and the temperature on demand and in the step."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from benchmarks.speed.shapes import GROWTH, MODELS, Shapes
from benchmarks.speed.turns import take_turns
from coolmomentum import CoolingSchedule, learning_rate_from_sgd
from coolmomentum.jax import cool_momentum, temperature, thermometer

OURS, SGD = "cool_momentum", "optax.sgd"
LR = 0.01
COOLING = CoolingSchedule(10**6)
MAKES: dict[str, Callable[[], Any]] = {
    OURS: lambda: cool_momentum(LR, schedule=COOLING),
    SGD: lambda: optax.sgd(LR, momentum=0.9),
    "optax.adam": lambda: optax.adam(LR),
}


class Run:
    """A train step with given gradients, which waits for its end."""

    def __init__(self, tx: Any, grads: Any, read: Callable[[Any], Any] | None = None) -> None:
        self.params = jax.tree.map(jnp.zeros_like, grads)
        self.grads = grads
        self.state = tx.init(self.params)

        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return params, state, 0.0 if read is None else read(state)

        start = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(self.params, self.state, grads)
        self.compiled = lowered.compile()
        cost: Any = self.compiled.cost_analysis()
        memory: Any = self.compiled.memory_analysis()
        self.counts = {
            "compile seconds": time.perf_counter() - start,
            "bytes a parameter": cost["bytes accessed"] / count(grads),
            "allocated bytes": memory.temp_size_in_bytes,
        }

    def ten(self) -> None:
        """Ten steps."""
        for _ in range(10):
            self()

    def __call__(self) -> None:
        """One step."""
        self.params, self.state, value = self.compiled(self.params, self.state, self.grads)
        jax.block_until_ready((self.params, value))  # type: ignore[no-untyped-call]


def count(tree: Any) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def gradients(shapes: Shapes) -> list[jax.Array]:
    """Small random numbers."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [1e-3 * jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]


def measure(benchmark: Any, runs: dict[str, Any], shapes: Shapes, steps: int = 1) -> None:
    """Let them take turns."""
    take_turns(
        benchmark,
        runs,
        baselines=(SGD, OURS) if steps > 1 else (SGD,),
        steps=steps,
        counts={name: run.counts for name, run in runs.items() if isinstance(run, Run)},
        parameters=sum(map(math.prod, shapes)),
        tensors=len(shapes),
    )


@pytest.mark.parametrize("shapes", MODELS.values(), ids=MODELS.keys())
def test_paths(benchmark: Any, shapes: Shapes) -> None:
    """A step beside those of optax."""
    grads = gradients(shapes)
    measure(benchmark, {name: Run(make(), grads) for name, make in MAKES.items()}, shapes)


@pytest.mark.parametrize("shapes", MODELS.values(), ids=MODELS.keys())
def test_temperature(benchmark: Any, shapes: Shapes) -> None:
    """On demand, and in every step, which XLA does not fuse on the CPU."""
    grads = gradients(shapes)

    def read(state: Any) -> jax.Array:
        return jnp.asarray(temperature(state, LR))

    ours = Run(MAKES[OURS](), grads)
    on_demand = jax.jit(read)
    runs = {
        "temperature()": lambda: on_demand(ours.state).block_until_ready(),
        OURS: ours,
        f"{OURS}, temperature in every step": Run(MAKES[OURS](), grads, read),
        SGD: Run(MAKES[SGD](), grads),
    }
    measure(benchmark, runs, shapes)


@pytest.mark.parametrize("shapes", MODELS.values(), ids=MODELS.keys())
def test_windowed(benchmark: Any, shapes: Shapes) -> None:
    """Ten steps at a time, with a thermometer in the chain that looks at one of them."""
    grads = gradients(shapes)
    sgd_meter = thermometer(learning_rate_from_sgd(LR, 0.9), rho=0.9)
    makes = {
        OURS: MAKES[OURS](),
        SGD: MAKES[SGD](),
        f"{OURS}, thermometer": optax.chain(MAKES[OURS](), thermometer(LR, COOLING)),
        f"{SGD}, thermometer": optax.chain(MAKES[SGD](), sgd_meter),
        # Here the momentum is the update, as in CoolMomentum.
        "scale, trace, thermometer": optax.chain(optax.scale(-LR), optax.trace(0.9), sgd_meter),
    }
    runs = {name: Run(tx, grads) for name, tx in makes.items()}
    measure(benchmark, {name: run.ten for name, run in runs.items()}, shapes, steps=10)


@pytest.mark.parametrize("shapes", GROWTH.values(), ids=GROWTH.keys())
def test_growth(benchmark: Any, shapes: Shapes) -> None:
    """Time of a step against the number of parameters and of tensors."""
    grads = gradients(shapes)
    measure(benchmark, {name: Run(MAKES[name](), grads) for name in (OURS, SGD)}, shapes)
