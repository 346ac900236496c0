"""cool_momentum refuses bad arguments when it is made, and takes traced ones unchecked."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import ONE_OF_LAWS

from coolmomentum import CoolingSchedule
from coolmomentum.jax import CoolMomentumState, cool_momentum, rho, temperature

BAD = [
    ({"learning_rate": -1.0}, ValueError, "learning_rate must be finite and >= 0: -1.0"),
    ({"learning_rate": float("nan")}, ValueError, "learning_rate must be finite and >= 0: nan"),
    ({"learning_rate": "0.1"}, TypeError, "learning_rate must be a real number: '0.1'"),
    ({"total_steps": None}, TypeError, "total_steps is required"),
    ({"total_steps": 0}, ValueError, "total_steps must be >= 1: 0"),
    ({"total_steps": 1e3}, TypeError, "total_steps must be an integer: 1000.0"),
    ({"rho0": 1.0}, ValueError, "rho0 must be in [0, 1): 1.0"),
    ({"rho0": np.float64(-0.5)}, ValueError, "rho0 must be in [0, 1): np.float64(-0.5)"),
    ({"law": "cosine"}, ValueError, f"{ONE_OF_LAWS}: 'co"),
    ({"schedule": "paper"}, TypeError, "schedule must be a CoolingSchedule or a function of"),
    ({"schedule": 0.9}, TypeError, "schedule must be a CoolingSchedule or a function of"),
    (
        {"schedule": CoolingSchedule(100)},
        ValueError,
        "total_steps must not be given beside a schedule: 100",
    ),
    (
        {"schedule": lambda step: 0.5, "law": "linear"},
        ValueError,
        "law must not be given beside a schedule: 'linear'",
    ),
    ({"hold_steps": 100}, ValueError, "hold_steps must be < total_steps = 100: 100"),
    ({"hold_steps": -1}, ValueError, "hold_steps must be >= 0: -1"),
    ({"hold_steps": 2.5}, TypeError, "hold_steps must be an integer: 2.5"),
    ({"total_steps": None, "law": "linear"}, TypeError, "total_steps is required"),
    ({"schedule": lambda step: 1.5}, ValueError, "schedule(0) must be in [-1, 1): 1.5"),
    ({"schedule": lambda step: step / 50}, ValueError, "schedule(50) must be in [-1, 1)"),
    ({"schedule": lambda step: "hot"}, TypeError, "schedule(0) must be a real number: 'hot'"),
    ({"schedule": lambda step: 0.5, "total_steps": 0}, ValueError, "total_steps must be >= 1: 0"),
    ({"warmup_steps": 100}, ValueError, "warmup_steps must be < total_steps = 100: 100"),
    ({"warmup_steps": -1}, ValueError, "warmup_steps must be >= 0: -1"),
    ({"warmup_clock": "stop"}, ValueError, "warmup_clock must be one of run, hold: 'stop'"),
    ({"accumulator_dtype": "int32"}, TypeError, "accumulator_dtype must be a floating dtype"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=range(len(BAD)))
def test_a_bad_argument_is_refused_when_the_optimizer_is_made(arguments, error, message):
    """The message has the name, the rule and the value."""
    with pytest.raises(error) as caught:
        cool_momentum(**{"total_steps": 100, **arguments})
    assert str(caught.value).startswith(message)


def test_the_defaults_are_those_of_the_core():
    """With lr 0.01 and rho0 0.99: the first step for a gradient of 1 is 0.01 * 1.99 / 2."""
    tx = cool_momentum(total_steps=100)
    updates, _ = tx.update(jnp.ones(()), tx.init(jnp.ones(())))
    assert float(updates) == pytest.approx(-0.00995, rel=1e-6)


def test_whole_numbers_and_numpy_numbers_are_numbers():
    """A learning rate of 1 and NumPy's scalars are taken."""
    tx = cool_momentum(1, np.int64(10), np.float32(0.5))
    updates, _ = tx.update(jnp.ones(()), tx.init(jnp.ones(())))
    assert float(updates) == -0.75


def test_a_schedule_takes_the_place_of_total_steps_and_rho0():
    """With a CoolingSchedule nothing else is needed."""
    tx = cool_momentum(0.25, schedule=CoolingSchedule(2, 0.75))
    updates, _ = tx.update(jnp.ones(()), tx.init(jnp.ones(())))
    assert float(updates) == -0.21875


def test_it_can_be_made_inside_jit_with_traced_hyperparameters():
    """Also with a schedule that closes over one, which cannot be probed there."""

    @jax.jit
    def first_update(learning_rate, total_steps, rho0):
        by_law = cool_momentum(learning_rate, total_steps, rho0, warmup_steps=0)
        by_callable = cool_momentum(learning_rate, schedule=lambda step: rho0 * (1 + 0 * step))
        by_constant = cool_momentum(learning_rate, schedule=lambda step: jnp.asarray(0.75))
        transforms = (by_law, by_callable, by_constant)
        return [tx.update(jnp.ones(()), tx.init(jnp.ones(())))[0] for tx in transforms]

    assert [float(u) for u in first_update(0.25, 2, 0.75)] == [-0.21875] * 3


def test_a_bad_schedule_is_refused_inside_jit_too():
    """What it gives does not depend on anything traced, so it can be known."""

    @jax.jit
    def make(x):
        cool_momentum(0.1, schedule=lambda step: jnp.asarray(1.5) + 0 * step)
        return x

    with pytest.raises(ValueError, match=r"schedule\(0\) must be in \[-1, 1\)"):
        make(1.0)


def test_complex_gradients_of_real_displacements_are_refused():
    """A real accumulator cannot hold what a complex parameter does."""
    tx = cool_momentum(0.1, 10, accumulator_dtype="float32")
    params = jnp.ones(2, jnp.complex64)
    with pytest.raises(TypeError, match=r"gradients must be real .* complex64 for float32"):
        tx.update(params, tx.init(params), params)


def test_a_reading_without_a_state_to_read_says_so():
    """The error names what was passed."""
    with pytest.raises(ValueError, match="opt_state must have the state of a cool_momentum in it"):
        temperature((jnp.zeros(3), {"a": None}), 0.1)


@pytest.mark.parametrize("part", ["paper", 600, np.int64(600)])
def test_rho_cannot_be_read_with_half_a_schedule(part):
    """The state does not know how long the run is, nor does a law; total_steps is not all."""
    state = CoolMomentumState(jnp.asarray(0), jnp.zeros(2))
    with pytest.raises(TypeError, match=r"schedule must be a CoolingSchedule or a function of"):
        rho(state, part)


@pytest.mark.parametrize("missing", ["jax", "optax"])
def test_a_missing_framework_is_named_with_its_extra(missing):
    """The last line of the traceback says what to install."""
    code = f"import sys; sys.modules[{missing!r}] = None; import coolmomentum.jax"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        'ImportError: coolmomentum.jax needs JAX and optax: pip install "coolmomentum[jax]"'
    )


def test_the_adapter_imports_no_other_framework():
    """Neither torch nor flax, nor another adapter."""
    code = (
        "import sys, coolmomentum.jax; print({'torch', 'flax', 'tensorflow', 'keras',"
        " 'coolmomentum.torch', 'coolmomentum.numpy'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_the_module_can_be_imported_twice():
    """A second import, as autoreload does it, does not trip over the name for jax.export."""
    code = (
        "import sys, coolmomentum.jax\n"
        "for name in [n for n in sys.modules if n.startswith('coolmomentum.jax')]:\n"
        "    del sys.modules[name]\n"
        "import coolmomentum.jax"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
