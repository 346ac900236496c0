"""The values of variables on each backend, and functions of them as one call."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate, chain
from typing import Any

import keras
from keras import ops

from coolmomentum.keras._common import Tensor, Variable

JAX, TENSORFLOW = (keras.backend.backend() == name for name in ("jax", "tensorflow"))
Reader = Callable[[], list[Tensor]]


def reader(variables: list[Variable], dtype: str) -> Reader:
    """What gives the values of the variables; on TensorFlow :func:`joined` to one vector.

    There each argument of a graph takes some 0.1 ms, which for those of a ResNet-20 is half a step.
    """
    if not TENSORFLOW:
        return lambda: [ops.convert_to_tensor(x) for x in variables]
    return compiled(lambda: joined([ops.cast(x, dtype) for x in variables]))


def joined(values: list[Tensor]) -> list[Tensor]:
    """Values of one dtype as a reader gives them."""
    return [ops.concatenate([ops.reshape(x, (-1,)) for x in values])] if TENSORFLOW else values


def apart(values: list[Tensor], sizes: Sequence[int], dtype: str) -> list[Tensor]:
    """An array for each variable, of what a reader gave, in the dtype to compute in."""
    if len(values) < len(sizes):
        values = ops.split(values[0], [*accumulate(sizes)][:-1])
    return [ops.cast(x, dtype) for x in values]


def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    """``f`` as one call of the backend."""
    call: Callable[..., Any]
    if JAX:
        import jax

        call = jax.jit(f)
    elif TENSORFLOW:
        import tensorflow as tf

        call = tf.function(f)
    else:
        import torch

        call = torch.no_grad()(f)
    return call


def in_step(model: Any, state: Any) -> AbstractContextManager[Any]:
    """Where the variables have the values of a compiled step: on JAX they do not hold them."""
    if not JAX:
        return nullcontext()
    lists = model.trainable_variables, model.non_trainable_variables, model.optimizer.variables
    scope: AbstractContextManager[Any] = keras.StatelessScope(
        [*chain.from_iterable(map(zip, lists, state))]
    )
    return scope


def iterations(optimizer: Any) -> Tensor:
    """The steps that it has taken, shape ()."""
    # A copy: to TensorFlow a variable is a tensor, whose value it would ask the device for.
    return ops.copy(ops.convert_to_tensor(optimizer.iterations))


def walks(variable: Variable) -> bool:
    """Whether steps move it; not what Keras overwrites with its gradient, or is frozen."""
    overwritten = getattr(variable, "overwrite_with_gradient", False)
    return bool(is_floating(variable) and variable.trainable and not overwritten)


def is_floating(variable: Variable) -> bool:
    """Whether it has numbers of a floating dtype."""
    return "float" in keras.backend.standardize_dtype(variable.dtype)
