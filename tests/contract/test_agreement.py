"""The page that says how far every path is from the reference: is it of this package?"""

import re

import pytest
from adapters import DRIVERS
from agreement import DOCS, measure, split

PAGE = DOCS / "agreement.md"


def recorded():
    """The rows of the page: path and dtype, and their numbers."""
    dtype, rows = "", {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            dtype = line.removeprefix("## ")
        elif re.match(r"\| [a-z]+[ ,].*\d", line):
            path, *numbers = (cell.strip() for cell in line.strip("|").split("|"))
            rows[path, dtype] = [float(number) for number in numbers]
    return rows


def test_the_page_has_every_path_and_no_other():
    """Every driver of this process has its row; so has no other of the same framework."""
    ours = {split(name) for name in DRIVERS}
    framework = {path.split(",")[0] for path, _ in ours}
    assert {row for row in recorded() if row[0].split(",")[0] in framework} == ours


def test_the_recorded_deviations_are_within_their_bounds():
    """Every number of the page is, and every bound is one."""
    for worst, bound, worst_displacement, displacement_bound, share in recorded().values():
        assert worst <= bound
        assert worst_displacement <= displacement_bound
        assert share <= 1


SHORTER = [n for n, d in DRIVERS.items() if not d.max_compilations and "jax, eager" not in n]


@pytest.mark.parametrize("name", SHORTER)
def test_a_shorter_run_stays_within_its_bounds(name):
    """Of the run that the page records, with a twentieth of the steps, on this machine."""
    assert 0 <= measure(DRIVERS[name], steps=50)["largest share of a bound"] <= 1


def test_the_figure_is_there():
    """Beside the page, which shows it."""
    assert "(agreement.png)" in PAGE.read_text(encoding="utf-8")
    assert (DOCS / "agreement.png").stat().st_size > 10_000
