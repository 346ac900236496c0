"""EfficientNet-B0 as in the recipe: Keras' own, with what that lacks or has otherwise.

``keras.applications.EfficientNetB0`` without weights normalises nothing, begins from truncated
normals and has no penalty; batch normalisation (.99, .001), drop rates and paddings are those of
the recipe.
"""

from collections.abc import Callable
from typing import Any

import keras

from benchmarks.imagenet.averages import AveragedModel

__all__ = ["MEAN", "STD", "efficientnet_b0"]

MEAN = (0.485, 0.456, 0.406)  # of RGB in [0, 1]: MEAN_RGB of Google's main.py
STD = (0.229, 0.224, 0.225)
PENALTY = 1e-5  # times the sum of half squares: Google's weight_decay
BN_MOMENTUM = 0.99
DROPOUT = 0.2  # before the classifier
DROP_CONNECT = 0.2  # times i / 16 in block i
KERNELS = ("kernel_initializer", "depthwise_initializer")
PENALISED = ("kernel_regularizer", "depthwise_regularizer", "bias_regularizer")


def efficientnet_b0(
    size: int = 224,
    classes: int = 1000,
    *,
    bn_momentum: float = BN_MOMENTUM,
    dropout: float = DROPOUT,
    drop_connect: float = DROP_CONNECT,
) -> AveragedModel:
    """The network of the recipe, from RGB images in [0, 255] to logits, with averaged weights.

    Its penalty, 1e-5 times the sum of half the squares of all kernels and biases, is among its
    losses. Weights are drawn by ``keras.utils.set_random_seed``.

    Parameters
    ----------
    size : of the square images, pixels; at least 32.
    classes : number of logits.
    bn_momentum : of the moving statistics, for each minibatch.
    dropout, drop_connect : rates, in [0, 1).

    Returns
    -------
    a model of float32 variables, under the dtype policy of Keras; normalisation of the pixels and
    logits are in float32 under any
    """
    original = keras.applications.EfficientNetB0(
        weights=None,
        input_shape=(size, size, 3),
        classes=classes,
        classifier_activation=None,
    )
    changed = _changes(bn_momentum, dropout / DROPOUT, drop_connect / DROP_CONNECT)
    clone = keras.models.clone_model(original, clone_function=changed)
    return AveragedModel(clone.inputs[0], clone.outputs[0], name="efficientnet_b0")


def _changes(bn_momentum: float, dropout: float, drop_connect: float) -> Callable[[Any], Any]:
    """What makes a layer of the recipe of one of Keras; the two last multiply its rates."""

    def changed(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, keras.layers.Normalization):
            config |= {"mean": MEAN, "variance": [x**2 for x in STD]}
        if isinstance(layer, keras.layers.BatchNormalization):
            config["momentum"] = bn_momentum
        if isinstance(layer, keras.layers.Dropout):
            config["rate"] *= dropout if layer.noise_shape is None else drop_connect
        if isinstance(
            layer, keras.layers.Normalization | keras.layers.Rescaling | keras.layers.Dense
        ):
            config["dtype"] = "float32"
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            its = next(name for name in KERNELS if config.get(name))
            # From N(0, 2 / fan_out), which Keras cuts off at 2 of its sigma.
            config[its] = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
        config |= {name: keras.regularizers.L2(PENALTY / 2) for name in PENALISED if name in config}
        return type(layer).from_config(config)

    return changed
