"""Three networks in real frameworks: the critical batch size beside the exact one, in one window.

``python -m benchmarks.gradient_noise`` has more windows, optimizers and Keras.
"""

import numpy as np
import pytest

from benchmarks.gradient_noise._exact import Exact
from benchmarks.gradient_noise._networks import NETWORKS
from benchmarks.gradient_noise._runs import FRAMEWORKS


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
