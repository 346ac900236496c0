"""Training in JAX, with flax and optax."""

from benchmarks.training._solver import TrainingSolver


class Solver(TrainingSolver):
    """JAX, with flax and optax."""

    name = "jax"
