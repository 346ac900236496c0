"""The exact value at given places, and the one from two batches at each, by JAX."""

from functools import partial
from typing import Any

import numpy as np

from benchmarks.gradient_noise._networks import Arrays, Network, data, loss_of


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
