"""optax's own sharding suite with cool_momentum, run by test_jax_sharding.py on eight devices."""

import jax
import pytest
from optax_suites import suite

from coolmomentum.jax import cool_momentum


@pytest.fixture(autouse=True)
def _no_old_jax(monkeypatch):
    """The suite of optax compares versions as strings, and would skip itself for "0.10" < "0.7"."""
    monkeypatch.setattr(jax, "__version__", f"1.{jax.__version__}")


ShardingTest = suite(
    "optax._src.sharding_test", OPTIMIZERS={"cool_momentum": cool_momentum(1.0, 100)}
).ShardingTest
