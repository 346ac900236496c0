"""The networks as lists of layers, and their initial weights, in NumPy for all frameworks.

Each framework builds them in its own way, from layers with these names. ResNet-20 is version 1 of
the paper's Keras script: biases in the convolutions, projections without normalisation, 274,442
numbers of which 273,066 are trained (the others are moving means and variances).
"""

from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

__all__ = [
    "BN_EPSILON",
    "BN_MOMENTUM",
    "HIDDEN",
    "Layer",
    "Weights",
    "initial_weights",
    "layers",
    "penalty_of",
    "resnet_blocks",
]

HIDDEN = 64  # units of the small MLP
BN_MOMENTUM, BN_EPSILON = 0.99, 1e-3

Weights = dict[str, dict[str, NDArray[np.float32]]]  # layer: kernel or scale, and bias


class Layer(NamedTuple):
    """A layer with weights."""

    name: str
    kind: str  # "conv", "dense" or "norm"
    shape: tuple[int, ...]  # of the kernel: (height, width, in, out), (in, out); of a norm: (in,)


class Block(NamedTuple):
    """A residual block: two convolutions, and one on the shortcut where the shape changes."""

    name: str
    filters: int
    stride: int
    projects: bool


def resnet_blocks() -> list[Block]:
    """The nine blocks of ResNet-20."""
    return [
        Block(f"block{stack}{block}", 16 * 2**stack, 2 if new else 1, new)
        for stack in range(3)
        for block in range(3)
        for new in [stack > 0 and block == 0]
    ]


def layers(network: str, shape: tuple[int, int, int], classes: int) -> list[Layer]:
    """The layers of a network for images of that shape."""
    channels = shape[-1]
    if network == "mlp":
        return [
            Layer("hidden", "dense", (prod(shape), HIDDEN)),
            Layer("logits", "dense", (HIDDEN, classes)),
        ]
    if network == "convnet":
        return [
            Layer("conv0", "conv", (3, 3, channels, 16)),
            Layer("conv1", "conv", (3, 3, 16, 32)),
            Layer("conv2", "conv", (3, 3, 32, 64)),
            Layer("logits", "dense", (64, classes)),
        ]
    if network == "resnet20":
        return _resnet20(channels, classes)
    raise ValueError(f"network must be one of mlp, convnet, resnet20: {network}")


def _resnet20(channels: int, classes: int) -> list[Layer]:
    found = [Layer("conv", "conv", (3, 3, channels, 16)), Layer("norm", "norm", (16,))]
    width = 16
    for name, filters, _, projects in resnet_blocks():
        found += [
            Layer(f"{name}_conv0", "conv", (3, 3, width, filters)),
            Layer(f"{name}_norm0", "norm", (filters,)),
            Layer(f"{name}_conv1", "conv", (3, 3, filters, filters)),
            Layer(f"{name}_norm1", "norm", (filters,)),
        ]
        if projects:
            found.append(Layer(f"{name}_projection", "conv", (1, 1, width, filters)))
        width = filters
    return [*found, Layer("logits", "dense", (width, classes))]


def penalty_of(network: str) -> float:
    """What multiplies the sum of the squares of all convolution kernels in the loss."""
    return 1e-4 if network == "resnet20" else 0.0


def initial_weights(network: str, shape: tuple[int, int, int], classes: int, seed: int) -> Weights:
    """Glorot uniform for the MLP, He normal (cut at two standard deviations) for the others."""
    random = np.random.default_rng([seed, 2**32])  # no epoch has that number
    weights: Weights = {}
    for name, kind, size in layers(network, shape, classes):
        bias = np.zeros(size[-1], np.float32)
        if kind == "norm":
            weights[name] = {"scale": np.ones(size, np.float32), "bias": bias}
            continue
        inputs, outputs = prod(size[:-1]), size[-1]
        if network == "mlp":
            limit = np.sqrt(6 / (inputs + outputs))
            kernel = random.uniform(-limit, limit, size)
        else:
            # Cut at 2, a normal variable keeps a standard deviation of 0.8796..., as Keras knows.
            normal = ndtri(random.uniform(ndtr(-2), ndtr(2), size)) / 0.87962566103423978
            kernel = normal * np.sqrt(2 / inputs)
        weights[name] = {"kernel": kernel.astype(np.float32), "bias": bias}
    return weights
