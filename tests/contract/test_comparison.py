"""A failing comparison says where it fails."""

import re

import numpy as np
import pytest
from comparison import Comparison, assert_within
from drivers import Oracle

from coolmomentum import CoolingSchedule


def test_a_failure_names_array_coordinate_step_deviation_and_bound():
    """Of the coordinate that is farthest outside its bound."""
    ours, expected = np.array([[1.0, 2.0], [3.5, 4.25]]), np.array([[1.0, 2.0], [3.0, 4.0]])
    message = (
        "displacement 1[1, 0] after step 7: np.float64(3.5), not np.float64(3.0); "
        "deviation 0.5, bound 0.1 (2 of 4 are wrong)"
    )
    with pytest.raises(AssertionError, match=f"^{re.escape(message)}$"):
        assert_within(ours, expected, [[0.0, 0.0], [0.1, 0.125]], "displacement 1", 7)


@pytest.mark.parametrize(
    ("ours", "bound", "message"),
    [
        (np.nan, 1.0, "rho: np.float64(nan), not np.float64(0.5); deviation nan, bound 1"),
        (np.inf, np.nan, "rho: np.float64(inf), not np.float64(0.5); deviation inf, bound nan"),
        (0.75, 0.0, "rho: np.float64(0.75), not np.float64(0.5); deviation 0.25, bound 0"),
        ([0.5], 1.0, "rho: shape (1,), not ()"),
    ],
)
def test_what_is_no_number_is_within_no_bound(ours, bound, message):
    """NaN, a bound that is NaN, another shape; a bound of 0 asks for equal numbers."""
    with pytest.raises(AssertionError, match=re.escape(message)):
        assert_within(ours, 0.5, bound, "rho")


def test_numbers_on_the_bound_and_equal_ones_pass():
    """Empty arrays too; where bits are compared, infinities and NaN are equal to themselves."""
    assert_within([0.5, 1.5], [1.0, 1.0], 0.5, "x")
    assert_within(np.zeros((0, 3)), np.zeros((0, 3)), 0.0, "x")
    assert_within([np.inf, np.nan], [np.inf, np.nan], 0.0, "x")


class Wrong:
    """A driver whose runs are the reference's, but for one coordinate."""

    def __init__(self, driver):
        self._driver = driver

    def __getattr__(self, name):
        return getattr(self._driver, name)

    def make(self, *args, **options):
        """A run whose second displacement is off."""
        run = self._driver.make(*args, **options)
        step = run.step

        def wrong(gradients):
            step(gradients)
            moved = [dx.copy() for dx in run.state.displacements]
            moved[0][1, 5] += 0.5
            run.state = run.state._replace(displacements=tuple(moved))

        run.step = wrong
        return run


def test_a_wrong_path_is_told_where():
    """The contract's comparison of a run that is wrong in one coordinate of one displacement."""
    from adapters.numpy import Numpy

    both = Comparison(Wrong(Numpy("float64")), CoolingSchedule(9, 0.5), shapes=((3, 43), (2,)))
    assert isinstance(both.run, Oracle)
    both.step(1)
    with pytest.raises(AssertionError, match=r"displacement 0\[1, 5\] after step 1: .* deviation"):
        both.check()
