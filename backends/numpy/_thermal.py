"""A heat bath for the reference optimizer: the random force of the core, added to gradients."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, get_args

import numpy as np
from array_api_compat import array_namespace, device

from coolmomentum import _check
from coolmomentum._arrays import is_kind
from coolmomentum.numpy._optimizer import CoolMomentum, State
from coolmomentum.thermal import Noise, bath_temperature, draw_key, random_force, random_force_scale

Array = Any  # an array of any array-API namespace


@dataclass(frozen=True)
class ThermalNoise:
    """The random force of a heat bath, which makes :class:`CoolMomentum` sample and anneal.

    With it the walk samples ``exp(-loss / temperature)``, whatever rho is and however it cools. The
    normal numbers are drawn anew in each step from the seed, the place of the parameter and the
    clock of the state, so a run that goes on from a saved state draws as one that never stopped.

    Parameters
    ----------
    temperature : of the bath, an energy in the unit of the loss, >= 0; or a function of the step.
        For a loss that is a mean over n data the posterior is at 1 / n.
    noise : "averaged" over two steps, exact on every quadratic; or "white", Eq. 17 as it stands.
    seed : integer >= 0.
    normals : in place of the seed, a function of parameter, step and shape that gives the unit
        normal numbers.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    On ``k x**2 / 2`` the mean of ``k x**2`` is the temperature, whatever k is.

    >>> import numpy as np
    >>> from coolmomentum.numpy import CoolMomentum, ThermalNoise
    >>> optimizer = CoolMomentum(learning_rate=0.5, law="constant", rho0=0.5)
    >>> bath, k = ThermalNoise(temperature=1.0), np.array([[4.0], [1.0]])
    >>> params = [np.zeros((2, 50_000))]
    >>> state = optimizer.init(params)
    >>> for _ in range(30):
    ...     gradients = bath.add([k * x for x in params], state, optimizer)
    ...     params, state = optimizer.step(params, gradients, state)
    >>> np.mean(k * params[0] ** 2, axis=1).round(1)
    array([1., 1.])
    """

    temperature: float | Callable[[int], float]
    _: KW_ONLY
    noise: Noise = "averaged"
    seed: int = 0
    normals: Callable[[int, int, tuple[int, ...]], Array] | None = None

    def __post_init__(self) -> None:
        if not callable(self.temperature):
            number = _check.non_negative("temperature", self.temperature)
            object.__setattr__(self, "temperature", number)
        _check.one_of("noise", self.noise, get_args(Noise))
        object.__setattr__(self, "seed", _check.integer("seed", self.seed, 0))

    def temperature_at(self, step: int) -> float:
        """Temperature of the bath in a step.

        Raises
        ------
        ValueError
            If a function of your own gives one that is negative or not finite.
        """
        return bath_temperature(self.temperature, step)

    def add(
        self, gradients: Sequence[Array | None], state: State, optimizer: CoolMomentum
    ) -> list[Array | None]:
        """The gradients less the random force of the next step; None stays None.

        Parameters
        ----------
        gradients : of the loss, floating arrays; complex ones feel a force in both parts.
        state : of the optimizer, before the step.
        optimizer : whose step follows.
        """
        scale = random_force_scale(
            self.temperature_at(state.step), optimizer.learning_rate, optimizer.rho(state)
        )
        return [
            None if g is None else g - self._force(i, g, state.step, scale)
            for i, g in enumerate(gradients)
        ]

    def _force(self, parameter: int, gradient: Array, step: int, scale: float) -> Array:
        xp = array_namespace(gradient)
        parts = (2,) if is_kind(gradient, "complex floating", xp) else ()
        shape = (*gradient.shape, *parts)
        now, following = (self._normals(parameter, n, shape) for n in (step, step + 1))
        force = np.asarray(random_force(now, following, scale, noise=self.noise))
        if parts:
            force = force[..., 0] + 1j * force[..., 1]
        return xp.asarray(force, dtype=gradient.dtype, device=device(gradient))

    def _normals(self, parameter: int, step: int, shape: tuple[int, ...]) -> Array:
        if step == 0 and self.noise == "averaged":
            return np.zeros(shape)
        if self.normals is not None:
            return self.normals(parameter, step, shape)
        return np.random.default_rng(draw_key(self.seed, parameter, step)).standard_normal(shape)
