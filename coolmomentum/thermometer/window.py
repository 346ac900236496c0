"""What a thermometer remembers between two readings, in two arrays, and what it reads."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from coolmomentum._arrays import (
    Array,
    Scalar,
    array_like,
    as_array,
    astype,
    concat,
    is_number,
    namespace,
)
from coolmomentum.temperature import three_point_scale
from coolmomentum.thermometer.dynamics import Bath, Dynamics
from coolmomentum.thermometer.freeze_out import FreezeOut
from coolmomentum.thermometer.layout import Layout

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
    "bath_ratio",
)
SUMS = (
    # over the measured steps, each times the steps that it stands for
    "squares",  # of the displacements
    "energies",  # the same times the masses, over dt**2
    "rhos",  # momentum coefficients
    "unknown_rho",  # where rho is not known: nothing that needs it is read
    "unknown_dt2",
    "bath",  # temperatures of a heat bath
    "averaging",  # (1 - rho) / (1 + rho) where its noise is averaged over two steps, else 0
    # over those whose step before was seen too
    "now",  # squares of the displacements
    "before",  # of the displacements of the step before
    "product",  # products of the two
    "three_point",  # energies by three points
    "predicted",  # energies by the part of a displacement that the one before does not explain
    # over the spans that ended
    *FreezeOut._fields,
    # over the span that is going on
    "span_squares",
)
COUNTS = (
    "steps",
    "represented",  # steps that the measured ones stand for
    "represented_pairs",  # the same of those whose step before was seen too
    "pairs",  # how many those are
    "spans",
    "span_steps",
    "span_represented",
)
_STEP = SUMS.index("diffusive")  # a measured step adds to the rows before it, and to the last
_SPAN = COUNTS.index("span_steps")  # from here on the counts of the span that is going on


class Window(NamedTuple):
    """Sums for each parameter, group and all, and counts; every method gives back another window.

    A pytree of two arrays, which goes through jit. The counts may be a NumPy array on the host
    beside sums of any library.

    Examples
    --------
    The displacements of two parameters in two steps, at dt**2 = 0.01 and rho = 0.5: the pooled
    temperature is 8/3 by Eq. 22 and 2/3 by three points.

    >>> import numpy as np
    >>> from coolmomentum.thermometer import Dynamics, Layout, Window, moments
    >>> first = [np.array([0.1, -0.2]), np.array(0.3)]
    >>> second = [np.array([0.0, 0.1]), np.array(-0.1)]
    >>> layout, how = Layout(("w", "b"), sizes=(2, 1)), Dynamics(rho=0.5, dt2=0.01)
    >>> window = Window.empty(np.zeros(len(layout)))
    >>> window = window.step().add(moments(first, first), layout, how, paired=False)
    >>> window = window.step().add(moments(second, first), layout, how)
    >>> reading = window.readings(layout)
    >>> reading["temperature"].round(9)  # of the parameters, then of all
    array([1.5       , 5.        , 2.66666667])
    >>> reading["three_point_temperature"].round(9)
    array([0.33333333, 1.33333333, 0.66666667])
    """

    sums: Array  # shape (len(SUMS), columns), float32 or better
    counts: Array  # shape (len(COUNTS),), of any dtype that counts

    @classmethod
    def empty(cls, zeros: Array, *, xp: Any = None) -> "Window":
        """A window that has seen nothing, with its counts on the host.

        Parameters
        ----------
        zeros : zeros of shape (len(layout),), in the dtype in which to add: float32 or better.
        xp : array namespace, if it is not to be found out.
        """
        xp = xp or namespace(zeros)
        return cls(xp.stack([zeros] * len(SUMS)), np.zeros(len(COUNTS), np.int64))

    def next(self, *, xp: Any = None) -> "Window":
        """The window after this one: empty but for the span that is going on."""
        xp = xp or namespace(self.sums)
        sums = concat([xp.zeros_like(self.sums[:-1, :]), self.sums[-1:, :]], xp)
        return Window(sums, self.counts * _vector([0] * _SPAN + [1, 1], self.counts, xp))

    def step(self, steps: Scalar = 1, *, xp: Any = None) -> "Window":
        """After some more steps, measured or not."""
        xp = xp or namespace(self.sums)
        seen = [steps, 0, 0, 0, 0, steps, 0]
        return self._replace(counts=self.counts + _vector(seen, self.counts, xp))

    def add(
        self,
        table: Array,
        layout: Layout,
        dynamics: Dynamics,
        *,
        weight: Scalar = 1,
        paired: Scalar = True,
        applied: Scalar = True,
        xp: Any = None,
    ) -> "Window":
        """With one measured step.

        Parameters
        ----------
        table : its :func:`moments`.
        layout : what the columns are.
        dynamics : rho and dt**2 of the step, each a number or an array with one of each parameter.
        weight : the steps it stands for, :meth:`Sampling.weight`.
        paired : whether the step before was seen; if not, what the table has of it is ignored.
        applied : whether it was a step at all; if not, the window stays as it is.
        xp : array namespace, if it is not to be found out.
        """
        xp = xp or namespace(table)
        counts, whole = self.counts, _number_like(weight, self.counts, xp)
        pairs = _number_like(paired, counts, xp)
        added = layout.pool(_step_sums(table, dynamics, paired, xp), xp)
        added = added * _number_like(weight, added, xp)
        sums = [
            self.sums[:_STEP, :] + added,
            self.sums[_STEP:-1, :],
            self.sums[-1:, :] + added[:1, :],
        ]
        more = _vector([0, whole, whole * pairs, pairs, 0, 0, whole], counts, xp)
        return self._where(applied, Window(concat(sums, xp), counts + more), xp)

    def measure(
        self,
        table: Array,
        layout: Layout,
        dynamics: Dynamics,
        *,
        weight: Scalar = 1,
        paired: Scalar = True,
        applied: Scalar = True,
        xp: Any = None,
    ) -> "Window":
        """As :meth:`add`, and :meth:`end_span` if the table has rows of a path."""
        how: dict[str, Any] = {"applied": applied, "xp": xp}
        window = self.add(table, layout, dynamics, weight=weight, paired=paired, **how)
        ends = table.shape[0] > 6
        return window.end_span(table, layout, dynamics.rho, **how) if ends else window

    def end_span(
        self,
        table: Array,
        layout: Layout,
        rho: Scalar | None,
        *,
        applied: Scalar = True,
        xp: Any = None,
    ) -> "Window":
        """At the end of a span, after its last step was added; see :class:`FreezeOut`.

        Parameters
        ----------
        table : moments whose last two rows are those of the path.
        layout : what the columns are.
        rho : momentum coefficient of the step, a number or an array with one of each parameter.
        applied : whether that was a step at all; if not, the span is left out.
        xp : array namespace, if it is not to be found out.
        """
        xp = xp or namespace(table)
        spans, steps, represented = self._numbers(("spans", "span_steps", "span_represented"), xp)
        known_rho, _ = _split(rho, _is_rho, 0.0, table[-1, :], xp)
        squares = self.sums[-1, : len(layout.parameters)] * (steps / _or_one(represented, xp))
        diffusive = (1 + known_rho) * squares
        lost = (1 - known_rho) * table[-2, :] + 2 * known_rho * table[-1, :]
        pooled = layout.pool(xp.stack([diffusive, lost]), xp)
        meter = FreezeOut(*(self.sums[_STEP + i, :] for i in range(len(FreezeOut._fields))))
        meter = meter.add(pooled[0, :], pooled[0, :] - pooled[1, :], spans + 1)
        zero = xp.zeros_like(self.sums[-1:, :])
        kept = _vector([1] * _SPAN + [0, 0], self.counts, xp)
        more = _vector([0, 0, 0, 0, 1, 0, 0], self.counts, xp)
        dropped = Window(concat([self.sums[:-1, :], zero], xp), self.counts * kept)
        sums = [self.sums[:_STEP, :], xp.stack(list(meter)), zero]
        return dropped._where(applied, Window(concat(sums, xp), dropped.counts + more), xp)

    def readings(self, layout: Layout) -> dict[str, Any]:
        """The readings, with a value for each parameter, each group and all.

        Parameters
        ----------
        layout : what the columns are.

        Returns
        -------
        dict of float64 NumPy arrays of shape (columns,), NaN where something is not known:

        rescaled_temperature : mean squared displacement of a coordinate in a step, ``T dt**2``.
        temperature : the same over dt**2 (Eq. 22), and times the mass where there are masses. In a
            bath of averaged noise it is ``2 / (1 + rho)`` times that, and equals the temperature of
            the bath on every quadratic; the heat of minibatches is then read too high by as much.
        three_point_temperature : as :func:`coolmomentum.three_point_temperature`; on a quadratic it
            is that of Eq. 19 exactly.
        predicted_temperature : Eq. 19 with the noise seen in the window, that is the part of each
            displacement that the one before does not explain,
            ``<|dx_{n+1} - rho dx_n|**2> / (dt**2 (1 - rho**2))``. Where the temperature exceeds it,
            the walk drifts or has not come to rest yet. It counts the gradient's own changes as
            noise, and so is ``1 + rho curvature / (2 (1 - rho))`` temperatures on a quadratic.
        rho : mean momentum coefficient.
        correlation : of successive displacements, the cosine of the angle between them: the sum of
            their products over the root of the product of the sums of their squares. rho in free
            diffusion, below it where the landscape pulls back, towards 1 in a drift.
        drift : 1 if the correlation exceeds rho by more than three standard errors of free
            diffusion, so that the temperatures contain motion that is not thermal; else 0.
        curvature : ``k dt**2`` that noise feels, ``4 (1 - three-point / temperature)``; the walk is
            stable below 4.
        freeze_out : 1 if the walk is confined within a span (it is in quasi-equilibrium), 0 if it
            diffuses freely (frozen out on that time scale), below 0 if it drifts.
        freeze_out_error : standard error of freeze_out from the scatter between spans; NaN where
            there are fewer than two.
        bath_ratio : temperature over that of the bath, 1 on every quadratic; see
            :func:`coolmomentum.thermometer.why_hotter`. NaN without a bath.

        A bath of averaged noise makes successive displacements alike. Then correlation is compared
        with ``(1 + rho) / 2`` for drift, freeze_out and curvature are corrected with the mean rho
        so that they mean the same, and there is no three-point temperature.
        """
        x = dict(zip(SUMS, np.asarray(self.sums, np.float64), strict=True))
        n = dict(zip(COUNTS, map(float, np.asarray(self.counts)), strict=True))
        sizes = np.array([layout.sizes], np.float64).reshape(1, -1)
        coordinates = np.maximum(layout.pool(sizes, np)[0], 1)
        steps, step_pairs, pairs = (
            coordinates * _or_nan(n[name]) for name in ("represented", "represented_pairs", "pairs")
        )
        rho_known, dt2_known = _or_nan(x["unknown_rho"] == 0), _or_nan(x["unknown_dt2"] == 0)
        with np.errstate(all="ignore"):
            temperature = x["energies"] / steps * dt2_known
            three_point = x["three_point"] / step_pairs * dt2_known * rho_known
            settings = np.stack([x[name] for name in ("rhos", "bath", "averaging")])
            settings = layout.pool(sizes * settings[:, : len(layout.sizes)], np) / steps
            rho, bath, averaging = settings[0] * rho_known, settings[1], settings[2]
            averaged = averaging > 0
            # Root by root: the product of two small sums may underflow where neither of them does.
            lengths = np.sqrt(_or_nan(x["now"])) * np.sqrt(_or_nan(x["before"]))
            correlation = x["product"] / lengths
            expected = np.where(averaged, 1 / (1 + averaging), rho)
            # By Bartlett's formula for free diffusion.
            spread = np.sqrt(np.where(averaged, 1 - expected, 1 - rho * rho) / pairs)
            above = correlation - expected
            meter = FreezeOut(*(x[name] for name in FreezeOut._fields))
            freeze_out, error = meter.read(n["spans"])
            values = {
                "rescaled_temperature": x["squares"] / steps,
                "temperature": temperature,
                "three_point_temperature": np.where(averaged, np.nan, three_point),
                "predicted_temperature": x["predicted"] / step_pairs * dt2_known * rho_known,
                "rho": rho,
                "correlation": correlation,
                "drift": np.where(np.isnan(above), np.nan, above > 3 * spread),
                "curvature": 4 * (1 - three_point * (1 + averaging) / _or_nan(temperature))
                + 2 * averaging,
                "freeze_out": (freeze_out + averaging) / (1 + averaging) * rho_known,
                "freeze_out_error": error / (1 + averaging) * rho_known,
                "bath_ratio": temperature / _or_nan(bath),
            }
        return {name: values[name] for name in READINGS}

    def _where(self, applied: Scalar, other: "Window", xp: Any) -> "Window":
        """The other window if the step was applied, else this one."""
        return Window(*(_where(applied, a, b, xp) for a, b in zip(other, self, strict=True)))

    def _numbers(self, names: tuple[str, ...], xp: Any) -> list[Scalar]:
        """Counts as floats, or in the dtype of the sums, in which to compute with them."""
        index = [COUNTS.index(name) for name in names]
        if isinstance(self.counts, np.ndarray):
            return [float(self.counts[i]) for i in index]
        counts = astype(self.counts, self.sums.dtype, xp)
        return [counts[i] for i in index]


def _step_sums(table: Array, dynamics: Dynamics, paired: Scalar, xp: Any) -> Array:
    """What a measured step adds for each parameter, shape (rows, parameters).

    Groups and all get the sums of their parameters' rows, so each row must be a sum over
    coordinates; what is not, as a quotient, is formed when the window is read.
    """
    now, before, product, mass_now, mass_before, mass_product = (table[i, :] for i in range(6))
    rho, no_rho = _split(dynamics.rho, _is_rho, 0.0, now, xp)
    dt2, no_dt2 = _split(dynamics.dt2, _is_dt2, 1.0, now, xp)
    # At dt**2 = 0 what moved has no temperature; what is at rest has 0, as in a warm-up from 0.
    stands = dt2 == 0
    no_dt2 = xp.where(stands & (mass_now + mass_before > 0), xp.ones_like(now), no_dt2)
    dt2 = xp.where(stands, xp.ones_like(now), dt2)
    both = mass_now + mass_before + 2 * mass_product  # |x_{n+1} - x_{n-1}|**2
    fresh = mass_now + rho * rho * mass_before - 2 * rho * mass_product
    bath, averaging = _bath_rows(dynamics.bath, rho, now, xp)
    is_averaged = dynamics.bath is not None and dynamics.bath.noise == "averaged"
    no_dt2 = no_dt2 + no_rho if is_averaged else no_dt2  # its temperature needs rho
    step = {
        "squares": now,
        "energies": mass_now * (1 + averaging) / dt2,
        "rhos": rho,
        "unknown_rho": no_rho,
        "unknown_dt2": no_dt2,
        "bath": bath,
        "averaging": averaging,
    }
    pair = {
        "now": now,
        "before": before,
        "product": product,
        "three_point": both / three_point_scale(dt2, rho),
        "predicted": (2 if is_averaged else 1) * fresh / (dt2 * (1 - rho * rho)),
    }
    assert (*step, *pair) == SUMS[:_STEP]
    pairs = xp.stack([*pair.values()])
    return concat([xp.stack([*step.values()]), _where(paired, pairs, xp.zeros_like(pairs), xp)], xp)


def _bath_rows(bath: Bath | None, rho: Array, like: Array, xp: Any) -> tuple[Array, Array]:
    """The rows "bath" and "averaging" of a step."""
    zeros = xp.zeros_like(like)
    if bath is None:
        return zeros, zeros
    averaging = (1 - rho) / (1 + rho) if bath.noise == "averaged" else zeros
    return zeros + _number_like(bath.temperature, like, xp), averaging


def _is_rho(x: Scalar) -> Scalar:
    return (x > -1) & (x < 1)


def _is_dt2(x: Scalar) -> Scalar:
    return x >= 0


def _split(
    value: Scalar | None,
    is_valid: Callable[[Scalar], Scalar],
    otherwise: float,
    like: Array,
    xp: Any,
) -> tuple[Array, Array]:
    """``value`` of each parameter where it is known, else a number; and 1 where it is not, else 0.

    No NaN comes of it: debuggers that look for NaN would stop at what is only not known.
    """
    zeros = xp.zeros_like(like)
    if value is None or (is_number(value) and not is_valid(value)):
        return zeros + otherwise, zeros + 1
    if is_number(value):
        return zeros + value, zeros
    is_known = is_valid(value)
    value = astype(xp.where(is_known, value, xp.zeros_like(value) + otherwise), like.dtype, xp)
    return zeros + value, xp.where(is_known, zeros, zeros + 1)


def _where(condition: Scalar, x: Array, y: Array, xp: Any) -> Array:
    if isinstance(condition, bool):
        return x if condition else y
    return xp.where(condition, x, y)


def _number_like(value: Scalar, like: Array, xp: Any) -> Scalar:
    """A number as it is, a bool as 0 or 1, an array in the dtype of another."""
    if isinstance(value, bool):
        return int(value)
    return value if is_number(value) else astype(value, like.dtype, xp)


def _vector(values: list[Scalar], like: Array, xp: Any) -> Array:
    """A vector of counts, in the dtype of others."""
    if isinstance(like, np.ndarray):
        return np.asarray(values, like.dtype)
    if all(map(is_number, values)):
        return array_like(values, like, xp)
    return xp.stack([astype(as_array(x, xp), like.dtype, xp) for x in values])


def _or_one(x: Scalar, xp: Any) -> Scalar:
    if is_number(x):
        return max(x, 1.0)
    return xp.where(x > 0, x, xp.ones_like(x))


def _or_nan(x: Any) -> Any:
    """``x`` where it is positive, else NaN; of a bool 1 or NaN."""
    return np.where(np.greater(x, 0), x, np.nan)
