"""The freeze-out meter: the identity of a span, walks at rest and on their way, the drift flag."""

import math
from fractions import Fraction as F  # noqa: N817  # stands in every other expression

import numpy as np
import pytest
from ensembles import squares_and_products, stationary
from hypothesis import given, settings
from hypothesis import strategies as st

from coolmomentum.thermometer import SUMS, Dynamics, Layout, Window, moments

fractions = st.fractions(-2, 2, max_denominator=8)


@settings(max_examples=40)
@given(
    rho=st.fractions(F(-7, 8), F(7, 8), max_denominator=8),
    eta=fractions,
    v=fractions,
    gradients=st.lists(fractions, min_size=1, max_size=6),
)
def test_the_identity_of_a_span(rho, eta, v, gradients):
    """Restoring is 2 eta sum y_n g_n, whatever the gradients are: six steps of numbers below 20."""
    y, work, diffusive, window = 0.0, 0.0, 0.0, Window.empty(np.zeros(2))
    layout, how = Layout.of(["x"], [1]), Dynamics(float(rho), 1.0)
    eta, v = float(eta), float(v)
    for g in gradients:
        work += 2 * eta * y * float(g)
        before, v = v, how.rho * v - eta * float(g)
        y += v
        diffusive += (1 + how.rho) * v * v
        table = moments([np.array([v])], [np.array([before])], path=[np.array([y])])
        window = window.step().add(table, layout, how)
    window = window.end_span(table, layout, how.rho)
    meter = dict(zip(SUMS, window.sums[:, -1], strict=True))
    assert meter["restoring"] == pytest.approx(work, rel=0, abs=1e-12)
    assert meter["diffusive"] == pytest.approx(diffusive, rel=1e-12)
    assert window.counts.tolist()[-3:] == [1, 0, 0]


def walk(kind, *, rho=0.9, dt2=0.1, every=1, span=20, spans=30, rows=300, size=20, seed=0):
    """Readings of many independent walks: a row for each, all with the same settings.

    Confined by k = 4, free, or drifting by a gradient of three tenths of the noise.
    """
    k, drift = {"confined": (4.0, 0.0), "free": (0.0, 0.0), "drift": (0.0, 0.3)}[kind]
    random, eta = np.random.default_rng(seed), dt2 * (1 + rho) / 2
    x = np.zeros((rows, size))
    v, start = x.copy(), x.copy()
    layout, how = Layout.of(range(rows), (size,) * rows), Dynamics(rho, dt2)
    window = Window.empty(np.zeros(rows + 1))
    for n in range(-5 * span, spans * span):
        before = v
        v = rho * v - eta * (k * x + drift + random.standard_normal(x.shape))
        x = x + v
        if n == -1:
            start = x
        if n < 0:
            continue
        window = window.step()
        if (n + 1) % every == 0:
            pair = [np.sum(part, axis=1) for part in (v * v, before * before, v * before)]
            window = window.add(squares_and_products(*pair), layout, how)
        if (n + 1) % span == 0:
            y = x - start
            path = np.array([np.sum(y * y, axis=1), np.sum(y * v, axis=1)])
            window, start = window.end_span(path, layout, rho), x
    return {name: x[:-1] for name, x in window.readings(layout).items()}


@pytest.fixture(scope="module")
def walks():
    """Walks of each kind, all steps measured and one in five."""
    return {
        (kind, k): walk(kind, every=k) for kind in ("confined", "free", "drift") for k in (1, 5)
    }


def confined_freeze_out(rho, dt2, k, span):
    """Its expected numerator and denominator, from the stationary covariance of one coordinate."""
    eta = dt2 * (1 + rho) / 2
    step = np.array([[1 - eta * k, rho], [-eta * k, rho]])
    moments = stationary(step, eta * np.ones(2))
    later = np.linalg.matrix_power(step, span) @ moments  # <z_W z_0>
    distance = 2 * (moments[0, 0] - later[0, 0])
    overlap = moments[0, 1] - later[1, 0]
    walked = (1 + rho) * span * moments[1, 1]
    return 1 - ((1 - rho) * distance + 2 * rho * overlap) / walked


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("kind", ["confined", "free", "drift"])
def test_the_freeze_out_meter(kind, every, walks):
    """1 less an end effect where the walk is confined, 0 where it is free, below 0 in a drift.

    The means over 300 walks are within four of their standard errors (and the bias of a ratio of
    two means of 30, at most some 1/30 of the standard error of one walk).
    """
    reading = walks[kind, every]
    mean, scatter = reading["freeze_out"].mean(), reading["freeze_out"].std()
    allowed = scatter * (4 / math.sqrt(300) + 1 / 30)
    if kind == "drift":
        assert mean < -10 * allowed
    else:
        expected = confined_freeze_out(0.9, 0.1, 4.0, 20) if kind == "confined" else 0.0
        assert mean == pytest.approx(expected, abs=allowed)


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("kind", ["confined", "free", "drift"])
def test_its_standard_error(kind, every, walks):
    """The error that a walk reports is the scatter between walks.

    That scatter is known to 1/sqrt(2 * 300) = 4 per cent, four of which are allowed, and an error
    from 30 spans is some 1/60 of itself small: the root of a variance by n in place of n - 1.
    """
    reading = walks[kind, every]
    reported = math.sqrt((reading["freeze_out_error"] ** 2).mean())
    assert reported / reading["freeze_out"].std() == pytest.approx(
        1, abs=4 / math.sqrt(2 * 300) + 1 / 60
    )


@pytest.mark.parametrize("every", [1, 5])
def test_the_drift_flag(every, walks):
    """On in a drift; off where the walk is free, but for three in a thousand, or confined."""
    assert walks["drift", every]["drift"].mean() > 0.95
    assert walks["free", every]["drift"].sum() <= 3
    assert walks["confined", every]["drift"].sum() == 0


@pytest.mark.parametrize("name", ["temperature", "three_point_temperature", "curvature"])
def test_one_step_in_five_is_unbiased(name, walks):
    """The mean over the walks is that of all steps, within four standard errors of both."""
    every, all_steps = (walks["confined", k][name] for k in (5, 1))
    error = math.sqrt((every.var() + all_steps.var()) / 300)
    assert every.mean() == pytest.approx(all_steps.mean(), abs=4 * error)
