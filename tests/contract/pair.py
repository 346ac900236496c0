"""A run and the float64 reference side by side, and the bound on their distance."""

import numpy as np
import pytest
from bounds import RHO, RunningBound, rounded
from drivers import Oracle

from coolmomentum import rescaled_temperature

SHAPES = [(3, 4), (), (0,), (129,)]


def unit_roundoff(dtype):
    """Half the distance from 1 to the next number."""
    return float(np.finfo(dtype).eps) / 2


def draw(seed, dtype, scale=1.0):
    """Numbers for all parameters, over four decades, that the dtype holds exactly."""
    random = np.random.default_rng(seed)
    return [
        rounded(scale * 10.0 ** random.integers(-2, 2) * random.standard_normal(shape), dtype)
        for shape in SHAPES
    ]


class Pair:
    """A run and the reference, which do everything together, and the bound on their distance."""

    def __init__(self, driver, cooling, lr=2.0**-7, decay=0.0, seed=0):
        self.dtype, self.cooling = driver.dtype, cooling
        start = draw(seed, driver.dtype)
        self.run = driver.make(start, lr, cooling, decay)
        self.oracle = Oracle(start, lr, cooling, decay)
        self.bounds = [RunningBound(unit_roundoff(driver.dtype)) for _ in start]
        for bound, x in zip(self.bounds, start, strict=True):
            bound.start(x)

    def step(self, seed):
        """The same gradients for both."""
        gradients = draw(seed, self.dtype)
        oracle = self.oracle
        rho = self.cooling(oracle.state.step)
        for bound, x, dx, g in zip(
            self.bounds, oracle.xs, oracle.state.displacements, gradients, strict=True
        ):
            bound.step(x, dx, g, oracle.lr, rho, oracle.decay)
        oracle.step(gradients)
        self.run.step(gradients)
        self.last_lr = oracle.lr

    def set_lr(self, lr):
        """Another learning rate for both, one that every dtype holds."""
        self.oracle.lr = float(np.float32(lr))  # Keras keeps it in float32 whatever the variables
        self.run.set_lr(self.oracle.lr)

    def check(self):
        """Clock exactly; rho, displacements, parameters and temperature within their bounds."""
        oracle, state, u = self.oracle, self.oracle.state, unit_roundoff(self.dtype)
        assert self.run.clock() == state.step
        rho = self.cooling(state.step)
        # A capturable or compiled torch step keeps rho for the reader in float32.
        assert self.run.rho() == pytest.approx(rho, rel=max(RHO * u, 2.0**-24), abs=0)
        pairs = zip(self.run.params(), oracle.xs, self.bounds, strict=True)
        for ours, exact, bound in pairs:
            assert (np.abs(ours - exact) <= bound.x).all()
        moved = self.run.displacements()
        pairs = zip(moved, state.displacements, self.bounds, strict=True)
        for ours, exact, bound in pairs:
            assert (np.abs(ours - exact) <= bound.dx).all()
        # Of its own displacements, and the learning rate that made them; sums of 129 squares.
        temperature = float(rescaled_temperature(moved)) / self.last_lr
        assert self.run.temperature() == pytest.approx(temperature, rel=140 * u, abs=0)
