"""Images as the recipe sees them, by ``tf.data``: of a folder, a tar, TFRecords, or simulated.

The pixels are Google's ``preprocessing.py``, by its own operations: a random box or the evaluation
crop, resized by TensorFlow 1's bicubic kernel (no antialiasing, corners for centres), flipped. They
are not clipped: -23 to 270 was seen.

All that is random is a function of the seed and of the position of the image in the run. So runs
with one seed see the same images, and a run that goes on sees what it would have seen.
"""

import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf

from benchmarks.imagenet.recipe import evaluated_images

__all__ = [
    "Augment",
    "Share",
    "Source",
    "UnavailableImagesError",
    "evaluation",
    "open_source",
    "training",
]

Augment = Literal["crop", "flip", "none"]  # "crop": a random box and a flip, as in the recipe
Dataset = Any  # a tf.data.Dataset
Tensor = Any

CROP_PADDING = 32  # Google's: the evaluation crop is s / (s + 32) of the shorter side
AREA, ASPECT, COVERED, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 0.1, 10  # of the random box
# As a tenth of the image has to be covered, no box is smaller, for all that .08 says.
SHARDS_READ = 64  # TFRecords that are read in turns, as in imagenet_input.py
SHUFFLED = 16 * 1024  # records in the buffer; Google's has 1,024 images
LARGEST_TAR = 2**31  # bytes; it is kept in memory
SIMULATED = "simulated"
CLASSES = 1000  # of ImageNet; its TFRecords count them from 1


class UnavailableImagesError(Exception):
    """The images are not there, or not as they must be; the message is for the user."""


@dataclass(frozen=True)
class Source:
    """Encoded images with labels from 0, in one order; ``pieces`` makes a pass over them.

    ``pieces(seed, pass)`` is a dataset of (JPEG, label), shuffled by these two, or in order if the
    seed is None. ``at`` is the same for one position, where any can be had at once.
    """

    images: int
    classes: int
    pieces: Callable[[int | None, Tensor], Dataset]
    at: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None


class Share(NamedTuple):
    """Which part of each batch this host reads: the ``host``-th of ``hosts``, from 0."""

    host: int = 0
    hosts: int = 1


WHOLE = Share()


def open_source(path: str, split: str, images: int | None = None) -> Source:
    """The images of a split, "train" or "validation", or the first of them.

    Parameters
    ----------
    path : a folder or tar with ``train/`` and ``val/`` of ``<class>/<image>``; one without splits,
        whose images are then in both; a folder with ``train-*`` and ``validation-*`` TFRecords; or
        "simulated". A folder may be one of ``gs://``.
    split : "train" or "validation".
    images : take so many, one class after the other, each its first, second, ...; of TFRecords it
        is how many they hold, which is counted if it is not given.

    Raises
    ------
    UnavailableImagesError
        If there are none, or fewer than asked for.
    """
    if path == SIMULATED:
        return _in_memory(_simulated(), images, path)
    if not tf.io.gfile.exists(path):
        raise UnavailableImagesError(f"--images must be a tar or a folder: {path} is not there")
    if not tf.io.gfile.isdir(path):
        return _in_memory(_tar(Path(path), split), images, path)
    if records := sorted(tf.io.gfile.glob(f"{path}/{split}-*")):
        return _tfrecords(records, images)
    return _folder(path, split, images)


def training(
    source: Source,
    size: int,
    *,
    batch: int,
    seed: int,
    position: int,
    augment: Augment,
    share: Share = WHOLE,
) -> Dataset:
    """Batches of (pixels, one-hot labels) without end, from a position in the run.

    A pass shows every image once, in an order of its own; passes follow each other without a gap,
    also within a batch, as by ``repeat`` before ``shuffle``.

    Parameters
    ----------
    source : the images.
    size : side of the square images, in pixels.
    batch : images in a batch, shape (batch, size, size, 3), float32, in [0, 255] and a bit beyond.
    seed : of order and augmentation.
    position : images that the run has seen.
    augment : "crop", "flip", or "none".
    share : of each batch, for one of several hosts; its batches are so much smaller.
    """
    stream = _stream(source, seed, position).filter(
        lambda number, *_: _is_own(number - position, batch, share)
    )
    decoded = stream.map(
        lambda position, jpeg, label: (
            _augmented(jpeg, size, tf.stack([tf.cast(seed, tf.int64), position]), augment),
            tf.one_hot(label, source.classes),
        ),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return decoded.batch(batch // share.hosts, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def evaluation(source: Source, size: int, *, batch: int, share: Share = WHOLE) -> Dataset:
    """The images in whole batches of (pixels, one-hot labels), in order, as they are evaluated."""
    images = evaluated_images(source.images, batch)
    whole = source.pieces(None, 0).take(images).enumerate()
    decoded = whole.filter(lambda number, _: _is_own(number, batch, share)).map(
        lambda _, its: (centre_crop(_as_jpeg(its[0]), size), tf.one_hot(its[1], source.classes)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    batches = decoded.batch(batch // share.hosts, drop_remainder=True)
    counted = batches.apply(tf.data.experimental.assert_cardinality(images // batch))
    return counted.prefetch(tf.data.AUTOTUNE)


def _is_own(number: Tensor, batch: int, share: Share) -> Tensor:
    """Whether an image of the batches is among those that the host reads."""
    return number % batch // (batch // share.hosts) == share.host


def centre_crop(jpeg: Tensor, size: int) -> Tensor:
    """The evaluation crop: of side int(min(height, width) size / (size + 32)), resized."""
    shape = tf.image.extract_jpeg_shape(jpeg)
    shorter = tf.cast(tf.minimum(shape[0], shape[1]), tf.float32)
    side = tf.cast(size / (size + CROP_PADDING) * shorter, tf.int32)
    top, left = (shape[0] - side + 1) // 2, (shape[1] - side + 1) // 2
    return _resized(jpeg, tf.stack([top, left, side, side]), size)


def random_box(shape: Tensor, seed: Tensor) -> Tensor:
    """(top, left, height, width) of a box by the recipe; of the image, if no try was one.

    Parameters
    ----------
    shape : (height, width, 3), int32.
    seed : two int64.
    """
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.constant([0.0, 0.0, 1.0, 1.0], shape=[1, 1, 4]),
        seed,
        min_object_covered=COVERED,
        aspect_ratio_range=ASPECT,
        area_range=AREA,
        max_attempts=TRIES,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.stack([begin[0], begin[1], extent[0], extent[1]])


def _augmented(jpeg: Tensor, size: int, seed: Tensor, augment: Augment) -> Tensor:
    jpeg = _as_jpeg(jpeg)
    if augment == "crop":
        shape = tf.image.extract_jpeg_shape(jpeg)
        box = random_box(shape, seed)
        pixels = tf.cond(
            tf.reduce_all(box[2:] == shape[:2]),  # no try has succeeded
            lambda: centre_crop(jpeg, size),
            lambda: _resized(jpeg, box, size),
        )
    else:
        pixels = centre_crop(jpeg, size)
    if augment == "none":
        return pixels
    # Another seed than that of the box: its first number is a seed of no run.
    return tf.image.stateless_random_flip_left_right(pixels, tf.add(seed, (1 << 32, 0)))


def _resized(jpeg: Tensor, box: Tensor, size: int) -> Tensor:
    pixels = tf.io.decode_and_crop_jpeg(jpeg, box, channels=3)
    resized = tf.raw_ops.ResizeBicubic(images=pixels[tf.newaxis], size=[size, size])[0]
    return tf.ensure_shape(resized, (size, size, 3))


def _as_jpeg(image: Tensor) -> Tensor:
    """One image of ImageNet is a PNG; Google's imagenet_to_gcs.py makes a JPEG of it as well."""
    return tf.cond(
        tf.io.is_jpeg(image),
        lambda: image,
        lambda: tf.io.encode_jpeg(tf.io.decode_png(image, channels=3), quality=100),
    )


def _stream(source: Source, seed: int, position: int) -> Dataset:
    """(position, JPEG, label) from a position on."""
    if source.at is not None:
        at = source.at

        def shuffled(position: Tensor) -> tuple[Tensor, ...]:
            of_pass = tf.stack([tf.cast(seed, tf.int64), position // source.images])
            last = tf.cast(source.images - 1, tf.int64)
            index = tf.random.experimental.index_shuffle(position % source.images, of_pass, last)
            return position, *at(index)

        numbers = tf.data.Dataset.range(position, np.iinfo(np.int64).max)
        return numbers.map(shuffled, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    first, seen = divmod(position, source.images)

    def pieces_of(number: Tensor) -> Dataset:
        # Dataset.shuffle mixes the global seed into its own, and fails at a global seed of 0, which
        # keras.utils.set_random_seed(0) sets. In here it reads that of this function's graph.
        tf.compat.v1.set_random_seed(1)
        return source.pieces(seed, number)

    # A pass after the other, each made when its turn comes.
    passes = tf.data.Dataset.range(first, np.iinfo(np.int64).max)
    stream = passes.flat_map(pieces_of).skip(seen)
    numbers = tf.data.Dataset.range(position, np.iinfo(np.int64).max)
    zipped = tf.data.Dataset.zip((numbers, stream))
    return zipped.map(lambda number, piece: (number, *piece))


# --- sources --------------------------------------------------------------------------------------


def _folder(path: str, split: str, images: int | None) -> Source:
    """JPEGs in folders, one for each class, whose sorted names are the labels."""
    top = next((t for t in _splits(path, split) if tf.io.gfile.exists(t)), path)
    classes = sorted(name.rstrip("/") for name in tf.io.gfile.listdir(top))
    classes = [name for name in classes if tf.io.gfile.isdir(f"{top}/{name}")]
    names = [sorted(tf.io.gfile.listdir(f"{top}/{name}")) for name in classes]
    chosen, labels = _chosen([len(x) for x in names], images, path)
    files = tf.constant([f"{top}/{classes[c]}/{names[c][i]}" for c, i in chosen])
    numbers = tf.constant(labels)
    return _at_random(
        len(labels), int(max(labels)) + 1, lambda i: (tf.io.read_file(files[i]), numbers[i])
    )


def _in_memory(contents: dict[str, list[bytes]], images: int | None, path: str) -> Source:
    names = sorted(contents)
    chosen, labels = _chosen([len(contents[name]) for name in names], images, path)
    jpegs, numbers = tf.constant([contents[names[c]][i] for c, i in chosen]), tf.constant(labels)
    return _at_random(len(labels), int(max(labels)) + 1, lambda i: (jpegs[i], numbers[i]))


def _at_random(images: int, classes: int, at: Callable[[Tensor], Any]) -> Source:
    def pieces(seed: int | None, number: Tensor) -> Dataset:
        if seed is not None:
            raise ValueError(f"seed must be None, as positions are shuffled instead: {seed}")
        return tf.data.Dataset.range(images).map(at, num_parallel_calls=tf.data.AUTOTUNE)

    return Source(images, classes, pieces, at)


def _chosen(
    sizes: list[int], images: int | None, path: str
) -> tuple[list[tuple[int, int]], list[int]]:
    """(class, number in it) of the images taken, in that order, and their labels."""
    in_turns = sorted(((i, c) for c, size in enumerate(sizes) for i in range(size)))
    taken = sorted((c, i) for i, c in in_turns[: images or len(in_turns)])
    if not taken or len(taken) < (images or 0):
        wanted = f"at least {images} images" if images else "images in folders of their classes"
        raise UnavailableImagesError(f"--images must have {wanted}: {path} has {len(taken)}")
    return taken, [c for c, _ in taken]


def _splits(path: str, split: str) -> list[str]:
    """What the folder of a split may be called."""
    return [f"{path}/{name}" for name in _NAMES[split]]


_NAMES = {"train": ("train",), "validation": ("val", "validation")}


def _tar(path: Path, split: str) -> dict[str, list[bytes]]:
    """Class: contents of its images, in the order of their names."""
    if path.stat().st_size > LARGEST_TAR:
        raise UnavailableImagesError(
            f"--images must be a tar of at most {LARGEST_TAR} bytes, or unpacked: {path}"
        )
    try:
        with tarfile.open(path) as archive:
            files = sorted((m.name, m) for m in archive.getmembers() if m.isfile())
            its = [(name.split("/"), archive.extractfile(m).read()) for name, m in files]  # type: ignore[union-attr]  # a file
    except (tarfile.TarError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UnavailableImagesError(
            f"--images must be a tar or a folder: {path} ({reason})"
        ) from None
    its = [(parts, content) for parts, content in its if len(parts) > 1]
    splits = {name for names in _NAMES.values() for name in names}
    if any(len(parts) > 2 and parts[-3] in splits for parts, _ in its):
        its = [(p, content) for p, content in its if len(p) > 2 and p[-3] in _NAMES[split]]
    contents: dict[str, list[bytes]] = {}
    for parts, content in its:
        contents.setdefault(parts[-2], []).append(content)
    return contents


def _simulated(classes: int = 8, each: int = 4) -> dict[str, list[bytes]]:
    """JPEGs of noise around a colour for each class, in several shapes: for tests, in no time."""
    random = np.random.default_rng(0)
    contents: dict[str, list[bytes]] = {}
    for number in range(classes):
        colour = random.uniform(0, 255, 3)
        for shape in [(48, 64), (64, 48), (40, 40), (33, 90)][:each]:
            noise = random.normal(colour, 32, (*shape, 3)).clip(0, 255).astype(np.uint8)
            jpeg = tf.io.encode_jpeg(noise).numpy()
            contents.setdefault(f"class{number}", []).append(jpeg)
    return contents


def _tfrecords(files: list[str], images: int | None) -> Source:
    """TFRecords as Google's imagenet_to_gcs.py writes them, which are read in turns."""
    if images is None:
        images = sum(1 for _ in tf.data.TFRecordDataset(files))
    total = images

    def pieces(seed: int | None, number: Tensor) -> Dataset:
        paths = tf.data.Dataset.from_tensor_slices(files)
        if seed is None:
            return paths.flat_map(tf.data.TFRecordDataset).map(_parsed)
        of_pass = tf.stack([tf.cast(seed, tf.int64), tf.cast(number, tf.int64)])
        order = tf.random.experimental.stateless_shuffle(tf.constant(files), of_pass)
        read = tf.data.Dataset.from_tensor_slices(order).interleave(
            tf.data.TFRecordDataset,
            cycle_length=min(SHARDS_READ, len(files)),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        # A pass that is shorter or longer would go unnoticed, and what is resumed be shifted.
        whole = read.apply(tf.data.experimental.assert_cardinality(total))
        seeds = tf.random.stateless_uniform((1,), of_pass, None, None, tf.int64)
        return whole.shuffle(SHUFFLED, seed=seeds[0], reshuffle_each_iteration=False).map(_parsed)

    return Source(total, CLASSES, pieces)


def _parsed(record: Tensor) -> tuple[Tensor, Tensor]:
    features = {
        "image/encoded": tf.io.FixedLenFeature((), tf.string),
        "image/class/label": tf.io.FixedLenFeature((), tf.int64),
    }
    its = tf.io.parse_single_example(record, features)
    return its["image/encoded"], tf.cast(its["image/class/label"] - 1, tf.int32)
