"""The training benchmark: its networks, batches and statistics, and whole runs in miniature.

``tests/keras_adapter/test_keras_training.py`` has Keras on its backends.
"""

import errno
import gzip
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from scipy.ndimage import shift
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.training import _checkpoint, _data, _jax
from benchmarks.training.__main__ import main
from benchmarks.training._checkpoint import Checkpoint
from benchmarks.training._command import locked
from benchmarks.training._config import number_of_runs, read, solvers
from benchmarks.training._data import Images, digits
from benchmarks.training._figures import figures
from benchmarks.training._frameworks import trainer as new_trainer
from benchmarks.training._jax import JaxTrainer
from benchmarks.training._jax_networks import variables
from benchmarks.training._networks import initial_weights, layers
from benchmarks.training._noise import gradient_noise, predicted_rescaled_temperature
from benchmarks.training._problem import Batch, Problem, augmented, epoch_of
from benchmarks.training._results import CELL, read_results, write_results
from benchmarks.training._rules import RULES, Settings, learning_rates, momenta
from benchmarks.training._runs import Record, run
from benchmarks.training._tables import best_of_k, chosen, half_width, paired_differences
from benchmarks.training._torch import TorchTrainer
from benchmarks.training._torch_graph import recorded
from coolmomentum import adiabatic_rho0

NETWORKS = ["mlp", "convnet", "resnet20"]
SGD = Settings("sgd", 1.0, 0.0)


def _images(size: int, width: int, seed: int = 0) -> Images:
    random = np.random.default_rng(seed)
    pixels = random.normal(size=(size, width, width, 3)).astype(np.float32)
    return Images(pixels, (np.arange(size) % 10).astype(np.int32))


def _problem(network: str, width: int = 16, **more: object) -> Problem:
    images = _images(10, width)
    return Problem(network, images, images, epochs=1, batch=10, augment=True, **more)  # type: ignore[arg-type]


def _weights(problem: Problem, seed: int = 0) -> dict:
    return initial_weights(problem.network, problem.shape, problem.classes, seed)


# --- networks -------------------------------------------------------------------------------------


def test_resnet20_has_the_parameters_of_the_paper() -> None:
    """274,442 numbers, 273,066 of them trained, in PyTorch and in JAX."""
    problem = _problem("resnet20", 32)
    model = TorchTrainer(problem, SGD)._model
    trained = sum(p.numel() for p in model.parameters())
    moving = sum(b.numel() for b in model.buffers() if b.is_floating_point())
    assert (trained, trained + moving) == (273_066, 274_442)
    sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in variables(_weights(problem))]
    assert (sizes[0], sum(sizes)) == (273_066, 274_442)


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_give_the_same_logits(network: str) -> None:
    """PyTorch and JAX, from the same weights and images, to 1e-5 of the largest logit."""
    problem = _problem(network)
    theirs = TorchTrainer(problem, SGD)
    theirs.start(_weights(problem))
    with torch.no_grad():
        logits = theirs._model.eval()(torch.from_numpy(problem.training.pixels)).numpy()
    parameters, statistics = variables(_weights(problem))
    ours = JaxTrainer(problem, SGD)._static.network.apply(
        {"params": parameters, "batch_stats": statistics}, problem.training.pixels, False
    )
    np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize("network", NETWORKS)
def test_options_for_speed_change_logits_by_roundings_only(network: str) -> None:
    """channels_last by 1e-5 of the largest logit; autocast, to bfloat16, by 2**-8 for each layer.

    bfloat16 has 8 bits. The gradients are of float32 all the same, and so is what is measured.
    """
    problem = _problem(network)
    logits, losses, measured = [], [], []
    for options in ({}, {"channels_last": True}, {"autocast": True}):
        trainer = TorchTrainer(problem, SGD, **options)
        trainer.start(_weights(problem))
        measured.append(trainer.measure())
        trainer._model.train().register_forward_hook(lambda *call: logits.append(call[-1]))
        (batch,) = trainer._split(epoch_of(problem, 0, 0).batches)
        losses.append(float(trainer._backward(*batch)))
        assert trainer._gradient().dtype == torch.float32
    exact, in_another_order, rough = (x.detach() for x in logits)
    kinds = [layer.kind for layer in layers(network, problem.shape, problem.classes)]
    bound = len([kind for kind in kinds if kind != "norm"]) * 2**-8
    unit = float(exact.abs().max())
    torch.testing.assert_close(in_another_order, exact, rtol=0, atol=1e-5 * unit)
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=bound * unit)
    assert [x.dtype for x in (exact, rough)] == [torch.float32, torch.bfloat16]
    assert losses[1:] == [pytest.approx(losses[0], rel=rel) for rel in (1e-5, bound)]
    assert measured[2] == measured[0]


@pytest.mark.parametrize("option", ["channels_last", "autocast"])
def test_options_reach_the_network_and_go_on_from_a_checkpoint(option: str) -> None:
    """A run with them goes on to the bit, and is not that without them."""
    problem, settings = (
        replace(_short_problem("convnet"), epochs=3),
        Settings("coolmomentum", 1, 0.9),
    )
    numbers = [of(settings, 3, problem.steps) for of in (learning_rates, momenta)]

    def trained(trainer: TorchTrainer, *epochs: int) -> str:
        return repr(
            [trainer.train(epoch_of(problem, 0, i), *(x[i] for x in numbers)) for i in epochs]
        )

    whole, resumed = (new_trainer("torch", problem, settings, **{option: True}) for _ in range(2))
    for each in (whole, resumed):
        each.start(_weights(problem))
    kernels = [x for x in whole._parameters if x.ndim == 4]
    last = [x.is_contiguous(memory_format=torch.channels_last) for x in kernels[1:]]
    assert all(last) == (option == "channels_last")
    trained(whole, 0)
    resumed.restore(whole.state())
    assert trained(resumed, 1, 2) == trained(whole, 1, 2)


def test_resnet20_has_the_same_gradient_in_torch_and_jax() -> None:
    """In float64, penalty and statistics of the batch included: nothing but rounding differs.

    In float32, batch normalisation makes of roundings a difference in the third decimal of the
    loss after a dozen steps.
    """
    problem = _problem("resnet20")
    weights, (batches, _) = _weights(problem), epoch_of(problem, 0, 0)
    batch = Batch(batches.indices[0], batches.shifts[0].astype(np.float64), batches.flips[0])
    theirs = TorchTrainer(problem, SGD)
    theirs.start(weights)
    theirs._model.double().train()
    theirs._training = tuple(torch.from_numpy(x) for x in problem.training)  # type: ignore[assignment]
    theirs._training = theirs._training[0].double(), theirs._training[1].long()
    loss = theirs._backward(*map(torch.from_numpy, batch))
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: jnp.asarray(x, "float64"), variables(weights))
        images = problem.training.pixels.astype(np.float64), problem.training.labels
        static = JaxTrainer(problem, SGD)._static
        value_and_gradient = jax.jit(
            lambda p, s: jax.value_and_grad(_jax._loss, has_aux=True)(
                p, s, jax.tree.map(jnp.asarray, images), batch, static
            )
        )
        (ours, (_, after)), gradient = value_and_gradient(*double)
    # Sums of at most some 1e4 products, through 40 layers: 1e-10 is far from that and from a bug.
    assert float(loss) == pytest.approx(float(ours), rel=1e-12)
    for name, layer in theirs._model.layers.items():
        for parameter, expected in zip(
            layer.parameters(), reversed(gradient[name].values()), strict=True
        ):
            axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[parameter.ndim]
            found = parameter.grad.numpy().transpose(axes)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
        if name in after:
            means = layer.running_mean, layer.running_var
            for found, expected in zip(means, after[name].values(), strict=True):
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("xp", [np, jnp])
def test_augmentation_is_a_linear_shift_and_a_flip(xp: object) -> None:
    """That of ``scipy.ndimage`` with ``order=1`` and the edge repeated, then left for right."""
    images = _images(4, 8)
    shifts = np.random.default_rng(1).uniform(-2, 2, (4, 2)).astype(np.float32)
    flips = np.asarray([True, False, True, False])
    found = np.asarray(augmented(images.pixels, Batch(None, shifts, flips), xp))
    for image, by, flip, ours in zip(images.pixels, shifts, flips, found, strict=True):
        expected = shift(image.astype(np.float64), (*by, 0), order=1, mode="nearest")
        expected = expected[:, ::-1] if flip else expected
        # Four products of float32 numbers of size 3, whose weights are good to 2**-21 or so.
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_an_epoch_sees_each_image_once_and_seeds_and_epochs_differ() -> None:
    """A seed and an epoch always give the same."""
    images = digits()
    problem = Problem("mlp", images.training, images.validation, epochs=2, batch=32)
    first, again, later, other = (epoch_of(problem, *x) for x in ((3, 0), (3, 0), (3, 1), (4, 0)))
    assert sorted(first.batches.indices.ravel()) == list(range(1024))
    assert all(map(np.array_equal, first.batches, again.batches))
    assert not np.array_equal(first.batches.indices, later.batches.indices)
    assert not np.array_equal(first.batches.indices, other.batches.indices)


def test_each_digit_is_in_one_part() -> None:
    """1,797 different images (no two of the set are alike), a tenth of each part for each digit."""
    parts = digits()
    assert [len(part.labels) for part in parts] == [1024, 323, 450]
    assert len(np.unique(np.concatenate([part.pixels for part in parts]), axis=0)) == 1797
    for part in parts:
        share = np.bincount(part.labels, minlength=10) / len(part.labels)
        assert share == pytest.approx(0.1, abs=0.01)


# --- sets from files ------------------------------------------------------------------------------


@pytest.mark.skipif(
    "COOLMOMENTUM_DATA" not in os.environ,
    reason="COOLMOMENTUM_DATA must name a folder with cifar-10-batches-py",
)
def test_cifar10_is_the_published_one() -> None:
    """A frog first and 5,000 images a class, with the channel means that everyone normalises by."""
    training, test = _data._cifar10()
    assert training.pixels.shape == (50_000, 32, 32, 3)
    assert test.pixels.shape == (10_000, 32, 32, 3)
    assert (training.labels[0], test.labels[0]) == (6, 3)  # a frog, a cat
    for images, size in ((training, 5_000), (test, 1_000)):
        assert np.bincount(images.labels).tolist() == [size] * 10
    means = training.pixels.mean(axis=(0, 1, 2), dtype=np.float64) / 255
    np.testing.assert_allclose(means, [0.49139968, 0.48215841, 0.44653091], rtol=0, atol=5e-9)


def test_fashion_mnist_is_read_as_it_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of pixels after 16 bytes, labels after 8; a part of the images is held out."""
    random = np.random.default_rng(0)
    kept, md5s = [], {}
    (tmp_path / "fashion-mnist").mkdir()
    for name, size in zip(_data.FASHION_MNIST, (40, 40, 20, 20), strict=True):
        images = "images" in name
        values = random.integers(0, 256, (size, 28, 28)) if images else np.arange(size) % 10
        kept.append(values)
        content = bytes(16 if images else 8) + values.astype(np.uint8).tobytes()
        (tmp_path / "fashion-mnist" / name).write_bytes(gzip.compress(content))
        md5s[name] = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(_data, "FASHION_MNIST", md5s)
    monkeypatch.setenv("COOLMOMENTUM_DATA", str(tmp_path))
    training, validation, test = _data.fashion_mnist(validation=10)
    assert (len(training.labels), len(validation.labels)) == (30, 10)
    assert test.labels.tolist() == kept[3].tolist()
    differences = test.pixels[1:, :, :, 0] - test.pixels[0, :, :, 0]  # the mean image drops out
    expected = (kept[2][1:] - kept[2][0]) / 255
    np.testing.assert_allclose(differences, expected, rtol=0, atol=4 * 2**-24)


def test_a_file_with_another_content_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its name: the message has the file, both checksums, and what to do."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in _data.CIFAR10:
        (folder / name).write_bytes(b"")
    monkeypatch.setenv("COOLMOMENTUM_DATA", str(tmp_path))
    empty = "d41d8cd98f00b204e9800998ecf8427e"
    with pytest.raises(_data.UnavailableDataError, match=f"batch_1 .* {empty}; remove it"):
        _data.cifar10()


def test_a_set_that_is_not_to_be_had_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 before any run; the line has the places looked into, and what to put there."""
    monkeypatch.setenv("COOLMOMENTUM_DATA", str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(_data, "_download", lambda loader: None)  # without a network
    assert main(["laptop-cifar10", "--output", str(tmp_path / "results")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cifar10 is in none of {tmp_path / 'cifar-10-batches-py'}, ")
    assert "data_batch_1" in line
    assert "COOLMOMENTUM_DATA" in line
    assert not (tmp_path / "results").exists()


# --- a step, against NumPy ------------------------------------------------------------------------


def _one_step(settings: Settings) -> tuple:
    images = digits()
    few = Images(*(x[:64] for x in images.training))
    problem = Problem("mlp", few, images.validation, epochs=1, batch=64)
    trainer = TorchTrainer(problem, settings)
    trainer.start(_weights(problem))
    epoch = epoch_of(problem, 0, 0)
    trained = trainer.train(epoch, learning_rates(settings, 1, 1)[0], momenta(settings, 1, 1)[0])
    gradients = [
        _numpy_gradient(_weights(problem), *(x[batch.indices[0]] for x in few))
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
    trainer.start(_weights(problem))
    whole = epoch_of(problem, 0, 0)
    one = Batch(*(x[:1] for x in whole.batches))
    noise = Batch(*(x[:1] for x in whole.noise_batches))
    trained = trainer.train(whole._replace(batches=one, noise_batches=noise), [0.1], [0.75])
    first, second = (
        _numpy_gradient(_weights(problem), *(x[batch.indices[0]] for x in images.training))
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


def _short_problem(network: str) -> Problem:
    images = _images(24, 8)
    return Problem(network, images, images, epochs=2, batch=8, augment=True)


@pytest.mark.parametrize(
    ("network", "rule"),
    [*(("mlp", rule) for rule in RULES), ("convnet", "sgd"), ("resnet20", "coolmomentum")],
)
def test_nothing_waits_for_the_device_within_an_epoch(network: str, rule: str) -> None:
    """On the meta device no number can be read, nor can tensors of the CPU be mixed in."""
    problem, settings = _short_problem(network), Settings(rule, 0.01, 0.9)
    trainer = TorchTrainer(problem, settings, device="meta")
    trainer.start(_weights(problem))
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
        problem = replace(_short_problem(network), training=_images(images, 8))
        trainer = JaxTrainer(problem, settings)
        trainer.start(_weights(problem))
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

    def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
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
    problem, settings = _short_problem(network), Settings(rule, 0.01, 0.9)
    plain, replayed = (TorchTrainer(problem, settings) for _ in range(2))
    replayed._model.train()
    replayed._replay = recorded(replayed._backward, *replayed._like_a_batch(), record=_Recording.of)
    numbers = [of(settings, 2, problem.steps) for of in (learning_rates, momenta)]

    def trained(trainer: TorchTrainer, epochs: Iterable[int]) -> list:
        its = [trainer.train(epoch_of(problem, 0, i), *(x[i] for x in numbers)) for i in epochs]
        return [*its, trainer.measure()]

    for trainer in (plain, replayed, replayed):
        trainer.start(_weights(problem))
        trained(trainer, [0])
        state = trainer.state()
        last = trained(trainer, [1])
        if trainer is plain:
            expected = repr(last)  # NaN where nothing is predicted
        assert repr(last) == expected
    replayed.start(_weights(problem, seed=1))
    replayed.restore(state)
    assert repr(trained(replayed, [1])) == expected


# --- what is made of the runs ---------------------------------------------------------------------


def test_half_width_is_that_of_the_tables_of_student() -> None:
    """For 1..5: s = sqrt(5/2), t(0.975, 4 degrees of freedom) = 2.776445, s t / sqrt(5)."""
    assert half_width([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2.776445 / math.sqrt(2), rel=1e-6)
    assert half_width([0.97, 0.97]) == 0.0
    assert math.isnan(half_width([0.97]))


def test_best_of_k_is_the_mean_over_all_subsets() -> None:
    """Of k of the cells, counted one by one."""
    values = [0.3, 0.1, 0.9, 0.4, 0.4]
    for k, expected in enumerate(best_of_k(values), start=1):
        every = [max(some) for some in itertools.combinations(values, k)]
        assert expected == pytest.approx(sum(every) / len(every), rel=1e-14)


def test_the_cell_chosen_has_the_best_mean_at_the_last_epoch() -> None:
    """Neither a better epoch before nor a better single seed counts; of equals, the lowest loss."""
    runs = pd.DataFrame(
        [
            (0.1, 0, 1, 0.99, 0.1),
            (0.1, 0, 2, 0.90, 0.1),
            (0.1, 1, 2, 0.90, 0.1),
            (0.2, 0, 2, 0.99, 0.1),
            (0.2, 1, 2, 0.80, 0.1),
            (0.3, 0, 2, 0.92, 0.5),
            (0.3, 1, 2, 0.94, 0.5),
            (0.4, 0, 2, 0.93, 0.2),
            (0.4, 1, 2, 0.93, 0.2),
            (0.5, 0, 2, 0.10, math.nan),  # diverged
            (0.5, 1, 2, 0.10, math.nan),
        ],
        columns=["lr", "seed", "epoch", "accuracy", "loss"],
    ).assign(framework="torch", phase="tuning", rule="sgd", momentum=0.9, weight_decay=0.0)
    assert chosen(runs).loc["sgd", "lr"] == 0.4
    assert not chosen(runs).at_edge.any()
    assert chosen(runs[runs.lr >= 0.4]).at_edge.all()


def test_differences_are_paired_by_seed() -> None:
    """A constant lag has an interval of no length, however much the seeds differ."""
    accuracies = {"coolmomentum": [0.5, 0.75, 1.0], "sgd": [0.25, 0.5, 0.75]}
    runs = pd.DataFrame(
        [
            {"rule": rule, "seed": seed, "accuracy": accuracy}
            for rule, its in accuracies.items()
            for seed, accuracy in enumerate(its)
        ]
    ).assign(framework="torch", phase="report", lr=0.1, momentum=0.9, weight_decay=0.0, epoch=1)
    (line,) = paired_differences(runs).itertuples(index=False)
    assert line == ("torch", "sgd", -0.25, 0.0)


def test_what_is_laid_beside_the_paper_is_what_its_scripts_log() -> None:
    """CoolMomentum's loss in inference mode with penalty, the others' running loss; all numbers."""
    columns = ["rule", "epoch", "training_loss", "penalty", "running_loss", "temperature"]
    lines = [("coolmomentum", 1, 0.5, 0.25, 9.0, 9.0), ("sgd-step", 1, 0.5, 0.25, 1.5, 9.0)]
    runs = pd.DataFrame(lines, columns=columns).assign(
        framework="jax", phase="report", seed=0, lr=0.01, momentum=0.9, weight_decay=0.0,
        accuracy=0.9, temperature_with_statistics=1e-7, predicted_temperature=math.nan,
        seconds=math.nan,
    )  # fmt: skip
    drawn = {name: figure for name, _, figure in figures(runs)}
    losses, _, temperatures = drawn["as-in-paper-jax"].axes
    assert {line.get_label(): list(line.get_ydata()) for line in losses.lines} == {
        "coolmomentum": [0.75],
        "sgd-step": [1.5],
    }
    assert [list(line.get_ydata()) for line in temperatures.lines] == [[1e-7], [1e-7]]
    losses, _, temperatures = drawn["training-jax"].axes
    assert [list(line.get_ydata()) for line in losses.lines] == [[0.5], [0.5]]
    assert [list(line.get_ydata()) for line in temperatures.lines] == [[9.0], [9.0]]


def test_no_axis_has_more_than_six_rules() -> None:
    """Fourteen rules are in three rows, coolmomentum in each; every rule is drawn."""
    rules = ["sgd", "coolmomentum", *(f"rule {n}" for n in range(12))]
    runs = pd.DataFrame(
        [
            {"rule": rule, "phase": phase, "seed": seed, "epoch": epoch, "lr": 0.1 * epoch}
            for rule in rules
            for phase in ("tuning", "report")
            for seed in (0, 1)
            for epoch in (1, 2)
        ]
    ).assign(
        framework="jax", penalty=0.0, momentum=0.9, weight_decay=0.0, training_loss=0.5,
        accuracy=0.9, loss=0.5, temperature=1e-7, predicted_temperature=math.nan,
        seconds=math.nan, diverged=False,
    )  # fmt: skip
    drawn = {name: figure for name, _, figure in figures(runs)}
    for name in ("training-jax", "accuracy", "tuning"):
        colours = [{line.get_color() for line in axes.lines} for axes in drawn[name].axes]
        assert max(map(len, colours)) <= 6, name
        assert len(set.union(*colours)) == 14, name
    for name in ("training-jax", "tuning"):
        legends = [axes.get_legend() for axes in drawn[name].axes]
        named = [[text.get_text() for text in one.get_texts()] for one in legends if one]
        assert len(named) == 3
        assert all(one[0] == "coolmomentum" for one in named)
        assert {rule for one in named for rule in one} == set(rules)


def test_figures_show_every_best_and_say_what_is_drawn() -> None:
    """A rule far below the others is on the axis; dashes are explained where there are any."""
    cells = [("coolmomentum", 0.1, 0.2), ("coolmomentum", 0.2, 0.25), ("sgd", 0.1, 0.8)]
    columns = ["rule", "lr", "accuracy"]
    tuning = pd.DataFrame(cells, columns=columns).assign(phase="tuning", seed=0)
    # Of coolmomentum there is a seed more than of sgd: the run isn't whole.
    seeds = [("coolmomentum", 1), ("coolmomentum", 2), ("sgd", 1)]
    report = pd.DataFrame(seeds, columns=["rule", "seed"]).assign(phase="report", lr=0.1)
    runs = pd.concat([tuning, report], ignore_index=True).assign(
        framework="torch", epoch=1, penalty=0.0, momentum=0.9, weight_decay=0.0,
        training_loss=0.5, loss=0.5, temperature=1e-7, predicted_temperature=math.nan,
        seconds=math.nan, diverged=False,
    ).fillna({"accuracy": 0.5})  # fmt: skip
    drawn = {name: figure for name, _, figure in figures(runs)}
    assert drawn["training-torch"].get_suptitle().endswith(" of up to 2 seeds")
    by_rate, by_budget = drawn["tuning"].axes
    assert by_rate.get_title("left") == "(a) Each cell"
    low, high = by_budget.get_ylim()
    assert {line.get_ydata()[-1] for line in by_budget.lines} == {0.25, 0.8}
    assert low < 0.25 < 0.8 < high
    assert all(tick == round(tick) for tick in by_budget.get_xticks())

    both = runs.assign(momentum=[0.9, 0.99, *runs.momentum[2:]])
    drawn = {name: figure for name, _, figure in figures(both)}
    assert "dashed" in drawn["tuning"].axes[0].get_title("left")
    whole = runs[(runs.rule == "coolmomentum") | (runs.phase == "tuning")]
    drawn = {name: figure for name, _, figure in figures(whole)}
    assert drawn["training-torch"].get_suptitle().endswith(" of 2 seeds")


# --- whole runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ci(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``python -m benchmarks.training ci`` leaves behind, where nothing but ASCII is written.

    The folder has a letter that is none, which benchopt prints.
    """
    folder = tmp_path_factory.mktemp("résults")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONIOENCODING", "ascii")
        patch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
        assert main(["ci", "--output", str(folder)]) == 0
    return folder / "ci"


def test_a_config_is_tuned_and_reported(ci: Path) -> None:
    """The tuning sees no seed of the report; what is reported is what the tuning chose."""
    runs, about = read_results(ci / "results.parquet")
    tuning, report = (runs[runs.phase == phase] for phase in ("tuning", "report"))
    assert tuning.groupby("rule").size().to_dict() == {"coolmomentum": 2, "sgd-cosine": 2}
    assert not set(tuning.seed) & set(report.seed)
    assert report.groupby("rule").seed.nunique().eq(2).all()
    assert list(report[report.rule == "sgd-cosine"].epoch) == [0, 1, 2] * 2
    # A seed starts all rules alike, to the last bit, and no two seeds do.
    before = report[report.epoch == 0].groupby("seed").training_loss
    assert before.nunique().eq(1).all()
    assert before.first().nunique() == 2
    choice = chosen(tuning)
    assert report.groupby("rule").momentum.first().to_dict() == choice.momentum.to_dict()
    assert about["command"].startswith("python -m benchmarks.training ci ")
    assert f"torch {torch.__version__}" in report.versions.iloc[0]


def test_a_page_and_figures_are_drawn(ci: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Again from the results alone; the page needs nothing from anywhere else."""
    (ci / "report.html").unlink()
    assert main(["ci", "--draw", "--output", str(ci.parent)]) == 0
    assert "coolmomentum" in capsys.readouterr().out
    page = (ci / "report.html").read_text()
    assert page.count("<img") == 4
    assert "The images are noise" in page  # with accuracies that nobody should take for a result
    assert "http" not in page.replace("data:image", "")
    svg = (ci / "training-torch.svg").read_text()
    for text in ("(a) Training loss", "(b) Test accuracy", "(c) Rescaled temperature", "Eq. 19"):
        assert text in svg


def test_what_is_finished_is_drawn_before_the_end(
    ci: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same records as of a whole run, and how many runs they are of how many.

    What is broken, or not at its last epoch, does not count. The folder may be in use.
    """
    copy = tmp_path / "results" / "ci"
    shutil.copytree(ci / "torch", copy / "torch")
    drawing = ["ci", "--draw", "--output", str(copy.parent), "--to", str(tmp_path / "drawn")]
    drawn = tmp_path / "drawn" / "ci"
    whole, _ = read_results(ci / "results.parquet")
    known = [c for c in whole if c not in ("seconds", "kernel", "processor", "processors", "gpu")]
    of_report = sorted(copy.glob("torch/*/*report*/*/*/checkpoint.npz"))
    for count, each in ((8, None), (7, of_report[0]), (6, of_report[3]), (4, None)):
        if count == 7:
            each.write_bytes(each.read_bytes()[:-9])
        elif count == 6:
            with np.load(each) as file:
                records = json.loads(str(file["records"]))[:-1]
                members = {**file, "records": json.dumps(records)}
            np.savez(each, **members)
        elif count == 4:
            for path in of_report:
                path.unlink()
            shutil.rmtree(drawn)
        capsys.readouterr()
        with locked(copy):
            assert main(drawing) == (2 if count == 4 else 0)
        if count == 4:
            (line,) = capsys.readouterr().err.splitlines()
            assert line.endswith("(4 of 8 runs are finished, none of a report)")
            break
        number = f"Not all runs are finished: {count} of 8. Seeds of each rule: "
        said = " ".join(capsys.readouterr().out.split())
        page = (drawn / "report.html").read_text()
        assert number in said
        assert number in page
        ours, _ = read_results(drawn / "results.parquet")
        assert ours.seconds.isna().all()
        order = [*CELL, "seed", "epoch"]
        merged = ours[known].merge(whole[known], how="left", indicator=True)
        assert (merged._merge == "both").all()
        assert len(ours.groupby(order[:-1])) == count
    assert not drawn.exists()
    assert {path.name for path in copy.iterdir()} == {"torch", ".lock"}


def test_runs_that_do_not_belong_together_are_not_drawn(
    ci: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of other code, or of another cell, that an interrupted command has left there."""
    for key, value, message in (
        ("code", "other", "has runs of several codes: "),
        ("lr", 7.0, "has reports of several cells: coolmomentum in torch"),
    ):
        copy = tmp_path / key / "ci"
        shutil.copytree(ci / "torch", copy / "torch")
        path = min(copy.glob("torch/*/*report*/*rule=coolmomentum,*/rep_0/checkpoint.npz"))
        with np.load(path) as file:
            members = {**file, "about": json.dumps(json.loads(str(file["about"])) | {key: value})}
        np.savez(path, **members)
        assert main(["ci", "--draw", "--output", str(copy.parent)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{copy} {message}")


def test_a_run_that_two_files_ask_for_is_made_once(tmp_path: Path) -> None:
    """The second file only reads it, and adds a seed."""
    config = tmp_path / "config"
    config.mkdir()
    (config / "report.yml").write_text(CONFIG.replace("repetitions: 2", "repetitions: 1"))
    assert main([str(config), "--output", str(tmp_path)]) == 0
    (first,) = tmp_path.rglob("checkpoint.npz")
    before = first.stat()
    (config / "report-2.yml").write_text(CONFIG)
    assert number_of_runs(str(config)) == 2
    assert main([str(config), "--output", str(tmp_path)]) == 0
    assert len(list(tmp_path.rglob("checkpoint.npz"))) == 2
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    runs, _ = read_results(tmp_path / "config" / "results.parquet")
    assert runs.groupby("seed").epoch.apply(list).tolist() == [[*range(13)]] * 2


def test_the_long_run_is_what_its_protocol_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """rho0 is adiabatic in the tuning; three seeds in turn of the same rules; 30 runs."""
    monkeypatch.setattr("benchmarks.training._data.cifar10", lambda: None)
    name, tuning, reports = read("laptop-resnet20")
    assert tuning is not None
    steps = 45_000 // 128 * 5
    for (_, cells), law in zip(solvers(tuning), ("paper", "linear"), strict=False):
        assert cells["momentum"] == 0.987 <= adiabatic_rho0(steps, law=law)
    for _, cells in solvers(tuning):
        assert np.diff(np.log10(cells["lr"])) == pytest.approx([0.5, 0.5], abs=0.01)
    repetitions = [of.pop("n-repetitions") for of in reports.values()]
    assert (list(reports), repetitions) == (["report", "report-2", "report-3"], [1, 2, 3])
    assert all(of == reports["report"] for of in reports.values())
    assert number_of_runs(name) == 30


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-1", "utf-8"])
def test_the_table_can_be_read_in_any_encoding(
    ci: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """What the terminal lacks is written in other letters, and columns are as wide as these."""
    stdout = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr("benchmarks.training._report.figures", lambda runs: [])
    assert main(["ci", "--draw", "--output", str(ci.parent)]) == 0
    stdout.flush()
    lines = stdout.buffer.getvalue().decode(encoding).splitlines()
    interval, square = {"ascii": ("+/-", "^2"), "utf-8": ("±", "²")}.get(encoding, ("±", "²"))
    text = " ".join(lines)
    assert f"{interval} is the 95 % t-interval" in text
    assert f"A low T dt{square} is" in text
    assert ("†" in text) == (encoding == "utf-8")
    assert "?" not in text or encoding == "ascii"  # the é of the folder
    start = next(i for i, line in enumerate(lines) if line.startswith("rule"))
    rows = [line for line in lines[start:] if line.startswith(("rule", "coolmomentum ", "sgd-"))]
    assert len(rows) == 3
    assert len({len(line) for line in rows}) == 1
    assert "±" in (ci / "report.html").read_text(encoding="utf-8")


CONFIG = """
dataset: digits
objective: training[phase=report,network=mlp,epochs=12,batch=32]
n-repetitions: 2
solver:
  - torch: {rule: coolmomentum, lr: 0.01, momentum: 0.9}
"""


def _epochs_done(output: Path) -> int:
    """Of all runs, by their checkpoints."""
    done = 0
    for path in output.rglob("checkpoint.npz"):
        with np.load(path) as checkpoint:
            done += int(checkpoint["epochs"])
    return done


def _heed_signals() -> None:
    """Under nohup, and in the background of a script, some are ignored, by children too."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_run_that_was_interrupted_and_killed_goes_on(tmp_path: Path) -> None:
    """After Ctrl-C, and SIGKILL, in the middle of a run: the records of a whole one, to the bit."""
    config = tmp_path / "killed"
    config.mkdir()
    (config / "report.yml").write_text(CONFIG)
    options = [str(config), "--output", str(tmp_path / "results")]
    _heed_signals()
    output = tmp_path / "results" / "killed"
    command = [sys.executable, "-m", "benchmarks.training", *options]
    done, log = 0, tmp_path / "log"
    for signal_, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        with log.open("a") as lines:
            process = subprocess.Popen(command, start_new_session=True, stdout=lines, stderr=lines)
        deadline = time.monotonic() + 300
        while (seen := _epochs_done(output)) < done + 3:
            assert seen >= done, "it begins again"
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(process.pid, signal_)
        assert process.wait() == status
        before, done = done, _epochs_done(output)
        assert before < done < 24  # in the middle of the two runs
        print(f"{signal_.name} after {done} of 24 epochs")
    assert "Interrupted; the same command goes on from here." in log.read_text()

    assert main(options) == 0
    runs, _ = read_results(output / "results.parquet")
    images = digits()
    problem = Problem("mlp", images.training, images.test, epochs=12, batch=32)
    settings = Settings("coolmomentum", 0.01, 0.9)
    trainer = TorchTrainer(problem, settings)
    assert runs.seed.nunique() == 2
    for seed, resumed in runs.groupby("seed"):
        whole = pd.DataFrame(
            run(trainer, problem, settings, int(seed), Checkpoint(None, ""), lambda *_: None)
        )
        for column in whole.columns.drop("seconds"):
            expected = whole[column].astype(runs[column].dtype)
            if expected.dtype == "float64":
                expected = expected.astype("float32")
            np.testing.assert_array_equal(resumed[column], expected, err_msg=column)


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A write that fails half-way is told once, and what was written before can still be read."""
    checkpoint = Checkpoint(tmp_path, "this run")
    checkpoint.write(1, [{"epoch": 1}], b"state")

    def full(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    checkpoint.write(2, [{"epoch": 2}], b"later")
    checkpoint.write(3, [{"epoch": 3}], b"later")
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert checkpoint.read() == (1, [{"epoch": 1}], b"state")
    assert [path.name for path in tmp_path.iterdir()] == [_checkpoint.NAME]
    assert Checkpoint(tmp_path, "another run").read() is None


def test_a_full_disk_is_one_clear_line(
    ci: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1 where page and figures cannot be written; a mistake of ours is not hidden."""

    def fail(number: int) -> Callable:
        def write(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return write

    monkeypatch.setattr("benchmarks.training.__main__.report", fail(errno.ENOSPC))
    assert main(["ci", "--draw", "--output", str(ci.parent)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device: make room; the same command goes on" in line
    monkeypatch.setattr("benchmarks.training.__main__.report", fail(errno.EACCES))
    assert main(["ci", "--draw", "--output", str(ci.parent)]) == 1
    assert capsys.readouterr().err == "[Errno 13] Permission denied\n"
    monkeypatch.setattr("benchmarks.training.__main__.report", lambda *_: {}["bug"])
    with pytest.raises(KeyError):
        main(["ci", "--draw", "--output", str(ci.parent)])


def test_results_are_whole_or_the_old_ones(
    ci: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up while they are written costs nothing that was there."""
    path = tmp_path / "results.parquet"
    write_results(path, *read_results(ci / "results.parquet"))
    old = path.read_bytes()

    def full(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_results(path, *read_results(ci / "results.parquet"))
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _members(content: bytes) -> dict:
    with np.load(io.BytesIO(content)) as file:
        return dict(file)


def _zip(members: dict) -> bytes:
    file = io.BytesIO()
    np.savez(file, **members)
    return file.getvalue()


def _npy(content: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, np.frombuffer(content, np.uint8))
    return file.getvalue()


@pytest.mark.parametrize(
    "broken",
    [
        lambda content: b"",
        _cut,
        lambda content: content[len(content) // 2 :],
        lambda content: content.replace(b"state", b"stave"),
        _npy,
        lambda content: json.dumps({"epochs": 1}).encode(),
        lambda content: _zip({"state": _members(content)["state"]}),
        lambda content: _zip(_members(content) | {"state": _members(content)["state"][:100]}),
        lambda content: _zip(_members(content) | {"records": np.asarray('[{"epoch": 2}]')}),
        lambda content: _zip(_members(content) | {"records": np.asarray('[{"epoch": 1')}),
        lambda content: _zip(_members(content) | {"epochs": np.asarray(2)}),
        lambda content: _zip(_members(content) | {"epochs": np.asarray("one")}),
    ],
    ids=[
        "empty", "begun", "ended", "other members", "npy", "JSON", "state alone", "state cut",
        "other records", "records cut", "other epochs", "epochs no number",
    ],
)  # fmt: skip
def test_a_broken_checkpoint_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: Callable[[bytes], bytes]
) -> None:
    """Of length 0, cut, or a whole zip of something else: the run begins again, and says so."""
    checkpoint = Checkpoint(tmp_path, "this run")
    assert checkpoint.read() is None
    assert capsys.readouterr().err == ""
    checkpoint.write(1, [{"epoch": 1}], bytes(range(200)))
    assert checkpoint.read() == (1, [{"epoch": 1}], bytes(range(200)))
    path = tmp_path / _checkpoint.NAME
    path.write_bytes(broken(path.read_bytes()))
    assert checkpoint.read() is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}: the run begins again, its checkpoint is broken (")
    checkpoint.write(2, [], b"new")
    assert checkpoint.read() == (2, [], b"new")


def _without_optimizer(state: bytes) -> bytes:
    """In PyTorch: the weights are taken, and then it fails."""
    file = io.BytesIO()
    model, _ = torch.load(io.BytesIO(state), weights_only=True)
    torch.save([{name: value + 1 for name, value in model.items()}, {}], file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("trainer", "broken"),
    [
        (TorchTrainer, _cut),
        (TorchTrainer, lambda state: b""),
        (TorchTrainer, _without_optimizer),
        (JaxTrainer, _cut),
        (JaxTrainer, lambda state: b""),
    ],
)
def test_a_state_that_cannot_be_restored_is_none(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    trainer: type,
    broken: Callable[[bytes], bytes],
) -> None:
    """The run begins again, from its own weights, whatever was taken before it was seen."""
    problem, settings = _short_problem("mlp"), Settings("coolmomentum", 0.01, 0.9)
    its = trainer(problem, settings)

    def records(checkpoint: Checkpoint) -> list:
        found = [vars(x) for x in run(its, problem, settings, 0, checkpoint, lambda *_: None)]
        return [{k: repr(v) for k, v in each.items() if k != "seconds"} for each in found]

    expected = records(Checkpoint(None, ""))
    its.start(_weights(problem))
    checkpoint = Checkpoint(tmp_path, "")
    checkpoint.write(1, [vars(Record(1, 3, 0.0, 0.0, 0.0, 0.0))], broken(its.state()))
    assert records(checkpoint) == expected
    assert "the run begins again, its checkpoint is broken (" in capsys.readouterr().err
    done, _, state = checkpoint.read()
    assert done == 2
    its.restore(state)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is waited for, then it is renamed, then the folder is waited for."""
    seen = []
    sync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        seen.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def replaced(path: Path, target: Path) -> None:
        seen.append("renamed")
        replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    Checkpoint(tmp_path, "").write(1, [], b"state")
    file, folder = (path.stat().st_ino for path in (tmp_path / _checkpoint.NAME, tmp_path))
    assert seen == [file, "renamed", folder]


def test_a_disk_that_fails_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If what was written does not get there, or nothing may be written any more."""
    checkpoint = Checkpoint(tmp_path, "")
    checkpoint.write(1, [], b"state")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(Path, "unlink", fail)
    checkpoint.write(2, [], b"later")
    assert "no checkpoint could be written (Read-only file system)" in capsys.readouterr().err
    assert checkpoint.read() == (1, [], b"state")


# --- how it ends ----------------------------------------------------------------------------------

STAND_IN = """
import os, subprocess, sys, time
if "FAIL" in os.environ:
    sys.exit(3)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
path = sys.argv[sys.argv.index("--output") + 1] + ".up"
with open(path + ".new", "w") as file:
    file.write(f"{os.getpid()} {worker.pid}")
os.rename(path + ".new", path)
time.sleep(600)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config, and for benchopt something that says that it is there, with a worker, and waits."""
    (tmp_path / "benchopt").mkdir()
    (tmp_path / "benchopt" / "__init__.py").touch()
    (tmp_path / "benchopt" / "__main__.py").write_text(STAND_IN)
    config = tmp_path / "config"
    config.mkdir()
    (config / "report.yml").write_text(CONFIG)
    root = str(Path(__file__).parent.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), root]))
    monkeypatch.setattr("benchmarks.training._command.PATIENCE", 0.0, raising=False)
    return config


def _begin(request: pytest.FixtureRequest, config: Path, output: Path, name: str) -> tuple:
    """A run of its own, in a session of its own, and its files."""
    log = output.parent / f"{name}.log"
    options = [str(config), "--output", str(output / name)]
    with log.open("w") as lines:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.training", *options],
            start_new_session=True,
            stdout=lines,
            stderr=lines,
        )
    request.addfinalizer(lambda: _kill_session(process))
    return process, options, log, output / name / "config" / "torch.parquet.up"


def _kill_session(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_nothing_trains_on_after_the_end_and_nothing_twice_before(
    stand_in: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """Whichever signal ends the command alone, the child and its workers end with it.

    Before, a second run in the folder has exit status 2, and one line. It has as well while the
    child of a killed command is still there, which cannot end as long as it is stopped.
    """
    _heed_signals()
    cases = {"SIGTERM": 143, "SIGHUP": 129, "SIGINT": 130, "SIGKILL": -9, "stopped": -9}
    begun = {name: _begin(request, stand_in, tmp_path / "results", name) for name in cases}
    for name, (process, options, log, up) in begun.items():
        _until(lambda up=up, process=process: up.exists() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        pids = list(map(int, up.read_text().split()))
        assert main(options) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{up.parent} is in use by another run: ")
        if name == "stopped":
            os.kill(pids[0], signal.SIGSTOP)
        process.send_signal(getattr(signal, name, signal.SIGKILL))
        assert process.wait() == cases[name], log.read_text()
        if name == "stopped":
            assert main(options) == 2
            os.kill(pids[0], signal.SIGCONT)
        _until(lambda pids=pids: all(map(_gone, pids)))
        told = "Interrupted; the same command goes on from here." in log.read_text()
        assert told == (cases[name] > 0)
        assert "Traceback" not in log.read_text()
        with monkeypatch.context() as patch:
            patch.setenv("FAIL", "at once")
            assert main(options) == 1  # it has begun
        assert "benchopt has failed (3): see " in capsys.readouterr().err


@pytest.mark.parametrize("status", [-signal.SIGTERM, 128 + signal.SIGINT])
def test_a_child_that_was_stopped_is_an_interruption(
    stand_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    """As if the signal had come to the command: it may have come to both, in whatever order."""
    code = (
        f"import os, sys; os.kill(os.getpid(), {-status}) if {status} < 0 else sys.exit({status})"
    )
    (tmp_path / "benchopt" / "__main__.py").write_text(code)
    assert main([str(stand_in), "--output", str(tmp_path / "results")]) == 128 + abs(status) % 128
    assert "Interrupted; the same command goes on from here." in capsys.readouterr().out


def test_a_signal_while_it_draws_and_another_end_it_once(
    ci: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second one does not disturb the end; afterwards signals are what they were."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def report(*_: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGHUP)

    # Else, without a handler, the signal would end the tests.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        monkeypatch.setattr("benchmarks.training.__main__.report", report)
        assert main(["ci", "--draw", "--output", str(ci.parent)]) == 143
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, previous)
    out, err = capsys.readouterr()
    assert out == "Interrupted; the same command goes on from here.\n"
    assert err == ""
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert after == before


def test_a_signal_that_was_ignored_is_ignored(ci: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under ``nohup``, or for a terminal that is closed."""
    monkeypatch.setattr(
        "benchmarks.training.__main__.report", lambda *_: signal.raise_signal(signal.SIGHUP)
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["ci", "--draw", "--output", str(ci.parent)]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


# --- when it cannot begin -------------------------------------------------------------------------


def test_an_unknown_config_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, and nothing is written."""
    assert main(["mnist", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "config must be a folder with a report.yml: mnist\n"
    assert not list(tmp_path.iterdir())


def test_a_framework_that_is_not_installed_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line says how to install it; nothing is run or written."""
    monkeypatch.setattr("benchmarks.training._frameworks.find_spec", lambda name: None)
    assert main(["ci", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == ("torch: torch not installed: pip install '.[demo]'\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "frameworks", "message"),
    [
        ("ci", ["torch", "jax"], "--frameworks must be among those that ci reports, torch: jax"),
        (
            "ci",
            ["keras_jax", "jax"],
            "--frameworks must be among those that ci reports, torch: keras_jax, jax",
        ),
        (
            "laptop-digits",
            ["keras_jax", "jax"],
            "tuning, keras_jax: demon is not to be had: the momentum of Keras' SGD cannot change",
        ),
    ],
)
def test_frameworks_that_cannot_be_run_are_one_clear_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: str,
    frameworks: list[str],
    message: str,
) -> None:
    """Exit status 2 before any run; none of them is dropped in silence."""
    assert main([config, "--output", str(tmp_path), "--frameworks", *frameworks]) == 2
    assert capsys.readouterr().err == f"{message}\n"
    assert not list(tmp_path.iterdir())


def test_a_framework_may_be_named_twice(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is run once."""
    monkeypatch.setenv("FAIL", "at once")
    output = tmp_path / "results"
    assert main([str(stand_in), "--output", str(output), "--frameworks", "torch", "torch"]) == 1
    (solver,) = yaml.safe_load((output / "config" / "report-torch.yml").read_text())["solver"]
    assert list(solver) == ["torch"]


def test_all_configs_are_checked_before_the_first_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that is misspelt is not found out hours later."""
    assert main(["ci", "mnist", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "config must be a folder with a report.yml: mnist\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["--frameworks", "torch"], ["--n-jobs", "2"]])
def test_what_drawing_does_not_heed_is_refused(
    ci: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """It draws what there is."""
    with pytest.raises(SystemExit, match="2"):
        main(["ci", "--output", str(ci.parent), "--draw", *options])
    assert "--draw draws whatever is in the results" in capsys.readouterr().err


TUNED = "{rule: coolmomentum, lr: tuned, momentum: tuned, weight_decay: tuned}"


@pytest.mark.parametrize(
    ("report", "tuning", "message"),
    [
        (CONFIG + "}", None, "report.yml cannot be read: "),
        ("- digits", None, "report.yml cannot be read: "),
        ("", None, "report.yml cannot be read: "),
        (CONFIG.replace("dataset", "data"), None, "report.yml must have dataset"),
        (CONFIG.replace("  - torch", "    torch"), None, "report.yml cannot be read: "),
        (CONFIG.replace("rule: coolmomentum, ", ""), None, "report.yml must have rule"),
        (
            CONFIG.replace("digits", "digit"),
            None,
            "report: dataset must be one of cifar10, digits, ",
        ),
        (
            CONFIG.replace("torch:", "pytorch:"),
            None,
            "report: framework must be one of torch, jax, ",
        ),
        (
            CONFIG.replace("coolmomentum", "cool"),
            None,
            "report, torch: rule must be one of coolmom",
        ),
        (CONFIG.replace("0.01", "tuned"), None, "a report with tuned numbers needs a tuning.yml"),
        (
            CONFIG.replace("0.01", "tuned"),
            CONFIG,
            "report: what is tuned must also have weight_decay",
        ),
        (
            CONFIG.replace("{rule: coolmomentum, lr: 0.01, momentum: 0.9}", TUNED),
            CONFIG.replace("coolmomentum", "sgd"),
            "rules must be in tuning.yml to be reported: coolmomentum",
        ),
        (
            CONFIG.replace("momentum: 0.9", "momentum: 0.9, autocast: true"),
            CONFIG,
            "torch: autocast must be the same for all rules and files: False, True",
        ),
        (
            CONFIG + "  - torch: {rule: sgd, lr: 0.1, momentum: 0.9, channels_last: true}",
            None,
            "torch: channels_last must be the same for all rules and files: False, True",
        ),
        (
            CONFIG,
            CONFIG.replace("torch:", "flax:"),
            "tuning: framework must be one of torch, jax, ",
        ),
    ],
)
def test_a_config_that_would_fail_is_one_clear_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    report: str,
    tuning: str | None,
    message: str,
) -> None:
    """Exit status 2 before any run, not after some."""
    config = tmp_path / "config"
    config.mkdir()
    (config / "report.yml").write_text(report)
    if tuning:
        (config / "tuning.yml").write_text(tuning)
    assert main([str(config), "--output", str(tmp_path / "results")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "results").exists()


def test_a_framework_that_only_tunes_has_to_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the report does not need may be needed before it."""
    (tmp_path / "report.yml").write_text(CONFIG)
    (tmp_path / "tuning.yml").write_text(CONFIG.replace("torch", "jax"))
    monkeypatch.setattr(
        "benchmarks.training._frameworks.find_spec", lambda name: None if name == "flax" else name
    )
    assert main([str(tmp_path), "--output", str(tmp_path / "results")]) == 2
    assert capsys.readouterr().err == "jax: flax not installed: pip install '.[demo]'\n"
    assert not (tmp_path / "results").exists()


def _table(content: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(content))


def _parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def _with_metadata(content: bytes, metadata: str) -> bytes:
    return _parquet(_table(content).replace_schema_metadata({"benchmark": metadata}))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda content: b"", "cannot be read: "),
        (_cut, "cannot be read: "),
        (lambda content: content[:-9] + content[-8:], "cannot be read: "),
        (lambda content: content[:9] + bytes(2000) + content[2009:], "cannot be read: "),
        (lambda content: _parquet(pa.table({"a": [1]})), "was not written by this benchmark"),
        (lambda content: _with_metadata(content, "[]"), "was not written by this benchmark"),
        (lambda content: _with_metadata(content, "{"), "cannot be read: "),
        (
            lambda content: _parquet(_table(content).drop_columns(["seed", "loss"])),
            "lacks columns: seed, loss",
        ),
        (lambda content: _parquet(_table(content)[:0]), "has no runs of a report"),
    ],
)
def test_broken_results_are_one_clear_line(
    ci: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    broken: Callable[[bytes], bytes],
    message: str,
) -> None:
    """Exit status 1; there is no page of them."""
    path = tmp_path / "ci" / "results.parquet"
    path.parent.mkdir()
    path.write_bytes(broken((ci / "results.parquet").read_bytes()))
    assert main(["ci", "--draw", "--output", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path} {message}")
    assert not (tmp_path / "ci" / "report.html").exists()


@pytest.mark.parametrize("draw", [[], ["--draw"]])
@pytest.mark.parametrize(
    "obstacle",
    [
        "results",
        "results/ci",
        "results/ci/.lock",
        "results/ci/report.html",
        pytest.param(
            "read-only",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere"),
        ),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_one_clear_line(
    ci: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    obstacle: str,
    draw: list[str],
) -> None:
    """A file in place of a folder, a folder in place of a file, or no permission: not 0."""
    output = tmp_path / "results" / "ci"
    if "/ci/" in obstacle or obstacle == "read-only":
        output.mkdir(parents=True)
        (output / "results.parquet").write_bytes((ci / "results.parquet").read_bytes())
        if obstacle == "read-only":
            output.chmod(0o500)
        else:
            (tmp_path / obstacle).mkdir()
    else:
        (tmp_path / obstacle).parent.mkdir(exist_ok=True)
        (tmp_path / obstacle).touch()
    if obstacle.endswith("html"):  # found out at the end
        monkeypatch.setattr("benchmarks.training._report.figures", lambda runs: [])
        results = read_results(ci / "results.parquet")
        monkeypatch.setattr("benchmarks.training.__main__._Bench.run", lambda *_: [results[0]])
    status = main(["ci", "--output", str(tmp_path / "results"), *draw])
    assert status == (2 if draw and "/ci/" not in obstacle and obstacle != "read-only" else 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / obstacle if obstacle != "read-only" else output) in line
