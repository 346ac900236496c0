"""CoolMomentum, SGD and Adam on real images: which learns what, and how each of them cools.

The protocol:

- Images: the 1,797 digits (8x8 pixels) of scikit-learn, 1,024 for training, 323 for validation and
  450 for the test. A network of 64 inputs, 64 tanh units and 10 outputs, batches of 32.
- Contenders: CoolMomentum (the paper's law, rho0 = 0.99), SGD with momentum 0.9 and Adam, the
  latter two with their learning rate annealed by a cosine: all three end cold.
- Tuning: the same budget for each, a grid of as many learning rates, half a decade apart, on the
  same tuning seeds. The highest mean validation accuracy after the last epoch wins (of equals, the
  lowest loss). A winner at the edge of its grid is marked. (The first version of this program chose
  by validation loss, and was changed after its results had been seen, since accuracy is reported.)
- Report: seeds that the tuning has not seen, on test images that it has not seen. The last epoch
  counts, not the best one.
- Pairs: runs of one seed start from the same weights and see the same batches, whatever the
  optimizer, the learning rate and the framework. CoolMomentum is the same in all frameworks. SGD of
  Keras is not that of PyTorch and optax where the learning rate changes: it multiplies the new
  gradient only, there the past ones too. Nor is Adam, whose epsilon stands elsewhere.
- Measurement: the same for all. Losses and accuracy after each epoch over whole sets, in inference
  mode. The rescaled temperature is the mean squared change of a trainable parameter in a step, from
  the parameters before and after it, averaged over the epoch (below some 1e-15 those steps are as
  small as the rounding of float32). Eq. 19 predicts it for CoolMomentum from the gradient noise
  measured, at some steps of each epoch, with pairs of minibatches. It supposes noise without memory
  and no drift: the drift of the first epochs makes the walk hotter, and an epoch that shows each
  image once makes it up to some 40 % colder while the momentum remembers a good part of an epoch.
- Length: long enough for rho0 = 0.99 to cool adiabatically (`coolmomentum.adiabatic_rho0`); for a
  shorter run that you ask for, rho0 is what that function gives.

What it can show is one-knob annealing on a par with the usual schedules when all are tuned equally.
Its intervals are over weights and batches, not over choices of images.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from benchmarks.demo._contenders import CONTENDERS, learning_rates
from benchmarks.demo._data import (
    BATCH,
    LAYERS,
    PARTS,
    STEPS_PER_EPOCH,
    Digits,
    Epoch,
    Images,
    Settings,
    Start,
    digits,
    start,
)
from benchmarks.demo._files import HELD_OUT, RUNS, append_run, empty, run_table, write_provenance
from benchmarks.demo._progress import RunProgress
from benchmarks.demo._report import report
from benchmarks.demo._summary import best_lr
from coolmomentum import adiabatic_rho0

Train = Callable[[Settings, Start, Images, Images], Iterator[Epoch]]

FRAMEWORKS = {  # the modules whose `train` makes one run
    "torch": "benchmarks.demo._torch",
    "jax": "benchmarks.demo._jax",
    "tensorflow": "benchmarks.demo._tensorflow",
}
RHO0 = 0.99  # as in the paper, if the run is long enough


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; the exit status is 0, 2 for a framework that is not there, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options(arguments)
    console = Console(highlight=False, markup=False)
    try:
        trainers = {name: _trainer(name) for name in options.frameworks}
        empty(options.output)
        _demo(trainers, options, arguments, console)
    except _UnavailableError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        finished = options.output / RUNS
        console.print(f"Interrupted; the finished runs are in {finished}", soft_wrap=True)
        return 130
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo",
        description="Train CoolMomentum, SGD and Adam on real images, with a thermometer.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--frameworks", nargs="+", default=list(FRAMEWORKS), help=f"of: {', '.join(FRAMEWORKS)}")
    add("--output", type=Path, default=Path("results/demo"), help="folder for the files")
    add("--epochs", type=_at_least(1), default=80, help="length of each run")
    add("--grid", type=_at_least(1), default=5, help="learning rates tried for each optimizer")
    add("--tuning-seeds", type=_at_least(1), default=2, help="runs for each of them")
    add("--seeds", type=_at_least(2), default=8, help="fresh runs with the best of them")
    return parser.parse_args(arguments)


def _at_least(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be >= {least}: {text}")
        return int(text)

    return whole


class _UnavailableError(Exception):
    """A framework is unknown or not installed; the message is for the user."""


def _trainer(framework: str) -> Train:
    if framework not in FRAMEWORKS:
        raise _UnavailableError(f"framework must be one of {', '.join(FRAMEWORKS)}: {framework}")
    try:
        train: Train = import_module(FRAMEWORKS[framework]).train
    except ImportError as error:
        raise _UnavailableError(
            f"{framework} cannot be imported ({error}): pip install 'coolmomentum[{framework}]'"
        ) from error
    return train


def _demo(
    trainers: dict[str, Train],
    options: argparse.Namespace,
    arguments: Sequence[str],
    console: Console,
) -> None:
    """Tune, run and report; every finished run is in the file at once."""
    rho0 = min(RHO0, adiabatic_rho0(options.epochs * STEPS_PER_EPOCH))
    tuning_seeds = range(options.tuning_seeds)
    seeds = range(options.tuning_seeds, options.tuning_seeds + options.seeds)
    protocol = {
        "epochs": options.epochs,
        "steps": options.epochs * STEPS_PER_EPOCH,
        "tuning_seeds": list(tuning_seeds),
        "seeds": list(seeds),
        "optimizers": {
            contender.optimizer: {
                "annealing": contender.annealing.format(rho0=rho0),
                "learning_rates": learning_rates(contender, options.grid),
            }
            for contender in CONTENDERS
        },
    }
    write_provenance(options.output, arguments, trainers, protocol)
    console.print(_in_short(protocol))

    images = digits()
    runs_each = options.grid * len(tuning_seeds) + len(seeds)
    all_runs = len(trainers) * len(CONTENDERS) * runs_each
    with RunProgress(console, all_runs, options.epochs) as progress:
        for framework, train in trainers.items():
            bench = _Bench(framework, train, images, options.epochs, options.output, progress)
            chosen = []
            for contender in CONTENDERS:
                tuning = [
                    bench.run("tuning", Settings(contender.optimizer, lr, rho0), seed)
                    for lr in learning_rates(contender, options.grid)
                    for seed in tuning_seeds
                ]
                lr = best_lr(pd.concat(tuning))
                chosen.append(Settings(contender.optimizer, lr, rho0))
            for seed in seeds:
                for settings in chosen:
                    bench.run("report", settings, seed)
    report(options.output, console)


@dataclass(frozen=True)
class _Bench:
    """Where runs of one framework are made."""

    framework: str
    train: Train
    images: Digits
    epochs: int
    output: Path
    progress: RunProgress

    def run(self, phase: str, settings: Settings, seed: int) -> pd.DataFrame:
        """Make one run and add it to the file."""
        name = f"{settings.optimizer} lr {settings.lr:g} seed {seed}"
        held_out = getattr(self.images, HELD_OUT[phase])
        records = []
        for record in self.train(
            settings, start(seed, self.epochs), self.images.training, held_out
        ):
            records.append(record)
            self.progress.show(phase, name, record)
        run = run_table(records, self.framework, phase, settings, seed)
        append_run(self.output, run)
        return run


def _in_short(protocol: dict[str, Any]) -> str:
    parts = ", ".join(f"{size} for {part}" for part, size in PARTS.items())
    tuning_seeds, seeds = (len(protocol[name]) for name in ("tuning_seeds", "seeds"))
    lines = [
        f"Digits of 8x8 pixels ({parts});",
        f"network {'-'.join(map(str, LAYERS))}; {protocol['epochs']} epochs of batches of {BATCH}: "
        f"{protocol['steps']} steps.",
    ]
    for optimizer, its in protocol["optimizers"].items():
        rates = ", ".join(f"{lr:g}" for lr in its["learning_rates"])
        lines += [f"  {optimizer}: {its['annealing']};", f"    tuned over lr {rates}"]
    lines += [
        f"Tuned by validation accuracy (seeds: {tuning_seeds}), then judged by {seeds} fresh seeds",
        "and the test images, after the last epoch. Same weights and batches for all.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
