"""What the suite asks of a path of an adapter: a driver, which makes runs.

 A run is an optimizer with its parameters, fed with given gradients; everything
goes in and comes out as NumPy arrays and Python floats.
"""

import collections
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from bounds import RHO, Precision

from coolmomentum import numpy as cool_numpy

Arrays = list[np.ndarray]
DTYPES: Sequence[str] = ("float64", "float32", "bfloat16", "float16")
HALF: Sequence[str] = DTYPES[2:]


class Run(Protocol):
    """One optimizer and its parameters."""

    def step(self, gradients: Arrays) -> None:
        """Take one step."""

    def skip(self) -> None:
        """Meet gradients that are not finite, as mixed precision does, and take no step."""

    def set_lr(self, lr: float) -> None:
        """Use another learning rate from now on."""

    def add(self, params: Arrays) -> None:
        """Go on with these parameters as well."""

    def params(self) -> Arrays:
        """The parameters."""

    def displacements(self) -> Arrays:
        """The last change of each."""

    def clock(self) -> int:
        """Steps taken."""

    def rho(self) -> float:
        """Momentum coefficient that the next step will use."""

    def temperature(self) -> float:
        """Of the last step, pooled."""

    def reloaded(self) -> "Run":
        """A fresh run that was given this one's checkpoint, in the framework's own format."""


class Driver:
    """Makes runs of one path in one dtype; the defaults are those of a path that can do all."""

    dtype: str
    displacement_dtype: str = ""  # if it is not that of the parameters
    flushes: ClassVar[bool] = False  # see Precision
    layouts: ClassVar[Sequence[str]] = ("C",)  # "F" and "gaps" where arrays have strides
    decoupled: ClassVar[bool] = True  # whether it has decoupled weight decay
    maximize: ClassVar[bool] = True
    # How dear a step is. Above 1 the usual run draws fewer examples, always of the same shapes.
    cost: int = 1
    # How many sets of settings it draws from where each compiles anew; 0 for no limit.
    max_compilations: int = 0

    rho_roundings: int = RHO
    schedule_dtype: str = ""

    @property
    def decay_dtype(self) -> str:
        """See Precision; that of the arithmetic."""
        return ""

    @property
    def precision(self) -> Precision:
        """What the bounds follow from."""
        return Precision(
            self.dtype,
            self.displacement_dtype or self.dtype,
            self.flushes,
            self.decay_dtype,
            self.rho_roundings,
            self.schedule_dtype,
        )

    @property
    def half(self) -> bool:
        """Whether it stores what it does not compute in."""
        return self.dtype in HALF

    @property
    def unsupported(self) -> Mapping[str, str]:
        """Methods of its runs that the framework has no counterpart of, and why."""
        return {}

    def make(
        self,
        params: Arrays,
        lr: float,
        cooling: Any,
        decay: float,
        decoupled: bool = False,
        maximize: bool = False,
    ) -> Run:
        """A run from ``params`` with coupled or decoupled weight decay, down the gradients or up.

        ``cooling`` is a CoolingSchedule or a callable ``step -> rho``.
        """
        raise NotImplementedError

    def momentum_sgd(
        self, params: Arrays, gradients: Sequence[Arrays], lr: float, momentum: float, decay: float
    ) -> Arrays:
        """Where the framework's own momentum SGD gets to, with coupled weight decay."""
        raise NotImplementedError


class Pool:
    """Programs that are dear to compile, for another run once theirs is gone."""

    def __init__(self) -> None:
        self.idle: dict[Hashable, list[Any]] = collections.defaultdict(list)

    def take(self, owner: object, key: Hashable, make: Callable[[], Any]) -> Any:
        """An idle program of this key, or a new one; it is idle again when ``owner`` is dead."""
        idle = self.idle[key]
        program = idle.pop() if idle else make()
        weakref.finalize(owner, idle.append, program)
        return program


# --- the reference -----------------------------------------------------------------------------


@dataclass
class Oracle:
    """A float64 run of coolmomentum.numpy, which the others are held to."""

    xs: Arrays
    lr: float
    cooling: Any
    decay: float
    decoupled: bool = False
    maximize: bool = False
    state: Any = field(init=False)

    def __post_init__(self):
        self.xs = list(self.xs)
        self.state = self.optimizer().init(self.xs)

    def optimizer(self) -> cool_numpy.CoolMomentum:
        """With the present learning rate."""
        return cool_numpy.CoolMomentum(
            learning_rate=self.lr,
            schedule=self.cooling,
            weight_decay=self.decay,
            decoupled_weight_decay=self.decoupled,
            maximize=self.maximize,
        )

    def step(self, gradients: Arrays) -> None:
        """Take one step."""
        self.xs, self.state = self.optimizer().step(self.xs, gradients, self.state)

    def add(self, params: Arrays) -> None:
        """More parameters, at rest."""
        at_rest = self.optimizer().init(params).displacements
        self.xs += params
        self.state = self.state._replace(displacements=self.state.displacements + at_rest)
