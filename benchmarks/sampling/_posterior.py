"""Bayesian logistic regression on scikit-learn's breast cancer, beside NUTS of blackjax."""

import math
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer

from benchmarks.sampling._others import installed
from benchmarks.sampling._tables import Cell, Measured, Part, Table
from benchmarks.sampling._walks import Bathed, Walk, observed

__all__ = ["measure"]

Array = Any  # a float64 NumPy array
FRICTION = 1.0  # best for the variance of the softest mode, whose curvature is the prior's: 1
CHAINS, GRADIENTS, BURN_IN, FRACTION = 64, 16_000, 1000, 0.25
NUTS_CHAINS, NUTS_WARMUP, NUTS_DRAWS = 4, 1000, 2500


class Regression:
    """Data, standardised, with a column of ones; the prior of every weight is N(0, 1)."""

    def __init__(self) -> None:
        inputs, self.labels = load_breast_cancer(return_X_y=True)
        inputs = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
        self.inputs = np.column_stack([np.ones(len(inputs)), inputs])
        self.size = len(inputs)
        gram = self.inputs.T @ self.inputs
        self.curvature = (1 + np.linalg.eigvalsh(gram)[-1] / 4) / self.size  # an upper bound

    def gradient(self, w: Array) -> Array:
        """Of the mean loss and the prior's part of one datum, for each chain."""
        excess = 1 / (1 + np.exp(-(w @ self.inputs.T))) - self.labels
        return (excess @ self.inputs + w) / self.size


def measure(walk: Walk, *, quick: bool) -> Part:
    """Means and standard deviations of the 31 weights, ours against a reference."""
    regression = Regression()
    chains, gradients, burn_in = (4, 60, 20) if quick else (CHAINS, GRADIENTS, BURN_IN)
    ours, reading = _walk(walk, regression, (chains, gradients, burn_in), FRACTION)
    if installed("blackjax"):
        name = f"NUTS, blackjax {installed('blackjax')}"
        draws = (2, 20, 10) if quick else (NUTS_CHAINS, NUTS_WARMUP, NUTS_DRAWS)
        reference, evaluations = _nuts(regression, *draws)
    else:
        name = "ours at 1/40 of the limit, 10 times as many (blackjax is not installed)"
        times = 1 if quick else 10
        sizes = chains, times * gradients, times * burn_in
        reference, _ = _walk(walk, regression, sizes, FRACTION / 10)
        evaluations = chains * times * (gradients + burn_in)
    (mean, sd, effective), (its_mean, its_sd, its_effective) = ours, reference
    shift, stretch = (mean - its_mean) / its_sd, sd / its_sd - 1
    noise = 1 / effective + 1 / its_effective
    rows: dict[str, dict[str, Cell]] = {
        "ours at 1/4 of the limit": {
            "gradients": Measured(chains * (gradients + burn_in)),
            "least n_eff": Measured(effective.min()),
            "largest difference of a mean, in sd": Measured(np.abs(shift).max()),
            "rms": Measured(float(np.sqrt(np.mean(shift**2)))),
            "rms of chance": Measured(float(np.sqrt(np.mean(noise)))),
            "largest difference of an sd": Measured(np.abs(stretch).max()),
            "temperature over bath": Measured(reading["bath_ratio"]),
        },
        name: {"gradients": Measured(evaluations), "least n_eff": Measured(its_effective.min())},
    }
    note = (
        "Breast cancer, standardised: 569 data, 31 weights, prior N(0, 1); the mean loss with its "
        f"share of the prior at T = 1/569. {CHAINS} chains of ours, {NUTS_CHAINS} of NUTS. n_eff "
        "is from the scatter of the means of chains (ours) and blackjax's own (NUTS)."
    )
    table = Table("Logistic regression", rows, (note,))
    return Part([table], partial(_draw, ours, reference))


def _walk(
    walk: Walk, regression: Regression, sizes: tuple[int, int, int], fraction: float
) -> tuple[tuple[Array, Array, Array], dict[str, float]]:
    """Mean, standard deviation and effective number of independent draws of each weight."""
    chains, gradients, burn_in = sizes
    dt2 = 4 * fraction / regression.curvature
    # With the loss divided by n time goes slower by its root.
    half = FRICTION / math.sqrt(regression.size) * math.sqrt(dt2) / 2
    how = Bathed(dt2, (1 - half) / (1 + half), 1 / regression.size, seed=5)
    start = np.zeros((chains, regression.inputs.shape[1]))
    moments, reading = observed(
        walk(regression.gradient, start, how), start, how, _moments, gradients, burn_in
    )
    mean, square = moments.mean(axis=1)
    sd = np.sqrt(square - mean**2)
    return (mean, sd, chains * sd**2 / moments[0].var(axis=0, ddof=1)), reading


def _moments(w: Array) -> Array:
    return np.stack([w, w * w])


def _nuts(
    regression: Regression, chains: int, warmup: int, draws: int
) -> tuple[tuple[Array, Array, Array], int]:
    """The same of NUTS, and its gradients after the adaptation."""
    import blackjax
    import jax
    import jax.numpy as jnp

    inputs, labels = jnp.asarray(regression.inputs), jnp.asarray(regression.labels)

    def log_density(w: Any) -> Any:
        z = inputs @ w
        return jnp.sum(labels * z - jnp.logaddexp(z, 0)) - jnp.sum(w * w) / 2

    def sample(key: Any) -> Any:
        adapt, run = jax.random.split(key)
        adaptation = blackjax.window_adaptation(blackjax.nuts, log_density)
        (state, parameters), _ = adaptation.run(adapt, jnp.zeros(inputs.shape[1]), warmup)
        step = blackjax.nuts(log_density, **parameters).step

        def one(state: Any, key: Any) -> Any:
            state, info = step(key, state)
            return state, (state.position, info.num_integration_steps)

        return jax.lax.scan(one, state, jax.random.split(run, draws))[1]

    positions, lengths = jax.lax.map(jax.jit(sample), jax.random.split(jax.random.key(5), chains))
    effective = blackjax.diagnostics.effective_sample_size(positions)
    flat = np.asarray(positions, np.float64).reshape(-1, positions.shape[-1])
    found = flat.mean(axis=0), flat.std(axis=0), np.asarray(effective, np.float64)
    return found, int(np.sum(np.asarray(lengths)))


def _draw(ours: tuple[Array, Array, Array], reference: tuple[Array, Array, Array]) -> Figure:
    """Each weight, ours against the reference."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    panels = ("posterior mean", "posterior standard deviation")
    for axes, name, x, y in zip(figure.subplots(1, 2), panels, reference, ours, strict=False):
        axes.plot(x, y, ".", color="#004488")
        axes.axline((float(x[0]), float(x[0])), slope=1, color="black", lw=0.8, zorder=0)
        axes.set(title=name, xlabel="reference", ylabel="ours")
    return figure
