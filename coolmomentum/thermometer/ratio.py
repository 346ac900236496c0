"""The ratio of two means, and its standard error from the scatter of what was averaged."""

from typing import Any, NamedTuple

import numpy as np

from coolmomentum._arrays import Array, Scalar


class Ratio(NamedTuple):
    """Means and spreads of two quantities, as they are added up one pair after another.

    Examples
    --------
    >>> import numpy as np
    >>> ratio = Ratio(*np.zeros((5, 1)))
    >>> for n, (below, above) in enumerate([(1.0, 3.0), (3.0, 5.0)], 1):
    ...     ratio = ratio.add(np.array([below]), np.array([above]), n)
    >>> [x.tolist() for x in ratio.read(2)]
    [[2.0], [0.5]]
    """

    below: Array  # mean of what is divided by
    above: Array  # mean of what is divided
    below_spread: Array  # sums of squares and products of deviations from the means
    above_spread: Array
    cross_spread: Array

    def add(self, below: Array, above: Array, pairs: Scalar) -> "Ratio":
        """With one more pair, which makes this many."""
        # Welford's updates: sums of squares that are centred as they grow lose no digits.
        off_below, off_above = below - self.below, above - self.above
        mean_below = self.below + off_below / pairs
        mean_above = self.above + off_above / pairs
        return Ratio(
            mean_below,
            mean_above,
            self.below_spread + off_below * (below - mean_below),
            self.above_spread + off_above * (above - mean_above),
            self.cross_spread + off_below * (above - mean_above),
        )

    def read(self, pairs: float) -> tuple[Any, Any]:
        """The ratio and its standard error, in NumPy; NaN where there are too few pairs."""
        below = np.where(self.below > 0, self.below, np.nan)
        ratio = self.above / below
        # The variance of a ratio of means is that of the residuals, which add up to 0.
        residuals = self.above_spread + ratio * (ratio * self.below_spread - 2 * self.cross_spread)
        others = pairs * (pairs - 1) if pairs > 1 else np.nan
        return ratio, np.sqrt(np.maximum(residuals, 0) / others) / below
