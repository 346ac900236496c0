"""The images of the ImageNet benchmark: sources, crops, and what cannot be read."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from imagenet_tools import write_tfrecords

from benchmarks.imagenet import images
from benchmarks.imagenet.images import UnavailableImagesError, centre_crop, open_source

SAMPLE = Path(images.__file__).parents[3] / "shared/data/imagenet-sample-1k-256.tar"


def _jpeg(height, width, seed=0):
    """Noise, smooth enough that a shift of the kernel shows."""
    noise = np.random.default_rng(seed).uniform(0, 255, (height, width, 3)).astype("uint8")
    return tf.io.encode_jpeg(noise, quality=95).numpy()


def _by_tensorflow_1(jpeg, size):
    """Google's _decode_and_center_crop, in a graph of TensorFlow 1."""
    height, width, _ = tf.io.decode_jpeg(jpeg, channels=3).shape
    side = int(np.float32(size / (size + 32)) * np.float32(min(height, width)))
    box = [(height - side + 1) // 2, (width - side + 1) // 2, side, side]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        pixels = tf.compat.v1.image.decode_and_crop_jpeg(jpeg, box, channels=3)
        return session.run(tf.compat.v1.image.resize_bicubic([pixels], [size, size])[0])


@pytest.mark.parametrize("shape", [(256, 341), (300, 200), (47, 200)])
def test_the_evaluation_crop_is_that_of_tensorflow_1(shape):
    """Of a wide, a high and a low image, whose crop of 31 pixels is enlarged to 64."""
    jpeg = _jpeg(*shape)
    found = centre_crop(tf.constant(jpeg), 64).numpy()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, _by_tensorflow_1(jpeg, 64))


@pytest.mark.skipif(not SAMPLE.is_file(), reason="needs ../shared/data: the ImageNet sample")
def test_the_evaluation_crop_of_real_images():
    """Of three images of the sample at 224 pixels, and of one that is narrower than that."""
    source = open_source(str(SAMPLE), "validation")
    assert (source.images, source.classes) == (1000, 1000)
    jpegs = [source.at(tf.constant(i))[0].numpy() for i in (0, 500, 999)]
    for jpeg in [*jpegs, tf.io.encode_jpeg(tf.io.decode_jpeg(jpegs[0])[:, :150]).numpy()]:
        np.testing.assert_array_equal(centre_crop(jpeg, 224), _by_tensorflow_1(jpeg, 224))


def test_training_boxes_are_within_area_and_aspect():
    """Area .08 (.1 is to be covered) to 1, aspect 3/4 to 4/3, but for whole pixels; all is used."""
    shape = tf.constant([300, 400, 3])
    seeds = tf.stack([tf.zeros(500, tf.int64), tf.range(500, dtype=tf.int64)], 1)
    top, left, height, width = (
        tf.map_fn(lambda seed: images.random_box(shape, seed), seeds, fn_output_signature=tf.int32)
        .numpy()
        .T
    )
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    area, aspect = height * width / (300 * 400), width / height
    assert 0.1 * 0.98 < area.min() < 0.13
    assert 0.9 < area.max() <= 1
    assert 0.75 * 0.98 < aspect.min() < 0.78
    assert 1.28 < aspect.max() < 4 / 3 * 1.02


def _seen(source, position, batches, seed=0, augment="crop"):
    data = images.training(
        source, 32, batch=12, seed=seed, position=position, augment=augment
    ).take(batches)
    pixels, labels = zip(*data.as_numpy_iterator(), strict=True)
    return np.concatenate(pixels), np.concatenate(labels).argmax(1)


@pytest.fixture(scope="module")
def tfrecords(tmp_path_factory):
    """A folder of the simulated images as TFRecords."""
    return write_tfrecords(tmp_path_factory.mktemp("tfrecords"))


@pytest.mark.parametrize("kind", ["memory", "records"])
def test_two_passes_with_one_seed_are_identical(kind, request):
    """To the bit, also when a run goes on within a pass; another seed shows something else."""
    path = "simulated" if kind == "memory" else request.getfixturevalue("tfrecords")
    source = open_source(path, "train")
    assert source.images == 32
    pixels, labels = _seen(source, 0, 8)
    again, same = _seen(source, 0, 8)
    np.testing.assert_array_equal(again, pixels)
    np.testing.assert_array_equal(same, labels)
    resumed, _ = _seen(source, 48, 4)
    np.testing.assert_array_equal(resumed, pixels[48:])
    assert (_seen(source, 0, 8, seed=1)[0] != pixels).any()
    assert pixels.shape == (96, 32, 32, 3)
    assert pixels.dtype == np.float32


@pytest.mark.parametrize("kind", ["memory", "records"])
def test_images_do_not_depend_on_the_global_seed(kind, request):
    """Which ``keras.utils.set_random_seed`` sets: a run goes on in a program that has another.

    At a global seed of 0 ``Dataset.shuffle`` takes no tensor, so that a run by ``--seed 0`` failed.
    """
    path = "simulated" if kind == "memory" else request.getfixturevalue("tfrecords")
    source = open_source(path, "train")
    seen = []
    for seed in (1, 2**31, 0):
        tf.random.set_seed(seed)
        drawn = tf.random.uniform((8,))
        tf.random.set_seed(seed)
        seen.append(_seen(source, 24, 4))
        np.testing.assert_array_equal(tf.random.uniform((8,)), drawn)  # nor do they change it
    for pixels, labels in seen[1:]:
        np.testing.assert_array_equal(pixels, seen[0][0])
        np.testing.assert_array_equal(labels, seen[0][1])


@pytest.mark.parametrize("kind", ["memory", "records"])
def test_each_pass_shows_each_image_once_in_an_order_of_its_own(kind, request):
    """Passes meet within a batch; flips and crops differ between passes."""
    path = "simulated" if kind == "memory" else request.getfixturevalue("tfrecords")
    pixels, labels = _seen(open_source(path, "train"), 0, 8, augment="none")
    passes = [pixels[i : i + 32] for i in (0, 32, 64)]
    each = [{image.tobytes() for image in its} for its in passes]
    assert each[0] == each[1] == each[2]
    assert len(each[0]) == 32
    assert (passes[0] != passes[1]).any()
    np.testing.assert_array_equal(np.bincount(labels), [12] * 8)
    flipped, _ = _seen(open_source(path, "train"), 0, 8, augment="flip")
    same = (flipped == pixels).all((1, 2, 3))
    np.testing.assert_array_equal(flipped[~same], pixels[~same][:, :, ::-1])
    assert 20 < same.sum() < 76  # of 96; outside once in 1e8


@pytest.mark.parametrize("kind", ["memory", "records"])
def test_hosts_share_each_batch(kind, request):
    """Together they read what one host reads, in training from any position and in evaluation."""
    path = "simulated" if kind == "memory" else request.getfixturevalue("tfrecords")
    source = open_source(path, "train")
    pipelines = [
        (images.training, {"batch": 12, "seed": 0, "position": 7, "augment": "flip"}),
        (images.evaluation, {"batch": 12}),
    ]
    for pipeline, options in pipelines:
        whole, *parts = (
            list(pipeline(source, 32, share=share, **options).take(2).as_numpy_iterator())
            for share in (images.WHOLE, *(images.Share(host, 3) for host in range(3)))
        )
        assert len(whole) == 2  # of 32 images, 24
        for number, batch in enumerate(whole):
            for kind, expected in enumerate(batch):
                found = np.concatenate([part[number][kind] for part in parts])
                np.testing.assert_array_equal(found, expected)


def test_a_record_too_many_or_too_few_is_an_error(tfrecords):
    """Else the positions of a run would be those of other images."""
    with pytest.raises(tf.errors.FailedPreconditionError, match="expected to contain 31 elements"):
        _seen(open_source(tfrecords, "train", 31), 0, 4)


def test_a_folder_and_a_tar_are_read_alike(tmp_path):
    """train/ and val/ of classes; the first image of each class is taken before the second."""
    with tarfile.open(tmp_path / "some.tar", "w") as archive:
        for number, (split, count) in enumerate((("train", 3), ("val", 1))):
            for label, name in enumerate(("n02", "n01")):
                for i in range(count):
                    content = _jpeg(40, 40, 10 * number + 5 * label + i)
                    path = tmp_path / "folder" / split / name / f"{i}.JPEG"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
                    info = tarfile.TarInfo(f"some/{split}/{name}/{i}.JPEG")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    for split, count, asked in (("train", 6, None), ("validation", 2, None), ("train", 4, 4)):
        found = []
        for path in ("some.tar", "folder"):
            source = open_source(str(tmp_path / path), split, asked)
            assert (source.images, source.classes) == (count, 2)
            found.append(list(source.pieces(None, 0).as_numpy_iterator()))
        assert found[0] == found[1]
        np.testing.assert_array_equal(
            np.bincount([label for _, label in found[0]]), [count / 2] * 2
        )


def test_a_png_is_read_as_well():
    """ImageNet has one, under the name of a JPEG."""
    pixels = np.full((50, 60, 3), (200, 30, 90), "uint8")
    found = centre_crop(images._as_jpeg(tf.io.encode_png(pixels)), 32)
    np.testing.assert_allclose(found, np.broadcast_to(pixels[0, 0], (32, 32, 3)), atol=3)


@pytest.mark.parametrize(
    ("content", "asked", "message"),
    [
        (None, None, r"--images must be a tar or a folder: .* is not there"),
        (b"no tar", None, r"--images must be a tar or a folder: .*\("),
        ({}, None, r"--images must have images in folders of their classes: .* has 0"),
        ({"a": 1}, 2, r"--images must have at least 2 images: .* has 1"),
    ],
)
def test_images_that_are_not_there_are_one_clear_line(tmp_path, content, asked, message):
    """Before anything is trained."""
    path = tmp_path / "images"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.mkdir()
        for name in content:
            (path / name).mkdir()
            (path / name / "0.JPEG").write_bytes(_jpeg(40, 40))
    with pytest.raises(UnavailableImagesError, match=message) as raised:
        open_source(str(path), "train", asked)
    assert "\n" not in str(raised.value)
