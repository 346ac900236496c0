"""The networks in Keras, on any of its backends."""

from typing import Any

import keras
import numpy as np

from benchmarks.training._networks import (
    BN_EPSILON,
    BN_MOMENTUM,
    HIDDEN,
    Weights,
    resnet_blocks,
)

__all__ = ["build", "load"]


def build(network: str, shape: tuple[int, int, int], classes: int) -> keras.Model:
    """The network, which maps images (batch, height, width, channels) to logits."""
    pixels = keras.Input(shape)
    hidden = {"mlp": _mlp, "convnet": _convnet, "resnet20": _resnet20}[network](pixels)
    return keras.Model(pixels, keras.layers.Dense(classes, name="logits")(hidden))


def load(model: keras.Model, weights: Weights) -> None:
    """Copy the weights into the model, and make its moving statistics those of a new one."""
    for name, of in weights.items():
        if "scale" in of:
            zeros = np.zeros_like(of["bias"])
            values = [of["scale"], of["bias"], zeros, zeros + 1]
        else:
            values = [of["kernel"], of["bias"]]
        model.get_layer(name).set_weights(values)


def _conv(filters: int, name: str, size: int = 3, stride: int = 1) -> Any:
    return keras.layers.Conv2D(filters, size, stride, padding="same", name=name)


def _norm(name: str) -> Any:
    return keras.layers.BatchNormalization(momentum=BN_MOMENTUM, epsilon=BN_EPSILON, name=name)


def _mlp(pixels: Any) -> Any:
    return keras.layers.Dense(HIDDEN, "tanh", name="hidden")(keras.layers.Flatten()(pixels))


def _convnet(x: Any) -> Any:
    for name, filters in (("conv0", 16), ("conv1", 32)):
        x = keras.layers.MaxPooling2D()(keras.ops.relu(_conv(filters, name)(x)))
    x = keras.ops.relu(_conv(64, "conv2")(x))
    return keras.layers.GlobalAveragePooling2D()(x)


def _resnet20(x: Any) -> Any:
    relu = keras.ops.relu
    x = relu(_norm("norm")(_conv(16, "conv")(x)))
    for name, filters, stride, projects in resnet_blocks():
        y = _conv(filters, f"{name}_conv0", stride=stride)(x)
        y = relu(_norm(f"{name}_norm0")(y))
        y = _norm(f"{name}_norm1")(_conv(filters, f"{name}_conv1")(y))
        if projects:
            x = _conv(filters, f"{name}_projection", 1, stride)(x)
        x = relu(x + y)
    return keras.layers.GlobalAveragePooling2D()(x)
