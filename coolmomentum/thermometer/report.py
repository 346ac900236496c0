"""The readings of a window by the names of its layout, as plain dicts."""

import math
from typing import Any, Literal

from coolmomentum import _check
from coolmomentum.thermometer.layout import Layout
from coolmomentum.thermometer.noise import GradientNoise
from coolmomentum.thermometer.sampling import FIRST, Sampling
from coolmomentum.thermometer.window import Window

By = Literal["all", "group", "parameter"]


def report(
    window: Window, layout: Layout, by: By = "all", noise: GradientNoise | None = None
) -> dict[Any, Any]:
    """The readings of a window as plain dicts.

    Parameters
    ----------
    window : its arrays are such that NumPy can read them.
    layout : what its columns are.
    by : "all" pools all parameters; "group" and "parameter" give each apart.
    noise : of the gradients in the window, where it is measured.

    Returns
    -------
    dict with "steps" and :data:`coolmomentum.thermometer.READINGS` as floats, NaN where something
    is not known (:meth:`Window.readings`), with noise :data:`NOISE_READINGS` too
    (:meth:`GradientNoise.readings`); apart, a dict of such dicts by the labels of the layout

    Raises
    ------
    TypeError, ValueError
        If ``by`` is none of the three.
    """
    _check.one_of("by", by, ("all", "group", "parameter"))
    readings, steps = window.readings(layout), int(window.counts[0])
    readings |= {} if noise is None else noise.readings()

    def column(i: int) -> dict[str, float]:
        return {"steps": steps} | {name: float(values[i]) for name, values in readings.items()}

    if by == "all":
        return column(-1)
    names = layout.parameters if by == "parameter" else layout.groups
    first = 0 if by == "parameter" else len(layout.parameters)
    return {name: column(first + i) for i, name in enumerate(names)}


def known(reading: dict[str, float]) -> dict[str, float]:
    """The readings that exist, for a log: those that are not NaN.

    Parameters
    ----------
    reading : of :func:`report`, all parameters pooled.

    Returns
    -------
    dict without those that are NaN

    Examples
    --------
    >>> known({"steps": 2, "temperature": 0.5, "freeze_out": float("nan")})
    {'steps': 2, 'temperature': 0.5}
    """
    return {name: value for name, value in reading.items() if value == value}


def why_unmeasured(window: Window, sampling: Sampling | None = None) -> str | None:
    """Why a window that has seen steps reads NaN throughout; None if it does not.

    Parameters
    ----------
    window : its counts are such that NumPy can read them.
    sampling : of the thermometer, to name its ``every``.

    Returns
    -------
    the text of a warning, or None

    Examples
    --------
    >>> import numpy as np
    >>> window = Window.empty(np.zeros(2)).step(5)
    >>> why_unmeasured(window)[:53]
    'no reading: none of the 5 steps of this window was me'
    """
    steps, measured = (int(window.counts[i]) for i in (0, 1))
    if measured or not steps:
        return None
    every = "every" if sampling is None else f"every={sampling.every}"
    return (
        f"no reading: none of the {steps} steps of this window was measured; after the first "
        f"{FIRST} steps one in {every} is, so read less often or lower every"
    )


def why_hotter(reading: dict[str, float], layout: Layout) -> str | None:
    """Why a walk reads more than 5 per cent hotter than its bath; None if it does not.

    Three standard errors of free diffusion are allowed beside.

    Parameters
    ----------
    reading : of all parameters, of :func:`report`.
    layout : of the window.

    Returns
    -------
    the text of a warning, or None

    Examples
    --------
    >>> reading = {"steps": 1000, "bath_ratio": 3.9, "correlation": 0.9}
    >>> why_hotter(reading, Layout.of(["w"], [1000]))[:51]
    'the walk is 3.9 times as hot as its bath: minibatch'
    >>> why_hotter(reading | {"bath_ratio": 1.04}, Layout.of(["w"], [1000]))
    """
    ratio, c = reading["bath_ratio"], reading["correlation"]
    samples = max(reading["steps"] * sum(layout.sizes), 1)
    error = math.sqrt(2 * (1 + c * c) / max(1 - c * c, 1e-9) / samples)
    if not ratio > 1.05 + 3 * ratio * error:  # nor if one of them is NaN
        return None
    return (
        f"the walk is {ratio:.3g} times as hot as its bath: minibatch gradients heat it, or "
        "the step is too large for the loss (lower the learning rate), or the walk escapes"
    )
