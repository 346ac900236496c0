"""The temperature that Eq. 19 predicts from measured gradient noise, for any framework's arrays."""

from typing import Any

from coolmomentum import noise_temperature, rescaled_temperature

__all__ = ["gradient_noise", "predicted_rescaled_temperature"]


def gradient_noise(first: Any, second: Any, *, xp: Any = None) -> Any:
    """Variance <R**2> of one coordinate of a minibatch gradient, all coordinates pooled.

    ``mean((first - second)**2) / 2`` is unbiased if the two gradients are those of independent
    minibatches at the same weights: their common mean drops out.
    """
    return rescaled_temperature(first - second, xp=xp) / 2  # a mean of squares is what that is


def predicted_rescaled_temperature(
    first: Any, second: Any, lr: Any, rho: Any, *, xp: Any = None
) -> Any:
    """Rescaled temperature T dt**2 at which that noise and the friction balance, Eq. 19."""
    return noise_temperature(gradient_noise(first, second, xp=xp), lr, rho) * lr
