"""Runs that move between adapters as portable states, against a reference that never stopped."""

import re
from dataclasses import replace

import numpy as np
import pytest
from adapters import ALL, TESTED
from adapters import DRIVERS as OWN
from bounds import FORMATS
from comparison import Comparison, assert_within, draw
from roles import renamed

from coolmomentum import CoolingSchedule, portable


def moves(name):
    """What takes the runs of a path out and in, by its name."""
    (module,) = (module for module in ALL.values() if name in module.DRIVERS)
    return module.Moves(module.DRIVERS[name])


# One path of each adapter and dtype: a path that was compiled has read the state like any other.
KERAS = "keras" in TESTED
COMPILED = "jit" if "keras on jax, jit, float32" in OWN else "eager"
NAMES = [
    name
    for dtype in (("float32",) if KERAS else ("float64", "float32", "bfloat16"))
    for name in (f"numpy, {dtype}", f"torch, default, {dtype}", f"jax, jitted, {dtype}")
    if any(name in module.DRIVERS for module in ALL.values())
]
if KERAS:
    NAMES += [name for name in OWN if COMPILED in name and re.search("float32|bfloat16", name)]
TRANSFERS = {name: moves(name) for name in NAMES}
PAIRS = [
    (source, target)
    for source in TRANSFERS
    for target in TRANSFERS
    if source in OWN or target in OWN
]
SHAPES = ((3, 4), (), (0,), (17,))
COOLING = CoolingSchedule(10, 0.9, warmup_steps=2, warmup_clock="hold")
DECAY = 0.125
LR = 2.0**-6


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=[" to ".join(pair) for pair in PAIRS])
def test_a_run_moves_and_goes_on(source, target, tmp_path):
    """A run that changes the adapter in its cooling stays within the bounds of one that did not.

    The bounds are those of bounds.py, step by step with the precision in use; where the run moves
    into a narrower dtype, parameters and displacements are rounded once more.
    """
    source, target = TRANSFERS[source], TRANSFERS[target]
    pair = Comparison(source.driver, COOLING, LR, DECAY, shapes=SHAPES)
    narrow = min(source.driver.dtype, target.driver.dtype, key=lambda name: FORMATS[name].digits)
    pair.dtype = narrow  # of the gradients
    for seed in range(1, 4):
        pair.step(seed)
        pair.check()
    pair.set_lr(LR / 2)
    pair.step(4)
    pair.check()

    portable.save_file(source.export(pair.run), tmp_path / "run.safetensors")
    saved = portable.load_file(tmp_path / "run.safetensors")
    assert (saved.cooling, saved.learning_rate) == (COOLING, LR / 2)
    pair.run = target.resume(pair.run.params(), saved, DECAY)
    pair.dtype, pair.precision = target.driver.dtype, target.driver.precision
    u = FORMATS[pair.dtype].u
    state = zip(pair.bounds, pair.oracle.xs, pair.oracle.state.displacements, strict=True)
    for bound, x, dx in state:
        bound.precision = pair.precision
        if pair.dtype != source.driver.dtype:
            bound.x = bound.x + u * (np.abs(x) + bound.x)
            bound.dx = bound.dx + u * (np.abs(dx) + bound.dx)
    pair.check()
    pair.dtype = narrow
    for seed in range(5, 13):
        pair.step(seed)
        pair.check()


# What is read and written does not depend on how the step is computed, but on where clock and
# coefficients are kept. Eager JAX and compiled steps would cost most of the time of this file.
@pytest.mark.parametrize(
    "name", [name for name in OWN if not re.search("jax, eager|compiled|graph|xla", name)]
)
def test_a_path_reads_its_own_state_bit_for_bit(name, tmp_path):
    """A run of any path and dtype that is transfers to another of its kind is the same run."""
    transfers = moves(name)
    dtype = transfers.driver.dtype
    run = transfers.driver.make(draw(0, dtype, SHAPES), LR, COOLING, DECAY)
    for seed in range(1, 4):
        run.step(draw(seed, dtype, SHAPES))
    portable.save_file(transfers.export(run), tmp_path / "run.safetensors")
    saved = portable.load_file(tmp_path / "run.safetensors")
    other = transfers.resume(run.params(), saved, DECAY)
    same(run, other)
    for seed in range(4, 13):
        run.step(draw(seed, dtype, SHAPES))
        other.step(draw(seed, dtype, SHAPES))
    same(run, other)


@pytest.mark.parametrize("name", [name for name in TRANSFERS if name in OWN])
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
    transfers = TRANSFERS[name]
    start, gradients = (draw(seed, transfers.driver.dtype, SHAPES) for seed in range(2))
    run, witness = (transfers.driver.make(start, LR, COOLING, 0.0) for _ in range(2))
    run.step(gradients)
    witness.step(gradients)
    wrong = change(transfers.export(run))
    if "cool" in message and name.startswith("jax"):
        pytest.skip("its state does not know how it cools")
    with pytest.raises(ValueError, match=re.escape(message)):
        transfers.load(run, wrong)
    same(run, witness)


def same(run, other):
    """Assert that two runs are where they are and read the same temperature, to the last bit."""
    assert (run.clock(), run.rho()) == (other.clock(), other.rho())
    assert run.temperature() == other.temperature()
    for read in ("params", "displacements"):
        pairs = zip(getattr(run, read)(), getattr(other, read)(), strict=True)
        for i, (x, y) in enumerate(pairs):
            assert_within(x, y, 0.0, f"{read} {i}", run.clock())


def with_displacement(state, name, values):
    """The same state with one displacement more, or another one."""
    return replace(state, displacements={**state.displacements, name: values})
