"""Training in Keras on JAX."""

from benchmarks.training._solver import TrainingSolver


class Solver(TrainingSolver):
    """Keras on JAX."""

    name = "keras_jax"
