"""The critical batch size that thermometers read, beside the exact one: ``python -m`` this module.

Three networks are trained on independent batches, drawn with replacement, in each framework and by
three optimizers. In each window of steps the reading of the thermometer is compared with the exact
``tr S / |G|**2`` over all examples, formed at the place of each step that the thermometer measures,
and with the estimate from two batches at each of these places of McCandlish et al.,
arXiv:1812.06162. Keras runs on the backend of ``KERAS_BACKEND``. What was measured goes into a
record; ``--draw`` makes the figure of ``docs/critical_batch_size.md``.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest
from sklearn.datasets import load_digits

from coolmomentum.thermometer import GradientNoise, Layout, noise_moments

RECORD = Path(os.environ.get("RECORD", Path(__file__).with_suffix(".json")))
FIGURE = Path(__file__).parents[1] / "docs" / "critical_batch_size.png"
EVERY, WINDOW, WINDOWS, RHO = 4, 2000, 3, 0.9
RUN = 10  # windows of half the length in the figure
SIMULATED = (0.99, 0.05), (0.95, 0.2), (0.9, 0.05), (0.9, 0.2), (0.9, 0.6), (0.8, 0.2), (0.65, 0.2)
OPTIMIZERS = "CoolMomentum", "SGD", "Adam"

Arrays = list[np.ndarray]
# Of each window a reading, and the parameters before each measured step, along a first axis.
Run = Iterator[tuple[dict[str, float], Arrays]]


class Network(NamedTuple):
    """A network and how it is trained."""

    layers: tuple[str, ...]  # of those named in forward
    shapes: tuple[tuple[int, ...], ...]  # of a kernel and a bias for each
    batch: int
    rates: dict[str, float]  # learning rates of the optimizers
    burn_in: int
    decay: float = 0.0  # of the parameters, in the loss: half their square times this
    regression: bool = False


NETWORKS = {
    "linear regression": Network(
        ("dense",),
        ((20, 5), (5,)),
        batch=16,
        rates={"CoolMomentum": 0.05, "SGD": 0.05, "Adam": 0.05},
        burn_in=500,
        regression=True,
    ),
    "two dense layers": Network(
        ("tanh", "dense"),
        ((64, 32), (32,), (32, 10), (10,)),
        batch=128,
        rates={"CoolMomentum": 0.1, "SGD": 0.1, "Adam": 0.002},
        burn_in=1000,
        decay=0.002,
    ),
    "a convolution": Network(
        ("conv", "dense"),
        ((3, 3, 1, 8), (8,), (288, 10), (10,)),
        batch=128,
        rates={"CoolMomentum": 0.02, "SGD": 0.02, "Adam": 0.001},
        burn_in=1000,
        decay=0.01,
    ),
}


def data(network: Network) -> tuple[np.ndarray, np.ndarray]:
    """All examples."""
    if network.regression:
        random = np.random.default_rng(7)
        x = random.standard_normal((2048, 20)).astype(np.float32)
        y = x @ random.standard_normal((20, 5)) + 2 * random.standard_normal((2048, 5))
        return x, y.astype(np.float32)
    x, y = load_digits(return_X_y=True)
    shape = (-1, 8, 8, 1) if network.layers[0] == "conv" else (-1, 64)
    return (x / 16).reshape(shape).astype(np.float32), y.astype(np.int32)


def initial(network: Network, seed: int) -> Arrays:
    """Parameters at the start."""
    random = np.random.default_rng(seed)
    return [
        random.normal(0, 1 / math.sqrt(math.prod(shape[:-1])), shape).astype(np.float32)
        if len(shape) > 1
        else np.zeros(shape, np.float32)
        for shape in network.shapes
    ]


def batches(network: Network, seed: int, steps: int) -> np.ndarray:
    """The examples of each step, drawn independently."""
    random = np.random.default_rng(1000 + seed)
    return random.integers(len(data(network)[0]), size=(steps, network.batch))


# --- exact, by JAX --------------------------------------------------------------------------------


def loss_of(network: Network) -> Callable[[Any, Any, Any], Any]:
    """The loss of one example."""
    import jax
    import jax.numpy as jnp
    import optax

    def loss(params: Any, x: Any, y: Any) -> Any:
        for layer, kernel, bias in zip(network.layers, params[::2], params[1::2], strict=True):
            if layer == "conv":
                # As a product with patches, which is faster where each example has a gradient.
                patches = [x[i : i + 6, j : j + 6, 0] for i in range(3) for j in range(3)]
                x = jnp.stack(patches, -1) @ kernel.reshape(9, -1) + bias
                x = jax.nn.relu(x).reshape(-1)
            else:
                x = x @ kernel + bias
                x = jnp.tanh(x) if layer == "tanh" else x
        decay = network.decay / 2 * sum(jnp.sum(p**2) for p in params)
        if network.regression:
            return jnp.sum((x - y) ** 2) / 2 + decay
        return optax.softmax_cross_entropy_with_integer_labels(x, y) + decay

    return loss


class Exact:
    """What is known of a network beside what a thermometer reads."""

    def __init__(self, network: Network) -> None:
        import jax
        import jax.numpy as jnp

        self.network, (self.x, self.y) = network, map(jnp.asarray, data(network))
        each = jax.vmap(jax.grad(loss_of(network)), (None, 0, 0))
        losses = jax.vmap(loss_of(network), (None, 0, 0))

        def of_batch(params: Any, chosen: Any) -> Any:
            mean = jax.grad(lambda p: losses(p, self.x[chosen], self.y[chosen]).mean())
            return jnp.concatenate([g.reshape(-1) for g in mean(params)])

        def two(place: Any) -> Any:
            params, chosen = place
            one, other = (of_batch(params, half) for half in jnp.split(chosen, 2))
            return (one @ one + other @ other) / 2, one @ other

        def moments(place: Any) -> Any:
            params, chosen = place
            mean = of_batch(params, jnp.arange(len(self.x)))
            gradients = each(params, self.x[chosen], self.y[chosen])
            return mean @ mean, sum(jnp.sum(g**2) for g in gradients) / len(chosen)

        self._moments, self._two = (jax.jit(partial(jax.lax.map, f)) for f in (moments, two))

    def critical(self, places: Arrays) -> float:
        """The ratio of the means of ``tr S`` and ``|G|**2``, of all examples, over all places.

        The mean square of the gradient of an example is that of 200 drawn ones at each place.
        """
        drawn = self._drawn(3000, len(places[0]), 200)
        square, each = (np.mean(np.asarray(x, np.float64)) for x in self._moments((places, drawn)))
        return float(each / square - 1)

    def by_two_batches(self, places: Arrays, seed: int) -> tuple[float, float]:
        """McCandlish's estimate from a pair of batches at each place, and its error.

        The run does not know these batches.
        """
        batch, pairs = self.network.batch, len(places[0])
        table = self._two((places, self._drawn(2000 + seed, pairs, 2 * batch)))
        squares, products = (np.asarray(x, np.float64) for x in table)
        ratio = squares.sum() / products.sum()
        spread = np.sqrt(pairs / (pairs - 1) * np.sum((squares - ratio * products) ** 2))
        return batch * (ratio - 1), batch * float(spread) / products.sum()

    def _drawn(self, seed: int, places: int, examples: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(len(self.x), size=(places, examples))


# --- the frameworks -------------------------------------------------------------------------------


def stacked(places: list[Arrays]) -> Arrays:
    """Along a first axis."""
    return [np.stack(x) for x in zip(*places, strict=True)]


def in_torch(network: Network, optimizer: str, seed: int, windows: int = 0, window: int = 0) -> Run:
    """A loop of PyTorch."""
    import torch
    from torch.nn import functional

    from coolmomentum import CoolingSchedule
    from coolmomentum.torch import CoolMomentum, Thermometer

    windows, window = windows or WINDOWS, window or WINDOW
    x, y = map(torch.from_numpy, data(network))
    y = y if network.regression else y.long()
    params = [torch.from_numpy(p).clone().requires_grad_() for p in initial(network, seed)]
    rate, constant = network.rates[optimizer], CoolingSchedule(10**6, RHO, "constant")
    made: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "CoolMomentum": lambda: CoolMomentum(params, rate, schedule=constant),
        "SGD": lambda: torch.optim.SGD(params, rate, momentum=RHO),
        "Adam": lambda: torch.optim.Adam(params, rate, betas=(RHO, 0.999)),
    }
    optimizes = made[optimizer]()
    thermometer = Thermometer(
        optimizes, every=EVERY, span=100, gradient_noise=True, batch_size=network.batch
    )

    def forward(out: torch.Tensor) -> torch.Tensor:
        for layer, kernel, bias in zip(network.layers, params[::2], params[1::2], strict=True):
            if layer == "conv":
                images = out.permute(0, 3, 1, 2)
                out = functional.conv2d(images, kernel.permute(3, 2, 0, 1), bias)
                out = functional.relu(out).permute(0, 2, 3, 1).flatten(1)
            else:
                out = out @ kernel + bias
                out = torch.tanh(out) if layer == "tanh" else out
        return out

    places = list[Arrays]()
    for n, chosen in enumerate(batches(network, seed, network.burn_in + window * windows), 1):
        optimizes.zero_grad()
        out, wanted = forward(x[chosen]), y[chosen]
        if network.regression:
            loss = ((out - wanted) ** 2).sum(1).mean() / 2
        else:
            loss = functional.cross_entropy(out, wanted)
        loss = loss + network.decay / 2 * sum((p**2).sum() for p in params)
        loss.backward()  # type: ignore[no-untyped-call]  # PyTorch's own
        done = n - network.burn_in
        if done > 0 and done % EVERY == 0:
            places.append([p.detach().numpy().copy() for p in params])
        optimizes.step()
        if done == 0:
            thermometer.reset()
        elif done > 0 and done % window == 0:
            yield thermometer.read(reset=True), stacked(places)
            places = []


def in_jax(network: Network, optimizer: str, seed: int) -> Run:
    """A jitted loop of JAX over a window at a time."""
    import jax
    import optax

    from coolmomentum import CoolingSchedule, learning_rate_from_sgd
    from coolmomentum.jax import adam_thermometer, cool_momentum, read, reset, thermometer

    x, y = map(jax.numpy.asarray, data(network))
    rate, constant = network.rates[optimizer], CoolingSchedule(10**6, RHO, "constant")
    told: dict[str, Any] = {"every": EVERY, "span": 100}
    told |= {"gradient_noise": True, "batch_size": network.batch}
    dt2 = learning_rate_from_sgd(rate, RHO)
    tx = {
        "CoolMomentum": lambda: optax.chain(
            cool_momentum(rate, schedule=constant), thermometer(rate, constant, **told)
        ),
        "SGD": lambda: optax.chain(optax.sgd(rate, RHO), thermometer(dt2, RHO, **told)),
        "Adam": lambda: adam_thermometer(optax.adam(rate, RHO), rate, RHO, **told),
    }[optimizer]()
    mean = jax.vmap(loss_of(network), (None, 0, 0))

    def step(run: Any, chosen: Any) -> Any:
        params, state = run
        gradients = jax.grad(lambda p: mean(p, x[chosen], y[chosen]).mean())(params)
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    def block(run: Any, chosen: Any) -> Any:  # whose last step is measured
        run, _ = jax.lax.scan(step, run, chosen[:-1])
        return step(run, chosen[-1])[0], run[0]

    go_on = jax.jit(lambda run, chosen: jax.lax.scan(block, run, chosen))
    params = [jax.numpy.asarray(p) for p in initial(network, seed)]
    drawn = batches(network, seed, network.burn_in + WINDOW * WINDOWS)
    blocks = drawn.reshape(-1, EVERY, network.batch)
    (params, state), _ = go_on((params, tx.init(params)), blocks[: network.burn_in // EVERY])
    for window in np.split(blocks[network.burn_in // EVERY :], WINDOWS):
        (params, state), places = go_on((params, reset(state)), window)
        yield read(state), [np.asarray(p) for p in places]


def in_keras(network: Network, optimizer: str, seed: int) -> Run:
    """A ``fit``, in which a window is an epoch, on the backend of ``KERAS_BACKEND``."""
    import keras

    from coolmomentum import CoolingSchedule
    from coolmomentum.keras import CoolMomentum, Thermometer

    x, y = data(network)
    rate, constant = network.rates[optimizer], CoolingSchedule(10**6, RHO, "constant")
    layers, half = [keras.Input(x.shape[1:])], keras.regularizers.L2(network.decay / 2)
    decays = {"kernel_regularizer": half, "bias_regularizer": half}
    for layer, bias in zip(network.layers, network.shapes[1::2], strict=True):
        if layer == "conv":
            layers.append(keras.layers.Conv2D(bias[0], 3, activation="relu", **decays))
            layers.append(keras.layers.Flatten())
        else:
            activation = "tanh" if layer == "tanh" else None
            layers.append(keras.layers.Dense(bias[0], activation, **decays))
    model = keras.Sequential(layers)
    model.set_weights(initial(network, seed))
    made = {
        "CoolMomentum": lambda: CoolMomentum(rate, schedule=constant),
        "SGD": lambda: keras.optimizers.SGD(rate, momentum=RHO),
        "Adam": lambda: keras.optimizers.Adam(rate, beta_1=RHO),
    }

    def squares(wanted: Any, out: Any) -> Any:
        return keras.ops.sum((out - wanted) ** 2, -1) / 2

    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = squares if network.regression else entropy
    model.compile(made[optimizer](), loss)  # type: ignore[no-untyped-call]  # Keras is not typed
    drawn = batches(network, seed, network.burn_in + WINDOW * WINDOWS)
    readings, places = list[dict[str, float]](), list[list[Arrays]]()

    class Drawn(keras.utils.PyDataset):  # type: ignore[misc]  # Keras is not typed
        """Independent batches."""

        def __init__(self, chosen: np.ndarray) -> None:
            super().__init__()
            self.chosen = chosen

        def __len__(self) -> int:
            return len(self.chosen)

        def __getitem__(self, index: int) -> Any:
            return x[self.chosen[index]], y[self.chosen[index]]

    class Places(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is not typed
        """Weights before each measured step."""

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if (batch + 1) % EVERY == 0:
                places[-1].append([np.array(w) for w in self.model.get_weights()])

    thermometer = Thermometer(EVERY, 100, gradient_noise=True, batch_size=network.batch)
    model.fit(Drawn(drawn[: network.burn_in]), verbose=0, shuffle=False)
    for window in np.split(drawn[network.burn_in :], WINDOWS):
        places.append([])
        callbacks = [thermometer, Places()]
        model.fit(Drawn(window), verbose=0, shuffle=False, callbacks=callbacks)
        readings.append(thermometer.read())
    yield from zip(readings, map(stacked, places), strict=True)


FRAMEWORKS: dict[str, Callable[[Network, str, int], Run]] = {
    "torch": in_torch,
    "jax": in_jax,
    "keras": in_keras,
}


# --- simulated ------------------------------------------------------------------------------------


def simulated(rho: float, highest: float, replicas: int = 60) -> list[str]:
    """Readings over the exact value of walks at rest, in 200 directions of unit noise.

    Their curvatures times the step size, of 1, go over a factor of 30 up to the highest.
    """
    random, a = np.random.default_rng(0), np.geomspace(highest / 30, highest, 200)
    layout = Layout.of(range(replicas), [len(a)] * replicas)
    burn_in = int(20 / (1 - rho) + 5 * (1 - rho) / a[0])
    x = v = np.zeros((replicas, len(a)))
    last, squares, sums = [x, x], [], np.zeros((2, replicas))
    noise, two_lags = (GradientNoise.empty(np.zeros(replicas + 1), 1) for _ in range(2))
    for n in range(-burn_in, 2000):
        true = a * x
        g = true + random.standard_normal(x.shape)
        if n >= 0 and n % 10 == 0:
            table = noise_moments(zip(g, *last, strict=True), -(1 - rho) * v)
            squares.append((true * true).sum(1))
            sums += table[:2]
            noise, two_lags = (
                x.add(y, layout, rho) for x, y in ((noise, table), (two_lags, table[:3]))
            )
        last, v = [g, last[0]], rho * v - g
        x = x + v
    exact = len(a) / np.mean(squares, axis=0)
    read = [x.readings()["critical_batch_size"][:-1] for x in (two_lags, noise)]
    ratios = [np.maximum(x, 1e-9) / exact for x in (sums[0] / sums[1] - 1, *read)]
    rows = [f"{np.exp(np.nanmean(np.log(ratio))):.2f}" for ratio in ratios]
    reading = noise.readings()
    covered = (
        abs(reading["critical_batch_size"][:-1] - exact)
        < (reading["critical_batch_size_error"][:-1])
    )
    return [str(rho), str(highest), *rows, f"{100 * np.mean(covered):.0f} %"]


# --- measuring ------------------------------------------------------------------------------------


def measure(framework: str, seeds: range, optimizers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each network, optimizer, seed and window; each optimizer has its own batches."""
    name = framework
    if framework == "keras":
        name += f" on {os.environ.get('KERAS_BACKEND', 'tensorflow')}"
    console = Console()
    for title, network in NETWORKS.items():
        exact = Exact(network)
        for optimizer in optimizers:
            start = time.monotonic()
            for seed in np.array(seeds) + 100 * OPTIMIZERS.index(optimizer):
                for window, (reading, places) in enumerate(
                    FRAMEWORKS[framework](network, optimizer, seed)
                ):
                    two, two_error = exact.by_two_batches(places, 100 * seed + window)
                    yield {
                        "framework": name,
                        "network": title,
                        "optimizer": optimizer,
                        "seed": int(seed),
                        "window": window,
                        "batch": network.batch,
                        "exact": exact.critical(places),
                        "read": reading["critical_batch_size"],
                        "error": reading["critical_batch_size_error"],
                        "two": two,
                        "two_error": two_error,
                    }
            console.print(f"{name}, {title}, {optimizer}: {time.monotonic() - start:.0f} s")


def main() -> None:
    """Measure, write the record, and print a table; or draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("frameworks", nargs="*", choices=[*FRAMEWORKS, []])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS, choices=OPTIMIZERS)
    parser.add_argument(
        "--simulate", action="store_true", help="print the table of simulated walks"
    )
    parser.add_argument("--draw", action="store_true", help="make the figure")
    arguments = parser.parse_args()
    if arguments.simulate:
        made = Table("rho", "highest curvature", "C1 alone", "two lags", "D", "covered")
        for rho, highest in SIMULATED:
            made.add_row(*simulated(rho, highest))
        Console().print(made)
        return
    if arguments.draw:
        draw()
        return
    rows = json.loads(RECORD.read_text()) if RECORD.exists() else []
    for framework in arguments.frameworks:
        rows = [row for row in rows if not row["framework"].startswith(framework)]
        for row in measure(framework, range(arguments.seeds), arguments.optimizers):
            rows.append(row)  # what is measured is kept, whatever comes
            RECORD.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    Console(width=200).print(table(rows))


def table(rows: list[dict[str, Any]]) -> Table:
    """Ratios to the exact value, coverages, and the root mean square of deviation over error."""
    compares = "cover", "deviation / error"
    made = Table(
        *("framework", "network", "optimizer", "exact / batch"),
        *("read / exact", *compares, "two batches / exact", *compares),
    )
    keys = dict.fromkeys((row["framework"], row["network"], row["optimizer"]) for row in rows)
    for key in keys:
        chosen = [r for r in rows if (r["framework"], r["network"], r["optimizer"]) == key]
        exact, batch = (np.array([r[name] for r in chosen]) for name in ("exact", "batch"))
        cells = [f"{np.exp(np.mean(np.log(exact / batch))):.2f}"]
        for name, error in (("read", "error"), ("two", "two_error")):
            cells += compared(np.array([[r[name], r[error], r["exact"]] for r in chosen]))
        made.add_row(*key, *cells)
    return made


def compared(rows: np.ndarray) -> list[str]:
    """Geometric mean of the ratio, and how many errors cover, with 95 per cent intervals."""
    read, error, exact = rows[np.isfinite(rows[:, 0]) & (rows[:, 0] > 0)].T
    logs, deviations = np.log(read / exact), (read - exact) / error
    spread = 1.96 * logs.std(ddof=1) / math.sqrt(len(logs))
    low, middle, high = np.exp(logs.mean() + spread * np.arange(-1, 2))
    covered = binomtest(int(np.sum(abs(deviations) < 1)), len(logs))
    least, most = covered.proportion_ci()
    return [
        f"{middle:.2f} ({low:.2f} to {high:.2f})",
        f"{covered.k} of {covered.n} ({100 * least:.0f} to {100 * most:.0f} %)",
        f"{np.sqrt(np.mean(deviations**2)):.2f}",
    ]


def draw() -> None:
    """A run of the second network in PyTorch, from its first step on: the figure of the page."""
    import matplotlib.pyplot as plt

    network = NETWORKS["two dense layers"]._replace(burn_in=0)
    exact, points = Exact(network), []
    for window, (reading, places) in enumerate(in_torch(network, "SGD", 0, RUN, WINDOW // 2)):
        two = exact.by_two_batches(places, 900 + window)
        read = [reading[name] for name in ("critical_batch_size", "critical_batch_size_error")]
        points.append([(window + 0.5) * WINDOW / 2, exact.critical(places), *read, *two])
    step, true, read, error, two, two_error = np.array(points).T
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(step, true, color="black", label="exact, over all examples")
    bars: dict[str, Any] = {"fmt": "o", "capsize": 3, "markersize": 4}
    axes.errorbar(step - 60, read, error, color="C0", label="thermometer", **bars)
    axes.errorbar(
        step + 60,
        np.where(two_error > 0, two, np.nan),
        abs(two_error),
        color="C1",
        label="two batches at one place",
        **bars,
    )
    axes.axhline(network.batch, color="gray", linestyle=":", label="batch size of the run")
    axes.set(
        xlabel="step",
        ylabel="critical batch size",
        ylim=(0, None),
        title="Two dense layers on digits, SGD with momentum 0.9",
    )
    axes.legend(frameon=False, loc="lower right", ncols=2)
    figure.savefig(FIGURE, dpi=150)


if __name__ == "__main__":
    main()
