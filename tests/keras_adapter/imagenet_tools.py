"""A small network in the place of EfficientNet-B0, its averages in NumPy, and TFRecords."""

import keras
import numpy as np
import tensorflow as tf

from benchmarks.imagenet.averages import AveragedModel
from benchmarks.imagenet.images import open_source
from benchmarks.imagenet.optimizers import cool_momentum
from benchmarks.imagenet.recipe import Timing

SIZE, CLASSES = 8, 3
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.normal(size=(64, SIZE, SIZE, 3)).astype("float32")
LABELS = np.eye(CLASSES, dtype="float32")[RANDOM.integers(0, CLASSES, 64)]


def small_network(size=SIZE, classes=CLASSES, **settings):
    """Convolution, batch normalisation, dropout and a penalty, as the real one has them."""
    inputs = keras.Input((size, size, 3))
    penalty = keras.regularizers.L2(5e-6)
    x = keras.layers.Conv2D(4, 3, strides=2, use_bias=False, kernel_regularizer=penalty)(inputs)
    x = keras.layers.BatchNormalization(momentum=settings.get("bn_momentum", 0.9))(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Activation("swish")(x))
    x = keras.layers.Dropout(settings.get("dropout", 0.0))(x)
    return AveragedModel(inputs, keras.layers.Dense(classes, kernel_regularizer=penalty)(x))


def compiled(accumulated=1, lr=0.05, **settings):
    """The small network from seed 1 with CoolMomentum as in the recipe."""
    keras.utils.set_random_seed(1)
    model = small_network()
    model.compile(
        cool_momentum(lr, Timing.of(40), 0.9, accumulated),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        **settings,
    )
    return model


def write_tfrecords(folder):
    """The simulated images as Google's imagenet_to_gcs.py would write them, in four shards."""
    pieces = list(open_source("simulated", "train").pieces(None, 0).as_numpy_iterator())
    for shard in range(4):
        with tf.io.TFRecordWriter(str(folder / f"train-{shard:05d}-of-00004")) as file:
            for jpeg, label in pieces[shard::4]:
                its = {
                    "image/encoded": tf.train.Feature(bytes_list={"value": [jpeg]}),
                    "image/class/label": tf.train.Feature(int64_list={"value": [label + 1]}),
                }
                features = tf.train.Features(feature=its)
                file.write(tf.train.Example(features=features).SerializeToString())
    return str(folder)


class Seen(keras.callbacks.Callback):
    """What is averaged after each minibatch: weights, then moving statistics."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        """Copy them."""
        self.values.append(values(self.model, averages=False))


def values(model, averages):
    """The averages, or the weights and moving statistics that they are of, in one vector."""
    if averages:
        with model.averages_in_place():
            return values(model, averages=False)
    variables = [*model.trainable_variables]
    variables += [v for v in model.non_trainable_variables if v.name.startswith("moving")]
    return np.concatenate([keras.ops.convert_to_numpy(v).ravel() for v in variables])


def check_averages(model, steps=12, accumulated=1):
    """Train in two calls of fit; the averages are those of NumPy, the weights are left alone."""
    seen, expected = Seen(), values(model, averages=False).astype("float64")
    minibatches = steps // 2 * accumulated
    for _ in range(2):
        model.fit(
            PIXELS[: 4 * minibatches],
            LABELS[: 4 * minibatches],
            batch_size=4,
            shuffle=False,
            verbose=0,
            callbacks=[seen],
        )
    assert len(seen.values) == steps * accumulated
    for n, value in enumerate(seen.values[accumulated - 1 :: accumulated], 1):
        decay = min(0.9999, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    before = values(model, averages=False)
    np.testing.assert_allclose(values(model, averages=True), expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(values(model, averages=False), before)
    assert np.abs(expected - before).max() > 1e-3  # they do differ
