"""The networks in PyTorch."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad, relu

from benchmarks.training._networks import (
    BN_EPSILON,
    BN_MOMENTUM,
    Weights,
    layers,
    resnet_blocks,
)

__all__ = ["Network", "load"]


class Network(nn.Module):
    """Layers by their names, and one of the functions below that says how they are joined."""

    def __init__(self, network: str, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {name: _layer(kind, size) for name, kind, size in layers(network, shape, classes)}
        )
        self.join = {"mlp": _mlp, "convnet": _convnet, "resnet20": _resnet20}[network]

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of images (batch, height, width, channels)."""
        logits: Tensor = self.join(self.layers, pixels)
        return logits


def load(model: Network, weights: Weights) -> None:
    """Copy the weights into the model, and make its moving statistics those of a new one."""
    with torch.no_grad():
        for name, layer in model.layers.items():
            if isinstance(layer, _Norm):
                layer.reset_running_stats()
            for parameter, value in zip(layer.parameters(), weights[name].values(), strict=True):
                # (height, width, in, out) to (out, in, height, width), and (in, out) to (out, in)
                axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]
                parameter.copy_(torch.from_numpy(value.transpose(axes).copy()))


def _layer(kind: str, size: tuple[int, ...]) -> nn.Module:
    if kind == "dense":
        return nn.Linear(size[0], size[1])
    if kind == "norm":
        return _Norm(size[0])
    height, _, inputs, outputs = size
    return nn.Conv2d(inputs, outputs, height)


class _Norm(nn.BatchNorm2d):
    """Batch normalisation whose moving variance is that of TensorFlow: not divided by n - 1."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=BN_EPSILON, momentum=1 - BN_MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        normed, mean, inverse = torch.native_batch_norm(
            x, self.weight, self.bias, None, None, True, 0.0, self.eps
        )
        with torch.no_grad():
            self.running_mean.lerp_(mean, 1 - BN_MOMENTUM)
            self.running_var.lerp_(inverse**-2 - self.eps, 1 - BN_MOMENTUM)
        return normed


def _conv(layer: Any, x: Tensor, stride: int = 1) -> Tensor:
    """With the "same" padding of TensorFlow: if it is odd, more of it is below and on the right."""
    size, kernel = x.shape[-1], layer.kernel_size[0]
    padding = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    before, after = padding // 2, padding - padding // 2
    if before != after:
        x = pad(x, (before, after, before, after))
        before = 0
    return torch.conv2d(x, layer.weight, layer.bias, stride, before)


def _mlp(layers: nn.ModuleDict, pixels: Tensor) -> Tensor:
    hidden = torch.tanh(layers["hidden"](pixels.flatten(1)))
    logits: Tensor = layers["logits"](hidden)
    return logits


def _convnet(layers: nn.ModuleDict, pixels: Tensor) -> Tensor:
    x = pixels.permute(0, 3, 1, 2)
    for name in ("conv0", "conv1"):
        x = max_pool2d(relu(_conv(layers[name], x)), 2)
    x = relu(_conv(layers["conv2"], x))
    logits: Tensor = layers["logits"](x.mean(dim=(2, 3)))
    return logits


def _resnet20(layers: nn.ModuleDict, pixels: Tensor) -> Tensor:
    x = relu(layers["norm"](_conv(layers["conv"], pixels.permute(0, 3, 1, 2))))
    for name, _, stride, projects in resnet_blocks():
        y = relu(layers[f"{name}_norm0"](_conv(layers[f"{name}_conv0"], x, stride)))
        y = layers[f"{name}_norm1"](_conv(layers[f"{name}_conv1"], y))
        if projects:
            x = _conv(layers[f"{name}_projection"], x, stride)
        x = relu(x + y)
    logits: Tensor = layers["logits"](x.mean(dim=(2, 3)))
    return logits
