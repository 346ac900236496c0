"""How the measured steps of a window hang together, and what errors from blocks of them cover."""

from typing import Any

import numpy as np
from scipy.stats import binomtest

from benchmarks.gradient_noise._exact import Exact
from benchmarks.gradient_noise._networks import (
    RHO,
    Arrays,
    Network,
    batches,
    data,
    initial,
    loss_of,
)
from benchmarks.gradient_noise._runs import EVERY, WINDOW, WINDOWS
from coolmomentum.thermometer import noise_moments, true_square

BLOCKS = 20  # of a window


def series(
    network: Network, optimizer: str, seed: int, windows: int = WINDOWS, window: int = WINDOW
) -> tuple[np.ndarray, Arrays]:
    """What a window adds up, step by step, by JAX on the gradients themselves.

    Returns
    -------
    the mean square of the gradients A and the estimate D of ``|G|**2`` of each measured step, of
    shape (2, windows, steps), and the parameters before it, along a first axis
    """
    import jax
    import optax

    from coolmomentum import CoolingSchedule
    from coolmomentum.jax import cool_momentum

    jnp = jax.numpy
    x, y = map(jnp.asarray, data(network))
    rate, losses = network.rates[optimizer], jax.vmap(loss_of(network), (None, 0, 0))
    tx = {
        "CoolMomentum": cool_momentum(rate, schedule=CoolingSchedule(10**6, RHO, "constant")),
        "SGD": optax.sgd(rate, RHO),
        "Adam": optax.adam(rate, RHO),
    }[optimizer]

    def step(run: Any, chosen: Any) -> Any:
        params, state, remembered, (last, _) = run
        now = jax.grad(lambda p: losses(p, x[chosen], y[chosen]).mean())(params)
        updates, state = tx.update(now, state, params)
        remembered = [RHO * m + (1 - RHO) * g for m, g in zip(remembered, now, strict=True)]
        return (optax.apply_updates(params, updates), state, remembered, (now, last)), None

    def block(run: Any, chosen: Any) -> Any:  # whose last step is measured
        run, _ = jax.lax.scan(step, run, chosen[:-1])
        params, _, remembered, lags = run
        run, _ = step(run, chosen[-1])
        table = noise_moments(zip(run[3][0], *lags, strict=True), remembered, xp=jnp).sum(1)
        square, lag_one, lag_two, with_mean = (table[i] for i in range(4))
        return run, (jnp.stack([square, true_square(lag_one, lag_two, with_mean, RHO)]), params)

    params = [jnp.asarray(p) for p in initial(network, seed)]
    zeros = [jnp.zeros_like(p) for p in params]
    drawn = batches(network, seed, network.burn_in + window * windows)
    blocks = drawn.reshape(-1, EVERY, network.batch)
    run = params, tx.init(params), zeros, (zeros, zeros)
    _, (table, places) = jax.jit(lambda run, drawn: jax.lax.scan(block, run, drawn))(run, blocks)
    begin = network.burn_in // EVERY
    both = np.asarray(table, np.float64)[begin:].T.reshape(2, windows, -1)
    return both, [np.asarray(p)[begin:] for p in places]


def errors_of(squares: np.ndarray, estimates: np.ndarray) -> tuple[float, float, float, float]:
    """Ratio of the sums of a window, its error from steps and from blocks, and how they hang on.

    That is the correlation of ``A - r D`` of successive measured steps.
    """
    ratio = squares.sum() / estimates.sum()
    rest = squares - ratio * estimates
    errors = [
        np.sqrt(len(parts) / (len(parts) - 1) * np.sum(parts**2)) / estimates.sum()
        for parts in (rest, rest.reshape(BLOCKS, -1).sum(1))
    ]
    return ratio, *errors, float(np.corrcoef(rest[1:], rest[:-1])[0, 1])


def compared_by_blocks(network: Network, optimizer: str, seeds: range) -> list[str]:
    """Of all windows the mean correlation, and for steps and for blocks how many errors cover."""
    exact, found = Exact(network), list[tuple[float, ...]]()
    for seed in seeds:
        both, places = series(network, optimizer, seed)
        for window, (squares, estimates) in enumerate(zip(*both, strict=True)):
            here = [np.split(p, WINDOWS)[window] for p in places]
            true_ratio = 1 + exact.critical(here) / network.batch
            found.append((*errors_of(squares, estimates), true_ratio))
    ratio, by_step, by_block, hang, true = np.array(found).T
    covers = [binomtest(int(np.sum(abs(ratio - true) < x)), len(x)) for x in (by_step, by_block)]
    cells = [f"{hang.mean():.3f}", f"{np.exp(np.mean(np.log(by_block / by_step))):.2f}"]
    return cells + [f"{x.k} of {x.n}" for x in covers]
