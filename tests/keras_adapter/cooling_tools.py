"""What the tests of the cooling share: a small network, its training, and comparisons."""

import keras
import numpy as np
from keras_tools import numpy

X = np.random.default_rng(0).standard_normal((32, 3)).astype("float32")
Y = X[:, :1] - X[:, 1:2]
RHO0 = 1 / 3 + 0.6  # 53 digits of it are needed


def network(optimizer, **options):
    """A small network, always of the same weights."""
    keras.utils.set_random_seed(1)
    layers = [keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(optimizer, "mse", **options)
    return model


def train(model, epochs, callbacks=()):
    """Some more epochs of the same four batches."""
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=[*callbacks])


def arrays(model):
    """Weights, and variables of the optimizer."""
    return [numpy(x).copy() for x in model.weights + model.optimizer.variables]


def assert_same(one, other):
    """Bit for bit."""
    for x, y in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, y)


@keras.saving.register_keras_serializable(package="test")
def zero(step):
    """A schedule of one's own."""
    return 0.0 * step
