"""Keras: a step on the backend of KERAS_BACKEND beside Keras' own SGD, compiled and eager."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.speed.shapes import GROWTH, MODELS, Shapes
from benchmarks.speed.turns import take_turns

OURS, SGD = "CoolMomentum", "keras SGD"
SOME = {name: shapes for name, shapes in MODELS.items() if len(shapes) > 1}


def optimizers(names: tuple[str, ...] = (OURS, SGD)) -> dict[str, Any]:
    """One of each."""
    import keras

    from coolmomentum.keras import CoolMomentum

    every: dict[str, Callable[[], Any]] = {
        OURS: lambda: CoolMomentum(0.01, total_steps=10**6),
        SGD: lambda: keras.optimizers.SGD(0.01, momentum=0.9),
        "keras Adam": lambda: keras.optimizers.Adam(0.01),
    }
    return {name: every[name]() for name in names}


def stepper(optimizer: Any, shapes: Shapes, way: str) -> Callable[[], object]:
    """A step as this backend does it; it waits for the end."""
    import keras

    generator = np.random.default_rng(0)
    draws = [1e-3 * generator.standard_normal(shape).astype("float32") for shape in shapes]
    grads = [keras.ops.convert_to_tensor(draw) for draw in draws]
    variables = [keras.Variable(np.zeros(shape, "float32")) for shape in shapes]
    optimizer.build(variables)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return _tensorflow(optimizer, variables, grads, way)
    if backend == "jax":
        return _jax(optimizer, variables, grads)
    import torch

    torch.set_num_threads(1)

    def step() -> None:
        with torch.no_grad():
            optimizer.apply(grads, variables)

    return step


def _tensorflow(optimizer: Any, variables: Any, grads: Any, way: str) -> Callable[[], object]:
    import tensorflow as tf

    if way == "eager":
        return lambda: optimizer.apply(grads, variables)

    @tf.function(jit_compile=way == "jit")  # type: ignore[untyped-decorator]
    def step(grads: Any) -> Any:
        optimizer.apply(grads, variables)
        return optimizer.iterations + 0

    return lambda: step(grads).numpy()


def _jax(optimizer: Any, variables: Any, grads: Any) -> Callable[[], object]:
    import jax

    # In the order of the results, as Keras' trainer has them: JAX gives the memory of a donated
    # argument to the first result that has its shape, and copies if that is another array.
    def update(values: Any, state: Any, grads: Any) -> Any:
        return optimizer.stateless_apply(state, grads, values)

    step = jax.jit(update, donate_argnums=(0, 1))
    held = [[v.value for v in variables], [v.value for v in optimizer.variables]]

    def turn() -> None:
        held[:] = step(*held, grads)
        jax.block_until_ready(held)  # type: ignore[no-untyped-call]

    return turn


def ways() -> list[str]:
    """How a step can be run on this backend."""
    import keras

    return {"tensorflow": ["graph", "jit", "eager"], "jax": ["jit"], "torch": ["eager"]}[
        keras.backend.backend()
    ]


def measure(benchmark: Any, shapes: Shapes, way: str, names: tuple[str, ...]) -> None:
    """Let them take turns."""
    if way not in ways():
        pytest.skip(f"this backend has no {way}")
    steps = {name: stepper(opt, shapes, way) for name, opt in optimizers(names).items()}
    take_turns(
        benchmark,
        steps,
        baselines=(SGD,),
        parameters=sum(map(math.prod, shapes)),
        tensors=len(shapes),
    )


@pytest.mark.parametrize("way", ["graph", "jit", "eager"])
@pytest.mark.parametrize("shapes", SOME.values(), ids=SOME.keys())
def test_paths(benchmark: Any, shapes: Shapes, way: str) -> None:
    """A step beside those of Keras; eager TensorFlow pays for every variable."""
    measure(benchmark, shapes, way, (OURS, SGD, "keras Adam"))


@pytest.mark.parametrize("shapes", GROWTH.values(), ids=GROWTH.keys())
def test_growth(benchmark: Any, shapes: Shapes) -> None:
    """Time of a step against the number of parameters and of tensors."""
    measure(benchmark, shapes, ways()[0], (OURS, SGD))
