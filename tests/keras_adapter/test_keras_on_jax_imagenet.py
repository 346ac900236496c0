"""The ImageNet benchmark on JAX: averages on one and four devices, and a run that goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from imagenet_tools import check_averages, compiled, small_network

from benchmarks.imagenet import train
from benchmarks.imagenet.config import Config, Run
from benchmarks.imagenet.devices import Engine

FOUR = """
from benchmarks.imagenet.config import ConfigError
from benchmarks.imagenet.devices import choose
for batches, options, message in (
    ((18,), {}, "batch must be a multiple of the 4 devices: 18"),
    ((16, 10), {}, "evaluation_batch must be a multiple of the 4 devices: 10"),
    ((16,), {"microbatch": 8}, "--microbatch is for one device, as Keras has it: 4 devices"),
):
    try:
        choose(*batches, devices=4, **options)
    except ConfigError as error:
        assert str(error) == message, error
    else:
        raise AssertionError(message)
engine = choose(16, 8, devices=4)
assert engine.bn_group == 16, engine
assert "DataParallel" in engine.device, engine
from imagenet_tools import check_averages, compiled
model = compiled()
assert len(model.trainable_variables[0].value.sharding.device_set) == 4
check_averages(model)
"""


def test_averages_are_ramped_and_include_moving_statistics():
    """min(.9999, (1 + n) / (10 + n)) in NumPy, to 1e-6, over two calls of fit."""
    check_averages(compiled())


def test_minibatches_that_are_accumulated_are_no_steps_of_the_averages():
    """They move once for two minibatches."""
    check_averages(compiled(accumulated=2), steps=6, accumulated=2)


def test_averages_on_four_devices():
    """The same under DataParallel, in a process of its own."""
    command = [sys.executable, "-c", FOUR]
    folder = Path(__file__).parent
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr


class _Interrupted(BaseException):
    pass


def test_an_interrupted_run_ends_with_the_same_records(tmp_path, monkeypatch):
    """After step 4, within a stretch, and 7, before its records are there; times aside."""
    monkeypatch.setattr(train, "efficientnet_b0", small_network)
    config = Config(
        name="small",
        kind="runs",
        what="",
        cannot="",
        runs=(Run("coolmomentum", 0.1, 0.9),),
        steps=12,
        epoch_steps=0.7,  # evaluations after 7 steps and 12
        batch=8,
        size=32,
        training_images=32,
        evaluate="train",
        evaluation_batch=16,
        bn_momentum=0.9,
        backup_steps=2,
    )
    engine = Engine("1 CPU, JAX", None, 1, 8, "auto", "float32")

    def records(name):
        path = tmp_path / name
        train.train(config, config.runs[0], engine, "simulated", path)
        lines = [json.loads(x) for x in (path / "records.jsonl").read_text().splitlines()]
        return [line | {"images_per_second": None} for line in lines]

    whole = records("whole")
    assert [line["step"] for line in whole] == [7, 12]
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
