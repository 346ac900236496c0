"""Three networks in real frameworks: the critical batch size beside the exact one, in one window.

``python -m benchmarks.gradient_noise`` has more windows, optimizers and Keras.
"""

import numpy as np
import pytest
from exact import U32

from benchmarks.gradient_noise._exact import Exact
from benchmarks.gradient_noise._networks import NETWORKS, RHO
from benchmarks.gradient_noise._runs import FRAMEWORKS
from benchmarks.gradient_noise._series import errors_of, series


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_it_reads_the_exact_value_of_three_networks(framework):
    """The geometric mean is within 20 per cent, and each within three of its errors."""
    ratios = []
    for network in NETWORKS.values():
        run = FRAMEWORKS[framework](network, "SGD", 0, windows=1, window=1200)
        ((reading, places),) = run
        exact = Exact(network).critical(places)
        read, error = (reading["critical_batch_size" + x] for x in ("", "_error"))
        assert read == pytest.approx(exact, abs=3 * error)
        assert error < 0.25 * read
        ratios.append(read / exact)
    assert 0.8 < np.exp(np.mean(np.log(ratios))) < 1.25


def test_the_sums_step_by_step_are_those_of_the_reading():
    """By the gradients themselves, beside a thermometer that has them from SGD's momenta."""
    network = NETWORKS["two dense layers"]
    ((reading, places),) = FRAMEWORKS["jax"](network, "SGD", 0, windows=1, window=1200)
    (squares, estimates), ours = series(network, "SGD", 0, windows=1, window=1200)
    ratio, error, _, _ = errors_of(squares[0], estimates[0])
    # Two programs round each step of the weights apart by some 3 u, which adds up as a random walk.
    apart = 3 * np.sqrt(network.burn_in + 1200) * U32
    for place, other in zip(places, ours, strict=True):
        np.testing.assert_allclose(place, other, rtol=0, atol=apart * np.abs(place).max())
    # A gradient is a difference of momenta up to 1 / (1 - RHO) = 10 times its size.
    expected = [reading["critical_batch_size" + x] / network.batch for x in ("", "_error")]
    assert [ratio - 1, error] == pytest.approx(expected, rel=apart / (1 - RHO))


@pytest.mark.parametrize("phi", [0.0, 0.9])
def test_errors_from_blocks_see_what_hangs_together(phi):
    """The mean of AR(1) over n, x' = phi x + noise, has the error 1 / (1 - phi) / sqrt(n).

    All within three standard errors of the mean of 64 windows.
    """
    windows, n, blocks = 64, 4000, 20
    noise = np.random.default_rng(0).standard_normal((windows, n))
    walk = np.zeros_like(noise)
    for i in range(1, n):
        walk[:, i] = phi * walk[:, i - 1] + noise[:, i]
    ratio, by_step, by_block, correlation = np.array(
        [errors_of(3 + x, np.full(n, 2.0)) for x in walk]
    ).T
    three, square = 3 / np.sqrt(windows), 1 / (1 - phi**2)
    error = 1 / (1 - phi) / np.sqrt(n) / 2
    assert ratio.mean() == pytest.approx(1.5, abs=three * error)
    # Bartlett's error of a correlation, and Kendall's bias of it.
    bound = three / np.sqrt(n * square) + (1 + 3 * phi) / n
    assert correlation.mean() == pytest.approx(phi, abs=bound)
    # Bartlett's error of a variance, of which a root has half; its bias is the error of the mean.
    bound = three * np.sqrt((1 + phi**2) * square / (2 * n)) + (2 * error) ** 2 / (2 * square)
    assert by_step.mean() == pytest.approx(np.sqrt(square / n) / 2, rel=bound)
    # A block of m lacks what hangs over its ends; of 20 blocks a root mean square is low by
    # 1 / (4 * 19), and known to 1 / sqrt(2 * 19).
    m = n / blocks
    ends = 2 * phi * (1 - phi**m) * square / m
    expected = error * np.sqrt(1 - ends) * (1 - 1 / (4 * (blocks - 1)))
    assert by_block.mean() == pytest.approx(expected, rel=three / np.sqrt(2 * (blocks - 1)))
