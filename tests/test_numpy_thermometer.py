"""The thermometer over lists of arrays: its window is that of the displacements themselves."""

import re

import numpy as np
import pytest
from libraries import libraries

from coolmomentum.numpy import CoolMomentum, Thermometer
from coolmomentum.thermometer import (
    READINGS,
    SUMS,
    Dynamics,
    Layout,
    Sampling,
    Window,
    moments,
    report,
)


@pytest.mark.parametrize("in_place", [False, True], ids=["new arrays", "in place"])
@pytest.mark.parametrize(("every", "span"), [(1, 3), (2, 4), (3, 6)])
def test_it_reads_the_displacements(every, span, in_place):
    """With CoolMomentum every reading is that of its own displacements, by parameter and pooled.

    A difference of parameters near 1 is exact to 2**-53 beside displacements of a hundredth; the
    readings lose at most a hundredfold of that. Parameters may be changed in place.
    """
    random = np.random.default_rng(0)
    optimizer, thermometer = (
        CoolMomentum(learning_rate=0.05, total_steps=20, rho0=0.9),
        Thermometer(every, span),
    )
    params = [random.standard_normal(shape) for shape in [(3, 4), ()]]
    state, seen = optimizer.init(params), thermometer.init(params)
    sampling, layout = Sampling(every, span), Layout.of(range(2), [12, 1])
    start = [x.copy() for x in params]
    window = Window.empty(np.zeros(3))
    for n in range(1, 14):
        rho, before = optimizer.rho(state), state.displacements
        gradients = [np.asarray(random.standard_normal(x.shape)) for x in params]
        new, state = optimizer.step(params, gradients, state)
        if in_place:
            for x, y in zip(params, new, strict=True):
                x[...] = y
        else:
            params = new
        seen = thermometer.update(seen, params, rho=rho, learning_rate=0.05)
        now, window = state.displacements, window.step()
        y = [a - b for a, b in zip(params, start, strict=True)]
        table = moments(now, before, path=y)
        if n <= 10 or n % every == 0:
            weight = sampling.weight(n)
            window = window.add(table, layout, Dynamics(rho, 0.05), weight=weight, paired=n > 1)
        if n % span == 0:
            window, start = window.end_span(table, layout, rho), [x.copy() for x in params]
    for by in ("all", "parameter"):
        got, expected = thermometer.read(seen, by), report(window, layout, by)
        got, expected = ([x] if by == "all" else [*x.values()] for x in (got, expected))
        for reading, wanted in zip(got, expected, strict=True):
            assert list(reading) == ["steps", *READINGS]
            assert reading["steps"] == 13
            assert reading == pytest.approx(wanted, rel=1e-9, abs=1e-9, nan_ok=True)
    assert thermometer.read(thermometer.reset(seen))["steps"] == 0


def test_a_span_begins_anew():
    """Two equal spans of a walk that turns round and round read as one of them.

    At rho 1/2, of steps 1 and -1: y_W = 0, so that both parts are 1.5 * 2 in each span.
    """
    thermometer = Thermometer(every=1, span=2)
    seen = thermometer.init([np.zeros(1)])
    for x in (1.0, 0.0, 1.0, 0.0):
        seen = thermometer.update(seen, [np.array([x])], rho=0.5, learning_rate=1.0)
    parts = dict(zip(SUMS, seen.window.sums[:, -1], strict=True))
    assert parts["diffusive"] == parts["restoring"] == 3.0
    assert thermometer.read(seen)["freeze_out"] == 1.0


def test_the_first_reading_exists_after_two_steps():
    """By default, where one step in ten is measured later."""
    thermometer = Thermometer()
    seen = thermometer.init([np.zeros(2)])
    for x in (1.0, 2.0):
        seen = thermometer.update(seen, [np.full(2, x)], rho=0.5, learning_rate=0.25)
    reading = thermometer.read(seen)
    assert reading["rescaled_temperature"] == 1.0
    assert reading["temperature"] == 4.0
    assert reading["correlation"] == pytest.approx(1)


def test_names_of_parameters():
    """Their places by default; equal names are numbered."""
    params = [np.zeros(2), np.zeros(3)]
    thermometer = Thermometer()
    assert [*thermometer.read(thermometer.init(params), by="parameter")] == [0, 1]
    named = thermometer.init(params, names=["w", "w"])
    assert [*thermometer.read(named, by="parameter")] == ["w", "w#2"]


def test_reading_changes_nothing():
    """Neither does resetting: both are pure."""
    thermometer = Thermometer(every=1, span=2)
    seen = thermometer.update(thermometer.init([np.zeros(1)]), [np.ones(1)])
    first = thermometer.read(seen)
    assert thermometer.read(thermometer.reset(seen))["steps"] == 0
    assert thermometer.read(seen) == pytest.approx(first, nan_ok=True)
    assert first["steps"] == 1


@pytest.mark.parametrize(
    "library", libraries("numpy", "array_api_strict", "torch"), ids=lambda library: library.name
)
def test_every_library(library):
    """The list of two steps of three coordinates: 8/3 by Eq. 22, 2/3 by three points."""
    steps = [[0.1, -0.2, 0.3], [0.1, -0.1, 0.2]]
    thermometer = Thermometer(every=1, span=1)
    seen = thermometer.init([library.array([0.0, 0.0, 0.0], dtype="float32")])
    for x in steps:
        params = [library.array(x, dtype="float32")]
        seen = thermometer.update(seen, params, rho=0.5, learning_rate=0.01)
    reading = thermometer.read(seen)
    assert all(type(reading[name]) is float for name in READINGS)
    assert reading["temperature"] == pytest.approx(8 / 3, rel=1e-6)  # 16 roundings of 2**-24
    assert reading["three_point_temperature"] == pytest.approx(2 / 3, rel=4e-6)


@pytest.mark.parametrize(
    "library", libraries("numpy", "array_api_strict", "torch"), ids=lambda library: library.name
)
@pytest.mark.parametrize("number", [np.float32, np.float64])
def test_numbers_of_numpy_read_as_the_floats_that_they_are(library, number):
    """To the last bit, on the arrays of every library."""
    readings = []
    for kind, whole in ((number, np.int64), (lambda x: float(number(x)), int)):
        thermometer = Thermometer(every=whole(1), span=whole(2))
        assert type(thermometer.every) is type(thermometer.span) is int
        seen = thermometer.init([library.array([0.0, 0.0], dtype="float32")])
        for x in ([0.1, -0.2], [0.3, 0.1], [0.2, 0.2], [0.0, 0.1]):
            moved = [library.array(x, dtype="float32")]
            seen = thermometer.update(seen, moved, rho=kind(0.3), learning_rate=kind(0.1))
        readings.append(thermometer.read(seen))
    assert readings[0] == pytest.approx(readings[1], rel=0, abs=0, nan_ok=True)


def test_unknown_motion():
    """Without rho and learning rate the mean square is known, and no temperature."""
    thermometer = Thermometer(every=1, span=1)
    seen = thermometer.update(thermometer.init([np.zeros(2)]), [np.array([3.0, 4.0])])
    reading = thermometer.read(seen)
    assert reading["rescaled_temperature"] == 12.5
    assert np.isnan(reading["temperature"])


def test_bad_arguments():
    """Name, rule and value."""
    with pytest.raises(ValueError, match=re.escape("span must be a multiple of every, 10: 15")):
        Thermometer(span=15)
    assert Thermometer(np.int64(5), np.int64(15)) == Thermometer(5, 15)
    thermometer = Thermometer()
    with pytest.raises(ValueError, match="by must be one of all, parameter: 'group'"):
        thermometer.read(thermometer.init([np.zeros(2)]), by="group")
