"""The thermometer: what the successive displacements of any optimizer say of its temperature.

Equation numbers are those of Borysenko and Byshkin, Scientific Reports 11, 10705 (2021).

An adapter answers three questions: which step this is, what moved in it, and what the optimizer's
momentum coefficient rho and squared time step dt**2 are. All else is here:

- :class:`Sampling` says which steps to measure, and where spans begin and end;
- :func:`moments` makes one table of a measured step: squares and products of displacements;
- :class:`Window` adds the tables up, in two arrays;
- :class:`Layout` names what the columns stand for: parameters, then groups, then all together;
- :func:`report` makes plain dicts of a window;
- :class:`Dynamics` and the functions named for optimizers give rho, dt**2 and masses;
- :class:`GradientNoise` beside a window gives the critical batch size, where that is wanted.

>>> import numpy as np
>>> sampling, layout = Sampling(every=1, span=2), Layout.from_paths([("w",)], sizes=[2])
>>> window = Window.empty(np.zeros(len(layout)))
>>> before = [np.zeros(2)]
>>> for n, now in enumerate([[np.array([3.0, 4.0])], [np.array([4.0, 3.0])]], 1):
...     window = window.step()
...     if sampling.measures(n):
...         table = moments(now, before)
...         window = window.add(table, layout, Dynamics(rho=0.5, dt2=0.5), paired=n > 1)
...     before = now
>>> reading = report(window, layout)
>>> reading["steps"], reading["rescaled_temperature"], reading["temperature"]
(2, 12.5, 25.0)
"""

from coolmomentum.thermometer.dynamics import Bath, Dynamics, adagrad, adam, rms_mass, rmsprop, sgd
from coolmomentum.thermometer.freeze_out import FreezeOut
from coolmomentum.thermometer.layout import Layout
from coolmomentum.thermometer.moments import moments
from coolmomentum.thermometer.noise import (
    BLOCK,
    NOISE_READINGS,
    GradientNoise,
    Momentum,
    check_gradient_noise,
    momenta_moments,
    noise_moments,
    true_square,
)
from coolmomentum.thermometer.report import By, known, report, why_hotter, why_unmeasured
from coolmomentum.thermometer.sampling import EVERY, FIRST, SPAN, Sampling
from coolmomentum.thermometer.window import COUNTS, READINGS, SUMS, Window

__all__ = [
    "BLOCK",
    "COUNTS",
    "EVERY",
    "FIRST",
    "NOISE_READINGS",
    "READINGS",
    "SPAN",
    "SUMS",
    "Bath",
    "By",
    "Dynamics",
    "FreezeOut",
    "GradientNoise",
    "Layout",
    "Momentum",
    "Sampling",
    "Window",
    "adagrad",
    "adam",
    "check_gradient_noise",
    "known",
    "momenta_moments",
    "moments",
    "noise_moments",
    "report",
    "rms_mass",
    "rmsprop",
    "sgd",
    "true_square",
    "why_hotter",
    "why_unmeasured",
]
