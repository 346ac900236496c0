"""The training benchmark in Keras: its networks and a step of them against those in PyTorch."""

import keras
import numpy as np
import pytest
import torch

from benchmarks.training._data import Images
from benchmarks.training._keras import KerasTrainer
from benchmarks.training._networks import initial_weights
from benchmarks.training._problem import Problem, epoch_of
from benchmarks.training._rules import Settings
from benchmarks.training._torch import TorchTrainer

SGD = Settings("sgd", 1.0, 0.0)


def _problem(network: str) -> Problem:
    pixels = np.random.default_rng(0).normal(size=(10, 16, 16, 3)).astype(np.float32)
    images = Images(pixels, np.arange(10, dtype=np.int32))
    return Problem(network, images, images, epochs=1, batch=10, augment=True)


def _trainers(network: str) -> tuple:
    problem = _problem(network)
    trainers = KerasTrainer(problem, SGD), TorchTrainer(problem, SGD)
    for trainer in trainers:
        trainer.start(initial_weights(network, problem.shape, problem.classes, 0))
    return problem, *trainers


@pytest.mark.parametrize("network", ["mlp", "convnet", "resnet20"])
def test_networks_give_the_same_logits(network):
    """As in PyTorch, from the same weights and images, to 1e-5 of the largest logit."""
    problem, ours, theirs = _trainers(network)
    with torch.no_grad():
        expected = theirs._model.eval()(torch.from_numpy(problem.training.pixels)).numpy()
    found = keras.ops.convert_to_numpy(ours.model(problem.training.pixels, training=False))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    if network == "resnet20":
        # Keras counts moving means and variances as parameters, as the paper's 274,442 does.
        assert ours.model.count_params() == 274_442
        trained = ours.model.trainable_variables
        assert sum(int(np.prod(v.shape)) for v in trained) == 273_066


def test_a_step_is_that_of_torch():
    """SGD with lr 1 on an augmented batch moves weights and statistics alike, in float32.

    ResNet-20 where nothing has to be compiled (it takes TensorFlow half a minute).
    """
    network = "resnet20" if keras.backend.backend() == "torch" else "convnet"
    problem, ours, theirs = _trainers(network)
    for trainer in (ours, theirs):
        trainer.train(epoch_of(problem, 0, 0), np.asarray([1.0]), np.asarray([0.0]))
    for name, layer in theirs._model.layers.items():
        buffers = [b for b in layer.buffers() if b.is_floating_point()]
        weights = ours.model.get_layer(name).get_weights()
        for expected, found in zip([*layer.parameters(), *buffers], weights, strict=True):
            expected = expected.detach().numpy()
            axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[expected.ndim]
            # The largest gradients are 1 to 2, and 40 layers of float32 leave 1e-6 of them.
            np.testing.assert_allclose(found, expected.transpose(axes), rtol=0, atol=2e-5)
