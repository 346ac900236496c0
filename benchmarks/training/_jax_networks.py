"""The networks in flax."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from benchmarks.training._networks import (
    BN_EPSILON,
    BN_MOMENTUM,
    HIDDEN,
    Weights,
    resnet_blocks,
)

__all__ = ["build", "variables"]


def build(network: str, classes: int) -> nn.Module:
    """The network, which maps images (batch, height, width, channels) to logits."""
    return {"mlp": _MLP, "convnet": _ConvNet, "resnet20": _ResNet20}[network](classes)


def variables(weights: Weights) -> tuple[Any, Any]:
    """The parameters with those weights, and new moving statistics."""
    parameters = jax.tree.map(jnp.asarray, weights)
    statistics = {
        name: {"mean": jnp.zeros_like(layer["scale"]), "var": jnp.ones_like(layer["scale"])}
        for name, layer in parameters.items()
        if "scale" in layer
    }
    return parameters, statistics


def _conv(filters: int, name: str, size: int = 3, stride: int = 1) -> nn.Conv:
    return nn.Conv(filters, (size, size), stride, padding="SAME", name=name)


class _MLP(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, pixels: jax.Array, training: bool) -> jax.Array:
        x = pixels.reshape(len(pixels), -1)
        x = jnp.tanh(nn.Dense(HIDDEN, name="hidden")(x))
        return nn.Dense(self.classes, name="logits")(x)


class _ConvNet(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, pixels: jax.Array, training: bool) -> jax.Array:
        x = pixels
        for name, filters in (("conv0", 16), ("conv1", 32)):
            x = nn.max_pool(nn.relu(_conv(filters, name)(x)), (2, 2), (2, 2))  # type: ignore[no-untyped-call]
        x = nn.relu(_conv(64, "conv2")(x))
        return nn.Dense(self.classes, name="logits")(x.mean(axis=(1, 2)))


class _ResNet20(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, pixels: jax.Array, training: bool) -> jax.Array:
        def norm(x: jax.Array, name: str) -> jax.Array:
            layer = nn.BatchNorm(
                use_running_average=not training,
                momentum=BN_MOMENTUM,
                epsilon=BN_EPSILON,
                name=name,
            )
            normed: jax.Array = layer(x)
            return normed

        x = nn.relu(norm(_conv(16, "conv")(pixels), "norm"))
        for name, filters, stride, projects in resnet_blocks():
            y = _conv(filters, f"{name}_conv0", stride=stride)(x)
            y = nn.relu(norm(y, f"{name}_norm0"))
            y = norm(_conv(filters, f"{name}_conv1")(y), f"{name}_norm1")
            if projects:
                x = _conv(filters, f"{name}_projection", 1, stride)(x)
            x = nn.relu(x + y)
        return nn.Dense(self.classes, name="logits")(x.mean(axis=(1, 2)))
