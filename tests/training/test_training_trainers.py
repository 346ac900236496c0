"""Steps of the trainers: against NumPy, each other, and on a GPU as far as a CPU can tell.

``tests/keras_adapter/test_keras_training.py`` has Keras on its backends.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from training_tools import first_weights, short_problem, some_images

from benchmarks.training import _jax
from benchmarks.training._checkpoint import Checkpoint
from benchmarks.training._data import Images, digits
from benchmarks.training._jax import JaxTrainer
from benchmarks.training._noise import gradient_noise, predicted_rescaled_temperature
from benchmarks.training._problem import Batch, Problem, epoch_of
from benchmarks.training._rules import RULES, Settings, learning_rates, momenta
from benchmarks.training._runs import run
from benchmarks.training._torch import TorchTrainer
from benchmarks.training._torch_graph import recorded


def _one_step(settings: Settings) -> tuple:
    images = digits()
    few = Images(*(x[:64] for x in images.training))
    problem = Problem("mlp", few, images.validation, epochs=1, batch=64)
    trainer = TorchTrainer(problem, settings)
    trainer.start(first_weights(problem))
    epoch = epoch_of(problem, 0, 0)
    trained = trainer.train(epoch, learning_rates(settings, 1, 1)[0], momenta(settings, 1, 1)[0])
    gradients = [
        _numpy_gradient(first_weights(problem), *(x[batch.indices[0]] for x in few))
        for batch in (epoch.batches, epoch.noise_batches)
    ]
    return trained, *gradients


def _numpy_gradient(weights: dict, pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Backpropagation by hand, in float64."""
    w, b, v, c = (x.astype(np.float64) for layer in weights.values() for x in layer.values())
    pixels = pixels.reshape(len(pixels), -1)
    hidden = np.tanh(pixels @ w + b)
    powers = np.exp(hidden @ v + c)
    error = (powers / powers.sum(axis=1, keepdims=True) - np.eye(10)[labels]) / len(labels)
    back = (error @ v.T) * (1 - hidden**2)
    parts = (pixels.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0))
    return np.concatenate([part.ravel() for part in parts])


def test_the_temperature_of_sgd_is_its_first_step() -> None:
    """One step of SGD moves by lr times the gradient: the mean square of that, by NumPy alone."""
    trained, gradient, _ = _one_step(Settings("sgd", 0.5, 0.0))
    # A parameter below 1/2 is rounded by 1.5e-8 at most, a displacement is 1e-3 (root mean square).
    assert trained.temperature == pytest.approx(0.25 * np.mean(gradient**2), rel=3e-5)


def test_the_prediction_is_eq_19_with_the_noise_of_two_minibatches() -> None:
    """One step at rho0: lr**2 (1 + rho) / (4 (1 - rho)) times the mean of (g - g')**2 / 2."""
    images = digits()
    problem = Problem("mlp", images.training, images.validation, epochs=1, batch=1024 // 4)
    settings = Settings("coolmomentum", 0.1, 0.75)
    trainer = TorchTrainer(problem, settings)
    trainer.start(first_weights(problem))
    whole = epoch_of(problem, 0, 0)
    one = Batch(*(x[:1] for x in whole.batches))
    noise = Batch(*(x[:1] for x in whole.noise_batches))
    trained = trainer.train(whole._replace(batches=one, noise_batches=noise), [0.1], [0.75])
    first, second = (
        _numpy_gradient(first_weights(problem), *(x[batch.indices[0]] for x in images.training))
        for batch in (one, noise)
    )
    variance = np.mean((first - second) ** 2) / 2
    # float32 gradients: relative errors of 1e-6 of the gradients, twice in a square
    assert trained.predicted_temperature == pytest.approx(0.1**2 * 7 / 4 * variance, rel=1e-5)


def test_gradient_noise_is_unbiased() -> None:
    """Over all pairs of minibatches of 2 from 5 images, its mean is the variance of one of them.

    The variance of a mean of B out of N without replacement is S**2 / B (1 - B / N), S**2 being
    the variance with divisor N - 1.
    """
    images = np.asarray([[1.0, 0.0], [2.0, 5.0], [4.0, -1.0], [8.0, 2.0], [-3.0, 1.0]])
    minibatches = [images[list(pair)].mean(axis=0) for pair in itertools.combinations(range(5), 2)]
    estimates = [gradient_noise(a, b) for a in minibatches for b in minibatches]
    exact = images.var(axis=0, ddof=1).mean() / 2 * (1 - 2 / 5)
    assert np.mean(estimates) == pytest.approx(exact, rel=1e-14)


def test_predicted_temperature_of_a_known_noise() -> None:
    """<R**2> = 1, lr = 1/100, rho = 99/100: T = 0.4975 (science, section 6) and T lr = 0.004975."""
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([1.0 + math.sqrt(2), 2 - math.sqrt(2)])
    predicted = predicted_rescaled_temperature(first, second, lr=0.01, rho=0.99)
    assert predicted == pytest.approx(0.004975, rel=1e-6)  # float32 gradients


@pytest.mark.parametrize("rule", ["coolmomentum", "sgd-cosine", "adam-cosine", "demon"])
def test_the_frameworks_make_the_same_run(rule: str) -> None:
    """From the same weights and batches, PyTorch and JAX write the same records, to rounding."""
    images = digits()
    problem = Problem("mlp", images.training, images.test, epochs=2, batch=32)
    settings = Settings(rule, 0.01, 0.9)
    one, other = (
        pd.DataFrame(run(t(problem, settings), problem, settings, 0, Checkpoint(None, ""), print))
        for t in (TorchTrainer, JaxTrainer)
    )
    # 64 steps, whose gradients are sums of some 64 rounded products: 2**-24 each, if all conspired.
    compared = [c for c in one if c != "seconds"]
    np.testing.assert_allclose(
        one[compared].astype(float), other[compared].astype(float), rtol=64 * 64 * 2**-24, atol=0
    )


# --- on a GPU, as far as a CPU can tell -----------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "rule"),
    [*(("mlp", rule) for rule in RULES), ("convnet", "sgd"), ("resnet20", "coolmomentum")],
)
def test_nothing_waits_for_the_device_within_an_epoch(network: str, rule: str) -> None:
    """On the meta device no number can be read, nor can tensors of the CPU be mixed in."""
    problem, settings = short_problem(network), Settings(rule, 0.01, 0.9)
    trainer = TorchTrainer(problem, settings, device="meta")
    trainer.start(first_weights(problem))
    numbers = (of(settings, 2, problem.steps)[0] for of in (learning_rates, momenta))
    seen = trainer._steps(epoch_of(problem, 0, 0), *numbers)
    assert (seen.device.type, seen.shape) == ("meta", (4,))
    with pytest.raises(RuntimeError, match="meta"):
        seen.tolist()


@pytest.mark.parametrize(
    ("network", "rule"),
    [
        *(("mlp", rule) for rule in ("sgd", "adam", "adamw", "rmsprop")),
        ("resnet20", "coolmomentum"),
    ],
)
def test_an_epoch_in_jax_is_one_program_for_a_gpu(
    network: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lowered for CUDA and TPU it asks nothing of the host, and its length is that of one step.

    Its two loops are over stretches and steps; one that repeats the step for each batch would be
    longer for more of them.
    """
    programs = []
    epoch = _jax._epoch

    def lowered(*args: Any, static: _jax.Static) -> Any:
        exported = jax.export.export(epoch, platforms=("cuda", "tpu"))(*args, static=static)
        programs.append(exported.mlir_module())
        return args[0], [0.0] * 4

    monkeypatch.setattr(_jax, "_epoch", lowered)
    settings = Settings(rule, 0.01, 0.9)
    for images in (24, 48):
        problem = replace(short_problem(network), training=some_images(images, 8))
        trainer = JaxTrainer(problem, settings)
        trainer.start(first_weights(problem))
        numbers = (of(settings, 2, problem.steps)[0] for of in (learning_rates, momenta))
        trainer.train(epoch_of(problem, 0, 0), *numbers)
    short, long = programs
    assert short.count("stablehlo.while") == long.count("stablehlo.while") == 2
    assert short.count("stablehlo.") == long.count("stablehlo.")  # operations
    assert not re.search("custom_call|callback|infeed|outfeed|stablehlo.(send|recv)", short)


class _Recording(TorchDispatchMode):
    """What a CUDA graph does, on the CPU: the same kernels on the same memory, without Python."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list = []

    def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
        result = kernel(*args, **(kwargs or {}))
        memory = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs or {}, result))
        self._calls.append((kernel, *memory))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for kernel, args, kwargs, result in self._calls:
            for old, new in zip(*map(tree_leaves, (result, kernel(*args, **kwargs))), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    @classmethod
    def of(cls, function: Callable) -> tuple:
        function()
        with (recording := cls()):
            result = function()
        return recording.replay, result


@pytest.mark.parametrize(
    ("network", "rule"),
    [
        ("mlp", "coolmomentum"),
        ("convnet", "adam-cosine"),
        ("resnet20", "coolmomentum"),
        ("mlp", "demon"),
    ],
)
def test_a_recorded_gradient_makes_the_same_run(network: str, rule: str) -> None:
    """To the bit: nothing in it depends on Python, or on other memory than when it was recorded.

    So does a second run of the same trainer, and one that goes on from a checkpoint.
    """
    problem, settings = short_problem(network), Settings(rule, 0.01, 0.9)
    plain, replayed = (TorchTrainer(problem, settings) for _ in range(2))
    replayed._model.train()
    replayed._replay = recorded(replayed._backward, *replayed._like_a_batch(), record=_Recording.of)
    numbers = [of(settings, 2, problem.steps) for of in (learning_rates, momenta)]

    def trained(trainer: TorchTrainer, epochs: Iterable[int]) -> list:
        its = [trainer.train(epoch_of(problem, 0, i), *(x[i] for x in numbers)) for i in epochs]
        return [*its, trainer.measure()]

    for trainer in (plain, replayed, replayed):
        trainer.start(first_weights(problem))
        trained(trainer, [0])
        state = trainer.state()
        last = trained(trainer, [1])
        if trainer is plain:
            expected = repr(last)  # NaN where nothing is predicted
        assert repr(last) == expected
    replayed.start(first_weights(problem, seed=1))
    replayed.restore(state)
    assert repr(trained(replayed, [1])) == expected
