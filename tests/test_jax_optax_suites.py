"""What optax's own generic suites check for every optimizer holds for cool_momentum.

Every test here is theirs, of the installed optax: convergence on a parabola and on Rosenbrock's
function in float32 and complex64, extra arguments, inject_hyperparams, dtypes of updates and
states, tree_map_params, gradient accumulation, learning-rate schedules, no second compilation.
"""

import optax
import pytest
from optax_suites import suite

from coolmomentum.jax import cool_momentum

# At its minimum Rosenbrock's function has the curvature 1000 (in float32, 2000 in their complex
# one), and 4 / curvature is the largest stable learning rate of every rho. 1e4 steps are theirs.
SETTINGS = [
    {"learning_rate": 1e-3, "total_steps": 10_000},
    {"learning_rate": 1e-3, "total_steps": 10_000, "rho0": 0.9, "schedule": "linear"},
    {"learning_rate": 1e-3, "total_steps": 10_000, "rho0": 0.95, "schedule": "exponential"},
    {"learning_rate": 1e-3, "total_steps": 10_000, "rho0": 0.9, "schedule": "constant"},
]
ALIASES = tuple({"opt_name": "cool_momentum", "opt_kwargs": kwargs} for kwargs in SETTINGS)
CONTRIB = tuple({**entry, "wrapper_name": None, "wrapper_kwargs": None} for entry in ALIASES)


@pytest.fixture(autouse=True)
def _as_one_of_optax(monkeypatch):
    """Their tables name optimizers by the attribute of ``alias``."""
    monkeypatch.setattr(optax._src.alias, "cool_momentum", cool_momentum, raising=False)


AliasTest = suite("optax._src.alias_test", _OPTIMIZERS_UNDER_TEST=ALIASES).AliasTest
ContribTest = suite(
    "optax.contrib._common_test",
    _MAIN_OPTIMIZERS_UNDER_TEST=CONTRIB,
    _ALL_OPTIMIZERS_UNDER_TEST=CONTRIB,
).ContribTest
