"""The freeze-out meter: is the walk confined within a span, or does it diffuse freely?"""

from typing import Any, NamedTuple

from coolmomentum._arrays import Array, Scalar
from coolmomentum.thermometer.ratio import Ratio


class FreezeOut(NamedTuple):
    """Means and spreads over the spans of a window; each a row for each parameter, group and all.

    Over a span of W steps, with y the way from where the span began, the identity (exact for every
    trajectory at constant rho and step size, whatever the gradients)::

        2 eta sum y_n . g_n = (1 + rho) sum |dx_n|**2 - (1 - rho) |y_W|**2 - 2 rho y_W . dx_W

    has on its left what restores the walk, from the force g; its expectation is 0 in free
    diffusion. It is compared with the first term on its right, the diffusive part, which it equals
    on the average where the walk is confined.

    Examples
    --------
    A walk that turns round in each of two spans comes back to where it began: it is confined.

    >>> import numpy as np
    >>> meter = FreezeOut(*np.zeros((5, 1)))
    >>> for spans in (1, 2):
    ...     diffusive = (1 + 0.5) * np.array([2.0])
    ...     meter = meter.add(diffusive, diffusive - 0.0, spans)
    >>> [x.tolist() for x in meter.read(2)]
    [[1.0], [0.0]]
    """

    diffusive: Array  # mean over spans of the first term on the right
    restoring: Array  # mean over spans of the left side
    diffusive_spread: Array  # sums over spans of squares and products of deviations from the means
    restoring_spread: Array
    cross_spread: Array

    def add(self, diffusive: Array, restoring: Array, spans: Scalar) -> "FreezeOut":
        """With one more span, which makes this many."""
        return FreezeOut(*Ratio(*self).add(diffusive, restoring, spans))

    def read(self, spans: float) -> tuple[Any, Any]:
        """The meter and its standard error, in NumPy; NaN where there are too few spans."""
        return Ratio(*self).read(spans)
