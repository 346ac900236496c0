"""Training in PyTorch."""

from typing import Any, ClassVar

from benchmarks.training._frameworks import OPTIONS
from benchmarks.training._solver import TrainingSolver


class Solver(TrainingSolver):
    """PyTorch."""

    name = "torch"
    parameters: ClassVar[dict[str, list[Any]]] = TrainingSolver.parameters | {
        option: [False] for option in OPTIONS["torch"]
    }
