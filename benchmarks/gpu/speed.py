"""Time of a step on this device, beside other optimizers and a copy, as shares of its bandwidth.

A step of momentum SGD reads parameters, gradients and momenta, and writes parameters and momenta:
five times the bytes of the parameters; a copy moves twice the bytes of what is copied. The share is
the step's bytes by its time, over a large copy's bytes by its time.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.speed.shapes import Shapes, resnet20, resnet50
from benchmarks.training._files import write_whole

__all__ = ["main"]

SIZES: dict[str, Shapes] = {
    "65 tensors, 270 thousand": resnet20(),
    "161 tensors, 25.6 million": resnet50(),
    "64 tensors, 1.07 billion": [(4096, 4096)] * 64,
}
MINIATURE: dict[str, Shapes] = {"3 tensors": [(8, 3), (5,), (7,)]}
DTYPES = ("float32", "bfloat16")
MOVED = 5  # tensors that a step reads and writes
COPIED = 256 * 1024 * 1024  # numbers in the large copy
ROUNDS = 7
COOLING: dict[str, Any] = {"lr": 0.01, "total_steps": 10**6}
SGD: dict[str, Any] = {"lr": 0.01, "momentum": 0.9}
Step = Callable[[], object]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a line for each case, and write all so far after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.speed", description=__doc__)
    parser.add_argument("framework", choices=["torch", "jax"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--miniature", action="store_true")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    measure = {"torch": _torch, "jax": _jax}[options.framework]
    sizes, copied = (MINIATURE, 1000) if options.miniature else (SIZES, COPIED)
    lines: list[dict[str, Any]] = []
    bandwidth = 0.0  # bytes a second, of the large copy
    for size, dtype, name, numbers, seconds in measure(options.device, sizes, copied):
        moved = (2 if "copy" in name else MOVED) * numbers * (4 if dtype == "float32" else 2)
        rate = moved / seconds
        bandwidth = bandwidth or rate
        lines.append(
            {
                "framework": options.framework,
                "parameters": size,
                "dtype": dtype,
                "step": name,
                "seconds": seconds,
                "bytes": moved,
                "share_of_bandwidth": rate / bandwidth,
            }
        )
        print(
            f"{size:26} {dtype:8} {name:28} {seconds * 1e6:9.1f} us {rate / 1e9:7.1f} GB/s "
            f"{rate / bandwidth:6.1%}",
            flush=True,
        )
        write_whole(options.file, (json.dumps(lines, indent=1) + "\n").encode())
    return 0


def _rounds(once: Callable[[int], float]) -> float:
    """Median seconds of one of many steps, as many as take some 20 ms."""
    once(3)
    first = once(10) / 10
    many = int(min(max(0.02 / max(first, 1e-7), 3), 300))
    return median(once(many) / many for _ in range(ROUNDS))


# --- PyTorch --------------------------------------------------------------------------------------


def _torch(device: str, sizes: dict[str, Shapes], copied: int) -> Any:
    import torch

    from coolmomentum.torch import CoolMomentum

    def timed(step: Step, times: int) -> float:
        if device == "cpu":
            begun = time.perf_counter()
            for _ in range(times):
                step()
            return time.perf_counter() - begun
        begin, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # not typed
            for _ in range(2)
        )
        begin.record()
        for _ in range(times):
            step()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def graph(step: Step) -> Step:
        """Its kernels in a CUDA graph."""
        if device == "cpu":
            return step
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # not typed in PyTorch
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded, stream=stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        return recorded.replay

    source = torch.ones(copied, device=device)
    copy: Step = partial(torch.empty_like(source).copy_, source)
    yield f"{copied} numbers", "float32", "one copy", copied, _rounds(partial(timed, copy))
    del source, copy
    ours, theirs = partial(CoolMomentum, **COOLING), partial(torch.optim.SGD, **SGD)
    makers: dict[str, tuple[Callable[..., Any], Callable[[Step], Step]]] = {
        "CoolMomentum": (ours, lambda step: step),
        "CoolMomentum, fused": (partial(ours, fused=True), lambda step: step),
        "CoolMomentum, foreach": (partial(ours, foreach=True), lambda step: step),
        "CoolMomentum, capturable": (partial(ours, capturable=True), lambda step: step),
        "CoolMomentum, in a graph": (partial(ours, capturable=True), graph),
        "torch.optim.SGD": (theirs, lambda step: step),
        "torch.optim.SGD, fused": (partial(theirs, fused=True), lambda step: step),
        "torch.optim.SGD, foreach": (partial(theirs, foreach=True), lambda step: step),
    }
    for size, shapes in sizes.items():
        numbers = sum(map(prod, shapes))
        for dtype in DTYPES:
            own: Any = {"dtype": getattr(torch, dtype), "device": device}
            params = [torch.zeros(shape, **own, requires_grad=True) for shape in shapes]
            for param in params:
                param.grad = torch.full_like(param, 1e-3)
            grads = [param.grad for param in params]
            copies = [torch.empty_like(grad) for grad in grads if grad is not None]
            copy = partial(torch._foreach_copy_, copies, grads)  # type: ignore[arg-type]
            yield size, dtype, "copy of each", numbers, _rounds(partial(timed, copy))
            del copies, copy
            for name, (make, wrap) in makers.items():
                optimizer = make(params)
                optimizer.step()
                yield size, dtype, name, numbers, _rounds(partial(timed, wrap(optimizer.step)))
                del optimizer


# --- JAX ------------------------------------------------------------------------------------------


def _jax(device: str, sizes: dict[str, Shapes], copied: int) -> Any:
    import jax
    import jax.numpy as jnp
    import optax

    from coolmomentum.jax import cool_momentum

    (where, *_) = jax.devices("gpu" if device == "cuda" else "cpu")

    def timed(step: Callable[[Any], Any], carried: list[Any], times: int) -> float:
        state = carried.pop()  # its memory is given away
        jax.block_until_ready(state)  # type: ignore[no-untyped-call]  # not typed in JAX
        begun = time.perf_counter()
        for _ in range(times):
            state = step(state)
        jax.block_until_ready(state)  # type: ignore[no-untyped-call]  # not typed in JAX
        carried.append(state)
        return time.perf_counter() - begun

    def copy(x: Any) -> Any:
        """Reads all and writes all; what is not changed would not be copied."""
        return x + np.float32(1)

    with jax.default_device(where):
        copying = partial(timed, jax.jit(copy, donate_argnums=0), [jnp.ones(copied)])
        yield f"{copied} numbers", "float32", "one copy", copied, _rounds(copying)
        for size, shapes in sizes.items():
            numbers = sum(map(prod, shapes))
            for dtype in DTYPES:
                grads = [jnp.full(shape, 1e-3, dtype) for shape in shapes]
                for name, optimizer in {
                    "coolmomentum.jax": cool_momentum(0.01, 10**6),
                    "optax.sgd": optax.sgd(0.01, 0.9),
                }.items():

                    def step(carried: Any, grads: Any, of: Any = optimizer) -> Any:
                        params, state = carried
                        updates, state = of.update(grads, state, params)
                        return optax.apply_updates(params, updates), state

                    jitted = jax.jit(step, donate_argnums=0)
                    params = [jnp.zeros(shape, dtype) for shape in shapes]
                    carried: list[Any] = [(params, optimizer.init(params))]
                    del params
                    seconds = _rounds(partial(timed, partial(_beside, jitted, grads), carried))
                    yield size, dtype, name, numbers, seconds


def _beside(step: Callable[..., Any], grads: Any, carried: Any) -> Any:
    return step(carried, grads)


if __name__ == "__main__":
    sys.exit(main())
