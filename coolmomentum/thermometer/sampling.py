"""Which steps a thermometer measures."""

from dataclasses import dataclass
from typing import Any

from coolmomentum import _check
from coolmomentum._arrays import is_number, namespace

EVERY = 10  # of the later steps one in this many is measured
SPAN = 100  # steps over which the freeze-out meter follows the parameters
FIRST = 10  # steps at the beginning, each of which is measured

Step = Any  # the number of a step: a Python int or a traced 0-d integer array
Flag = Any  # a bool, or a 0-d boolean array


@dataclass(frozen=True)
class Sampling:
    """Measure each of the first ten steps, then one in ``every``; spans are ``span`` steps long.

    Steps count from 1. Python ints give bools and ints; traced integers give traced arrays.

    Parameters
    ----------
    every : integer >= 1.
    span : a multiple of ``every``.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    >>> sampling = Sampling(every=5, span=20)
    >>> [n for n in range(1, 31) if sampling.measures(n)]
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 25, 30]
    >>> [n for n in range(1, 41) if sampling.begins_span(n)]
    [1, 21]
    >>> [n for n in range(1, 41) if sampling.ends_span(n)]
    [20, 40]
    """

    every: int = EVERY
    span: int = SPAN

    def __post_init__(self) -> None:
        every, span = _check.integer("every", self.every, 1), _check.integer("span", self.span, 1)
        if span % every:
            raise ValueError(f"span must be a multiple of every, {every}: {self.span!r}")
        object.__setattr__(self, "every", every)
        object.__setattr__(self, "span", span)

    def measures(self, n: Step) -> Flag:
        """Whether step n is measured."""
        return (n % self.every == 0) | (n <= FIRST)

    def precedes(self, n: Step) -> Flag:
        """Whether the step after n is measured, which is compared with n."""
        return self.measures(n + 1)

    def steps_to_noise(self, n: Step) -> Step:
        """Steps after n to the next in which the gradient noise is measured, one in ``every``.

        With 0 it is n itself, with 1 and 2 the gradient of n is needed, with 3 the momentum.

        >>> [Sampling(every=5, span=5).steps_to_noise(n) for n in range(1, 11)]
        [4, 3, 2, 1, 0, 4, 3, 2, 1, 0]
        """
        return (self.every - n % self.every) % self.every

    def begins_span(self, n: Step) -> Flag:
        """Whether a span begins with step n: it is followed from the parameters before it."""
        return n % self.span == 1 % self.span

    def ends_span(self, n: Step) -> Flag:
        """Whether a span ends with step n, which is measured."""
        return n % self.span == 0

    def weight(self, n: Step, *, xp: Any = None) -> Step:
        """How many steps a measured step stands for: those since the measured one before it.

        With it the mean of a window is that of its steps, though the first ones are all measured.

        >>> sampling = Sampling(every=4, span=4)
        >>> [(n, sampling.weight(n)) for n in range(9, 21) if sampling.measures(n)]
        [(9, 1), (10, 1), (12, 2), (16, 4), (20, 4)]
        """
        over = n - FIRST
        if is_number(n):
            return min(max(over, 1), self.every)
        return (xp or namespace(n)).clip(over, 1, self.every)
