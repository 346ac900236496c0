"""What the formulas read of walks on a quadratic, whose gradients are known."""

import numpy as np

from coolmomentum.thermometer import GradientNoise, Layout, noise_moments

SIMULATED = (0.99, 0.05), (0.95, 0.2), (0.9, 0.05), (0.9, 0.2), (0.9, 0.6), (0.8, 0.2), (0.65, 0.2)


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
