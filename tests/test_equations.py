"""Every equation of the paper has a test, marked with its number and named in docs/core.md."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "core.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| Eq\. (\d+) .*`(test_\w+)` \|$", PAGE, re.MULTILINE))
MARKED = {
    name: tuple(map(int, numbers.split(", ")))
    for file in TESTS.glob("test_*.py")
    for numbers, name in re.findall(
        r"^@pytest\.mark\.eq\((.*)\)\n(?:[@ )].*\n)*def (test_\w+)\(",
        file.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
}


def test_the_page_has_a_row_for_each():
    """From 14 to 22."""
    assert list(map(int, ROWS)) == list(range(14, 23))


@pytest.mark.parametrize(("number", "test"), ROWS.items(), ids=ROWS)
def test_the_test_of_the_row_is_marked(number, test):
    """``pytest --eq number`` runs it."""
    assert int(number) in MARKED[test]


def test_the_option_runs_the_tests_of_one_equation():
    """And no others."""
    command = [sys.executable, "-m", "pytest", "--eq", "21", "--collect-only", "-q"]
    files = ["tests/test_schedules.py", "tests/test_solver.py"]
    found = subprocess.run(
        [*command, *files], cwd=TESTS.parent, capture_output=True, text=True
    ).stdout
    names = {
        line.partition("::")[2].partition("[")[0] for line in found.splitlines() if "::" in line
    }
    assert names == {name for name, numbers in MARKED.items() if 21 in numbers}
