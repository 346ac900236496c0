"""A function of tensors as one CUDA graph: launched as a whole, not kernel by kernel."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["recorded"]

Result = TypeVar("Result")
Replay = Callable[[], object]

WARM_UP = 3  # calls before the recording, in which libraries choose kernels and take their memory


def _cuda_graph(function: Callable[[], Result]) -> tuple[Replay, Result]:
    """What repeats the kernels of the function, and where they leave its result."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # not typed in PyTorch
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function()
    graph = torch.cuda.CUDAGraph()
    # The same stream: the nodes of autograd that were made in the warm-up belong to it.
    with torch.cuda.graph(graph, stream=stream):
        result = function()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay, result


def recorded(
    function: Callable[..., Result],
    *example: Tensor,
    record: Callable[[Callable[[], Result]], tuple[Replay, Result]] = _cuda_graph,
) -> Callable[..., Result]:
    """The function, whose kernels are launched together, for arguments like those of the example.

    It is called with the example a few times, and never again: of Python only what it did then is
    repeated. The next call overwrites the result of the last one, as it does whatever else the
    function has written.
    """
    arguments = [tensor.clone() for tensor in example]
    replay, result = record(lambda: function(*arguments))

    def repeat(*new: Tensor) -> Result:
        for argument, tensor in zip(arguments, new, strict=True):
            argument.copy_(tensor)
        replay()
        return result

    return repeat
