"""The networks, their data and batches, and how they are trained."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits

Arrays = list[np.ndarray]
OPTIMIZERS = "CoolMomentum", "SGD", "Adam"
RHO = 0.9  # of all of them


class Network(NamedTuple):
    """A network and how it is trained."""

    layers: tuple[str, ...]  # of those named in forward
    shapes: tuple[tuple[int, ...], ...]  # of a kernel and a bias for each
    batch: int
    rates: dict[str, float]  # learning rates of the optimizers
    burn_in: int
    decay: float = 0.0  # of the parameters, in the loss: half their square times this
    regression: bool = False


NETWORKS = {
    "linear regression": Network(
        ("dense",),
        ((20, 5), (5,)),
        batch=16,
        rates={"CoolMomentum": 0.05, "SGD": 0.05, "Adam": 0.05},
        burn_in=500,
        regression=True,
    ),
    "two dense layers": Network(
        ("tanh", "dense"),
        ((64, 32), (32,), (32, 10), (10,)),
        batch=128,
        rates={"CoolMomentum": 0.1, "SGD": 0.1, "Adam": 0.002},
        burn_in=1000,
        decay=0.002,
    ),
    "a convolution": Network(
        ("conv", "dense"),
        ((3, 3, 1, 8), (8,), (288, 10), (10,)),
        batch=128,
        rates={"CoolMomentum": 0.02, "SGD": 0.02, "Adam": 0.001},
        burn_in=1000,
        decay=0.01,
    ),
}


def data(network: Network) -> tuple[np.ndarray, np.ndarray]:
    """All examples."""
    if network.regression:
        random = np.random.default_rng(7)
        x = random.standard_normal((2048, 20)).astype(np.float32)
        y = x @ random.standard_normal((20, 5)) + 2 * random.standard_normal((2048, 5))
        return x, y.astype(np.float32)
    x, y = load_digits(return_X_y=True)
    shape = (-1, 8, 8, 1) if network.layers[0] == "conv" else (-1, 64)
    return (x / 16).reshape(shape).astype(np.float32), y.astype(np.int32)


def initial(network: Network, seed: int) -> Arrays:
    """Parameters at the start."""
    random = np.random.default_rng(seed)
    return [
        random.normal(0, 1 / math.sqrt(math.prod(shape[:-1])), shape).astype(np.float32)
        if len(shape) > 1
        else np.zeros(shape, np.float32)
        for shape in network.shapes
    ]


def batches(network: Network, seed: int, steps: int) -> np.ndarray:
    """The examples of each step, drawn independently."""
    random = np.random.default_rng(1000 + seed)
    return random.integers(len(data(network)[0]), size=(steps, network.batch))


def loss_of(network: Network) -> Callable[[Any, Any, Any], Any]:
    """The loss of one example."""
    import jax
    import jax.numpy as jnp
    import optax

    def loss(params: Any, x: Any, y: Any) -> Any:
        for layer, kernel, bias in zip(network.layers, params[::2], params[1::2], strict=True):
            if layer == "conv":
                # As a product with patches, which is faster where each example has a gradient.
                patches = [x[i : i + 6, j : j + 6, 0] for i in range(3) for j in range(3)]
                x = jnp.stack(patches, -1) @ kernel.reshape(9, -1) + bias
                x = jax.nn.relu(x).reshape(-1)
            else:
                x = x @ kernel + bias
                x = jnp.tanh(x) if layer == "tanh" else x
        decay = network.decay / 2 * sum(jnp.sum(p**2) for p in params)
        if network.regression:
            return jnp.sum((x - y) ** 2) / 2 + decay
        return optax.softmax_cross_entropy_with_integer_labels(x, y) + decay

    return loss
