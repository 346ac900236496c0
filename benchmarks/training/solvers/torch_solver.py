"""Training in PyTorch."""

from benchmarks.training._solver import TrainingSolver


class Solver(TrainingSolver):
    """PyTorch."""

    name = "torch"
