"""The thermometer: what the successive displacements of any optimizer say of its temperature.

Equation numbers are those of Borysenko and Byshkin, Scientific Reports 11, 10705 (2021).

A thermometer looks at one step in ``every`` and adds up, for each parameter, three numbers: the
squared displacement, that of the step before, and the product of the two (:class:`PairSums`).
Everything it reads follows from these and from how the optimizer moves: its momentum coefficient
rho and its squared time step dt**2, where they are known. Once in ``span`` steps it also looks at
how far the parameters have come, for the freeze-out meter.

The rows of a :class:`Window` are the parameters, then their groups, then all of them together
(:class:`Rows`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from coolmomentum import _check
from coolmomentum._arrays import Array, Scalar, array_like, concat, is_number, namespace
from coolmomentum.temperature import inner_product, squared_norm, three_point_scale

__all__ = [
    "EVERY",
    "READINGS",
    "SPAN",
    "PairSums",
    "Rows",
    "Window",
    "check_intervals",
    "pair_sums",
]

EVERY = 10  # a thermometer measures one step in this many
SPAN = 100  # steps over which the freeze-out meter follows the parameters

READINGS = (
    "rescaled_temperature",
    "temperature",
    "three_point_temperature",
    "predicted_temperature",
    "rho",
    "correlation",
    "drift",
    "curvature",
    "freeze_out",
    "freeze_out_error",
)


class PairSums(NamedTuple):
    """Sums over the coordinates of two successive displacements; each a row for each parameter."""

    now: Array  # squares of the later displacement, shape (parameters,)
    before: Array  # squares of the earlier one
    product: Array  # products of the two


def pair_sums(before: Sequence[Array], now: Sequence[Array], *, xp: Any = None) -> PairSums:
    """The three sums for two successive displacements of some parameters.

    Parameters
    ----------
    before : displacements of one step, a sequence with an array for each parameter; not empty.
    now : displacements of the next step, of the same shapes.
    xp : array namespace, if it is not to be found out.

    Returns
    -------
    PairSums of 1-d arrays with an element for each parameter, float32 or better

    Raises
    ------
    ValueError
        If the two differ in the number of arrays.

    Examples
    --------
    >>> import numpy as np
    >>> sums = pair_sums([np.array([0.5, -1.0])], [np.array([1.0, 2.0])])
    >>> [float(x[0]) for x in sums]
    [5.0, 1.25, -1.5]
    """
    xp = xp or namespace(*before, *now)
    pairs = list(zip(before, now, strict=True))
    return PairSums(
        xp.stack([squared_norm(b, xp=xp) for _, b in pairs]),
        xp.stack([squared_norm(a, xp=xp) for a, _ in pairs]),
        xp.stack([inner_product(a, b, xp=xp) for a, b in pairs]),
    )


class Rows(NamedTuple):
    """What the rows of a window stand for; plain numbers, known before any array is."""

    sizes: tuple[int, ...]  # coordinates of each parameter
    groups: tuple[int, ...] = ()  # number of parameters in each group, one after another

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.sizes) + len(self.groups) + 1

    def pool(self, x: Array, xp: Any) -> Array:
        """A row for each parameter, with the sums over each group and over all after them."""
        ends = [sum(self.groups[: i + 1]) for i in range(len(self.groups))]
        parts = [x[end - size : end] for end, size in zip(ends, self.groups, strict=True)]
        return concat([x, xp.stack([xp.sum(part) for part in (*parts, x)])], xp)

    def coordinates(self, like: Array, xp: Any) -> Array:
        """Number of coordinates of each row, at least 1 so that nothing is divided by 0."""
        sizes = self.pool(array_like([float(size) for size in self.sizes], like, xp), xp)
        return xp.where(sizes > 0, sizes, sizes + 1)


class Window(NamedTuple):
    """What a thermometer remembers between two readings: counts, and sums for each row.

    A tuple of numbers and arrays, so that it is a pytree and goes through jit. Every method gives
    back another window.

    Examples
    --------
    The displacements of two parameters in two steps, at dt**2 = 0.01 and rho = 0.5: the pooled
    temperature is 8/3 by Eq. 22 and 2/3 by three points.

    >>> import numpy as np
    >>> first = [np.array([0.1, -0.2]), np.array(0.3)]
    >>> second = [np.array([0.0, 0.1]), np.array(-0.1)]
    >>> rows = Rows(sizes=(2, 1))
    >>> window = Window.empty(np.zeros(len(rows)))
    >>> window = window.step().add(pair_sums(first, first), rows, rho=0.5, dt2=0.01, paired=0)
    >>> window = window.step().add(pair_sums(first, second), rows, rho=0.5, dt2=0.01)
    >>> reading = window.read(rows)
    >>> reading["temperature"].round(9)  # of the parameters, then of all
    array([1.5       , 5.        , 2.66666667])
    >>> reading["three_point_temperature"].round(9)
    array([0.33333333, 1.33333333, 0.66666667])
    """

    squares: Array  # of the measured displacements, shape (rows,)
    energies: Array  # the same times the masses, over dt**2
    paired: PairSums  # of the measured steps whose step before was seen too
    three_point: Array  # energies by three points
    predicted: Array  # energies by the part of a displacement that the one before does not explain
    rhos: Array  # momentum coefficients
    bound: Array  # mean over spans of what is 0 for free diffusion; see end_span
    walked: Array  # mean over spans of what that is where the walk is confined
    spread: PairSums  # of the two over spans: centred squares of walked and bound, products
    span_squares: Array  # of the measured displacements of the span that is going on
    steps: Scalar = 0
    measured: Scalar = 0
    pairs: Scalar = 0
    spans: Scalar = 0
    span_steps: Scalar = 0
    span_measured: Scalar = 0

    @classmethod
    def empty(cls, zeros: Array) -> "Window":
        """A window that has seen nothing.

        Parameters
        ----------
        zeros : zeros of shape (rows,), in the dtype in which to add: float32 or better.
        """
        three = PairSums(zeros, zeros, zeros)
        return cls(zeros, zeros, three, zeros, zeros, zeros, zeros, zeros, three, zeros)

    def closed(self) -> "Window":
        """The window after this one: empty but for the span that is going on."""
        new = Window.empty(self.squares - self.squares)
        return new._replace(
            span_squares=self.span_squares,
            span_steps=self.span_steps,
            span_measured=self.span_measured,
        )

    def step(self) -> "Window":
        """After one more step, measured or not."""
        return self._replace(steps=self.steps + 1, span_steps=self.span_steps + 1)

    def add(
        self,
        pair: PairSums,
        rows: Rows,
        *,
        rho: Scalar,
        dt2: Scalar,
        weighted: PairSums | None = None,
        paired: Scalar = 1,
        xp: Any = None,
    ) -> "Window":
        """With the displacements of one measured step.

        Parameters
        ----------
        pair : sums of its displacements and of those of the step before.
        rows : what the rows are.
        rho : momentum coefficient of the step, a number or a row for each parameter; NaN where it
            is not known.
        dt2 : squared time step, likewise: the learning rate of CoolMomentum,
            :func:`coolmomentum.learning_rate_from_sgd` of others.
        weighted : sums of the displacements times the square roots of their masses, if the masses
            are not 1.
        paired : 1 if the step before was seen, else 0: then ``before`` and ``product`` are ignored.
        xp : array namespace, if it is not to be found out.
        """
        xp = xp or namespace(pair.now)
        mass, time2 = weighted or pair, _or_nan(dt2, xp)
        both = mass.now + mass.before + 2 * mass.product  # |x_{n+1} - x_{n-1}|**2
        fresh = mass.now + rho * rho * mass.before - 2 * rho * mass.product

        def more(total: Array, part: Array, times: Scalar = 1) -> Array:
            return total + rows.pool(part, xp) * times

        return self._replace(
            squares=more(self.squares, pair.now),
            energies=more(self.energies, mass.now / time2),
            paired=PairSums(*(more(a, b, paired) for a, b in zip(self.paired, pair, strict=True))),
            three_point=more(self.three_point, both / three_point_scale(time2, rho), paired),
            predicted=more(self.predicted, fresh / (time2 * (1 - rho * rho)), paired),
            rhos=more(self.rhos, rho + xp.zeros_like(pair.now)),
            span_squares=more(self.span_squares, pair.now),
            measured=self.measured + 1,
            pairs=self.pairs + paired,
            span_measured=self.span_measured + 1,
        )

    def end_span(
        self, distance: Array, overlap: Array, rows: Rows, *, rho: Scalar, xp: Any = None
    ) -> "Window":
        """At the end of a span of W steps, which has to be a measured step.

        With y the way from where the span began, the identity (exact for every trajectory at
        constant rho and step size, whatever the gradients)

            2 eta sum y_n . g_n = (1 + rho) sum |dx_n|**2 - (1 - rho) |y_W|**2 - 2 rho y_W . dx_W

        has on its left what binds the walk, from the force g; its expectation is 0 in free
        diffusion. It is compared with the first term on its right, which it equals on the average
        where the walk is confined.

        Parameters
        ----------
        distance : ``|y_W|**2`` of each parameter.
        overlap : ``y_W . dx_W`` of each parameter, with dx_W the displacement of the last step.
        rows : what the rows are.
        rho : momentum coefficient, a number or a row for each parameter.
        xp : array namespace, if it is not to be found out.
        """
        xp = xp or namespace(distance)
        each = self.span_squares[: len(rows.sizes)] * (self.span_steps / self.span_measured)
        walked = rows.pool((1 + rho) * each, xp)
        bound = walked - rows.pool((1 - rho) * distance + 2 * rho * overlap, xp)
        spans = self.spans + 1
        # Welford's updates: sums of squares that are centred as they grow lose no digits.
        off_walked, off_bound = walked - self.walked, bound - self.bound
        mean_walked, mean_bound = self.walked + off_walked / spans, self.bound + off_bound / spans
        return self._replace(
            walked=mean_walked,
            bound=mean_bound,
            spread=PairSums(
                self.spread.now + off_walked * (walked - mean_walked),
                self.spread.before + off_bound * (bound - mean_bound),
                self.spread.product + off_walked * (bound - mean_bound),
            ),
            span_squares=self.span_squares - self.span_squares,
            spans=spans,
            span_steps=self.span_steps - self.span_steps,
            span_measured=self.span_measured - self.span_measured,
        )

    def read(self, rows: Rows, *, xp: Any = None) -> dict[str, Array]:
        """The readings, each a row for each parameter, each group and all.

        Parameters
        ----------
        rows : what the rows are.
        xp : array namespace, if it is not to be found out.

        Returns
        -------
        dict of arrays of shape (rows,), NaN where something is not known:

        rescaled_temperature : mean squared displacement of a coordinate in a step, ``T dt**2``.
        temperature : the same over dt**2 (Eq. 22), and times the mass where there are masses.
        three_point_temperature : as :func:`coolmomentum.three_point_temperature`; on a quadratic it
            is that of Eq. 19 exactly.
        predicted_temperature : Eq. 19 with the noise seen in the window, that is the part of each
            displacement that the one before does not explain,
            ``<|dx_{n+1} - rho dx_n|**2> / (dt**2 (1 - rho**2))``. Where the temperature exceeds it,
            the walk drifts or has not come to rest yet. It counts the gradient's own changes as
            noise, and so is ``1 + rho curvature / (2 (1 - rho))`` temperatures on a quadratic.
        rho : mean momentum coefficient.
        correlation : of successive displacements; rho in free diffusion, below it where the
            landscape pulls back, towards 1 in a drift.
        drift : 1 if the correlation exceeds rho by more than three standard errors of free
            diffusion, so that the temperatures contain motion that is not thermal; else 0.
        curvature : ``k dt**2`` that noise feels, ``4 (1 - three-point / temperature)``; the walk is
            stable below 4.
        freeze_out : 1 if the walk is confined within a span (it is in quasi-equilibrium), 0 if it
            diffuses freely (frozen out on that time scale), below 0 if it drifts.
        freeze_out_error : standard error of freeze_out from the scatter between spans; NaN where
            there are fewer than two.
        """
        xp = xp or namespace(self.squares)
        sizes = rows.coordinates(self.squares, xp)
        measured, pairs = sizes * _or_nan(self.measured, xp), sizes * _or_nan(self.pairs, xp)
        temperature = self.energies / measured
        three_point = self.three_point / pairs
        rho = self._mean_rho(rows, xp)
        # Root by root: the product of two small sums may underflow where neither of them does.
        lengths = _or_nan(self.paired.now, xp) ** 0.5 * _or_nan(self.paired.before, xp) ** 0.5
        correlation = self.paired.product / lengths
        above = correlation - rho
        error = ((1 - rho * rho) / pairs) ** 0.5
        walked = _or_nan(self.walked, xp)
        confined = self.bound / walked
        # The variance of a ratio of means is that of the residuals, which add up to 0.
        spread = self.spread
        residuals = spread.before + confined * (confined * spread.now - 2 * spread.product)
        others = _or_nan(self.spans - 1, xp) * _or_nan(self.spans, xp)
        return {
            "rescaled_temperature": self.squares / measured,
            "temperature": temperature,
            "three_point_temperature": three_point,
            "predicted_temperature": self.predicted / pairs,
            "rho": rho,
            "correlation": correlation,
            "drift": xp.where(above > 3 * error, above - above + 1, above - above),
            "curvature": 4 * (1 - three_point / _or_nan(temperature, xp)),
            "freeze_out": confined,
            "freeze_out_error": (xp.maximum(residuals, 0 * residuals) / others) ** 0.5 / walked,
        }

    def _mean_rho(self, rows: Rows, xp: Any) -> Array:
        """Mean momentum coefficient of the coordinates of each row."""
        count = len(rows.sizes)
        sizes = array_like([float(size) for size in rows.sizes], self.rhos, xp)
        total = rows.pool(sizes * self.rhos[:count], xp)
        return total / (rows.coordinates(self.rhos, xp) * _or_nan(self.measured, xp))


def check_intervals(every: object, span: object) -> tuple[int, int]:
    """``every`` and ``span`` as whole numbers, or the error that says what is wrong with them."""
    one_in = _check.integer("every", every, 1)
    steps = _check.integer("span", span, 1)
    if steps % one_in:
        raise ValueError(f"span must be a multiple of every, {one_in}: {span!r}")
    return one_in, steps


def _or_nan(x: Scalar, xp: Any) -> Scalar:
    """``x`` where it is positive, else NaN, which a division by it then gives."""
    if is_number(x):
        return x if x > 0 else float("nan")
    return xp.where(x > 0, x, x * float("nan"))
