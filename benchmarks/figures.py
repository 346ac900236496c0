"""The figures of README and docs, for light pages and for dark: ``python -m benchmarks.figures``.

The network is small: three convolutions and a linear layer, 4,218 parameters, on 1,024 of the
digits of scikit-learn (8x8 pixels) in batches of 32. Dropout and smoothed labels keep the gradients
noisy to the end. The three optimizers start from the same weights and see the same batches. Their
learning rates are round numbers that train it, not tuned ones; those of SGD and Adam are annealed
by a cosine. The figures show how temperatures fall, not which optimizer is best.
"""

import argparse
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
from matplotlib import rc_context, style
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks.styles import STYLES
from coolmomentum import CoolingSchedule, Law, adiabatic_rho0, plot
from coolmomentum.torch import CoolMomentum, Thermometer

BATCH, STEPS = 32, 32  # images in a batch, batches in an epoch

Reading = dict[Any, Any]

# Of README's table: which results, measured in which framework, and which rules.
RESULTS = Path(__file__).parent / "training" / "results"
ACCURACIES = {
    "laptop-resnet20": ("torch", "ResNet-20 on CIFAR-10, 7,800 steps, 3 seeds"),
    "laptop-digits": ("jax", "digits, 2,560 steps, 10 seeds"),
}
RULES = {
    "coolmomentum": "CoolMomentum, paper's law",
    "coolmomentum-linear": "CoolMomentum, linear law",
    "sgd-step": "SGD, paper's steps",
    "sgd-cosine": "SGD, cosine",
    "adam-cosine": "Adam, cosine",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, draw each figure in each style, and write them; the exit status is 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.figures",
        description="Draw the figures of README and docs.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("docs/figures"), help="folder")
    parser.add_argument("--epochs", type=int, default=60, help="length of the runs")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)

    runs = {name: train(name, options.epochs) for name in OPTIMIZERS}
    figures: dict[str, Callable[[], Figure]] = {
        "schedules": draw_schedules,
        "run": lambda: draw_run([whole for whole, _ in runs["CoolMomentum"]]),
        "accuracy": draw_accuracy,
        "per_layer_temperature": lambda: draw_layers(
            {name: [each for _, each in run] for name, run in runs.items()}
        ),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    for page, name in STYLES.items():
        with rc_context(), style.context(name):
            for stem, draw in figures.items():
                draw().savefig(options.output / f"{stem}-{page}.png", dpi=150, transparent=True)
    return 0


# --- the runs -----------------------------------------------------------------------------------


def cool_momentum(named: Iterable[tuple[str, Tensor]], steps: int) -> Optimizer:
    """CoolMomentum as hot as the run has time for, up to rho0 = 0.99."""
    return CoolMomentum(named, lr=0.01, total_steps=steps, rho0=min(0.99, adiabatic_rho0(steps)))


OPTIMIZERS: dict[str, Callable[[Iterable[tuple[str, Tensor]], int], Optimizer]] = {
    "SGD": lambda named, _: SGD(named, lr=0.05, momentum=0.9),
    "Adam": lambda named, _: Adam(named, lr=0.003),
    "CoolMomentum": cool_momentum,
}


def train(name: str, epochs: int) -> list[tuple[Reading, Reading]]:
    """After each epoch what the thermometer reads: of the whole network, and of each parameter."""
    torch.manual_seed(0)
    model = network()
    data = load_digits()
    images = torch.tensor(data.images[: BATCH * STEPS, None] / 16, dtype=torch.float32)
    labels = torch.tensor(data.target[: BATCH * STEPS])
    optimizer = OPTIMIZERS[name](model.named_parameters(), epochs * STEPS)
    annealed = CosineAnnealingLR(optimizer, epochs * STEPS) if name != "CoolMomentum" else None
    cross_entropy = nn.CrossEntropyLoss(label_smoothing=0.1)
    readings = []
    with Thermometer(optimizer, every=4, span=STEPS) as thermometer:
        for _ in range(epochs):
            total = 0.0
            for batch in torch.randperm(len(labels)).reshape(STEPS, BATCH):
                optimizer.zero_grad()
                loss = cross_entropy(model(images[batch]), labels[batch])
                loss.backward()
                optimizer.step()
                if annealed is not None:
                    annealed.step()
                total += loss.item() / STEPS
            each = thermometer.read(by="parameter")
            readings.append(({"loss": total, **thermometer.read(reset=True)}, each))
    return readings


def network() -> nn.Module:
    """Three convolutions and a linear layer, for images of 8x8 pixels."""
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(1, 8, 3, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(8, 16, 3, stride=2, padding=1),
            relu2=nn.ReLU(),
            conv3=nn.Conv2d(16, 16, 3, stride=2, padding=1),
            relu3=nn.ReLU(),
            flatten=nn.Flatten(),
            dropout=nn.Dropout(0.2),
            linear=nn.Linear(64, 10),
        )
    )


# --- the figures --------------------------------------------------------------------------------


def draw_schedules() -> Figure:
    """Rho and reduced temperature of the four laws, side by side."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    laws = {law: CoolingSchedule(1000, law=law) for law in get_args(Law)}
    quantities: tuple[plot.Quantity, ...] = ("rho", "reduced_temperature")
    for quantity, ax in zip(quantities, figure.subplots(1, 2), strict=True):
        plot.schedule(laws, quantity, ax=ax)
    return figure


def draw_run(readings: list[Reading]) -> Figure:
    """Temperature, prediction and loss of one run."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    plot.run(readings, ax=figure.subplots())
    return figure


def draw_accuracy() -> Figure:
    """Test accuracies of README's table, of the committed results, with their 95 % intervals."""
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    panels = figure.subplots(1, len(ACCURACIES), sharey=True)
    for (config, (framework, title)), ax in zip(ACCURACIES.items(), panels, strict=True):
        rows = pd.read_csv(RESULTS / config / "summary.csv").set_index(["framework", "rule"])
        found = 100 * rows.loc[[(framework, rule) for rule in RULES]]
        colours = [plot.VERMILION if "cool" in rule else plot.BLUE for rule in RULES]
        for y, (mean, half, colour) in enumerate(
            zip(found["accuracy"], found["accuracy_half_width"], colours, strict=True)
        ):
            ax.errorbar(mean, -y, xerr=half, fmt="o", color=colour, capsize=3)
        ax.set_yticks([-y for y in range(len(RULES))], RULES.values())
        ax.set_title(title, fontsize="medium")
        ax.set_xlabel("test accuracy, %")
    return figure


def draw_layers(runs: dict[str, list[Reading]]) -> Figure:
    """A heat map an optimizer, all on one scale of colours."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True)
    reading = "rescaled_temperature"
    heat = [x[reading] for run in runs.values() for row in run for x in row.values()]
    for (name, run), ax in zip(runs.items(), panels, strict=True):
        scale = {"vmin": min(heat), "vmax": max(heat)}
        plot.layers(run, reading, colorbar=False, ax=ax, **scale)
        ax.set_title(name)
    label = r"rescaled temperature $T\,\Delta t^2$"
    figure.colorbar(panels[0].collections[0], ax=panels, label=label)
    return figure


if __name__ == "__main__":
    sys.exit(main())
