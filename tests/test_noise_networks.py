"""Three networks in real frameworks: the critical batch size beside the exact one, in one window.

``python -m benchmarks.gradient_noise`` has more windows, optimizers and Keras.
"""

import numpy as np
import pytest

from benchmarks.gradient_noise._exact import Exact
from benchmarks.gradient_noise._networks import NETWORKS
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
    # Momenta in float32 lose some digits of a gradient, a difference of them.
    expected = [reading["critical_batch_size" + x] / network.batch for x in ("", "_error")]
    assert [ratio - 1, error] == pytest.approx(expected, rel=1e-3)
    for place, other in zip(places, ours, strict=True):
        np.testing.assert_allclose(place, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("phi", [0.0, 0.9])
def test_errors_from_blocks_see_what_hangs_together(phi):
    """Of an AR(1) sum of n the error is sqrt((1 + phi) / (1 - phi)) times that of n alone.

    20 blocks tell an error to 16 per cent, and the mean of 64 windows to 2.
    """
    noise = np.random.default_rng(0).standard_normal((64, 4000))
    walk = np.zeros_like(noise)
    for n in range(1, noise.shape[1]):
        walk[:, n] = phi * walk[:, n - 1] + noise[:, n]
    found = np.array([errors_of(3 + x, np.full(len(x), 2.0)) for x in walk])
    ratio, by_step, by_block, correlation = found.T
    assert ratio.mean() == pytest.approx(1.5, abs=0.03)
    assert correlation.mean() == pytest.approx(phi, abs=0.01)
    longer = np.sqrt((1 + phi) / (1 - phi))
    assert np.mean(by_block / by_step) == pytest.approx(longer, rel=0.08)
    assert np.std(ratio) == pytest.approx(by_block.mean(), rel=0.3)
