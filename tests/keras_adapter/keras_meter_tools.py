"""What the tests of habits with the thermometer share: models of one layer, and a training."""

import keras
import numpy as np
from keras_tools import BACKEND

JIT = BACKEND == "jax"
SIZE = 5
TEMPERATURE = ("rescaled_temperature", "temperature", "three_point_temperature", "curvature")


class Line(keras.layers.Layer):
    """Weights whose gradient is the batch, of one row."""

    def build(self, shape):
        """Make the weights."""
        self.w = self.add_weight(shape=(shape[-1],), initializer="zeros", name="w")

    def call(self, x):
        """Give what has the batch for a gradient."""
        return keras.ops.sum(x * self.w, -1)


def line(optimizer, **options):
    """A model each of whose steps moves SGD by its learning rate, if the batches are ones."""
    model = keras.Sequential([keras.Input((SIZE,)), Line()])
    model.compile(optimizer, lambda y, out: out, **{"jit_compile": JIT} | options)
    return model


def ones(steps, scale=1.0):
    """Batches that are the gradients."""
    return np.full((steps, SIZE), scale, "float32"), np.zeros(steps, "float32")


def fit(model, *callbacks, steps=6, **options):
    """Its history, after steps whose gradients are ones."""
    settings = {"batch_size": 1, "verbose": 0, "shuffle": False, "callbacks": [*callbacks]}
    return model.fit(*ones(steps), **settings | options).history


def said(told):
    """The warnings of the thermometer among others: Keras makes NumPy deprecate things."""
    return [x for x in told if x.category is UserWarning]


def dense(inputs=2, outputs=1):
    """Data for models of layers."""
    random = np.random.default_rng(0)
    x = random.standard_normal((12, inputs)).astype("float32")
    return x, random.standard_normal((12, outputs)).astype("float32")
