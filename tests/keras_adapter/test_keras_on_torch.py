"""Keras on PyTorch: few calls for many tensors, one compilation, gradients in place."""

from collections import Counter

import keras
import numpy as np
import pytest
import torch
from exact import U32
from keras import ops
from keras_tools import follow, gradients, numpy, variables
from torch.utils._python_dispatch import TorchDispatchMode

from coolmomentum.keras import CoolMomentum


class Calls(TorchDispatchMode):
    """Counts the operators that a block calls, by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Count and call."""
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def calls(tensors, dtype="float32"):
    """The operators of a third step."""
    params = variables([np.ones(3)] * tensors, dtype)
    optimizer = CoolMomentum(0.1, 10)
    grads = [[np.ones(3)] * tensors]
    follow(optimizer, params, grads * 2)
    tensors = [ops.ones(3, dtype) for _ in params]
    with Calls() as seen:
        optimizer.apply(tensors, params)
    return seen.counts


def test_the_step_is_foreach():
    """Three calls for all tensors, however many they are."""
    few, many = calls(2), calls(40)
    assert few == many
    foreach = {name: count for name, count in many.items() if name.startswith("_foreach")}
    assert foreach == {"_foreach_mul_": 1, "_foreach_add_": 2}


def test_dtypes_are_stepped_apart():
    """Mixed lists are sorted, and each variable has its own result."""
    starts = [np.full(2, float(i)) for i in range(4)]
    dtypes = ["float32", "bfloat16", "float64", "float32"]
    mixed = [variables([x], dtype)[0] for x, dtype in zip(starts, dtypes, strict=True)]
    follow(CoolMomentum(0.5, 4, 0.5), mixed, [[np.ones(2)] * 4] * 2)
    for x, start, dtype in zip(mixed, starts, dtypes, strict=True):
        (alone,) = variables([start], dtype)
        follow(CoolMomentum(0.5, 4, 0.5), [alone], [[np.ones(2)]] * 2)
        np.testing.assert_array_equal(numpy(x), numpy(alone))


def test_gradients_are_not_changed():
    """The update works in place on variables and displacements only."""
    params = variables([np.ones(3)])
    gradient = torch.full((3,), 2.0)
    optimizer = CoolMomentum(0.1, 10)
    for _ in range(2):
        optimizer.apply([gradient], params)
    assert gradient.tolist() == [2.0, 2.0, 2.0]


def test_a_loop_of_pytorch():
    """loss.backward() and apply, as in Keras' guide to training with PyTorch."""
    layer = keras.layers.Dense(1, kernel_initializer="ones", use_bias=False)
    model = keras.Sequential([keras.Input((2,)), layer])
    optimizer = CoolMomentum(0.25, 2, 0.75)
    weights = model.trainable_weights
    for _ in range(2):
        model.zero_grad()
        (model(torch.eye(2)) ** 2 / 2).sum().backward()
        optimizer.apply([w.value.grad for w in weights], weights)
    # trajectory B in both coordinates
    assert numpy(weights[0]).ravel().tolist() == [269 / 512] * 2


@pytest.mark.parametrize("schedule", [None, lambda n: 0.5 / (1 + n)], ids=["paper", "callable"])
def test_a_compiled_step_is_the_eager_one(schedule):
    """Compiled with a clock that runs and rho that cools it compiles twice at most."""
    settings = {"schedule": schedule} if schedule else {"total_steps": 6}
    start, grads = np.ones(3), gradients(8, [(3,)])
    (eager,), (compiled,) = variables([start]), variables([start])
    one, other = CoolMomentum(0.01, **settings), CoolMomentum(0.01, **settings)
    follow(one, [eager], grads)
    other.build([compiled])
    compilations = 0

    def counting(graph, inputs):
        nonlocal compilations
        compilations += 1
        return graph.forward

    torch._dynamo.reset()
    step = torch.compile(lambda g: other.apply([g], [compiled]), backend=counting)
    seen = []
    for step_grads in grads:
        step(ops.convert_to_tensor(step_grads[0]))
        seen.append(compilations)
    assert seen[-1] == seen[2], seen
    # 8 steps of 16 roundings of displacements below 5, which live for 100 steps
    np.testing.assert_allclose(numpy(compiled), numpy(eager), rtol=0, atol=8 * 16 * U32 * 5 * 8)
