"""What the figures show: their lines, images and words, not their pixels."""

import itertools
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib import colors, rc_context, style
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from coolmomentum import CoolingSchedule, noise_temperature, plot


@pytest.fixture
def ax() -> Axes:
    """Axes that pyplot does not know."""
    return Figure(layout="constrained").subplots()


def data(line) -> tuple[list[float], list[float]]:
    """The points of a line."""
    return line.get_xdata().tolist(), line.get_ydata().tolist()


def test_the_paper_law_in_each_quantity():
    """With rho0 = 3/4 over 2 steps rho is 3/4, 1/2, 0, and the rest follows by Eqs 16 and 19."""
    expected = {
        "rho": [3 / 4, 1 / 2, 0],
        "step_size": [7 / 8, 3 / 4, 1 / 2],
        "reduced_temperature": [7, 3, 1],
    }
    for quantity, values in expected.items():
        ax = plot.schedule(CoolingSchedule(2, rho0=0.75), quantity, ax=Figure().subplots())
        steps, drawn = data(ax.lines[0])
        assert steps == [0, 1, 2]
        # exp, log and a quotient of numbers of order 1: some 8 roundings, each 2**-53.
        assert drawn == pytest.approx(values, rel=8 * 2**-53, abs=8 * 2**-53)
        assert ax.get_xlabel() == "optimizer step"
        assert ax.get_yscale() == ("log" if quantity == "reduced_temperature" else "linear")
        assert ax.get_legend() is None


def test_a_long_schedule_is_drawn_at_its_ends_and_at_the_end_of_its_warm_up(ax):
    """A million steps are a thousand points, the jump of the temperature among them."""
    plot.schedule(CoolingSchedule(10**6, rho0=0.5, law="constant", warmup_steps=1234), "rho", ax=ax)
    steps, rho = data(ax.lines[0])
    assert len(steps) <= 1003
    assert steps[0] == 0
    assert steps[-1] == 10**6
    jump = steps.index(1234)
    assert steps[jump - 1] == 1233
    assert rho == [0.0] * jump + [0.5] * (len(steps) - jump)


def test_several_schedules_have_names_and_looks_of_their_own(ax):
    """Twelve lines differ in colour or dashes, and the legend names each."""
    named = {f"rho {i}": (lambda step, i=i: i / 12) for i in range(12)}
    plot.schedule(named, "rho", total_steps=3, ax=ax)
    assert [data(line)[1] for line in ax.lines] == [[i / 12] * 4 for i in range(12)]
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == 12
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(named)


def test_a_temperature_of_zero_is_a_gap_in_the_log_scale(ax):
    """At rho = -1 there is no noise at all, and a log scale has no place for it."""
    plot.schedule(lambda step: -1.0 if step == 1 else 0.0, total_steps=2, ax=ax)
    assert np.array_equal(data(ax.lines[0])[1], [1, np.nan, 1], equal_nan=True)


def test_a_recorded_run(ax):
    """Temperature, the prediction of Eq. 19 and the loss are drawn as they were recorded."""
    rho = CoolingSchedule(3, rho0=0.5)(np.arange(3))
    predicted = noise_temperature(2.0, 0.1, rho)
    record = {
        "loss": [2.0, -1.0, np.nan],
        "temperature": [0.5, np.nan, 0.0],
        "predicted_temperature": predicted,
    }
    assert plot.run(record, steps=[10, 20, 40], ax=ax) is ax
    measured, dashed = ax.lines
    right = ax.figure.axes[1]
    assert data(measured)[0] == data(dashed)[0] == data(right.lines[0])[0] == [10, 20, 40]
    assert np.array_equal(data(measured)[1], [0.5, np.nan, np.nan], equal_nan=True)
    assert data(dashed)[1] == predicted.tolist()
    assert np.array_equal(data(right.lines[0])[1], record["loss"], equal_nan=True)
    assert ax.get_yscale() == "log"
    assert (ax.get_xlabel(), right.get_ylabel()) == ("optimizer step", "loss")
    assert "unit of the loss" in ax.get_ylabel()
    ax.figure.draw_without_rendering()
    legend = ax.get_legend().get_window_extent()
    assert legend.y0 >= ax.get_window_extent().y1, "the legend covers data"


def test_rows_and_columns_are_the_same_record():
    """A list of readings is drawn as the dict of lists; what a reading lacks is a gap."""
    rows = [{"temperature": 1.0}, {"temperature": 0.5, "loss": 3.0}]
    columns = {"temperature": [1.0, 0.5], "loss": [np.nan, 3.0]}
    for record in rows, columns:
        ax = plot.run(record, ax=Figure().subplots())
        assert data(ax.lines[0]) == ([1, 2], [1.0, 0.5])
        assert np.array_equal(data(ax.figure.axes[1].lines[0])[1], [np.nan, 3], equal_nan=True)
        assert ax.get_xlabel() == "epoch"


@pytest.mark.parametrize(
    "kind",
    [
        pd.DataFrame,
        lambda columns: (row for _, row in pd.DataFrame(columns).iterrows()),
        lambda columns: ({name: columns[name][i] for name in columns} for i in range(3)),
        lambda columns: {name: pd.Series(x, [7, 8, 9]) for name, x in columns.items()},
        lambda columns: {name: iter(x) for name, x in columns.items()},
        lambda columns: {name: np.ma.masked_invalid(x) for name, x in columns.items()},
        lambda columns: columns | {"another": 1.0},
    ],
    ids=["DataFrame", "Series", "generator", "columns", "iterators", "masked", "scalar beside"],
)
def test_what_holds_the_readings_does_not_matter(kind):
    """DataFrames, generators, rows of any kind and masked arrays are drawn as plain lists are."""
    columns = {"temperature": [1.0, np.nan, 0.5], "loss": [3.0, 2.0, np.nan]}
    ax = plot.run(kind(columns), ax=Figure().subplots())
    np.testing.assert_array_equal(data(ax.lines[0]), [[1, 2, 3], columns["temperature"]])
    loss = ax.figure.axes[1].lines[0].get_ydata()
    np.testing.assert_array_equal(loss, columns["loss"])
    record = kind(columns)
    if not isinstance(record, dict) or "another" not in record:
        (image,) = plot.layers(record, ax=Figure().subplots()).collections
        np.testing.assert_array_equal(image.get_array().filled(np.nan), list(columns.values()))


def test_a_masked_step_is_a_gap(ax):
    """The reading is not drawn, as nobody knows where; steps on both sides have to increase."""
    record = {"temperature": [1.0, 2.0, 3.0, 4.0], "loss": [4.0, 3.0, 2.0, 1.0]}
    steps = np.ma.array([10, 99, 30, 40], mask=[0, 1, 0, 0])
    plot.run(record, predicted=[1.0] * 4, steps=steps, ax=ax)
    for line in (*ax.lines, *ax.figure.axes[1].lines):
        assert line.get_xdata().tolist() == [10, None, 30, 40]
        assert np.isnan(line.get_path().vertices[:, 0]).tolist() == [False, True, False, False]
    steps[3] = 20
    with pytest.raises(ValueError, match=r"steps must increase, and be finite: masked_array"):
        plot.run(record, steps=steps)


def test_a_reading_that_a_thermometer_lacks_is_a_gap(ax):
    """As is a layer that a row lacks."""
    rows = [{"a": {"temperature": 1.0}}, {"a": {"rho": 0.5}, "b": {"temperature": 2.0}}]
    plot.layers(rows, "temperature", ax=ax)
    (image,) = ax.collections
    expected = [[1.0, np.nan], [np.nan, 2.0]]
    assert np.array_equal(image.get_array().filled(np.nan), expected, equal_nan=True)


def test_no_prediction_in_another_unit(ax):
    """The recorded prediction is a temperature, and not drawn beside the rescaled one."""
    record = {"rescaled_temperature": [0.01, 0.02], "predicted_temperature": [1.0, 2.0]}
    plot.run(record, "rescaled_temperature", ax=ax)
    assert [line.get_label() for line in ax.lines] == ["measured"]
    assert "squared change" in ax.get_ylabel()
    assert len(ax.figure.axes) == 1, "there is no loss to draw"


@pytest.mark.parametrize("kind", ["columns", "rows", "readings"])
def test_a_heat_map_of_layers(ax, kind):
    """Each layer is a row, the first on top; what is no temperature is masked and grey."""
    columns = {"first": [1e-2, np.nan, 1e-3], "second": [0.0, 1e-5, np.inf]}
    rows = [{name: column[i] for name, column in columns.items()} for i in range(3)]
    readings = [{k: {"temperature": v, "rho": 0.5} for k, v in row.items()} for row in rows]
    record = {"columns": columns, "rows": rows, "readings": readings}[kind]
    plot.layers(record, "temperature", steps=[0, 10, 30], ax=ax)
    (image,) = ax.collections
    expected = [[1e-2, np.nan, 1e-3], [np.nan, 1e-5, np.nan]]
    assert np.array_equal(image.get_array().filled(np.nan), expected, equal_nan=True)
    # The cells end half way between the readings.
    assert image.get_coordinates()[0, :, 0].tolist() == [-5, 5, 20, 40]
    assert isinstance(image.norm, LogNorm)
    assert (image.norm.vmin, image.norm.vmax) == (1e-5, 1e-2)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"]
    assert ax.get_yticks().tolist() == [0, 1]
    assert ax.yaxis_inverted()
    assert "temperature" in ax.figure.axes[1].get_ylabel()
    assert np.allclose(image.to_rgba(image.get_array())[0, 1], colors.to_rgba("0.5"))


def test_heat_maps_on_one_scale():
    """With the ends given, equal temperatures have equal colours in different heat maps."""
    figure = Figure()
    maps = [
        plot.layers({"a": row, 1: row}, vmin=1e-6, vmax=1.0, colorbar=False, ax=ax)
        for row, ax in zip(([1e-3], [1e-3, 1e-5]), figure.subplots(1, 2, sharey=True), strict=True)
    ]
    assert len(figure.axes) == 2
    assert [ax.yaxis_inverted() for ax in maps] == [True, True], "shared, and turned twice"
    images = [ax.collections[0] for ax in maps]
    first, second = (image.to_rgba(image.get_array())[0, 0].tolist() for image in images)
    assert first == second
    assert [(image.norm.vmin, image.norm.vmax) for image in images] == [(1e-6, 1.0)] * 2


def test_names_of_many_layers_do_not_overlap(ax):
    """Of 300 layers some are named, each in its own place, in letters of 5 points."""
    plot.layers({f"layer{i}.weight": [1.0] for i in range(300)}, ax=ax)
    ax.figure.draw_without_rendering()
    labels = ax.get_yticklabels()
    assert 20 < len(labels) < 300
    for tick, label in zip(ax.get_yticks(), labels, strict=True):
        assert label.get_text() == f"layer{tick}.weight"
    boxes = [label.get_window_extent() for label in labels]
    gaps = [above.y0 - below.y1 for above, below in itertools.pairwise(boxes)]
    assert min(gaps) >= -1, "in pixels; a box has a margin around its letters"


NAMES = [
    "_hidden",
    "$",
    "$\\nope$",
    "$a_b$",
    "a\\$b",
    "\\frac",
    "trailing\\",
    "",
    0,
    None,
    ("a", 1),
]


def test_names_are_written_as_they_are():
    """Whatever is in them, a leading ``_`` or formulas among others, and of any type."""
    written = [str(name) for name in NAMES]
    for usetex in False, True:
        with rc_context({"text.usetex": usetex}):
            lines, rows, run = Figure(figsize=(6, 24)).subplots(3)
            lines.plot([0], [1], label="of the user, $x$")
            plot.schedule(dict.fromkeys(NAMES[:2], CoolingSchedule(2)), ax=lines)
            plot.schedule(dict.fromkeys(NAMES[2:], CoolingSchedule(2)), ax=lines)
            plot.layers({name: [1.0] for name in NAMES}, "$\\nope$", ax=rows)
            plot.run({"$\\nope$": [1.0]}, "$\\nope$", ax=run)
        texts = lines.get_legend().get_texts()
        assert [text.get_text() for text in texts] == ["of the user, $x$", *written]
        assert [line.get_label() for line in lines.lines[1:]] == written
        texts, labels = texts[1:], rows.get_yticklabels()
        assert [label.get_text() for label in labels] == written
        readings = [rows.figure.axes[-1].yaxis.label, run.yaxis.label]
        assert [reading.get_text() for reading in readings] == ["$\\nope$"] * 2
        for text in (*texts, *labels, *readings):
            assert not text.get_parse_math()
            assert not text.get_usetex()
        if not usetex:  # of which the numbers need LaTeX
            lines.figure.draw_without_rendering()


@pytest.mark.parametrize("name", ["default", "dark_background"])
def test_words_have_the_colours_of_the_style(name):
    """Text is legible in either style: no colour of text or background is ours."""
    with rc_context(), style.context(name):
        ax = plot.run({"temperature": [1.0], "loss": [1.0]}, ax=Figure().subplots())
        plain = Figure().subplots()
        words = [ax.xaxis.label, ax.yaxis.label, *ax.get_legend().get_texts()]
        assert {word.get_color() for word in words} == {plain.xaxis.label.get_color()}
        assert ax.get_facecolor() == plain.get_facecolor()


def luminance(colour: str) -> float:
    """Relative luminance by the definition of WCAG 2."""
    rgb = np.array(colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("colour", [*plot.COLOURS, plot.GREY])
def test_lines_stand_out_on_white_and_on_black(colour):
    """WCAG 2 asks graphics for a contrast of 3."""
    own = luminance(colour) + 0.05
    assert 1.05 / own >= 3
    assert own / 0.05 >= 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plot.schedule(lambda n: 0.5), TypeError, "total_steps is required"),
        (lambda: plot.schedule(0.5, total_steps=1), TypeError, "schedule must be a function"),
        (
            lambda: plot.schedule(lambda n: 1.5, total_steps=1),
            ValueError,
            r"schedule\(0\) must be in \[-1, 1\): 1.5",
        ),
        (lambda: plot.schedule(CoolingSchedule(1), "heat"), ValueError, "quantity must be one of"),
        (lambda: plot.run({"loss": [1.0]}), ValueError, "reading must be one of loss: 'temp"),
        (lambda: plot.schedule({}), ValueError, r"schedules must not be empty: \{\}"),
        (lambda: plot.run({1: [1.0]}), ValueError, "reading must be one of 1: 'temp"),
        (lambda: plot.run([]), ValueError, "record must not be empty"),
        (lambda: plot.layers([{}]), ValueError, "record must not be empty"),
        *(
            (
                lambda record=record: plot.run(record),
                TypeError,
                "record must be a dict of columns, or",
            )
            for record in ("temperature", 1.0, None, np.ones((2, 2, 2)), [[1.0]], [{}, None])
        ),
        *(
            (
                lambda x=x, draw=draw: draw({"temperature": x}),
                TypeError,
                "temperature must be a sequence of numbers: ",
            )
            for draw in (plot.run, plot.layers)
            for x in (
                1.0,
                "12",
                {0: 1.0, 1: 2.0},
                {1.0, 2.0},
                [1.0, None],
                [1j],
                np.ones((2, 1)),
                pd.DataFrame(np.ones((2, 2)), columns=[1, 2]),
            )
        ),
        (
            lambda: plot.run(pd.DataFrame([[1.0, 2.0]], columns=["temperature"] * 2)),
            TypeError,
            "temperature must be a sequence of numbers: ",
        ),
        (lambda: plot.run({"temperature": []}), ValueError, r"must have a positive value: \[\]"),
        (
            lambda: plot.layers({"a": [np.nan] * 99, "b": [0.0] * 99}),
            ValueError,
            r"temperatures must have a positive value: \[\[nan, nan, .*\.\.\.$",
        ),
        (
            lambda: plot.layers([{"a": {"rho": 0.5, "loss": 1.0}}]),
            ValueError,
            "reading must be one of rho, loss: 'rescaled_temperature'",
        ),
        *(
            (
                lambda steps=steps: plot.run({"temperature": [1.0, 1.0]}, steps=steps),
                ValueError,
                "steps must increase, and be finite: ",
            )
            for steps in (
                [1, np.nan],
                [1, np.inf],
                [2, 1],
                np.ma.masked_all(2),
                np.ma.array([1, np.nan], mask=[1, 0]),
            )
        ),
        (
            lambda: plot.layers({"a": [1.0, 1.0]}, steps=np.ma.array([1, 2], mask=[0, 1])),
            ValueError,
            "steps must not be masked, as cells end between them: masked_array",
        ),
        (lambda: plot.run({"temperature": [0.0]}), ValueError, "must have a positive value"),
        (
            lambda: plot.run({"temperature": [1.0]}, predicted=[1.0, 2.0]),
            ValueError,
            "predicted must have a value for each of 1 readings: 2",
        ),
        (
            lambda: plot.run({"temperature": [[1.0, 2.0]]}),
            TypeError,
            "temperature must be a sequence of numbers",
        ),
        (
            lambda: plot.run({"temperature": [1.0, 1.0]}, steps=[1, 1]),
            ValueError,
            "steps must increase",
        ),
        (
            lambda: plot.layers({"a": [1.0], "b": [1.0, 2.0]}),
            ValueError,
            "b must have a value for each of 1 readings: 2",
        ),
        (lambda: plot.layers({"a": [np.nan]}), ValueError, "must have a positive value"),
        (lambda: plot.layers({"a": [1.0]}, vmin=0), ValueError, "vmin must be finite and > 0: 0"),
        (lambda: plot.layers({"a": [1.0]}, vmin=2), ValueError, "vmin must be <= vmax"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(call, error, message):
    """Bad input fails before anything is drawn: no figure of pyplot appears."""
    from matplotlib import pyplot as plt

    before = plt.get_fignums()
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
    assert plt.get_fignums() == before


def test_without_axes_it_draws_on_the_current_ones_of_pyplot():
    """As other libraries do."""
    from matplotlib import pyplot as plt

    current = plt.figure().subplots()
    try:
        assert plot.schedule(CoolingSchedule(2)) is current
    finally:
        plt.close(current.figure)


def test_with_axes_given_it_does_without_pyplot(monkeypatch):
    """Pyplot chooses a display when it is loaded, and is not asked for."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it is an error now
    plot.schedule(CoolingSchedule(2), ax=Figure().subplots())
    plot.layers({"a": [1.0]}, ax=Figure().subplots())
    plot.run({"temperature": [1.0], "loss": [1.0]}, ax=Figure().subplots())
