"""What is made of the runs: statistics, tables and figures."""

import itertools
import math

import pandas as pd
import pytest

from benchmarks.training._figures import figures
from benchmarks.training._tables import best_of_k, chosen, half_width, paired_differences


def test_half_width_is_that_of_the_tables_of_student() -> None:
    """For 1..5: s = sqrt(5/2), t(0.975, 4 degrees of freedom) = 2.776445, s t / sqrt(5)."""
    assert half_width([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2.776445 / math.sqrt(2), rel=1e-6)
    assert half_width([0.97, 0.97]) == 0.0
    assert math.isnan(half_width([0.97]))


def test_best_of_k_is_the_mean_over_all_subsets() -> None:
    """Of k of the cells, counted one by one."""
    values = [0.3, 0.1, 0.9, 0.4, 0.4]
    for k, expected in enumerate(best_of_k(values), start=1):
        every = [max(some) for some in itertools.combinations(values, k)]
        assert expected == pytest.approx(sum(every) / len(every), rel=1e-14)


def test_the_cell_chosen_has_the_best_mean_at_the_last_epoch() -> None:
    """Neither a better epoch before nor a better single seed counts; of equals, the lowest loss."""
    runs = pd.DataFrame(
        [
            (0.1, 0, 1, 0.99, 0.1),
            (0.1, 0, 2, 0.90, 0.1),
            (0.1, 1, 2, 0.90, 0.1),
            (0.2, 0, 2, 0.99, 0.1),
            (0.2, 1, 2, 0.80, 0.1),
            (0.3, 0, 2, 0.92, 0.5),
            (0.3, 1, 2, 0.94, 0.5),
            (0.4, 0, 2, 0.93, 0.2),
            (0.4, 1, 2, 0.93, 0.2),
            (0.5, 0, 2, 0.10, math.nan),  # diverged
            (0.5, 1, 2, 0.10, math.nan),
        ],
        columns=["lr", "seed", "epoch", "accuracy", "loss"],
    ).assign(framework="torch", phase="tuning", rule="sgd", momentum=0.9, weight_decay=0.0)
    assert chosen(runs).loc["sgd", "lr"] == 0.4
    assert not chosen(runs).at_edge.any()
    assert chosen(runs[runs.lr >= 0.4]).at_edge.all()


def test_differences_are_paired_by_seed() -> None:
    """A constant lag has an interval of no length, however much the seeds differ."""
    accuracies = {"coolmomentum": [0.5, 0.75, 1.0], "sgd": [0.25, 0.5, 0.75]}
    runs = pd.DataFrame(
        [
            {"rule": rule, "seed": seed, "accuracy": accuracy}
            for rule, its in accuracies.items()
            for seed, accuracy in enumerate(its)
        ]
    ).assign(framework="torch", phase="report", lr=0.1, momentum=0.9, weight_decay=0.0, epoch=1)
    (line,) = paired_differences(runs).itertuples(index=False)
    assert line == ("torch", "sgd", -0.25, 0.0)


def test_what_is_laid_beside_the_paper_is_what_its_scripts_log() -> None:
    """CoolMomentum's loss in inference mode with penalty, the others' running loss; all numbers."""
    columns = ["rule", "epoch", "training_loss", "penalty", "running_loss", "temperature"]
    lines = [("coolmomentum", 1, 0.5, 0.25, 9.0, 9.0), ("sgd-step", 1, 0.5, 0.25, 1.5, 9.0)]
    runs = pd.DataFrame(lines, columns=columns).assign(
        framework="jax", phase="report", seed=0, lr=0.01, momentum=0.9, weight_decay=0.0,
        accuracy=0.9, temperature_with_statistics=1e-7, predicted_temperature=math.nan,
        seconds=math.nan,
    )  # fmt: skip
    drawn = {name: figure for name, _, figure in figures(runs)}
    losses, _, temperatures = drawn["as-in-paper-jax"].axes
    assert {line.get_label(): list(line.get_ydata()) for line in losses.lines} == {
        "coolmomentum": [0.75],
        "sgd-step": [1.5],
    }
    assert [list(line.get_ydata()) for line in temperatures.lines] == [[1e-7], [1e-7]]
    losses, _, temperatures = drawn["training-jax"].axes
    assert [list(line.get_ydata()) for line in losses.lines] == [[0.5], [0.5]]
    assert [list(line.get_ydata()) for line in temperatures.lines] == [[9.0], [9.0]]


def test_no_axis_has_more_than_six_rules() -> None:
    """Fourteen rules are in three rows, coolmomentum in each; every rule is drawn."""
    rules = ["sgd", "coolmomentum", *(f"rule {n}" for n in range(12))]
    runs = pd.DataFrame(
        [
            {"rule": rule, "phase": phase, "seed": seed, "epoch": epoch, "lr": 0.1 * epoch}
            for rule in rules
            for phase in ("tuning", "report")
            for seed in (0, 1)
            for epoch in (1, 2)
        ]
    ).assign(
        framework="jax", penalty=0.0, momentum=0.9, weight_decay=0.0, training_loss=0.5,
        accuracy=0.9, loss=0.5, temperature=1e-7, predicted_temperature=math.nan,
        seconds=math.nan, diverged=False,
    )  # fmt: skip
    drawn = {name: figure for name, _, figure in figures(runs)}
    for name in ("training-jax", "accuracy", "tuning"):
        colours = [{line.get_color() for line in axes.lines} for axes in drawn[name].axes]
        assert max(map(len, colours)) <= 6, name
        assert len(set.union(*colours)) == 14, name
    for name in ("training-jax", "tuning"):
        legends = [axes.get_legend() for axes in drawn[name].axes]
        named = [[text.get_text() for text in one.get_texts()] for one in legends if one]
        assert len(named) == 3
        assert all(one[0] == "coolmomentum" for one in named)
        assert {rule for one in named for rule in one} == set(rules)


def test_figures_show_every_best_and_say_what_is_drawn() -> None:
    """A rule far below the others is on the axis; dashes are explained where there are any."""
    cells = [("coolmomentum", 0.1, 0.2), ("coolmomentum", 0.2, 0.25), ("sgd", 0.1, 0.8)]
    columns = ["rule", "lr", "accuracy"]
    tuning = pd.DataFrame(cells, columns=columns).assign(phase="tuning", seed=0)
    # Of coolmomentum there is a seed more than of sgd: the run isn't whole.
    seeds = [("coolmomentum", 1), ("coolmomentum", 2), ("sgd", 1)]
    report = pd.DataFrame(seeds, columns=["rule", "seed"]).assign(phase="report", lr=0.1)
    runs = pd.concat([tuning, report], ignore_index=True).assign(
        framework="torch", epoch=1, penalty=0.0, momentum=0.9, weight_decay=0.0,
        training_loss=0.5, loss=0.5, temperature=1e-7, predicted_temperature=math.nan,
        seconds=math.nan, diverged=False,
    ).fillna({"accuracy": 0.5})  # fmt: skip
    drawn = {name: figure for name, _, figure in figures(runs)}
    assert drawn["training-torch"].get_suptitle().endswith(" of up to 2 seeds")
    by_rate, by_budget = drawn["tuning"].axes
    assert by_rate.get_title("left") == "(a) Each cell"
    low, high = by_budget.get_ylim()
    assert {line.get_ydata()[-1] for line in by_budget.lines} == {0.25, 0.8}
    assert low < 0.25 < 0.8 < high
    assert all(tick == round(tick) for tick in by_budget.get_xticks())

    both = runs.assign(momentum=[0.9, 0.99, *runs.momentum[2:]])
    drawn = {name: figure for name, _, figure in figures(both)}
    assert "dashed" in drawn["tuning"].axes[0].get_title("left")
    whole = runs[(runs.rule == "coolmomentum") | (runs.phase == "tuning")]
    drawn = {name: figure for name, _, figure in figures(whole)}
    assert drawn["training-torch"].get_suptitle().endswith(" of 2 seeds")
