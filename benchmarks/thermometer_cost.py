"""What the torch thermometer costs in a training step of ResNet-20: ``python -m`` this module.

One model trains on random CIFAR-10 shapes, on one core. Blocks of steps without and with a
thermometer take turns, and the ratio is that of neighbouring blocks, in processor time. The last
column is what the hooks themselves take of all processor time, which is less noisy.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from coolmomentum.torch import CoolMomentum, Thermometer

OPTIMIZERS: dict[str, Callable[[Iterator[Tensor]], Optimizer]] = {
    "SGD": lambda params: SGD(params, lr=0.01, momentum=0.9),
    "Adam": lambda params: Adam(params, lr=0.001),
    "CoolMomentum": lambda params: CoolMomentum(params, lr=0.001, total_steps=10_000),
}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--every", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--pairs", type=int, default=6, help="blocks of each kind")
    parser.add_argument(
        "--block", type=int, default=10, help="steps, at least; a multiple of every"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("optimizer", "batch", "every", "step, ms", "with / without (quartiles)", "hooks")
    for batch in arguments.batches:
        for name, make in OPTIMIZERS.items():
            for every in arguments.every:
                cells = measured(make, batch, every, arguments.pairs, arguments.block)
                table.add_row(name, str(batch), str(every), *cells)
    Console().print(table)


def measured(
    make: Callable[[Iterator[Tensor]], Optimizer], batch: int, every: int, pairs: int, block: int
) -> tuple[str, str, str]:
    """Milliseconds of a step, the ratio with its quartiles, and the share of the hooks."""
    torch.manual_seed(0)
    model = resnet20()
    optimizer = make(model.parameters())
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    steps = -(-block // every) * every

    def run(steps: int) -> float:
        start = time.process_time()
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return (time.process_time() - start) / steps

    run(1)
    bare, ratios, shares = [], [], []
    for _ in range(pairs):
        bare.append(run(steps))
        with Timed(optimizer, every=every, span=100) as thermometer:
            run(1)  # which begins with a copy
            thermometer.seconds = 0.0
            with_it = run(steps)
        ratios.append(with_it / bare[-1])
        shares.append(thermometer.seconds / steps / with_it)
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return (
        f"{1e3 * np.median(bare):.1f}",
        f"{median:.3f} ({low:.3f} to {high:.3f})",
        f"{100 * np.median(shares):.2f} %",
    )


class Timed(Thermometer):
    """A thermometer that knows how much processor time it has taken."""

    seconds = 0.0

    def _before(self, *arguments: object) -> None:
        start = time.process_time()
        super()._before(*arguments)
        self.seconds += time.process_time() - start

    def _after(self, *arguments: object) -> None:
        start = time.process_time()
        super()._after(*arguments)
        self.seconds += time.process_time() - start


class Block(nn.Module):
    """Two convolutions with batch normalisation beside a shortcut (option A of He et al. 2015)."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.stride = width // width_in
        self.convolutions = nn.Sequential(
            nn.Conv2d(width_in, width, 3, self.stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways."""
        new: Tensor = self.convolutions(x)
        short = x[:, :, :: self.stride, :: self.stride]
        padding = new.shape[1] - short.shape[1]
        return torch.relu(new + nn.functional.pad(short, (0, 0, 0, 0, 0, padding)))


def resnet20() -> nn.Module:
    """ResNet-20 for CIFAR-10: 0.27 million parameters in 59 tensors and more."""
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *(Block(before, width) for before, width in pairwise(widths)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


if __name__ == "__main__":
    main()
