"""One run: from its seed, or its backup, to its last record."""

import io
import platform
import subprocess
import time
from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

import coolmomentum
from benchmarks.imagenet import images
from benchmarks.imagenet.averages import AveragedModel
from benchmarks.imagenet.config import Config, Run
from benchmarks.imagenet.devices import Engine
from benchmarks.imagenet.images import Source, UnavailableImagesError
from benchmarks.imagenet.network import efficientnet_b0
from benchmarks.imagenet.optimizers import RATES, cool_momentum, rescaled_temperature, rmsprop
from benchmarks.imagenet.progress import Show, showing
from benchmarks.imagenet.recipe import RmspropRate, cooling, evaluated_images
from benchmarks.imagenet.records import Folder, Record, as_line
from benchmarks.training._files import write_whole
from benchmarks.training._frameworks import versions

__all__ = ["train"]

WEIGHTS = "weights.npz"


def train(config: Config, run: Run, engine: Engine, path: str, folder: Path) -> None:
    """Make a run, or what is left of it, and leave records and weights in its folder.

    Parameters
    ----------
    config, run : what is to be trained.
    engine : from :func:`benchmarks.imagenet.devices.choose`.
    path : of the images, see :func:`benchmarks.imagenet.images.open_source`.
    folder : of this run alone.

    Raises
    ------
    UnavailableImagesError, ConfigError, OSError
        If there are no such images, if the folder is of another run, or is full.
    """
    training = images.open_source(path, "train", config.training_images)
    evaluated = training
    if config.evaluate == "validation":
        evaluated = images.open_source(path, "validation", config.validation_images)
    if evaluated.classes != training.classes:
        raise UnavailableImagesError(
            f"--images must have the same classes to train and to evaluate: {path} has "
            f"{training.classes} and {evaluated.classes}"
        )
    its = Folder(
        folder,
        config,
        run,
        {
            "device": engine.device,
            "bn_group": engine.bn_group,
            "accumulated": engine.accumulated,
            "dtype": engine.dtype,
            "images": training.images,
        },
    )
    found = its.read()
    if found and not found[2]:  # it is finished
        its.write(found[1])
        return
    made = _Run(config, run, engine, training, evaluated, its)
    made.go_on(found)


class _Run:
    """A run in progress."""

    def __init__(
        self,
        config: Config,
        run: Run,
        engine: Engine,
        training: Source,
        evaluated: Source,
        folder: Folder,
    ) -> None:
        self.config, self._run, self.engine, self._folder = config, run, engine, folder
        self._training, self._timing = training, config.timing
        batch = config.evaluation_batch
        self._evaluated_images = evaluated_images(evaluated.images, batch)
        if not self._evaluated_images:
            raise UnavailableImagesError(
                f"--images must have at least {batch} images to evaluate: {evaluated.images}"
            )
        self._evaluation = images.evaluation(
            evaluated, config.size, batch=batch, share=engine.share
        )
        self._rate = RmspropRate(run.lr, self._timing)
        keras.utils.set_random_seed(config.seed)
        with engine.building():
            self._model = self._made()
        self._records: list[dict[str, Any]] = []
        self._step = 0
        self._loss: list[Any] = []  # of an interrupted stretch

    def _made(self) -> AveragedModel:
        config, run, accumulated = self.config, self._run, self.engine.accumulated
        model = efficientnet_b0(
            config.size,
            self._training.classes,
            # So that the statistics move in a step as far as without accumulation.
            bn_momentum=config.bn_momentum ** (1 / accumulated),
            dropout=config.dropout,
            drop_connect=config.drop_connect,
        )
        optimizer = (
            rmsprop(self._rate, accumulated)
            if run.rho0 is None
            else cool_momentum(run.lr, self._timing, run.rho0, accumulated)
        )
        model.compile(
            optimizer,
            keras.losses.CategoricalCrossentropy(
                from_logits=True, label_smoothing=config.label_smoothing
            ),
            metrics=[
                keras.metrics.CategoricalAccuracy(name="top1"),
                keras.metrics.TopKCategoricalAccuracy(5, name="top5"),
            ],
            jit_compile=self.engine.jit_compile,
        )
        optimizer.build(model.trainable_variables)
        return model

    def go_on(self, found: tuple[int, list[dict[str, Any]], bytes] | None) -> None:
        """From the backup to the end."""
        if found is not None:
            self._step, self._records, state = found
            self._restore(state)
            self._folder.write(self._records)
        name = f"{self.config.name} {self._run.name}"
        with showing(name, self._step, self._timing.total_steps) as show:
            for step in self._timing.evaluations:
                if step > self._step:
                    record = self._train_until(step, show)
                    ends = record.diverged or record.step == self._timing.total_steps
                    if ends:
                        self._save_weights()
                    self._records.append(as_line(record))
                    self._folder.back_up(record.step, self._records, b"" if ends else self._state())
                    self._folder.write(self._records)
                    show(record.step, _seen(record), True)
                    if ends:
                        return

    def _train_until(self, step: int, show: Show) -> Record:
        config, engine = self.config, self.engine
        batches = (step - self._step) * engine.accumulated
        data = images.training(
            self._training,
            config.size,
            batch=config.batch // engine.accumulated,
            seed=config.seed,
            position=self._step * config.batch,
            augment=config.augment,
            share=engine.share,
        )
        watch = _Watch(self, self._step, show)
        logs = self._model.fit(
            data, steps_per_epoch=batches, shuffle=False, verbose=0, callbacks=[watch]
        ).history
        step = self._step = watch.step  # an earlier one, if the loss is not finite
        loss, self._loss = float(logs["loss"][0]), []
        raw = self._evaluate()
        with engine.building(), self._model.averages_in_place():
            averaged = self._evaluate()
        self._model.reset_metrics()  # the loss in a backup is that of the next stretch
        return self._record(step, loss, averaged, raw, watch.images_per_second())

    def _evaluate(self) -> dict[str, float]:
        found: dict[str, float] = self._model.evaluate(
            self._evaluation,
            steps=self._evaluated_images // self.config.evaluation_batch,
            verbose=0,
            return_dict=True,
        )
        return found

    def _record(
        self,
        step: int,
        loss: float,
        averaged: dict[str, float],
        raw: dict[str, float],
        speed: float,
    ) -> Record:
        config, run, engine, timing = self.config, self._run, self.engine, self._timing
        optimizer = self._model.optimizer
        cool = run.rho0 is not None
        return Record(
            config=config.name,
            rule=run.rule,
            lr=run.lr,
            rho0=run.rho0,
            seed=config.seed,
            step=step,
            total_steps=timing.total_steps,
            images=step * config.batch,
            running_loss=loss,
            top1=averaged["top1"],
            top5=averaged["top5"],
            top1_raw=raw["top1"],
            top5_raw=raw["top5"],
            learning_rate=run.lr if cool else self._rate(step - 1),
            rho=(
                float(cooling(timing, run.rho0)(step - 1))
                if run.rho0 is not None
                else RATES["momentum"]
            ),
            temperature=optimizer.temperature() if cool else None,
            rescaled_temperature=rescaled_temperature(optimizer),
            images_per_second=speed,
            diverged=not isfinite(loss),
            evaluated_on=config.evaluate,
            evaluated_images=self._evaluated_images,
            device=engine.device,
            global_batch=config.batch,
            bn_group=engine.bn_group,
            accumulated=engine.accumulated,
            dtype=engine.dtype,
            versions=_versions(),
            commit=_commit(),
            departures=[*config.departures(), *engine.departures()],
        )

    # --- the backup -------------------------------------------------------------------------------

    def back_up(self, step: int) -> None:
        """All that the next step needs, and the records before it."""
        self._folder.back_up(step, self._records, self._state())

    def restore_loss(self) -> None:
        """That of the steps since the last evaluation, after ``fit`` has reset it."""
        if self._loss:
            self._assign(self._running_loss(), self._loss)

    def _variables(self) -> list[Any]:
        model = self._model
        return [
            *model.trainable_variables,
            *model.non_trainable_variables,
            *model.optimizer.variables,
        ]

    def _running_loss(self) -> list[Any]:
        """The sum and the count of which Keras makes it."""
        metric = next(x for x in self._model.metrics if x.name == "loss")
        return list(metric.variables)

    def _state(self) -> bytes:
        file = io.BytesIO()
        variables = [*self._running_loss(), *self._variables()]
        np.savez(file, *(ops.convert_to_numpy(v) for v in variables))
        return file.getvalue()

    def _restore(self, state: bytes) -> None:
        with np.load(io.BytesIO(state), allow_pickle=False) as file:
            arrays = [file[f"arr_{i}"] for i in range(len(file.files))]
        size = len(self._running_loss())
        self._loss = arrays[:size]
        self._assign(self._variables(), arrays[size:])

    def _assign(self, variables: list[Any], values: list[Any]) -> None:
        with self.engine.building():
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

    def _save_weights(self) -> None:
        """For ``set_weights``, averages included. On a full disk HDF5 would end the process."""
        file = io.BytesIO()
        np.savez(file, *self._model.get_weights())
        write_whole(self._folder.path / WEIGHTS, file.getvalue())


class _Watch(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is not typed
    """Counts steps, makes backups, shows where the run stands, and ends one that diverges."""

    def __init__(self, run: _Run, step: int, show: Show) -> None:
        super().__init__()
        self._run, self._begun, self._show = run, step, show
        self._minibatches = 0
        self._first = self._last = 0.0  # times at which minibatches ended

    @property
    def step(self) -> int:
        """Steps of the run."""
        return self._begun + self._minibatches // self._run.engine.accumulated

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Go on with the loss of an interrupted stretch."""
        self._run.restore_loss()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Of a minibatch, which may be a part of a step."""
        run, loss = self._run, float((logs or {})["loss"])
        self._minibatches += 1
        self._last = time.perf_counter()
        self._first = self._first or self._last
        self._show(self.step, f"running loss {loss:.3f}", False)
        if not isfinite(loss):
            self.model.stop_training = True
        elif (
            self._minibatches % run.engine.accumulated == 0
            and self.step % run.config.backup_steps == 0
        ):
            assert self.model is not None  # asked on JAX, it puts the state into the variables
            run.back_up(self.step)

    def images_per_second(self) -> float:
        """From the first minibatch to the last, so without what was compiled before the first."""
        if self._minibatches < 2:
            return nan
        each = self._run.config.batch / self._run.engine.accumulated
        return each * (self._minibatches - 1) / (self._last - self._first)


def _seen(record: Record) -> str:
    if record.diverged:
        return "the loss is not finite: the run ends"
    top1 = f"top-1 {record.top1:.1%}, raw {record.top1_raw:.1%}"
    return f"running loss {record.running_loss:.3f}, {top1}"


def _versions() -> str:
    used: Sequence[str] = {"jax": ("keras_jax", "keras_tensorflow")}.get(
        keras.backend.backend(), ("keras_tensorflow",)
    )
    found = {"python": platform.python_version(), "coolmomentum": coolmomentum.__version__}
    for name in used:
        found |= versions(name)
    return ", ".join(f"{k} {v}" for k, v in found.items())


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
