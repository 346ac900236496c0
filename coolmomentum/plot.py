"""Figures of schedules and of recorded temperatures, with Matplotlib (the extra ``plot``).

Equation numbers are those of Borysenko and Byshkin, Scientific Reports 11, 10705 (2021).

Every function draws on one Axes, ``ax`` or else the current one of pyplot, and gives it back.
Nothing is shown, saved or styled: text, axes and background are those of your Matplotlib style. The
colours of lines and images can be told apart with any colour vision, on white and on black.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, Literal, get_args
from weakref import WeakSet

import numpy as np

from coolmomentum import _check
from coolmomentum.langevin import reduced_temperature, step_size
from coolmomentum.schedules import CoolingSchedule, Schedule, check_schedule

try:
    import matplotlib
except ModuleNotFoundError as error:
    if error.name != "matplotlib":
        raise
    raise ImportError(
        'coolmomentum.plot needs Matplotlib: pip install "coolmomentum[plot]"'
    ) from None

from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

__all__ = ["Quantity", "Record", "layers", "run", "schedule"]

Quantity = Literal["rho", "step_size", "reduced_temperature"]
Array = np.ndarray[Any, np.dtype[np.float64]]  # of one dimension, if nothing else is said
Values = Sequence[Any] | np.ndarray[Any, Any]  # numbers over time
Record = Mapping[Any, Values] | Iterable[Mapping[Any, Any]]  # of columns, or of rows

# Of the palette of Okabe and Ito those with a contrast of 3 and more to white and to black.
BLUE, VERMILION, GREEN, PURPLE = COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
DASHES = ("-", "--", ":")  # as many as have no divisor in common with the colours: 12 pairs
LINE, SMALLEST = 1.2, 5.0  # height of a line over that of its letters, which are in points
GREY = "0.5"  # in none of the palettes, and visible on white and on black
VERBATIM = {"parse_math": False, "usetex": False}  # for names, in which $ and \\ are no formulas

_NAMED: WeakSet[Line2D] = WeakSet()  # lines whose labels are verbatim, in whatever Axes

LABELS = {
    "rho": r"momentum coefficient $\rho$",
    "step_size": r"step size / learning rate, $(1 + \rho)/2$",
    "reduced_temperature": r"reduced temperature $(1 + \rho)/(1 - \rho)$",
    "rescaled_temperature": r"rescaled temperature $T\,\Delta t^2$ (squared change per step)",
    "temperature": r"temperature $T$ (unit of the loss)",
    "three_point_temperature": r"three-point temperature $T$ (unit of the loss)",
    "predicted_temperature": r"predicted temperature $T$ (unit of the loss)",
}

_QUANTITIES: dict[str, Callable[[Array], Array]] = {
    "rho": lambda rho: rho,
    "step_size": lambda rho: step_size(1.0, rho),
    "reduced_temperature": lambda rho: _gaps(reduced_temperature(rho)),
}


def schedule(
    schedules: Schedule | Mapping[str, Schedule],
    quantity: Quantity = "reduced_temperature",
    *,
    total_steps: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """What a schedule, or several, will do over the steps of the run.

    ``rho``, the step size over the learning rate ``(1 + rho) / 2`` (Eq. 16), or the reduced
    temperature ``(1 + rho) / (1 - rho)`` (from Eq. 19), on a log scale.

    Parameters
    ----------
    schedules : a :class:`coolmomentum.CoolingSchedule`, any callable ``step -> rho``, or a dict of
        them, whose keys name the lines as they are: ``$`` and a leading ``_`` mean nothing.
    quantity : "rho", "step_size" or "reduced_temperature".
    total_steps : the last step to draw, >= 1; by default that of the longest CoolingSchedule.
    ax : where to draw, by default the current Axes of pyplot.

    Returns
    -------
    the Axes; a line for each schedule, at each step or at some 1000 of them

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or total_steps is missing beside callables of your own.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from coolmomentum import CoolingSchedule, plot
    >>> laws = {law: CoolingSchedule(100, law=law) for law in ("paper", "linear")}
    >>> ax = plot.schedule(laws, "rho", ax=Figure().subplots())
    >>> [(line.get_label(), float(line.get_ydata()[-1])) for line in ax.lines]
    [('paper', 0.0), ('linear', 0.0)]
    """
    _check.one_of("quantity", quantity, get_args(Quantity))
    named = schedules if isinstance(schedules, Mapping) else {"": schedules}
    if not named:
        raise ValueError(f"schedules must not be empty: {schedules!r}")
    if total_steps is None:
        cooling = [each for each in named.values() if isinstance(each, CoolingSchedule)]
        ends = [each.total_steps for each in cooling if each.total_steps is not None]
        if not ends:
            raise TypeError("total_steps is required beside schedules that do not have them")
        total_steps = max(ends)
    last = _check.integer("total_steps", total_steps, 1)
    for each in named.values():
        check_schedule(each, last)
    ax = _axes(ax)
    lines: dict[Line2D, str] = {}
    for i, (name, each) in enumerate(named.items()):
        steps = _steps(each, last)
        rho = np.array([float(each(int(step))) for step in steps])
        (line,) = ax.plot(steps, _QUANTITIES[quantity](rho))
        line.set(color=COLOURS[i % len(COLOURS)], linestyle=DASHES[i % len(DASHES)])
        lines[line] = str(name)
    if quantity == "reduced_temperature":
        ax.set_yscale("log")
    ax.set(xlabel="optimizer step", ylabel=LABELS[quantity])
    if isinstance(schedules, Mapping):
        _name_lines(ax, lines)
    return ax


def run(
    record: Record,
    reading: str = "temperature",
    *,
    predicted: Values | None = None,
    steps: Values | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A recorded run: its temperature against the prediction of Eq. 19, and its loss.

    The temperature is on the left axis, on a log scale. The loss, where there is one, has the axis
    on the right, which is a second Axes over the first (the last of ``ax.figure.axes``).

    Parameters
    ----------
    record : a dict of columns, such as the ``history`` of Keras or a DataFrame, or dicts, such as
        the readings of a thermometer one after another. "loss" is drawn if it is there.
    reading : which column is the temperature: "temperature", "rescaled_temperature" or
        "three_point_temperature".
    predicted : what is expected, one value a reading, in the unit of the reading; by default the
        column "predicted_temperature", if it is there, but not beside "rescaled_temperature", which
        has another unit. Eq. 19 is :func:`coolmomentum.noise_temperature`; its shape under constant
        noise is :func:`coolmomentum.reduced_temperature` of rho.
    steps : at which optimizer step each reading was taken, finite and increasing; by default they
        are epochs 1, 2, ...
    ax : where to draw, by default the current Axes of pyplot.

    Returns
    -------
    the Axes of the temperature; its legend is above it, clear of both curves. A temperature that is
    masked, not finite or not positive leaves a gap, and so does a masked step.

    Raises
    ------
    TypeError
        If something is not what it is said to be above.
    ValueError
        If the reading is missing or has no positive value, steps do not increase, or lengths
        differ.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from coolmomentum import plot
    >>> readings = [{"temperature": 0.4, "loss": 2.0}, {"temperature": 0.1, "loss": 1.5}]
    >>> ax = plot.run(readings, predicted=[0.5, 0.1], ax=Figure().subplots())
    >>> [line.get_label() for line in ax.lines], ax.figure.axes[1].get_ylabel()
    (['measured', 'predicted by Eq. 19'], 'loss')
    """
    columns = _columns(record)
    if reading not in columns:
        raise ValueError(f"reading must be one of {_joined(columns)}: {reading!r}")
    measured = _column(reading, columns[reading])
    if predicted is None and reading != "rescaled_temperature":
        predicted = columns.get("predicted_temperature")
    x = _times(steps, measured)
    expected = None if predicted is None else _column("predicted", predicted)
    if expected is not None:
        _same_length("predicted", expected, measured)
    loss = _column("loss", columns["loss"]) if "loss" in columns else None
    if loss is not None:
        _same_length("loss", loss, measured)
    temperature = _positive(reading, measured)

    ax = _axes(ax)
    lines = ax.plot(x, temperature, color=VERMILION, marker=".", markersize=3, label="measured")
    if expected is not None:
        style: dict[str, Any] = {"color": GREY, "linestyle": "--", "label": "predicted by Eq. 19"}
        lines += ax.plot(x, _gaps(expected), **style)
    ax.set_yscale("log")
    ax.set_ylabel(**_label(reading, "ylabel"))
    _name_time(ax, steps)
    if loss is not None:
        right = ax.twinx()
        lines += right.plot(x, loss, color=BLUE, linestyle=":", label="loss (right)")
        right.set_ylabel("loss")
    # Above the axes, because no place in them is clear of the curves of both.
    ax.legend(handles=lines, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    return ax


def layers(
    record: Record,
    reading: str = "rescaled_temperature",
    *,
    steps: Values | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Temperatures of the layers over time, as a heat map on a log scale: a layer is a row.

    Parameters
    ----------
    record : a dict (or a DataFrame) from the name of a layer to its temperatures, or dicts, one a
        reading, from the name to the temperature or to the readings of a thermometer.
    reading : which of the readings of a thermometer to take; says what the temperatures are.
    steps : at which optimizer step each reading was taken, finite and increasing; by default they
        are epochs 1, 2, ...
    vmin, vmax : ends of the colour scale, > 0; by default the smallest and the largest positive
        temperature. Set both to compare several heat maps.
    colorbar : whether to draw the colour scale beside it, as an Axes of its own.
    ax : where to draw, by default the current Axes of pyplot.

    Returns
    -------
    the Axes; what is missing, masked, not finite or not positive is grey. If the names do not all
    fit beside the rows, even in small letters, some are left out.

    Raises
    ------
    TypeError
        If something is not what it is said to be above.
    ValueError
        If the reading is missing or no temperature is positive, a step is masked or steps do not
        increase, lengths differ, or the ends of the scale are out of order.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from coolmomentum import plot
    >>> ax = plot.layers({"in": [1e-3, 1e-5], "out": [1e-4, 0.0]}, ax=Figure().subplots())
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['in', 'out']
    >>> ax.collections[0].get_array()
    masked_array(
      data=[[0.001, 1e-05],
            [0.0001, --]],
      mask=[[False, False],
            [False,  True]],
      fill_value=1e+20)
    """
    columns = _of_thermometers(_columns(record), reading)
    rows = [_column(name, values) for name, values in columns.items()]
    for name, row in zip(columns, rows, strict=True):
        _same_length(name, row, rows[0])
    temperatures = np.ma.masked_invalid(_positive("temperatures", np.array(rows)))
    x = _times(steps, rows[0])
    if np.ma.is_masked(x):
        raise ValueError(f"steps must not be masked, as cells end between them: {_short(steps)}")
    low = float(temperatures.min()) if vmin is None else _check.positive("vmin", vmin)
    high = float(temperatures.max()) if vmax is None else _check.positive("vmax", vmax)
    if low > high:
        raise ValueError(f"vmin must be <= vmax, {high}: {low}")
    if low == high:  # all the same: a scale needs two ends
        low, high = low / 2, high * 2

    ax = _axes(ax)
    colours = matplotlib.colormaps["viridis"].with_extremes(bad=GREY)
    edges = _edges(x), np.arange(len(rows) + 1) - 0.5
    # Rasterized, or else an SVG or PDF has a polygon for each cell, with seams between them.
    image = ax.pcolormesh(
        *edges, temperatures, norm=LogNorm(low, high), cmap=colours, rasterized=True
    )
    ax.yaxis.set_inverted(True)  # the first layer on top
    _name_time(ax, steps)
    _name_rows(ax, [str(name) for name in columns])
    if colorbar:
        ax.figure.colorbar(image, ax=ax).set_label(**_label(reading, "label"))
    return ax


# --- helpers ------------------------------------------------------------------------------------


def _axes(ax: Axes | None) -> Axes:
    if ax is None:
        from matplotlib import pyplot as plt  # here, because it chooses a display

        return plt.gca()
    return ax


def _steps(schedule: Schedule, last: int) -> Array:
    """Steps from 0 to the last, not many more than 1000, and both sides of the end of a warm-up."""
    steps = np.linspace(0, last, min(last, 1000) + 1).round()
    if isinstance(schedule, CoolingSchedule) and 0 < schedule.warmup_steps <= last:
        steps = np.append(steps, [schedule.warmup_steps - 1, schedule.warmup_steps])
    return np.unique(steps)


def _columns(record: Any) -> dict[Any, Any]:
    """A record as a dict of columns; NaN where a row lacks one."""
    if hasattr(record, "keys"):
        columns = dict(record)
    else:
        rows = list(record) if isinstance(record, Iterable) else [record]
        if not all(hasattr(row, "keys") for row in rows):
            rule = "must be a dict of columns, or dicts, one a reading"
            raise TypeError(f"record {rule}: {_short(record)}")
        rows = [dict(row) for row in rows]
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name, np.nan) for row in rows] for name in names}
    if not columns:
        raise ValueError(f"record must not be empty: {_short(record)}")
    return columns


def _of_thermometers(columns: dict[Any, Any], reading: str) -> dict[Any, list[Any]]:
    """Of the readings of thermometers in columns the one that is asked for; NaN where it lacks."""
    lists = {name: _values(name, values) for name, values in columns.items()}
    readings = [x for column in lists.values() for x in column if isinstance(x, Mapping)]
    names = dict.fromkeys(name for each in readings for name in each)
    if readings and reading not in names:
        raise ValueError(f"reading must be one of {_joined(names)}: {reading!r}")
    return {
        name: [x.get(reading, np.nan) if isinstance(x, Mapping) else x for x in column]
        for name, column in lists.items()
    }


def _values(name: Any, values: Any) -> list[Any]:
    """What is in a column; NaN where it is masked."""
    ordered = isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping | Set)
    if not ordered or getattr(values, "ndim", 1) != 1:
        raise TypeError(f"{name} must be a sequence of numbers: {_short(values)}")
    if isinstance(values, np.ma.MaskedArray):
        return list(np.ma.filled(values.astype(object), np.nan))
    return list(values)


def _column(name: Any, values: Any) -> Array:
    values = _values(name, values)
    try:
        return np.array([float(value) for value in values])
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a sequence of numbers: {_short(values)}") from None


def _times(steps: Values | None, like: Array) -> Array:
    """The steps of the readings, or epochs."""
    if steps is None:
        return np.arange(1.0, len(like) + 1)
    x = _column("steps", steps)
    _same_length("steps", x, like)
    if isinstance(steps, np.ma.MaskedArray):
        x = np.ma.array(x, mask=steps.mask)
    known = np.ma.compressed(x)
    if not (known.size and np.isfinite(known).all() and (np.diff(known) > 0).all()):
        raise ValueError(f"steps must increase, and be finite: {_short(steps)}")
    return x


def _same_length(name: str, x: Array, like: Array) -> None:
    if len(x) != len(like):
        raise ValueError(f"{name} must have a value for each of {len(like)} readings: {len(x)}")


def _gaps(x: Array) -> Array:
    """What a log scale can show, of an array of any shape; NaN in place of the rest."""
    return np.where(np.isfinite(x) & (x > 0), x, np.nan)


def _positive(name: str, x: Array) -> Array:
    gaps = _gaps(x)
    if np.isnan(gaps).all():
        raise ValueError(f"{name} must have a positive value: {_short(x.tolist())}")
    return gaps


def _short(value: Any) -> str:
    """The representation in one line, of which the beginning is enough."""
    return _cut(repr(value))


def _joined(names: Iterable[Any]) -> str:
    return _cut(", ".join(map(str, names)))


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:100]}..."


def _edges(x: Array) -> Array:
    """Edges of cells around increasing points: half way between them."""
    if len(x) == 1:
        return np.array([x[0] - 0.5, x[0] + 0.5])
    middle = (x[1:] + x[:-1]) / 2
    return np.concatenate([[2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]])


def _label(reading: str, keyword: str) -> dict[str, Any]:
    """Arguments that label an axis with a reading, which may have a name of its own."""
    return {keyword: LABELS[reading]} if reading in LABELS else {keyword: reading, **VERBATIM}


def _name_lines(ax: Axes, names: dict[Line2D, str]) -> None:
    """A legend with these names, beside what else has a label."""
    for line, name in names.items():
        line.set_label(name)
        _NAMED.add(line)
    labelled = zip(*ax.get_legend_handles_labels(), strict=True)
    others = [(artist, label) for artist, label in labelled if artist not in _NAMED]
    ours = [line for line in ax.lines if line in _NAMED]
    # Named afterwards, because Matplotlib leaves out what has a label with a leading "_".
    labels = [label for _, label in others] + ["-"] * len(ours)
    legend = ax.legend([*(artist for artist, _ in others), *ours], labels, frameon=False)
    for line, text in zip(ours, legend.get_texts()[len(others) :], strict=True):
        text.set(text=line.get_label(), **VERBATIM)


def _name_time(ax: Axes, steps: Values | None) -> None:
    ax.set_xlabel("epoch" if steps is None else "optimizer step")
    ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))


def _name_rows(ax: Axes, names: list[str]) -> None:
    """The names beside the rows: in smaller letters if there are many, then not all of them."""
    height = ax.get_window_extent().height * 72 / ax.figure.dpi / len(names)  # of a row, in points
    usual = FontProperties(size=matplotlib.rcParams["ytick.labelsize"]).get_size_in_points()
    size = min(usual, max(height / LINE, SMALLEST))
    shown = range(0, len(names), int(np.ceil(size * LINE / height)))
    ax.set_yticks(shown, [names[i] for i in shown], fontsize=size, **VERBATIM)
