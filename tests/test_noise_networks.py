"""Three networks in real frameworks: the critical batch size beside the exact one, in one window.

``python -m benchmarks.gradient_noise`` has more windows, optimizers and Keras.
"""

import numpy as np
import pytest

from benchmarks import gradient_noise as benchmark


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_it_reads_the_exact_value_of_three_networks(framework, monkeypatch):
    """The geometric mean is within 20 per cent, and each within three of its errors."""
    for name, value in {"WINDOW": 1200, "WINDOWS": 1}.items():
        monkeypatch.setattr(benchmark, name, value)
    ratios = []
    for network in benchmark.NETWORKS.values():
        run = benchmark.FRAMEWORKS[framework](network, "SGD", 0)
        ((reading, places),) = run
        exact = benchmark.Exact(network).critical(places)
        read, error = (reading["critical_batch_size" + x] for x in ("", "_error"))
        assert read == pytest.approx(exact, abs=3 * error)
        assert error < 0.25 * read
        ratios.append(read / exact)
    assert 0.8 < np.exp(np.mean(np.log(ratios))) < 1.25
