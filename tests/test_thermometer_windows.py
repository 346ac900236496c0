"""Windows of the thermometer: names of rows, scans, which steps are sampled, known dynamics."""

import re

import numpy as np
import pytest
from frameworks import framework

from coolmomentum.thermometer import (
    COUNTS,
    EVERY,
    FIRST,
    SPAN,
    SUMS,
    Dynamics,
    Layout,
    Sampling,
    Window,
    adagrad,
    adam,
    moments,
    report,
    rms_mass,
    rmsprop,
    sgd,
)

jax, jnp = framework("jax"), framework("jax.numpy")
ONE = Layout.of(["w"], [2])  # a parameter of two coordinates


@pytest.mark.parametrize(
    ("labels", "unique"),
    [
        (["w", "b", "w", "b"], ("w", "b", "w#2", "b#2")),
        (["w", "w", "w#2", "w"], ("w", "w#3", "w#2", "w#4")),
        ([0, "0", 0], (0, "0", "0#2")),
        (["0#2", 0, 0], ("0#2", 0, "0#3")),
    ],
)
def test_equal_names_lose_no_rows(labels, unique):
    """The later ones of equal names get a number, and never the name of another."""
    assert Layout.of(labels, [1] * len(labels)).parameters == unique
    assert Layout.from_groups([(x, [("w", 1)]) for x in labels]).groups == unique


def test_paths_that_come_again():
    """Two nets of equal layers are different groups, and so are nodes whose names collide."""
    net = [("fc", "kernel"), ("fc", "bias")]
    twins = Layout.from_paths(net + net, [2, 1, 2, 1])
    assert twins.members == ((0, 1), (2, 3))
    assert twins.groups == ("fc", "fc#2")
    assert twins.parameters == ("fc/kernel", "fc/bias", "fc/kernel#2", "fc/bias#2")
    joined = Layout.from_paths([("a/b",), ("a", "b"), ("a", "c")], [1, 1, 1])
    assert joined.parameters == ("a/b", "a/b#2", "a/c")
    assert joined.groups == ("", "a")


def test_many_equal_names_take_no_time():
    """Not the square of their number: 200,000 would then take hours."""
    names = Layout.of(["w"] * 200_000, [1] * 200_000).parameters
    assert len(set(names)) == 200_000
    assert names[-1] == "w#200000"


# --- windows --------------------------------------------------------------------------------------


def test_the_next_window_keeps_the_span():
    """A new window starts empty, but the span that has begun goes on across it."""
    layout, how, table = Layout.of(["x"], [1]), Dynamics(0.5, 1.0), np.ones((8, 1))
    window = Window.empty(np.zeros(2)).step().add(table, layout, how)
    after = window.next()
    assert after.counts.tolist() == [0, 0, 0, 0, 0, 1, 1]
    ends = [w.step().add(table, layout, how).end_span(table, layout, 0.5) for w in (window, after)]
    row = SUMS.index("restoring")
    assert ends[0].sums[row, -1] == ends[1].sums[row, -1] == 1.5 * 2 - 0.5 - 1
    assert dict(zip(COUNTS, ends[1].counts, strict=True)) == dict.fromkeys(COUNTS, 0) | {
        "steps": 1,
        "represented": 1,
        "represented_pairs": 1,
        "pairs": 1,
        "spans": 1,
    }


@pytest.mark.parametrize("strict", [False, True])
def test_a_window_is_a_scan_carry(strict):
    """Steps may be added inside lax.scan with int32 counts, whatever promotes to what."""
    data = jnp.asarray([[[1.0, 0.0], [1.0, 2.0]], [[1.0, 2.0], [0.0, 1.0]]])
    sampling = Sampling(2, 2)

    def body(carry, pair):
        window, n = carry
        table = moments([pair[1]], [pair[0]], [jnp.ones(2)], path=[pair[1]])
        weight, flag = sampling.weight(n), sampling.measures(n) & (n > 0)
        window = window.step().add(
            table, ONE, Dynamics(0.0, 1.0), weight=weight, paired=flag, applied=flag
        )
        return (window.end_span(table, ONE, 0.0, applied=sampling.ends_span(n)), n + 1), None

    with jax.numpy_dtype_promotion("strict" if strict else "standard"):
        empty = Window(jnp.zeros((len(SUMS), 2)), jnp.zeros(len(COUNTS), jnp.int32))
        (window, _), _ = jax.lax.scan(body, (empty, jnp.asarray(1)), data)
        window = jax.jit(lambda window: window.step().next().step(1))(window)
        assert window.counts.dtype == "int32"
        assert window.counts.tolist() == [1, 0, 0, 0, 0, 2, 0]
        (window, _), _ = jax.lax.scan(body, (empty, jnp.asarray(1)), data)
    reading = report(window, ONE)
    assert (reading["steps"], reading["temperature"]) == (2, 1.5)


# --- sampling -------------------------------------------------------------------------------------


def test_each_of_the_first_ten_steps_is_measured():
    """Then one in every; spans begin and end where they did, and weights add up to the steps."""
    for every in (1, 3, 7, 10, 15, 25):
        sampling = Sampling(every, 4 * every)
        steps = range(1, 12 * every + 1)
        measured = [n for n in steps if sampling.measures(n)]
        assert measured == [n for n in steps if n <= 10 or n % every == 0]
        assert all(sampling.measures(n + 1) == sampling.precedes(n) for n in range(40))
        for last in measured:
            assert sum(sampling.weight(n) for n in measured if n <= last) == last
        span = sampling.span
        assert [n for n in steps if sampling.ends_span(n)] == [span, 2 * span, 3 * span]
        assert [n for n in steps if sampling.begins_span(n)] == [1, span + 1, 2 * span + 1]


def test_traced_steps_are_sampled_alike():
    """Inside jit the answers are those of Python's integers."""
    sampling, steps = Sampling(3, 6), range(1, 40)

    def ask(n):
        asked = sampling.measures, sampling.precedes, sampling.begins_span, sampling.ends_span
        return *(f(n) for f in asked), sampling.weight(n)

    traced = jax.jit(jax.vmap(ask))(jnp.arange(1, 40))
    for got, expected in zip(traced, zip(*map(ask, steps), strict=True), strict=True):
        assert got.tolist() == [*expected]


def test_the_first_steps_do_not_count_more():
    """A window from the start on has the mean of the steps, as far as one in ten shows it."""
    sampling, window = Sampling(10, 10), Window.empty(np.zeros(2))
    for n in range(1, 101):
        window = window.step()
        if sampling.measures(n):
            dx = [np.full(2, 3.0 if n <= 10 else 1.0)]
            window = window.add(moments(dx, dx), ONE, Dynamics(), weight=sampling.weight(n))
    assert report(window, ONE)["rescaled_temperature"] == (10 * 9 + 90 * 1) / 100


# --- dynamics -------------------------------------------------------------------------------------


def test_the_dynamics_of_the_optimizers():
    """From the settings; of a momentum that is none nothing is known."""
    assert sgd(0.1, 0.9, 0.5) == Dynamics(0.9, pytest.approx(2 * 0.1 * 0.5 / 1.9))
    assert sgd(0.1, 0.0, 0.5) == sgd(0.1) == adagrad(0.1) == rmsprop(0.1) == Dynamics(0.0, 0.2)
    assert rmsprop(0.1, 0.5) == Dynamics(0.5, pytest.approx(0.2 / 1.5))
    assert adam(0.1, 0.9) == Dynamics(0.9, pytest.approx(2 * 0.1 * 0.1 / 1.9))
    assert sgd(0.1, 1.0) == adam(0.1, 1.0) == rmsprop(0.1, -0.5) == Dynamics(None, None)
    np.testing.assert_array_equal(rms_mass(np.array([25.0]), 1.0, np.array([3.0])), [5.0])


@pytest.mark.parametrize(
    ("every", "span", "error", "message"),
    [
        (0, 100, ValueError, "every must be >= 1: 0"),
        (10, 5, ValueError, "span must be a multiple of every, 10: 5"),
        (10, 25, ValueError, "span must be a multiple of every, 10: 25"),
        (1.0, 100, TypeError, "every must be an integer: 1.0"),
        (1, True, TypeError, "span must be an integer: True"),
    ],
)
def test_intervals_are_checked(every, span, error, message):
    """The message has the argument, the rule and the value."""
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        Sampling(every, span)


def test_the_defaults_are_intervals():
    """One step in ten, spans of a hundred."""
    assert Sampling() == Sampling(EVERY, SPAN) == Sampling(np.int64(10), np.int64(100))
    assert type(Sampling(np.int64(10), np.int64(100)).every) is int
    assert (EVERY, SPAN, FIRST) == (10, 100, 10)
