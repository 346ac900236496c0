"""Training in Keras on PyTorch."""

from benchmarks.training._solver import TrainingSolver


class Solver(TrainingSolver):
    """Keras on PyTorch."""

    name = "keras_torch"
