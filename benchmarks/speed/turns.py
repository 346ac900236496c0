"""Contenders take turns in one process, so that what slows the machine slows all of them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Contenders = Mapping[str, Callable[[], object]]
COPY = "copy"  # of as many float32 numbers as there are parameters, with NumPy


def take_turns(
    benchmark: Any,
    contenders: Contenders,
    *,
    parameters: int,
    tensors: int,
    baselines: tuple[str, ...] = (),
    counts: Mapping[str, Mapping[str, float]] | None = None,
    steps: int = 1,
    rounds: int | None = None,
) -> None:
    """Measure the contenders and a copy by turns; ``benchmark.extra_info`` gets every time.

    Parameters
    ----------
    benchmark : the fixture of pytest-benchmark. What it times itself is a round of all.
    contenders : by name what to call; each call must have ended when it returns.
    steps : how many steps one such call is; times are those of one.
    parameters, tensors : how many there are.
    baselines : names of contenders that the others are divided by.
    counts : what was counted rather than timed, by contender.
    rounds : how often each has its turn; by default fewer for more parameters.
    """
    every = {**contenders, COPY: copier(parameters, steps)}
    rounds = rounds or (100 if parameters < 10**6 else 30 if parameters < 10**8 else 10)
    seconds: dict[str, dict[str, list[float]]] = {n: {"cpu": [], "wall": []} for n in every}
    calls = {name: _calls(call) for name, call in every.items()}

    def turn() -> None:
        for name in reversed(every) if len(seconds[COPY]["cpu"]) % 2 else every:
            call, times = every[name], calls[name]
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(times):
                call()
            seconds[name]["cpu"].append((time.process_time() - cpu) / times / steps)
            seconds[name]["wall"].append((time.perf_counter() - wall) / times / steps)

    benchmark.pedantic(turn, rounds=rounds)
    benchmark.extra_info.update(
        parameters=parameters,
        tensors=tensors,
        baselines=list(baselines),
        counts={name: dict(counted) for name, counted in (counts or {}).items()},
        seconds=seconds,
    )


def copier(size: int, times: int) -> Callable[[], object]:
    """A copy of that many float32 numbers, 8 bytes moved for each, so many times."""
    source, target = np.ones(size, np.float32), np.zeros(size, np.float32)

    def copy() -> None:
        for _ in range(times):
            np.copyto(target, source)

    return copy


def _calls(call: Callable[[], object]) -> int:
    """How many calls make some 5 ms, so that clocks are fine enough. Warms up as well."""
    call()
    start = time.perf_counter()
    call()
    return max(1, min(200, round(0.005 / max(time.perf_counter() - start, 1e-7))))
