"""The gradient noise scale, or critical batch size, from gradients of successive steps.

McCandlish et al., "An empirical model of large-batch training", arXiv:1812.06162 (2018), compare
the gradients of two batches at one place. A training has one batch at each place. The products of
successive gradients would do, if the places did not know of the batches: but the place x_n has the
noise of batch n - 1 in it, and the loss pulls back. With H the Hessian, eta the step size and C the
covariance of a batch's gradient, on a quadratic

    <g_n . g_{n-1}> = G_n . G_{n-1} - eta tr(H C)
    <g_n . g_{n-2}> = G_n . G_{n-2} - eta tr(H C) (1 + rho) + O(eta**2)

which for a walk at rest is 2 rho - 1 in place of 1 times ``|G|**2``. What the momentum remembers
has some of that noise, too. :func:`true_square` takes three such products together.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from coolmomentum import _check
from coolmomentum._arrays import Array, Scalar, concat, is_number, namespace, upcast
from coolmomentum.langevin import step_size
from coolmomentum.temperature import inner_product
from coolmomentum.thermometer.dynamics import Dynamics
from coolmomentum.thermometer.layout import Layout
from coolmomentum.thermometer.ratio import Ratio
from coolmomentum.thermometer.window import _is_rho, _number_like, _or_nan, _split, _where

NOISE_READINGS = (
    "gradient_norm",
    "gradient_noise",
    "critical_batch_size",
    "critical_batch_size_error",
)
BLOCK: Final = 4  # a measured step, two before it with their gradients, and what moved before them
LEAST_RHO: Final = 0.5  # below it the noise of all batches is remembered alike
LEAST_STEPS: Final = 5  # measured ones, below which their scatter says little
DROWNED: Final = 4.0  # standard errors of |G|**2 that it must be above 0
_MEANS = len(Ratio._fields)


class Momentum(NamedTuple):
    """How a momentum went on in a step: ``p_n = rho p_{n-1} + scale g_n``.

    Examples
    --------
    SGD of PyTorch has momentum buffers, CoolMomentum displacements:

    >>> Momentum(rho=0.5, scale=1.0).gradient(now=2.5, before=3.0)
    1.0
    >>> Momentum.of_displacements(Dynamics(rho=0.5, dt2=0.25))
    Momentum(rho=0.5, scale=-0.1875)
    """

    rho: Scalar | None = None  # None where nothing is known of it
    scale: Scalar = 1.0  # at 0 the momentum does not show the gradient

    @classmethod
    def of_displacements(cls, dynamics: Dynamics) -> "Momentum":
        """Of displacements ``dx_n = rho dx_{n-1} - eta g_n``, with eta by Eq. 16.

        In a heat bath nothing is known of it: its force would count as noise of the batches.
        """
        rho, dt2, bath = dynamics
        is_known = bath is None and not any(x is None or _is_nan(x) for x in (rho, dt2))
        return cls(rho, -step_size(dt2, rho)) if is_known else cls()

    def gradient(self, now: Array, before: Array) -> Array:
        """The gradient of the step, from the momentum after and before it; else the momentum."""
        return self._guarded()._gradient(now, before)

    def mean(self, before: Array) -> Array:
        """The mean of the gradients that the momentum remembers, the older ones less."""
        return self._guarded()._mean(before)

    def shows(self) -> Scalar:
        """Whether it shows the gradient of the step."""
        return self.scale != 0

    def _gradient(self, now: Array, before: Array) -> Array:
        return now if self.rho is None else (now - self.rho * before) / self.scale

    def _mean(self, before: Array) -> Array:
        return before if self.rho is None else before * ((1 - self.rho) / self.scale)

    def _guarded(self, xp: Any = None) -> "Momentum":
        """With 1 in place of a scale of 0, which nothing can be divided by."""
        return self._replace(scale=self._scale(xp))

    def _scale(self, xp: Any) -> Scalar:
        if is_number(self.scale):
            return self.scale or 1.0
        xp = xp or namespace(self.scale)
        return xp.where(self.scale == 0, xp.ones_like(self.scale), self.scale)


def true_square(lag_one: Scalar, lag_two: Scalar, remembered: Scalar | None, rho: Scalar) -> Scalar:
    """Square of the true gradient, without what the places remember of the batches' noise.

    ``C1 + ((C1 - C2) + q (C1 - M)) / (rho**2 (1 + 2 rho))`` with
    ``q = (2 rho - 1) (1 + rho)**2 (1 - rho) / rho``. For a walk at rest on a quadratic of curvature
    k its mean is ``1 - (eta k)**2 / (rho (1 + rho) (1 + 2 rho))`` times ``|G|**2``, and for a
    gradient that is the same in all steps it is ``|G|**2``. Without M it is
    ``C1 + (C1 - C2) / rho``, wrong in the first order of ``eta k``, by up to 40 per cent.

    Parameters
    ----------
    lag_one : C1, product of the gradients of successive steps.
    lag_two : C2, product of those two steps apart.
    remembered : M, product of the gradient and the mean gradient in the momentum before it,
        ``(1 - rho) sum_j rho**j g_{n-1-j}``; None where it is not known.
    rho : momentum coefficient in [0.5, 1).

    Returns
    -------
    estimate of ``|G|**2``, of one step a very noisy one

    Examples
    --------
    >>> true_square(3.0, 3.0, 3.0, rho=0.5)
    3.0
    >>> true_square(2.0, 1.0, None, rho=0.5)
    4.0
    """
    if remembered is None:
        return lag_one + (lag_one - lag_two) / rho
    q = (2 * rho - 1) * (1 + rho) * (1 + rho) * (1 - rho) / rho
    both = (lag_one - lag_two) + q * (lag_one - remembered)
    return lag_one + both / (rho * rho * (1 + 2 * rho))


def noise_moments(
    gradients: Iterable[tuple[Array, ...]],
    remembered: Iterable[Array] | None = None,
    *,
    dot: Callable[[Array, Array], Scalar] | None = None,
    xp: Any = None,
) -> Array:
    """Squares and products of the gradients of three successive steps.

    Parameters
    ----------
    gradients : for each parameter its gradients in the measured step, the step before, and the one
        before that. A generator saves memory.
    remembered : for each the mean gradient in the momentum before the measured step,
        :meth:`Momentum.mean`.
    dot, xp : as of :func:`moments`.

    Returns
    -------
    array of shape (4, parameters), or (3, parameters) without ``remembered``: the mean of the three
    squares, the mean of the two products of successive gradients, the product of the first and the
    last, and that with the mean gradient

    Examples
    --------
    >>> import numpy as np
    >>> g = [np.array([1.0, 2.0]), np.array([3.0, 0.0]), np.array([0.0, 1.0])]
    >>> noise_moments([g], [np.array([1.0, 1.0])])[:, 0].tolist()
    [5.0, 1.5, 2.0, 3.0]
    """
    means = None if remembered is None else iter(remembered)
    wide = (tuple(upcast(x, xp or namespace(x)) for x in triple) for triple in gradients)
    return _moments(wide, means and (upcast(x, xp or namespace(x)) for x in means), dot, xp)


def momenta_moments(
    momenta: Sequence[Sequence[Array]],
    rules: Sequence[Sequence[Momentum]],
    *,
    dot: Callable[[Array, Array], Scalar] | None = None,
    xp: Any = None,
) -> Array:
    """As :func:`noise_moments`, of the gradients that momenta show.

    Parameters
    ----------
    momenta : four lists with an array for each parameter: after the measured step, after the step
        before it, and so on.
    rules : three lists with how each went on in the measured step, in the step before, and so on.
    dot, xp : as of :func:`moments`.

    Returns
    -------
    array of shape (4, parameters)

    Examples
    --------
    >>> import numpy as np
    >>> momenta = [[np.array([p])] for p in (1.75, 1.5, 1.0, 0.0)]  # of gradients 1
    >>> momenta_moments(momenta, [[Momentum(0.5, 1.0)]] * 3)[:, 0].tolist()
    [1.0, 1.0, 1.0, 0.75]
    """
    xp = xp or namespace(*momenta[0])
    # Once for all parameters of a rule: an operation on a number costs as much as on an array.
    shown = {id(x): x for step in rules for x in step}
    shown = {key: x._guarded(xp) for key, x in shown.items()}
    columns = zip(zip(*momenta, strict=True), zip(*rules, strict=True), strict=True)
    wide = [([upcast(x, xp) for x in p], [shown[id(x)] for x in how]) for p, how in columns]
    return _moments(
        (tuple(how[i]._gradient(p[i], p[i + 1]) for i in range(3)) for p, how in wide),
        (how[1]._replace(rho=how[0].rho)._mean(p[1]) for p, how in wide),
        dot,
        xp,
    )


def _moments(
    gradients: Iterable[tuple[Array, ...]],
    means: Iterator[Array] | None,
    dot: Callable[[Array, Array], Scalar] | None,
    xp: Any,
) -> Array:
    """As :func:`noise_moments`, of arrays in float32 or better."""
    columns = []
    for now, last, second in gradients:
        xp = xp or namespace(now)
        product = dot or partial(inner_product, xp=xp)
        pairs = [(now, now), (last, last), (second, second), (now, last), (last, second)]
        pairs += [(now, second)] if means is None else [(now, second), (now, next(means))]
        columns.append(xp.stack([product(x, y) for x, y in pairs]))
    table = xp.stack(columns, axis=1)
    squares = (table[0, :] + table[1, :] + table[2, :]) / 3
    successive = (table[3, :] + table[4, :]) / 2
    return concat([xp.stack([squares, successive]), table[5:, :]], xp)


class GradientNoise(NamedTuple):
    """What is remembered of the gradients between two readings; a pytree, which goes through jit.

    Examples
    --------
    The gradient of a batch of 8 is 1 in one coordinate, and in another noise of variance 1/4. A
    batch of 2 would have as much noise as gradient.

    >>> import numpy as np
    >>> layout, noise = Layout.of(["w"], [2]), GradientNoise.empty(np.zeros(2), batch_size=8)
    >>> random = np.random.default_rng(0)
    >>> for _ in range(2000):
    ...     g = [np.array([1.0, x]) for x in random.normal(0, 0.5, 3)]
    ...     noise = noise.add(noise_moments([g], [np.array([1.0, 0.0])]), layout, rho=0.9)
    >>> noise.readings()["critical_batch_size"].round(1)  # of the parameter, then of all
    array([2.1, 2.1])
    >>> noise.readings()["critical_batch_size_error"].round(2)
    array([0.08, 0.08])
    """

    sums: Array  # shape (7, columns): a Ratio of |G|**2 and |g|**2; where rho is not known, or low
    counts: Array  # shape (1,): measured steps
    batch_size: Scalar

    @classmethod
    def empty(cls, zeros: Array, batch_size: Scalar, *, xp: Any = None) -> "GradientNoise":
        """With its counts on the host; the arguments are those of :meth:`Window.empty`."""
        xp = xp or namespace(zeros)
        return cls(xp.stack([zeros] * (_MEANS + 2)), np.zeros(1, np.int64), batch_size)

    def next(self) -> "GradientNoise":
        """That of the next window, which is empty."""
        return self._replace(sums=0 * self.sums, counts=0 * self.counts)

    def add(
        self,
        table: Array,
        layout: Layout,
        rho: Scalar | None,
        *,
        applied: Scalar = True,
        xp: Any = None,
    ) -> "GradientNoise":
        """With one measured step.

        Parameters
        ----------
        table : its :func:`noise_moments`.
        layout : what the columns are.
        rho : momentum coefficient of the step, a number or an array with one of each parameter;
            None, or not in (-1, 1), where it is not known.
        applied : whether its gradients and those of the two steps before it are known; if not,
            nothing is added.
        xp : array namespace, if it is not to be found out.
        """
        xp = xp or namespace(table)
        known, unknown = _split(rho, _is_rho, LEAST_RHO, table[0, :], xp)
        low = xp.where(known < LEAST_RHO, xp.ones_like(known), xp.zeros_like(known))
        known = xp.where(known < LEAST_RHO, LEAST_RHO + xp.zeros_like(known), known)
        mean = table[3, :] if table.shape[0] > 3 else None
        square = true_square(table[1, :], table[2, :], mean, known)
        pooled = layout.pool(xp.stack([square, table[0, :], unknown, low]), xp)
        ratio = Ratio(*(self.sums[i, :] for i in range(_MEANS)))
        measured = self.counts + 1
        ratio = ratio.add(pooled[0, :], pooled[1, :], self._number(measured, xp))
        sums = concat([xp.stack(list(ratio)), self.sums[_MEANS:, :] + pooled[2:, :]], xp)
        return self._replace(
            sums=_where(applied, sums, self.sums, xp),
            counts=_where(applied, measured, self.counts, xp),
        )

    def measure(
        self,
        momenta: Sequence[Sequence[Array]],
        rules: Sequence[Momentum],
        layout: Layout,
        *,
        applied: Scalar = True,
        dot: Callable[[Array, Array], Scalar] | None = None,
        xp: Any = None,
    ) -> "GradientNoise":
        """As :meth:`add`, of momenta that go on by the same rule for all parameters.

        Parameters
        ----------
        momenta, rules, dot : as of :func:`momenta_moments`, a rule for each step.
        layout, applied, xp : as of :meth:`add`.
        """
        steps = [[rule] * len(momenta[0]) for rule in rules]
        table = momenta_moments(momenta, steps, dot=dot, xp=xp)
        for rule in rules:
            applied = applied & rule.shows()
        return self.add(table, layout, rules[0].rho, applied=applied, xp=xp)

    def readings(self) -> dict[str, Any]:
        """The readings, with a value for each parameter, each group and all.

        Returns
        -------
        dict of float64 NumPy arrays of shape (columns,), NaN where something is not known:

        gradient_norm : root mean square of the norm of the true gradient, ``|G|``.
        gradient_noise : trace of the covariance of the gradient of one example, ``tr S``, as it
            follows from that of a batch; 0 where less than nothing is left.
        critical_batch_size : ``tr S / |G|**2``, McCandlish's simple noise scale, with which a batch
            has as much noise as gradient.
        critical_batch_size_error : its standard error, from the scatter of the measured steps.
        """
        sums = np.asarray(self.sums, np.float64)
        ratio, batch = Ratio(*sums[:_MEANS]), float(self.batch_size)
        n = float(np.asarray(self.counts)[0])
        known = _or_nan((sums[_MEANS:] == 0).all(axis=0) & (n >= LEAST_STEPS))
        with np.errstate(all="ignore"):
            excess, error = ratio.read(n)
            spread = np.sqrt(ratio.below_spread / (n * (n - 1)))
            clear = known * _or_nan(ratio.below > DROWNED * spread)
            values = (
                np.sqrt(_or_nan(ratio.below)) * clear,
                batch * np.maximum(ratio.above - ratio.below, 0) * known,
                batch * np.maximum(excess - 1, 0) * clear,
                batch * error * clear,
            )
        return dict(zip(NOISE_READINGS, values, strict=True))

    def why_unknown(self, reason: str = "") -> str | None:
        """Why there is no critical batch size of all parameters together; None if there is.

        Parameters
        ----------
        reason : why the momentum is not known, if it is not.
        """
        if np.isfinite(self.readings()["critical_batch_size"][-1]):
            return None
        n, (unknown, low) = int(np.asarray(self.counts)[0]), np.asarray(self.sums)[_MEANS:, -1]
        if unknown > 0 or reason:
            why = f"the momentum of some parameters is not known{reason and f', {reason}'}"
        elif low > 0:
            why = f"the momentum of some parameters is below {LEAST_RHO:g}, which is too little"
        elif n < LEAST_STEPS:
            why = f"{n} steps of this window were measured, and it takes {LEAST_STEPS}"
        else:
            why = (
                f"the gradient is drowned in the noise of the {n} steps that were measured: read "
                "less often, or take larger batches"
            )
        return f"no critical_batch_size: {why}"

    def _number(self, count: Array, xp: Any) -> Scalar:
        """The count as a float, or in the dtype of the sums."""
        if isinstance(count, np.ndarray):
            return float(count[0])
        return _number_like(count[0], self.sums, xp)


def _is_nan(x: Scalar) -> bool:
    return is_number(x) and math.isnan(x)


def check_gradient_noise(gradient_noise: bool, batch_size: int | None, every: int) -> int | None:
    """The batch size if the gradient noise is wanted, else None.

    Parameters
    ----------
    gradient_noise : whether it is.
    batch_size : examples in a step, over all processes and accumulated batches.
    every : one step in this many is measured.

    Returns
    -------
    the batch size as an int, or None

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or one is given without the other.

    Examples
    --------
    >>> check_gradient_noise(True, 64, every=10)
    64
    """
    if not _check.flag("gradient_noise", gradient_noise):
        if batch_size is not None:
            raise ValueError(f"batch_size needs gradient_noise=True: {batch_size!r}")
        return None
    if batch_size is None:
        raise ValueError("batch_size must be given with gradient_noise=True: None")
    batch_size = _check.integer("batch_size", batch_size, 1)
    if every < BLOCK:
        raise ValueError(f"every must be >= {BLOCK} with gradient_noise=True: {every!r}")
    return batch_size
