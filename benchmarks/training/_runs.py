"""One run from its seed to its records, the same for every framework; it survives interruption."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import isfinite, nan

from benchmarks.training._checkpoint import Checkpoint
from benchmarks.training._networks import Weights, initial_weights
from benchmarks.training._problem import Problem, epoch_of
from benchmarks.training._rules import Settings, learning_rates, momenta
from benchmarks.training._trainer import Trainer

__all__ = ["Record", "run"]


@dataclass(frozen=True)
class Record:
    """A run after some epochs, 0 being before the first step; see ``Trained`` and ``Measured``."""

    epoch: int
    step: int  # optimizer steps taken
    training_loss: float
    penalty: float
    loss: float
    accuracy: float
    diverged: bool = False  # a loss is not finite: the run ends here
    running_loss: float = nan
    temperature: float = nan
    temperature_with_statistics: float = nan
    predicted_temperature: float = nan
    rho: float = nan  # rho, momentum or beta1 of the last step
    learning_rate: float = nan  # of the last step
    seconds: float = nan  # for the steps of the epoch; NaN where something was compiled in it


def run(
    trainer: Trainer,
    problem: Problem,
    settings: Settings,
    seed: int,
    checkpoint: Checkpoint,
    show: Callable[[int, str], None],
    *,
    every_epoch: bool = True,
    compiled: bool = False,
) -> list[Record]:
    """Train and measure, before the first and after every epoch (else after the last one only).

    ``show`` gets the number of epochs done and what there is to say.
    """
    lrs = learning_rates(settings, problem.epochs, problem.steps)
    rhos = momenta(settings, problem.epochs, problem.steps)
    weights = initial_weights(problem.network, problem.shape, problem.classes, seed)
    trainer.start(weights)
    resumed = _resumed(trainer, problem, checkpoint, weights)
    if resumed is None:
        records = [Record(0, 0, *trainer.measure())] if every_epoch else []
        done = 0
    else:
        done, records = resumed
        compiled = False
    for epoch in range(done, problem.epochs):
        if _ended(records, problem):
            break
        begun = time.perf_counter()
        trained = trainer.train(epoch_of(problem, seed, epoch), lrs[epoch], rhos[epoch])
        seconds = time.perf_counter() - begun
        last = epoch + 1 == problem.epochs
        seen = f"running loss {trained.running_loss:.1e}"
        if every_epoch or last or not isfinite(trained.running_loss):
            measured = trainer.measure()
            record = Record(
                epoch + 1,
                (epoch + 1) * problem.steps,
                **measured._asdict(),
                **trained._asdict(),
                diverged=not (isfinite(trained.running_loss) and isfinite(measured.training_loss)),
                rho=float(rhos[epoch, -1]),
                learning_rate=float(lrs[epoch, -1]),
                seconds=seconds if compiled else nan,
            )
            records.append(record)
            seen = f"loss {measured.training_loss:.1e}, accuracy {measured.accuracy:.1%}"
        show(epoch + 1, seen)
        compiled = True
        checkpoint.write(epoch + 1, [asdict(record) for record in records], trainer.state())
    return records


def _resumed(
    trainer: Trainer, problem: Problem, checkpoint: Checkpoint, weights: Weights
) -> tuple[int, list[Record]] | None:
    """Epochs done and their records, the trainer being as it was then; or None, and it is new."""
    found = checkpoint.read()
    if found is None:
        return None
    done, saved, state = found
    try:
        records = [Record(**record) for record in saved]
        if not _ended(records, problem):
            trainer.restore(state)
    except Exception as error:  # each framework has its own for a state that is broken
        checkpoint.refuse(error)
        trainer.start(weights)  # some of it may have been taken
        return None
    return done, records


def _ended(records: list[Record], problem: Problem) -> bool:
    return bool(records) and (records[-1].diverged or records[-1].epoch == problem.epochs)
