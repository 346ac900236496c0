"""The training of a network in each framework, with the framework's own thermometer."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.gradient_noise._networks import (
    RHO,
    Arrays,
    Network,
    batches,
    data,
    initial,
    loss_of,
)

EVERY, WINDOW, WINDOWS = 4, 2000, 3

# Of each window a reading, and the parameters before each measured step, along a first axis.
Run = Iterator[tuple[dict[str, float], Arrays]]


def stacked(places: list[Arrays]) -> Arrays:
    """Along a first axis."""
    return [np.stack(x) for x in zip(*places, strict=True)]


def in_torch(
    network: Network, optimizer: str, seed: int, windows: int = WINDOWS, window: int = WINDOW
) -> Run:
    """A loop of PyTorch."""
    import torch
    from torch.nn import functional

    from coolmomentum import CoolingSchedule
    from coolmomentum.torch import CoolMomentum, Thermometer

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
        loss.backward()  # type: ignore[no-untyped-call]  # PyTorch does not type it
        done = n - network.burn_in
        if done > 0 and done % EVERY == 0:
            places.append([p.detach().numpy().copy() for p in params])
        optimizes.step()
        if done == 0:
            thermometer.reset()
        elif done > 0 and done % window == 0:
            yield thermometer.read(reset=True), stacked(places)
            places = []


def in_jax(
    network: Network, optimizer: str, seed: int, windows: int = WINDOWS, window: int = WINDOW
) -> Run:
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
    drawn = batches(network, seed, network.burn_in + window * windows)
    blocks = drawn.reshape(-1, EVERY, network.batch)
    (params, state), _ = go_on((params, tx.init(params)), blocks[: network.burn_in // EVERY])
    for drawn in np.split(blocks[network.burn_in // EVERY :], windows):
        (params, state), places = go_on((params, reset(state)), drawn)
        yield read(state), [np.asarray(p) for p in places]


def in_keras(
    network: Network, optimizer: str, seed: int, windows: int = WINDOWS, window: int = WINDOW
) -> Run:
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
    drawn = batches(network, seed, network.burn_in + window * windows)
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
    for chosen in np.split(drawn[network.burn_in :], windows):
        places.append([])
        callbacks = [thermometer, Places()]
        model.fit(Drawn(chosen), verbose=0, shuffle=False, callbacks=callbacks)
        readings.append(thermometer.read())
    yield from zip(readings, map(stacked, places), strict=True)


FRAMEWORKS: dict[str, Callable[..., Run]] = {
    "torch": in_torch,
    "jax": in_jax,
    "keras": in_keras,
}
