"""One rule of the paper's Fig. 1: ResNet-20, 200 epochs in batches of 32, the numbers of Table 2.

It goes on from its checkpoint, and ends with the process that has begun it.
"""

import argparse
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.training._checkpoint import Checkpoint
from benchmarks.training._data import cifar10, simulated
from benchmarks.training._problem import Problem
from benchmarks.training._rules import Settings
from benchmarks.training._runs import run
from benchmarks.training._torch import TorchTrainer

SETTINGS = {  # of the paper's Table 2
    "coolmomentum": (0.01, 0.99),
    "sgd-step": (0.01, 0.9),
    "adam-step": (0.001, 0.9),
}
SEED = 1
MEASURED = 5_000  # images of the training set whose loss is measured after each epoch


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; the exit status is 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.training", description=__doc__)
    parser.add_argument("rule", choices=SETTINGS)
    parser.add_argument("folder", type=Path, help="for the checkpoint")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--miniature", action="store_true")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if options.device == "cpu":
        torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.miniature:
        images, epochs, batch, measured = simulated(), 3, 16, 0
    else:
        images, epochs, batch, measured = cifar10(validation=0), 200, 32, MEASURED
    problem = Problem(
        "resnet20", images.training, images.test, epochs, batch, augment=True, measured=measured
    )
    settings = Settings(options.rule, *SETTINGS[options.rule])
    about = {**settings._asdict(), "seed": SEED, **problem.about(), "torch": torch.__version__}

    def show(epoch: int, seen: str) -> None:
        print(f"{options.rule}: epoch {epoch} of {epochs}: {seen}", flush=True)

    checkpoint = Checkpoint(options.folder, repr(about), about)
    trainer = TorchTrainer(problem, settings, options.device)
    run(trainer, problem, settings, SEED, checkpoint, show)
    return 0


def _end_with_parent() -> None:
    sys.stdin.read()  # until the other end of the pipe is closed
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
