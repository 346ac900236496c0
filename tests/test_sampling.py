"""The benchmark of sampling: every part in miniature, its exact numbers, and what is committed."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import check_grad

from benchmarks.sampling import _annealing, _double_well, _llc, _minima, _others
from benchmarks.sampling.__main__ import PARTS, main
from benchmarks.sampling._posterior import Regression
from benchmarks.sampling._tables import Measured, Table, as_markdown
from benchmarks.sampling._walks import ADAPTERS, Bathed, observed

RESULTS = Path(__file__).parents[1] / "benchmarks" / "sampling" / "results"


@pytest.mark.parametrize("part", PARTS)
def test_a_part_in_miniature(part, tmp_path, capsys):
    """It prints its tables and leaves records with provenance, a figure and a page."""
    assert main([part, "--quick", "--output", str(tmp_path)]) == 0
    record = json.loads((tmp_path / f"{part}.json").read_text(encoding="utf-8"))
    assert record["about"].keys() == {"part", "adapter", "quick", "commit", "python", "versions"}
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "the numbers mean nothing" in page
    printed = capsys.readouterr().out
    for text in record["markdown"]:
        assert text in printed
        assert text in page
    with (tmp_path / "records.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(record["records"])
    assert (tmp_path / f"{part}.png").stat().st_size < 100_000


def test_an_unknown_part_is_refused(tmp_path, capsys):
    """Before anything is run or written."""
    with pytest.raises(SystemExit):
        main(["adit", "--output", str(tmp_path / "new")])
    assert "parts must be of audit, llc" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_package_that_is_missing_has_its_rows(tmp_path, monkeypatch, capsys):
    """They say so, and the reference of the regression is then a walk of ours."""
    monkeypatch.setattr(_others, "find_spec", lambda name: None)
    assert main(["audit", "posterior", "--quick", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if "| not installed" in line]
    foreign = [x for x in _others.contenders(ADAPTERS["numpy"]) if x.package]
    assert len(rows) == 2 * len(foreign) == 12
    assert "blackjax not installed" in printed
    assert "(blackjax is not installed)" in printed


def test_the_committed_records_are_of_a_full_run():
    """Every part is there, in full, of a clean checkout, with its figure on the page."""
    page = (RESULTS / "report.md").read_text(encoding="utf-8")
    for part in PARTS:
        record = json.loads((RESULTS / f"{part}.json").read_text(encoding="utf-8"))
        assert not record["about"]["quick"]
        assert "dirty" not in record["about"]["commit"]
        assert (RESULTS / f"{part}.png").exists()
        assert all(text in page for text in record["markdown"])


def test_a_number_is_shown_with_its_error():
    """Two digits of the error; what diverged as it is."""
    table = Table("t", {"a": {"x": Measured(1.23456, 0.0123)}, "b": {"y": Measured(math.nan)}})
    lines = as_markdown(table).splitlines()
    assert lines[2:] == [
        "|   | x             | y   |",
        "| - | ------------- | --- |",
        "| a | 1.235 ± 0.012 |     |",
        "| b |               | nan |",
    ]


# --- exact numbers --------------------------------------------------------------------------------


def test_the_double_well_by_quadrature():
    """The mean virial is the temperature, and the mean energy known."""
    assert _double_well.exact() == pytest.approx((0.4, 0.2286370919579502), rel=1e-10)


def test_the_learning_coefficient_of_reduced_rank_regression():
    """47, and half the number of free parameters where the rank is full."""
    assert _llc.THEORY == 47
    assert _llc.aoyagi(3, 3, 3, 3) == 4.5


def test_the_lag_of_the_anneal():
    """``k <x**2> / T`` by the exact recursion, and the limit of the bath."""
    found = [_annealing.exact()[n - 1] / _annealing.bath(n) for n in _annealing.AT]
    assert found == pytest.approx([1.005, 1.006, 1.010, 1.019, 1.048, 1.096], abs=6e-4)
    assert _annealing.bath(2000) == _annealing.bath(2001) == 0


@pytest.mark.parametrize("land", _minima.LANDSCAPES, ids=lambda land: land.name)
def test_the_gradients_of_the_landscapes(land):
    """They are those of finite differences, at spread starts."""
    for x in np.random.default_rng(0).uniform(-land.bound, land.bound, (5, land.coordinates)):
        value, gradient = land.value_and_gradient(x)
        error = check_grad(
            lambda x: land.value_and_gradient(x)[0], lambda x: land.value_and_gradient(x)[1], x
        )
        assert error < 1e-4 * (1 + np.linalg.norm(gradient))
        many, slopes = land.value_and_gradient(np.stack([x, x]))
        assert many.tolist() == pytest.approx([value, value], rel=1e-12)
        np.testing.assert_allclose(slopes[1], gradient, rtol=1e-12, atol=1e-12)


def test_the_minima_of_the_landscapes():
    """0 at 0 and at 1; the icosahedron of 13 atoms, relaxed, has the known energy."""
    assert _minima.LANDSCAPES[1].value_and_gradient(np.zeros(10))[0] == 0
    assert _minima.LANDSCAPES[2].value_and_gradient(np.ones(10))[0] == pytest.approx(0, abs=1e-30)
    golden = (1 + math.sqrt(5)) / 2
    corners = [(0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    atoms = [(0, 0, 0)] + [np.roll(x, shift) for x in corners for shift in range(3)]
    value, _ = _minima._polished(_minima.LANDSCAPES[0], 0.55 * np.ravel(atoms))
    assert value == pytest.approx(-44.326801, abs=1e-5)


def test_the_gradients_of_network_and_regression():
    """They are those of finite differences of loss and prior."""
    random, regression = np.random.default_rng(0), Regression()

    def spring(w):
        return np.sum((w - _llc.solution().ravel()) ** 2) / (2 * _llc.N_BETA)

    def network(w):
        return _llc.estimate(w.reshape(2, 10, 10)) / _llc.N_BETA + spring(w)

    w = random.standard_normal(200)
    error = check_grad(network, lambda w: _llc.gradient(w.reshape(2, 10, 10)).ravel(), w)
    assert error < 1e-5 * np.linalg.norm(_llc.gradient(w.reshape(2, 10, 10)))

    def posterior(w):
        z = regression.inputs @ w
        fit = np.sum(np.logaddexp(0, z) - regression.labels * z)
        return (fit + np.sum(w * w) / 2) / regression.size

    w = 0.1 * random.standard_normal(31)
    assert check_grad(posterior, regression.gradient, w) < 1e-6


def test_methods_of_scipy_stop_at_the_budget():
    """Each place counts once, value and gradient together."""
    seen = []

    def counted(x):
        seen.append(x.copy())
        return _minima.LANDSCAPES[1].value_and_gradient(x)

    land = _minima.LANDSCAPES[1]._replace(value_and_gradient=counted, budget=300)
    start = np.full(10, 2.2)
    for method in (_minima._basinhopping, _minima._dual_annealing):
        seen.clear()
        lowest = method(land, start, 0)
        assert len(seen) == 300
        assert not any(map(np.array_equal, seen, seen[1:]))
        values = [_minima.LANDSCAPES[1].value_and_gradient(x)[0] for x in seen]
        assert lowest == min(values) < values[0]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_walk_of_an_adapter(adapter):
    """On a stiff quadratic, ``k dt**2 = 1``, both means of 4,000 coordinates are the bath's."""
    start, how = np.zeros(4000), Bathed(0.25, 0.5, 1.5, seed=1)
    found, reading = observed(
        ADAPTERS[adapter](lambda x: 4 * x, start, how), start, how, lambda x: 4 * x * x, 200, 50
    )
    error = found.std() / math.sqrt(found.size)
    assert error < 0.01
    assert found.mean() == pytest.approx(1.5, abs=4 * error)
    assert reading["steps"] == 200
    assert reading["bath_ratio"] == pytest.approx(1, abs=4 * error)
