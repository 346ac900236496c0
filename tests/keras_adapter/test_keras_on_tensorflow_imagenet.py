"""The ImageNet benchmark on TensorFlow: its network, optimizers, averages and runs."""

import errno
import json
import os
from contextlib import nullcontext
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from exact import U32
from imagenet_tools import (
    LABELS,
    PIXELS,
    check_averages,
    compiled,
    small_network,
    values,
    write_tfrecords,
)
from keras_tools import numpy

from benchmarks.imagenet import images, train
from benchmarks.imagenet.averages import AveragedModel
from benchmarks.imagenet.config import Config, ConfigError, Run
from benchmarks.imagenet.devices import Engine, choose
from benchmarks.imagenet.images import open_source
from benchmarks.imagenet.network import MEAN, STD, efficientnet_b0
from benchmarks.imagenet.optimizers import (
    StaircaseRate,
    cool_momentum,
    rescaled_temperature,
    rmsprop,
)
from benchmarks.imagenet.recipe import (
    AUTHORS_STEPS,
    BATCH,
    EPOCH_STEPS,
    RmspropRate,
    Timing,
    cooling,
    peak_rate,
)
from coolmomentum.numpy import CoolMomentum

FULL = Timing.of(AUTHORS_STEPS, EPOCH_STEPS)


@pytest.fixture(scope="module")
def network():
    """EfficientNet-B0 at 32 pixels; it takes seconds to make."""
    keras.utils.set_random_seed(0)
    return efficientnet_b0(32)


# --- network --------------------------------------------------------------------------------------


def test_the_network_has_the_parameters_of_the_paper(network):
    """5,288,548 numbers in 213 tensors, and what Keras has as Google had it."""
    trained = network.trainable_variables
    assert len(trained) == 213
    assert sum(v.value.shape.num_elements() for v in trained) == 5_288_548
    norms = [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert len(norms) == 49
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.99, 1e-3)}
    drops = [x for x in network.layers if isinstance(x, keras.layers.Dropout)]
    blocks = [2, 4, 6, 7, 9, 10, 12, 13, 14]  # of 16, those with a way round
    assert [x.rate for x in drops] == pytest.approx([0.2 * i / 16 for i in blocks] + [0.2])
    assert [x.noise_shape is None for x in drops] == [False] * 9 + [True]
    # Each weight and each moving statistic has an average.
    assert len(network._averages) == 213 + 2 * 49


def test_the_penalty_is_on_kernels_and_biases(network):
    """115 of the tensors, 5,246,532 numbers: 1e-5 times the sum of half their squares."""
    penalised = [v for v in network.trainable_variables if v.name in ("kernel", "bias")]
    assert len(network.losses) == len(penalised) == 115
    assert sum(v.value.shape.num_elements() for v in penalised) == 5_246_532
    half_squares = sum((numpy(v).astype("float64") ** 2).sum() / 2 for v in penalised)
    # Sums of at most 400,000 squares, in pairs.
    assert float(sum(network.losses)) == pytest.approx(1e-5 * half_squares, rel=32 * U32)


def test_the_first_weights_are_drawn_as_in_the_recipe(network):
    """N(0, 2 / fan_out), with what Keras cuts off; the classifier uniform, up to 1000**-.5."""
    for v in network.trainable_variables:
        if v.name != "kernel":
            continue
        w = numpy(v)
        if w.ndim == 2:
            assert 0.99 < np.abs(w).max() * 1000**0.5 <= 1
            continue
        fan_out = w.shape[0] * w.shape[1] * w.shape[3]
        sigmas = w.ravel() / (2 / fan_out) ** 0.5
        assert abs(sigmas.std() - 1) < 4 / (2 * sigmas.size) ** 0.5  # four of its own deviations
        if sigmas.size > 4000:  # 1.2 % are beyond 2.5: none would be once in 1e21
            assert np.abs(sigmas).max() > 2.5


def test_pixels_are_normalised_before_and_after_reloading(network, tmp_path):
    """(x - 255 mean) / (255 std), to 1e-6; from a .keras file and from one of weights as well."""
    layer = next(x for x in network.layers if isinstance(x, keras.layers.Normalization))
    part = keras.Model(network.inputs[0], layer.output)
    x = np.random.default_rng(0).uniform(-23, 270, (2, 32, 32, 3)).astype("float32")
    expected = (x - 255 * np.asarray(MEAN)) / (255 * np.asarray(STD))
    part.save(tmp_path / "part.keras")
    part.save_weights(tmp_path / "part.weights.h5")
    loaded = keras.saving.load_model(tmp_path / "part.keras")
    again = keras.models.clone_model(part)
    again.load_weights(tmp_path / "part.weights.h5")
    for model in (part, loaded, again):
        np.testing.assert_allclose(numpy(model(x)), expected, rtol=0, atol=1e-6)


# --- optimizers -----------------------------------------------------------------------------------


def test_the_learning_rate_in_a_graph_is_that_of_the_recipe():
    """At each of the 218,948 steps, rounded once or twice; of 2 minibatches a step if they add."""
    rate = RmspropRate(peak_rate(BATCH), FULL)
    n = np.arange(AUTHORS_STEPS)
    expected = np.asarray([rate(int(step)) for step in n])
    tensor = StaircaseRate(rate.peak, AUTHORS_STEPS, EPOCH_STEPS)(tf.constant(n))
    np.testing.assert_allclose(tensor, expected, rtol=3 * U32)
    halves = StaircaseRate(rate.peak, AUTHORS_STEPS, EPOCH_STEPS, accumulated=2)
    again = StaircaseRate.from_config(halves.get_config())
    np.testing.assert_array_equal(again(tf.constant(2 * n)), tensor)
    np.testing.assert_array_equal(halves(tf.constant(2 * n + 1)), tensor)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_rmsprop_is_that_of_tensorflow_1(accumulated):
    """Forty steps with a learning rate that rises and decays, to 1e-6."""
    rate = RmspropRate(0.1, Timing(40, epoch_steps=2.0))  # 10 steps of warm-up, decays of 4.8
    noise = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
    start = np.linspace(-1, 1, 6, dtype="float32")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.Variable(start, use_resource=True)
        lr, g = (tf.compat.v1.placeholder("float32", shape) for shape in ((), (6,)))
        theirs = tf.compat.v1.train.RMSPropOptimizer(lr, 0.9, 0.9, 1e-3)
        step = theirs.apply_gradients([(x + g, x)])
        session.run(tf.compat.v1.global_variables_initializer())
        for n in range(40):
            session.run(step, {lr: rate(n), g: noise[n]})
        expected = session.run(x)
    ours, y = rmsprop(rate, accumulated), keras.Variable(start)
    for n in range(40):
        gradient = y.value + noise[n]
        for _ in range(accumulated):
            ours.apply([gradient], [y])
    np.testing.assert_allclose(numpy(y), expected, rtol=0, atol=1e-6)
    assert np.abs(expected - start).max() > 0.1
    moved = numpy(next(v for v in ours.variables if v.path.endswith("momentum")))
    assert rescaled_temperature(ours) == pytest.approx((moved**2).mean())


def test_coolmomentum_is_that_of_numpy_through_the_end_of_the_warm_up():
    """Twelve steps, of which the first five have rho = 0; weights, rho and temperature."""
    timing = Timing.of(350)
    start, noise = np.linspace(-1, 1, 6), np.random.default_rng(0).normal(size=(12, 6))
    ours, x = cool_momentum(0.05, timing, 0.99), keras.Variable(start.astype("float32"))
    reference = CoolMomentum(0.05, schedule=cooling(timing, 0.99))
    params, state, rhos = [start], reference.init([start]), []
    for g in noise:
        rhos.append(ours.rho)
        ours.apply([x.value + g.astype("float32")], [x])
        params, state = reference.step(params, [params[0] + g], state)
    assert rhos[:5] == [0] * 5
    assert rhos[5] > 0.98
    # Twelve steps of weights below 4, each kept for up to twelve steps.
    np.testing.assert_allclose(numpy(x), params[0], rtol=0, atol=12 * 12 * 4 * U32)
    assert rescaled_temperature(ours) == pytest.approx(0.05 * float(reference.temperature(state)))


# --- averages and batch normalisation -------------------------------------------------------------


def test_averages_are_ramped_and_include_moving_statistics():
    """min(.9999, (1 + n) / (10 + n)) in NumPy, to 1e-6, over two calls of fit."""
    check_averages(compiled())


def test_minibatches_that_are_accumulated_are_no_steps_of_the_averages():
    """They move once for two minibatches."""
    check_averages(compiled(accumulated=2), steps=6, accumulated=2)


def test_averages_on_two_replicas(strategy):
    """The same, where each replica has a half of the minibatch; in both, with their statistics."""
    with strategy.scope():
        model = compiled()
    check_averages(model)
    for v in [*model._averaged, *model._averages]:
        first, second = (part.numpy() for part in v.value.values)
        np.testing.assert_array_equal(first, second)


def test_two_replicas_are_two_microbatches(strategy):
    """Statistics of 8 images each: one step of 2 replicas is that of 2 accumulated gradients."""
    with strategy.scope():
        replicas = compiled(lr=1.0)
    accumulating = compiled(2, lr=1.0)
    whole = compiled(lr=1.0)
    for model, batch in ((replicas, 16), (accumulating, 8), (whole, 16)):
        model.fit(PIXELS[:16], LABELS[:16], batch_size=batch, shuffle=False, verbose=0)
    trained = slice(0, sum(v.value.shape.num_elements() for v in whole.trainable_variables))
    found, expected, other = (
        values(model, averages=False)[trained] for model in (replicas, accumulating, whole)
    )
    # Gradients below 1, sums over 16 images of 9 places each.
    np.testing.assert_allclose(found, expected, rtol=0, atol=16 * 9 * U32)
    assert np.abs(found - other).max() > 1e-4  # the batch as a whole is something else


def test_a_model_with_averages_is_saved_whole(tmp_path):
    """A .keras file and a file of weights bring the averages back."""
    model = compiled()
    model.fit(PIXELS[:16], LABELS[:16], batch_size=4, verbose=0)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded, again = keras.saving.load_model(tmp_path / "model.keras"), compiled()
    again.optimizer.build(again.trainable_variables)
    again.load_weights(tmp_path / "model.weights.h5")
    assert isinstance(loaded, AveragedModel)
    for other in (loaded, again):
        for averages in (False, True):
            np.testing.assert_array_equal(values(other, averages), values(model, averages))


# --- engines and runs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"microbatch": 7}, "--microbatch must divide the batch of 16: 7"),
        ({"microbatch": 0}, "--microbatch must divide the batch of 16: 0"),
        ({"devices": 0}, "--devices must be at least 1: 0"),
        ({"hosts": True}, "--hosts needs KERAS_BACKEND=jax: tensorflow"),
    ],
)
def test_engines_that_are_not_to_be_had_are_one_clear_line(options, message):
    """Before anything is trained."""
    with pytest.raises(ConfigError, match=message):
        choose(16, **options)


def test_an_engine_says_how_it_departs():
    """Groups of batch normalisation, microbatches and dtype."""
    engine = choose(16, devices=1, microbatch=4)
    assert (engine.accumulated, engine.bn_group, engine.jit_compile) == (4, 4, False)
    assert engine.departures() == [
        "batch statistics of 4 images in place of 256",
        "moving statistics move 4 times a step, each less",
    ]
    assert Engine("", None, 1, 256, False, "float32").departures() == []


CONFIG = Config(
    name="small",
    kind="runs",
    what="",
    cannot="",
    runs=(Run("coolmomentum", 0.1, 0.9), Run("rmsprop", 0.01)),
    steps=12,
    epoch_steps=0.7,  # evaluations after 7 steps and 12
    batch=8,
    size=32,
    training_images=32,
    evaluate="train",
    evaluation_batch=16,
    dropout=0.2,
    bn_momentum=0.9,
    backup_steps=2,
)


class _Interrupted(BaseException):
    pass


@pytest.mark.parametrize(
    ("number", "accumulated", "kind"), [(0, 1, "memory"), (1, 2, "memory"), (0, 1, "records")]
)
def test_an_interrupted_run_ends_with_the_same_records(
    tmp_path, monkeypatch, number, accumulated, kind
):
    """After step 4, within a stretch, and 7, before its records are there; times aside."""
    run = CONFIG.runs[number]
    source = "simulated"
    if kind == "records":
        (tmp_path / "images").mkdir()
        source = write_tfrecords(tmp_path / "images")
    monkeypatch.setattr(train, "efficientnet_b0", small_network)
    engine = choose(8, devices=1, microbatch=8 // accumulated)

    def records(name):
        path = tmp_path / name
        train.train(CONFIG, run, engine, source, path)
        lines = [json.loads(x) for x in (path / "records.jsonl").read_text().splitlines()]
        for line in lines:
            assert line.pop("images_per_second") > 0
            line.pop("commit")  # someone may edit the checkout meanwhile
        return lines

    whole = records("whole")
    assert [line["step"] for line in whole] == [7, 12]
    assert whole[0]["images"] == 56
    back_up = train.Folder.back_up
    for last in (4, 7):

        def interrupt(folder, step, lines, state, last=last):
            back_up(folder, step, lines, state)
            if step == last:
                raise _Interrupted

        monkeypatch.setattr(train.Folder, "back_up", interrupt)
        with pytest.raises(_Interrupted):
            records("parts")
    monkeypatch.setattr(train.Folder, "back_up", back_up)
    assert records("parts") == whole
    assert records("parts") == whole  # nothing is left to do
    with np.load(tmp_path / "whole" / "weights.npz") as file:
        model = small_network(32, open_source(source, "train").classes)
        model.set_weights([file[name] for name in file.files])
    evaluation = images.evaluation(open_source(source, "train"), 32, batch=16)
    model.compile(metrics=[keras.metrics.CategoricalAccuracy(name="top1")])
    for column, context in (("top1", model.averages_in_place()), ("top1_raw", nullcontext())):
        with context:
            found = model.evaluate(evaluation, verbose=0, return_dict=True)
        assert found["top1"] == whole[-1][column]


def test_the_folder_of_another_run_is_one_clear_line(tmp_path, monkeypatch):
    """It is neither gone on with nor written over."""
    monkeypatch.setattr(train, "efficientnet_b0", small_network)
    engine = choose(8, devices=1)
    train.train(CONFIG, CONFIG.runs[0], engine, "simulated", tmp_path)
    before = (tmp_path / "records.jsonl").read_bytes()
    message = "is of another run .rule coolmomentum, not rmsprop.*: choose another --output"
    with pytest.raises(ConfigError, match=message):
        train.train(CONFIG, CONFIG.runs[1], engine, "simulated", tmp_path)
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_a_run_that_diverges_ends_and_stays(tmp_path, monkeypatch):
    """Its last record says so."""
    monkeypatch.setattr(train, "efficientnet_b0", small_network)
    run = Run("coolmomentum", 1e30, 0.9)
    train.train(CONFIG, run, choose(8, devices=1), "simulated", tmp_path)
    (line,) = (tmp_path / "records.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["diverged"]
    assert record["step"] < 7
    assert record["running_loss"] is None


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, capsys):
    """Backups are told once and done without; records or weights that cannot be written raise."""
    monkeypatch.setattr(train, "efficientnet_b0", small_network)

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_bytes = Path.write_bytes

    def full_of_backups(path, content):
        (full if "checkpoint" in path.name else write_bytes)(path, content)

    engine = choose(8, devices=1)
    monkeypatch.setattr(Path, "write_bytes", full_of_backups)
    train.train(CONFIG, CONFIG.runs[1], engine, "simulated", tmp_path)
    assert capsys.readouterr().err.count("No space left on device") == 1
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(before) == {"run.json", "records.jsonl", "weights.npz"}
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device"):
        train.train(CONFIG, CONFIG.runs[1], engine, "simulated", tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_moving_statistics_move_in_a_step_as_without_accumulation(tmp_path, monkeypatch):
    """Eight microbatches of momentum .99**(1/8) are one of .99."""
    asked = {}

    def network(size, classes, **settings):
        asked.update(settings, size=size, classes=classes)
        raise _Interrupted

    monkeypatch.setattr(train, "efficientnet_b0", network)
    engine = choose(8, devices=1, microbatch=1)
    with pytest.raises(_Interrupted):
        train.train(CONFIG, CONFIG.runs[0], engine, "simulated", tmp_path)
    assert asked.pop("bn_momentum") ** 8 == pytest.approx(0.9)
    assert asked == {"size": 32, "classes": 8, "dropout": 0.2, "drop_connect": 0.2}


def test_a_network_in_half_precision_has_whole_pixels_and_logits():
    """Under mixed_bfloat16 normalisation, classifier, weights and averages are in float32."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = efficientnet_b0(32, 8)
    finally:
        keras.config.set_dtype_policy("float32")
    assert network.output.dtype == "float32"
    compute = {type(x).__name__: x.compute_dtype for x in network.layers}
    assert compute["Normalization"] == compute["Dense"] == "float32"
    assert compute["Conv2D"] == compute["DepthwiseConv2D"] == "bfloat16"
    assert {v.dtype for v in network.weights if "seed" not in v.path} == {"float32"}
