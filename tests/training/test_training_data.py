"""The images of the training benchmark: batches, augmentation, and sets from files."""

import gzip
import hashlib
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import shift
from training_tools import some_images

from benchmarks.training import _data
from benchmarks.training.__main__ import main
from benchmarks.training._data import digits
from benchmarks.training._problem import Batch, Problem, augmented, epoch_of


@pytest.mark.parametrize("xp", [np, jnp])
def test_augmentation_is_a_linear_shift_and_a_flip(xp: object) -> None:
    """That of ``scipy.ndimage`` with ``order=1`` and the edge repeated, then left for right."""
    images = some_images(4, 8)
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
    """1,797 different images (no two are alike); each part has the shares of all, to an image."""
    parts = digits()
    assert [len(part.labels) for part in parts] == [1024, 323, 450]
    assert len(np.unique(np.concatenate([part.pixels for part in parts]), axis=0)) == 1797
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # in UCI's own description
    for part in parts:
        expected = np.array(counts) * len(part.labels) / 1797
        assert np.bincount(part.labels) == pytest.approx(expected, abs=1)


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
