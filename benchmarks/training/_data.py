"""Images with labels from files, checked and split once for all frameworks, in NumPy.

A set comes from the folder that ``COOLMOMENTUM_DATA`` names, from where Keras or Debian keep it, or
from a download by Keras' own loader. Which image is in which part never changes.
"""

import gzip
import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

__all__ = [
    "Data",
    "Images",
    "UnavailableDataError",
    "cifar10",
    "cifar10_files",
    "digits",
    "fashion_mnist",
    "simulated",
]

CIFAR10 = {  # file: MD5 of its content
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
FASHION_MNIST = {  # of what is packed in it, as gzip packs differently each time
    "train-images-idx3-ubyte.gz": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte.gz": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte.gz": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte.gz": "15d484375f8d13e6eb1aabb0c3f46965",
}


class Images(NamedTuple):
    """Images of one size, as networks get to see them."""

    pixels: NDArray[np.float32]  # (images, height, width, channels)
    labels: NDArray[np.int32]  # (images,) from 0


class Data(NamedTuple):
    """The parts of a set."""

    training: Images
    validation: Images  # tuning is judged by them, and nothing else
    test: Images  # the report is judged by them, and nothing else


class _Stored(NamedTuple):
    """Images of one size, as they are in files."""

    pixels: NDArray[np.uint8]  # (images, height, width, channels)
    labels: NDArray[np.int32]  # (images,) from 0


class UnavailableDataError(Exception):
    """A set is not on this machine and cannot be downloaded; the message is for the user."""


def digits() -> Data:
    """The 1,797 digits (8x8) in scikit-learn's wheel: 1,024, 323 and 450 images."""
    pixels, labels = load_digits(return_X_y=True)
    images = _Stored(pixels.reshape(-1, 8, 8, 1).astype(np.uint8), labels.astype(np.int32))
    rest, test = _split(images, 450)
    return _data(rest, test, 323, 0, scale=16.0, centred=False)


def fashion_mnist(validation: int = 10_000, training: int = 0) -> Data:
    """Fashion-MNIST (28x28): ``training`` of 60,000 - ``validation`` images (0: all), 10,000."""
    files = _contents("fashion-mnist", "fashion_mnist", "fashion-mnist", FASHION_MNIST)

    def images(pixels: bytes, labels: bytes) -> _Stored:
        return _Stored(
            np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28, 1),
            np.frombuffer(labels, np.uint8, offset=8).astype(np.int32),
        )

    return _data(images(*files[:2]), images(*files[2:]), validation, training, scale=255.0)


def cifar10(validation: int = 5_000, training: int = 0) -> Data:
    """CIFAR-10 (32x32x3): ``training`` of 50,000 - ``validation`` images (0: all), 10,000."""
    return _data(*_cifar10(), validation, training, scale=255.0)


def cifar10_files() -> dict[str, bytes]:
    """What is in its files, each with the MD5 that it should have."""
    kept_by_keras = "cifar-10-batches-py-target/cifar-10-batches-py"
    files = _contents("cifar-10-batches-py", "cifar10", kept_by_keras, CIFAR10)
    return dict(zip(CIFAR10, files, strict=True))


def _cifar10() -> tuple[_Stored, _Stored]:
    *training_batches, test_batch = map(_cifar_batch, cifar10_files().values())
    return _Stored(*map(np.concatenate, zip(*training_batches, strict=True))), test_batch


def simulated(size: int = 96, width: int = 8, channels: int = 3, classes: int = 4) -> Data:
    """Noisy copies of a random image for each class: for tests, in no time."""
    random = np.random.default_rng(0)
    prototypes = random.uniform(0, 255, (classes, width, width, channels))
    labels = np.arange(2 * size, dtype=np.int32) % classes
    pixels = prototypes[labels] + random.normal(0, 64, (2 * size, width, width, channels))
    images = _Stored(pixels.clip(0, 255).astype(np.uint8), labels)
    rest, test = _split(images, size // 2)
    return _data(rest, test, size // 2, 0, scale=255.0)


def _data(
    rest: _Stored,
    test: _Stored,
    validation: int,
    training: int,
    *,
    scale: float,
    centred: bool = True,
) -> Data:
    """Split ``rest``; what is subtracted is the mean image of those trained on, as in the paper."""
    trained, held_out = _split(rest, validation)
    if training and training < len(trained.labels):
        _, trained = _split(trained, training)
    mean = trained.pixels.mean(axis=0) / scale * centred

    def seen(images: _Stored) -> Images:
        pixels = images.pixels.astype(np.float32) / np.float32(scale) - mean.astype(np.float32)
        return Images(pixels, images.labels)

    return Data(seen(trained), seen(held_out), seen(test))


def _split(images: _Stored, size: int) -> tuple[_Stored, _Stored]:
    """All but ``size`` images, and those, with equal shares of each class: the same every time."""
    if not size:
        return images, _Stored(images.pixels[:0], images.labels[:0])
    rest, part = train_test_split(
        np.arange(len(images.labels)), test_size=size, stratify=images.labels, random_state=0
    )
    return _Stored(*(x[rest] for x in images)), _Stored(*(x[part] for x in images))


def _contents(name: str, loader: str, kept_by_keras: str, files: dict[str, str]) -> list[bytes]:
    """The files of a set, each of which has the MD5 that it should have."""
    places = [
        Path.home() / ".keras" / "datasets" / kept_by_keras,
        Path("/usr/share/datasets") / name,  # Debian's dataset-fashion-mnist
    ]
    if "COOLMOMENTUM_DATA" in os.environ:
        places.insert(0, Path(os.environ["COOLMOMENTUM_DATA"]) / name)

    def there() -> list[Path]:
        return [place for place in places if all((place / file).exists() for file in files)]

    if not there():
        _download(loader)
    found = there()
    if not found:
        raise UnavailableDataError(
            f"{loader} is in none of {', '.join(map(str, places))}, and Keras could not download "
            f"it. Put {', '.join(files)} into a folder {name}, and name the folder that holds it "
            "in COOLMOMENTUM_DATA"
        )
    return [_checked(found[0] / file, md5) for file, md5 in files.items()]


def _download(loader: str) -> None:
    """By Keras, which shows a progress bar; in a process of its own, for Keras picks a backend."""
    command = f"import keras; keras.datasets.{loader}.load_data()"
    subprocess.run(
        [sys.executable, "-c", command],
        env=os.environ | {"KERAS_BACKEND": "numpy"},
        stdout=sys.stderr,
        stderr=subprocess.DEVNULL,  # its traceback: what to do is said above
        check=False,
    )


def _checked(path: Path, md5: str) -> bytes:
    """What is in a file, unpacked, which must have that MD5."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise UnavailableDataError(f"{path} must have the MD5 {md5}: {found}; remove it")
    return content


def _cifar_batch(content: bytes) -> _Stored:
    batch = pickle.loads(content, encoding="bytes")
    pixels = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return _Stored(pixels, np.asarray(batch[b"labels"], np.int32))
