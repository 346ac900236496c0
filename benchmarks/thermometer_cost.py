"""What a thermometer costs in a training step of ResNet-20: ``python -m`` this module.

The network is that of ``benchmarks/training``, on random images of the shape of CIFAR-10, with one
thread. Blocks of ten steps with and without the thermometer take turns in one process, in processor
time, and a ratio is that of two neighbouring blocks, so that what slows the machine slows both. A
block has one measured step at the default ``every=10``, and one block in ten ends a span. Keras
runs on the backend of ``KERAS_BACKEND``.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.training._networks import Weights, initial_weights

SHAPE, CLASSES, STEPS = (32, 32, 3), 10, 10
OPTIMIZERS = ("SGD", "Adam", "CoolMomentum")

Block = Callable[[], object]  # makes STEPS steps and waits for their end
Settings = dict[str, Any]  # of the thermometer
Pairs = list[tuple[float, float]]  # processor time of a block without and of one with it


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("framework", choices=MEASURE)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--every", type=int, nargs="+", default=[10])
    parser.add_argument("--pairs", type=int, default=100, help="blocks of each kind")
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS, choices=OPTIMIZERS)
    parser.add_argument("--gradient-noise", action="store_true", help="measure it, too")
    arguments = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ[name] = "1"
    random = np.random.default_rng(0)
    images = random.standard_normal((arguments.batch, *SHAPE)).astype(np.float32)
    labels = random.integers(CLASSES, size=arguments.batch)
    table = Table("optimizer", "every", "step, ms", "with / without (quartiles)", "mean")
    told: dict[str, Any] = {}
    if arguments.gradient_noise:
        told = {"gradient_noise": True, "batch_size": arguments.batch}
    for name in arguments.optimizers:
        for every in arguments.every:
            settings = {"every": every, **told}
            pairs = MEASURE[arguments.framework](name, settings, images, labels, arguments.pairs)
            without, with_it = np.array(pairs).T
            low, median, high = np.quantile(with_it / without, [0.25, 0.5, 0.75])
            table.add_row(
                name,
                str(every),
                f"{1e3 * np.median(without) / STEPS:.1f}",
                f"{median:.3f} ({low:.3f} to {high:.3f})",
                f"{with_it.mean() / without.mean():.3f}",
            )
    Console().print(table)


def weights() -> Weights:
    """What every run begins with."""
    return initial_weights("resnet20", SHAPE, CLASSES, seed=0)


def by_turns(without: Block, with_it: Block, pairs: int) -> Pairs:
    """Processor times of both, again and again; which is first changes every time."""
    without(), with_it()
    seconds = []
    for i in range(pairs):
        first, second = (with_it, without) if i % 2 else (without, with_it)
        its = taken(first), taken(second)
        seconds.append((its[i % 2], its[1 - i % 2]))
    return seconds


def taken(block: Block) -> float:
    """Processor time of a block."""
    start = time.process_time()
    block()
    return time.process_time() - start


# --- PyTorch ------------------------------------------------------------------------------------


def in_torch(name: str, told: Settings, images: Any, labels: Any, pairs: int) -> Pairs:
    """The loop that one writes in PyTorch."""
    import torch

    from benchmarks.training._torch_networks import Network, load
    from coolmomentum.torch import CoolMomentum, Thermometer

    torch.set_num_threads(1)
    pixels, targets = torch.from_numpy(images), torch.from_numpy(labels)
    make: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "SGD": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
        "Adam": lambda params: torch.optim.Adam(params, lr=0.001),
        "CoolMomentum": lambda params: CoolMomentum(params, lr=0.001, total_steps=10**5),
    }

    def block_of(measured: bool) -> Block:
        model = Network("resnet20", SHAPE, CLASSES)
        load(model, weights())
        optimizer = make[name](model.parameters())
        if measured:
            Thermometer(optimizer, **told)  # which the hooks of the optimizer keep

        def block() -> None:
            for _ in range(STEPS):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(pixels), targets)
                loss.backward()  # type: ignore[no-untyped-call]  # PyTorch's own
                optimizer.step()

        return block

    return by_turns(block_of(False), block_of(True), pairs)


# --- JAX ----------------------------------------------------------------------------------------


def in_jax(name: str, told: Settings, images: Any, labels: Any, pairs: int) -> Pairs:
    """A jitted step, which has all that it changes donated."""
    import jax
    import optax

    from benchmarks.training._jax_networks import build, variables
    from coolmomentum import CoolingSchedule, learning_rate_from_sgd
    from coolmomentum.jax import adam_thermometer, cool_momentum, thermometer

    network, cooling = build("resnet20", CLASSES), CoolingSchedule(10**5, 0.99)
    bare, measured = {
        "SGD": (
            (sgd := optax.sgd(0.01, momentum=0.9)),
            optax.chain(sgd, thermometer(learning_rate_from_sgd(0.01, 0.9), 0.9, **told)),
        ),
        "Adam": ((adam := optax.adam(0.001)), adam_thermometer(adam, 0.001, **told)),
        "CoolMomentum": (
            (cool := cool_momentum(0.001, schedule=cooling)),
            optax.chain(cool, thermometer(0.001, cooling, **told)),
        ),
    }[name]

    def block_of(tx: Any) -> Block:
        def loss_of(params: Any, statistics: Any) -> Any:
            everything = {"params": params, "batch_stats": statistics}
            logits, new = network.apply(everything, images, True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), new["batch_stats"]

        def step(run: Any) -> Any:
            params, statistics, state = run
            gradients, statistics = jax.grad(loss_of, has_aux=True)(params, statistics)
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), statistics, state

        compiled = jax.jit(step, donate_argnums=0)
        params, statistics = variables(weights())
        run = [(params, statistics, tx.init(params))]

        def block() -> None:
            for _ in range(STEPS):
                run[0] = compiled(run[0])
            jax.block_until_ready(run)  # type: ignore[no-untyped-call]  # JAX' own

        return block

    return by_turns(block_of(bare), block_of(measured), pairs)


# --- Keras --------------------------------------------------------------------------------------


def in_keras(name: str, told: Settings, images: Any, labels: Any, pairs: int) -> Pairs:
    """One ``fit``, whose callback is called in the blocks that have it."""
    import keras

    from benchmarks.training._keras_networks import build, load
    from coolmomentum.keras import CoolMomentum, Thermometer

    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(1)

    class Turns(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is not typed
        """A thermometer in every other block, or its time."""

        def __init__(self) -> None:
            super().__init__()
            self.thermometer = Thermometer(**told)
            self.steps, self.seconds, self.start = 0, list[float](), 0.0

        def set_model(self, model: Any) -> None:
            super().set_model(model)
            self.thermometer.set_model(model)

        def on_train_begin(self, logs: Any = None) -> None:
            self.thermometer.on_train_begin()

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            # Half a block off, so that all three looks at a measured step are in one block.
            block, inside = divmod(self.steps + STEPS // 2, STEPS)
            if not inside:
                keras.ops.convert_to_numpy(self.model.optimizer.iterations)  # wait
                now = time.process_time()
                self.seconds.append(now - self.start)
                self.start = now
            if block % 4 in (1, 2) or block == 0:
                self.thermometer.on_train_batch_begin(batch)
            self.steps += 1

    class Same(keras.utils.PyDataset):  # type: ignore[misc]  # Keras is not typed
        """The same batch for every step."""

        def __len__(self) -> int:
            return STEPS * (2 * pairs + left_out)

        def __getitem__(self, index: int) -> Any:
            return images, labels

    model = build("resnet20", SHAPE, CLASSES)
    load(model, weights())
    make: dict[str, Callable[[], Any]] = {
        "SGD": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
        "Adam": lambda: keras.optimizers.Adam(0.001),
        "CoolMomentum": lambda: CoolMomentum(0.001, total_steps=10**5),
    }
    model.compile(make[name](), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    turns, left_out = Turns(), 20  # which compile; then come without, with, with, without, ...
    model.fit(Same(), shuffle=False, verbose=0, callbacks=[turns])
    first, second = np.reshape(turns.seconds[left_out : left_out + 2 * pairs], (-1, 2)).T
    return [(b, a) if i % 2 else (a, b) for i, (a, b) in enumerate(zip(first, second, strict=True))]


MEASURE: dict[str, Callable[..., Pairs]] = {"torch": in_torch, "jax": in_jax, "keras": in_keras}

if __name__ == "__main__":
    main()
