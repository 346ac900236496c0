"""What the tests of the schedules share: runs and steps, and the laws in float64."""

import numpy as np
from hypothesis import strategies as st

total_steps_ = st.integers(1, 10**9)
rho0s = st.floats(0.0, 1 - 1e-9)
ordinary_rho0s = st.just(0.0) | st.floats(1e-20, 1 - 1e-9)  # beside 1, 50 digits leave 30 of it


@st.composite
def settings_and_steps(draw):
    """A run, and a step of it: total_steps, rho0, n."""
    total_steps = draw(total_steps_)
    return total_steps, draw(ordinary_rho0s), draw(st.integers(0, total_steps))


def in_float64(law, step, total_steps, rho0):
    """The laws by other formulas than the package's, in float64: wrong by some 1e-14."""
    left = 1 - np.minimum(step, total_steps) / total_steps
    if law == "paper":
        return 1 - (1 - rho0) ** left
    tau0 = (1 + rho0) / (1 - rho0)
    tau = {"linear": 1 + (tau0 - 1) * left, "exponential": tau0**left}
    return np.full(step.shape, rho0) if law == "constant" else (tau[law] - 1) / (tau[law] + 1)


def cosine(step):
    """From 199 to 1 in 100 steps, and up again, by operators and by NumPy's cosine."""
    return 1 + 99 * (1 + np.cos(np.pi * step / 100))
