"""What optax's own generic suites check for every optimizer holds for cool_momentum.

Every test here is theirs, of the installed optax: convergence on a parabola and on Rosenbrock's
function in float32 and complex64, extra arguments, inject_hyperparams, dtypes of updates and
states, tree_map_params, gradient accumulation, learning-rate schedules, no second compilation.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax_suites import suite

from coolmomentum.jax import cool_momentum

# At its minimum Rosenbrock's function has the curvature 1000 (in float32, 2000 in their complex
# one), and 4 / curvature is the largest stable learning rate of every rho. 1e4 steps are theirs.
SETTINGS = [
    {"learning_rate": 1e-3, "total_steps": 10_000},
    {"learning_rate": 1e-3, "total_steps": 10_000, "rho0": 0.9, "law": "linear"},
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


def parabola(x):
    """Minimum at (1, -1, 1), as in their suites."""
    return jnp.sum((x - jnp.array([1, -1, 1], x.dtype)) ** 2)


def rosenbrock(x):
    """Minimum at (1, 1)."""
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


@pytest.mark.parametrize("law", ["paper", "linear"])
@pytest.mark.parametrize(
    ("f", "start", "end"),
    [(parabola, [-1, 10, 1], [1, -1, 1]), (rosenbrock, [0, 0], [1, 1])],
    ids=["parabola", "rosenbrock"],
)
def test_convergence_in_bfloat16(f, start, end, law):
    """To the tolerance of their suites; rho0 = 0.99 keeps the updates above half a bfloat16."""
    tx = cool_momentum(1e-3, 10_000, law=law)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(f)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = jnp.array(start, jnp.bfloat16)
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=10_000)
    np.testing.assert_allclose(params.astype("float32"), end, rtol=3e-2, atol=3e-2)
