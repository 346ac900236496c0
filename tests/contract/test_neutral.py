"""Runs that move between adapters as neutral states, against a reference that never stopped."""

import os
import re
from dataclasses import replace

import numpy as np
import pytest
from bounds import RHO, RunningBound, rounded
from carriers import NumpyCarrier, arrived, carrier, renamed
from drivers import DRIVERS, Oracle

from coolmomentum import CoolingSchedule, checkpoint, rescaled_temperature

OWN, DTYPES = DRIVERS, ("float64", "float32")
if "KERAS_BACKEND" in os.environ:  # a process has one; see test_keras_backends.py
    from keras_drivers import DRIVERS as OWN

    DTYPES = ("float32",)
CARRIERS = {"numpy": NumpyCarrier()} | {
    name: carrier(name, DRIVERS[name])
    for dtype in DTYPES
    for name in (f"torch, default, {dtype}", f"jax, jitted, {dtype}")
}
if OWN is not DRIVERS:
    CARRIERS |= {name: carrier(name, driver) for name, driver in OWN.items()}
PAIRS = [
    (source, target)
    for source in CARRIERS
    for target in CARRIERS
    if OWN is DRIVERS or source in OWN or target in OWN
]
SHAPES = [(3, 4), (), (0,), (17,)]
COOLING = CoolingSchedule(10, 0.9, warmup_steps=2, warmup_clock="hold")
DECAY = 0.1


def draw(seed, dtype="float32"):
    """Numbers for all parameters that the dtype holds."""
    random = np.random.default_rng(seed)
    return [rounded(np.asarray(random.standard_normal(shape)), dtype) for shape in SHAPES]


def unit_roundoff(dtype):
    """Half the distance from 1 to the next number."""
    return float(np.finfo(dtype).eps) / 2


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=[" to ".join(pair) for pair in PAIRS])
def test_a_run_moves_and_goes_on(source, target, tmp_path):
    """A run that changes the adapter in its cooling stays within the bounds of one that did not.

    The bounds are those of bounds.py, step by step with the unit roundoff of the dtype in use;
    where the run moves into a narrower one, parameters and displacements are rounded once more.
    """
    source, target = CARRIERS[source], CARRIERS[target]
    start = draw(0)
    oracle = Oracle(start, 2.0**-6, COOLING, DECAY)
    bounds = [RunningBound(unit_roundoff(source.driver.dtype)) for _ in start]
    for bound, x in zip(bounds, start, strict=True):
        bound.start(x)
    run = source.driver.make(start, 2.0**-6, COOLING, DECAY)

    def go_on(run, seeds):
        for seed in seeds:
            gradients, rho = draw(seed), COOLING(oracle.state.step)
            moved = oracle.state.displacements
            for bound, x, dx, g in zip(bounds, oracle.xs, moved, gradients, strict=True):
                bound.step(x, dx, g, oracle.lr, rho, DECAY)
            oracle.step(gradients)
            run.step(gradients)
            compare(run)

    def compare(run):
        assert run.clock() == oracle.state.step
        u = bounds[0].u
        assert run.rho() == pytest.approx(COOLING(run.clock()), rel=max(RHO * u, 2.0**-24), abs=0)
        exact = zip(oracle.xs, oracle.state.displacements, bounds, strict=True)
        for x, dx, (ours, theirs, bound) in zip(
            run.params(), run.displacements(), exact, strict=True
        ):
            assert (np.abs(x - ours) <= bound.x).all()
            assert (np.abs(dx - theirs) <= bound.dx).all()
        # Of its own displacements: sums of at most 17 squares, and of 4 such sums.
        temperature = float(rescaled_temperature(run.displacements())) / oracle.lr
        assert run.temperature() == pytest.approx(temperature, rel=40 * u, abs=0)

    go_on(run, range(1, 4))
    oracle.lr = 2.0**-7
    run.set_lr(oracle.lr)
    go_on(run, range(4, 6))

    checkpoint.save_file(source.leave(run), tmp_path / "run.safetensors")
    neutral = checkpoint.load_file(tmp_path / "run.safetensors")
    assert (neutral.cooling, neutral.learning_rate) == (COOLING, oracle.lr)
    run = arrived(target, run.params(), neutral, DECAY)
    u = unit_roundoff(target.driver.dtype)
    for bound, x, dx in zip(bounds, oracle.xs, oracle.state.displacements, strict=True):
        if u > bound.u:
            bound.x, bound.dx = bound.x + u * np.abs(x), bound.dx + u * np.abs(dx)
        bound.u = u
    compare(run)
    go_on(run, range(6, 13))


# What is read and written does not depend on how the step is computed, but on where clock and
# coefficients are kept. Eager JAX and compiled torch would cost most of the time of this file.
@pytest.mark.parametrize(
    "name", [name for name in OWN if not re.search("jax, eager|compiled", name)]
)
def test_a_path_reads_its_own_state_bit_for_bit(name, tmp_path):
    """A run of any path and dtype that is carried to another of its kind is the same run."""
    carried = carrier(name, OWN[name])
    run = carried.driver.make(draw(0), 2.0**-6, COOLING, DECAY)
    for seed in range(1, 4):
        run.step(draw(seed))
    checkpoint.save_file(carried.leave(run), tmp_path / "run.safetensors")
    neutral = checkpoint.load_file(tmp_path / "run.safetensors")
    other = arrived(carried, run.params(), neutral, DECAY)
    assert other.temperature() == run.temperature()
    for seed in range(4, 13):
        run.step(draw(seed))
        other.step(draw(seed))
    same(run, other)


@pytest.mark.parametrize("name", [name for name in CARRIERS if name == "numpy" or name in OWN])
@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("unknown 'one'", lambda state: renamed(state, {"1": "one"})),
        ("unknown '4'", lambda state: with_displacement(state, "4", np.zeros(3))),
        ("parameter, (17,): (16,)", lambda state: with_displacement(state, "3", np.zeros(16))),
        ("must cool as the run did", lambda state: replace(state, cooling=CoolingSchedule(11))),
    ],
    ids=["renamed", "one more", "another shape", "another cooling"],
)
def test_a_state_of_another_run_is_refused(name, message, change):
    """Other names, shapes and coolings are named, and nothing has been changed."""
    carried = CARRIERS[name]
    run, witness = (carried.driver.make(draw(0), 2.0**-6, COOLING, 0.0) for _ in range(2))
    run.step(draw(1))
    witness.step(draw(1))
    wrong = change(carried.leave(run))
    if "cool" in message and name.startswith("jax"):
        return  # its state does not know how it cools
    with pytest.raises(ValueError, match=re.escape(message)):
        carried.enter(run, wrong)
    same(run, witness)


def same(run, other):
    """Assert that two runs are where they are, to the last bit."""
    assert (run.clock(), run.rho()) == (other.clock(), other.rho())
    assert run.temperature() == other.temperature()
    ours, theirs = (r.params() + r.displacements() for r in (run, other))
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(x, y)


def with_displacement(state, name, values):
    """The same state with one displacement more, or another one."""
    return replace(state, displacements={**state.displacements, name: values})
