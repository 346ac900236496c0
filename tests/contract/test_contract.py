"""The contract of design section 4, kept by every path of every adapter; see drivers.py."""

import os
from fractions import Fraction

import numpy as np
import pytest
from bounds import coolings
from drivers import DRIVERS
from hypothesis import given, settings
from hypothesis import strategies as st
from pair import SHAPES, Pair, draw, unit_roundoff

from coolmomentum import CoolingSchedule

if "KERAS_BACKEND" in os.environ:  # a process has one; see test_keras_backends.py
    from keras_drivers import DRIVERS


@pytest.fixture(params=DRIVERS.values(), ids=DRIVERS.keys())
def driver(request):
    """Each path of each adapter."""
    return request.param


# Exact rational trajectories of U = x**2 / 2 from x = 1, by hand from Eqs 14, 16, 20 and 21.
EXACT = {
    "A": (CoolingSchedule(6, 0.9, "constant"), "0.1", 0.0, "181/200 29341/40000 4076101/8000000"),
    "B": (CoolingSchedule(2, 0.75), "0.25", 0.0, "25/32 269/512 1883/4096 13181/32768"),
    "B'": (CoolingSchedule(2, 0.75), "0.25", 0.5, "43/64 653/2048 8489/32768 110357/524288"),
    "C": (
        CoolingSchedule(4, 0.9, "linear"),
        "0.1",
        0.0,
        "181/200 45731/62000 363899/682000 2798291/8060000 53167529/161200000",
    ),
}


@pytest.mark.parametrize(("cooling", "lr", "decay", "exact"), EXACT.values(), ids=EXACT.keys())
def test_exact_trajectories(driver, cooling, lr, decay, exact):
    """The first steps on a parabola are those of the rational numbers."""
    run = driver.make([np.asarray(1.0)], float(lr), cooling, decay)
    for n, x in enumerate(exact.split(), start=1):
        run.step(run.params())
        # Everything is below 1, and the bound of bounds.py then adds less than 40 u a step.
        error = abs(Fraction(run.params()[0].item()) - Fraction(x))
        lr_roundoff = getattr(driver, "lr_roundoff", 0.0)  # relative to a step, which is below 1
        assert error <= n * (40 * unit_roundoff(driver.dtype) + lr_roundoff)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("cooling", coolings(), ids=lambda cooling: cooling.law)
def test_every_law_past_the_end(driver, cooling, decay):
    """Through warm-up and cooling and some steps beyond, a path is where the reference is."""
    pair = Pair(driver, cooling, decay=decay)
    for seed in range(14):
        pair.step(seed)
        pair.check()


def test_the_clock_ends_at_rho_zero(driver):
    """At total_steps and after it rho is exactly 0, and it never rises."""
    cooling = CoolingSchedule(7, 0.9)
    run = driver.make([np.zeros(2)], 0.1, cooling, 0.0)
    rhos = []
    for _ in range(10):
        rhos.append(run.rho())
        run.step([np.ones(2)])
    assert rhos == sorted(rhos, reverse=True)
    assert rhos[7:] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_gradients_scale_the_temperature_by_their_square(driver, factor):
    """From rest, gradients times c (a power of two) give displacements times c, to the last bit."""
    cooling = CoolingSchedule(9, 0.9)
    runs = [driver.make([np.zeros(shape) for shape in SHAPES], 0.1, cooling, 0.0) for _ in "ab"]
    for seed in range(5):
        gradients = draw(seed, driver.dtype)
        runs[0].step(gradients)
        runs[1].step([factor * g for g in gradients])
    assert runs[1].temperature() == pytest.approx(factor**2 * runs[0].temperature(), rel=1e-15)


OPERATIONS = st.one_of(
    st.tuples(st.just("step"), st.integers(0, 1000)),
    st.tuples(st.just("lr"), st.floats(1e-4, 0.1)),
    st.just(("skip",)),
    st.just(("reload",)),
)


@settings(max_examples=15)
@given(st.lists(OPERATIONS, max_size=12), st.sampled_from(coolings()), st.sampled_from([0.0, 0.1]))
def check_any_order(driver, operations, cooling, decay):
    """Steps, skipped steps, checkpoints and learning rates in any order leave the two together."""
    pair = Pair(driver, cooling, decay=decay)
    for name, *arguments in [("step", 0), *operations]:
        if name == "step":
            pair.step(*arguments)
        elif name == "lr":
            pair.set_lr(*arguments)
        elif name == "skip":
            pair.run.skip()
        else:
            pair.run = pair.run.reloaded()
        pair.check()


def test_any_order_of_operations(driver):
    """Steps, skipped steps, checkpoints and learning rates in any order leave the two together."""
    check_any_order(driver)


def test_a_reloaded_run_goes_on_bit_for_bit(driver):
    """From a checkpoint before, in and after the cooling, the rest of the run is the same."""
    cooling = CoolingSchedule(8, 0.9, warmup_steps=2)
    run = driver.make(draw(0, driver.dtype), 0.01, cooling, 0.1)
    resumed = []
    for n in range(10):
        if n in (0, 4, 8):
            resumed.append(run.reloaded())
        for going in (run, *resumed):
            going.step(draw(n, driver.dtype))
    for other in resumed:
        for ours, theirs in zip(run.params(), other.params(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
