"""The recipes of docs/logging.md as code, and what TensorBoard shows of their files."""

import math
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "logging.md"


def code(heading: str = "") -> str:
    """The Python blocks of a section of the page; without a heading, those before the first."""
    return "\n".join(
        re.findall(r"^```python\n(.*?)^```", section(heading), re.DOTALL | re.MULTILINE)
    )


def section(heading: str) -> str:
    """A section of the page, up to the next heading of any level."""
    sections = re.split(r"^##+ ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return ({"": sections[0]} | {part.partition("\n")[0]: part for part in sections[1:]})[heading]


def steps_by_the_page(row: str, epochs: int, length: int, accumulation: int = 1) -> int:
    """What a row of the page's table of steps says, for a loader of that length.

    ``row`` is how the row begins.
    """
    rows = re.findall(r"^\| (.*) \| `(.*)` \|$", section("How many steps"), re.MULTILINE)
    (formula,) = (formula for name, formula in rows if name.startswith(row))
    names = {"epochs": epochs, "loader": range(length), "accumulation": accumulation, "math": math}
    steps: int = eval(formula, names)
    return steps


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves that TensorBoard shows of a folder: name to steps and values."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    curves: dict[str, list[tuple[int, float]]] = {}
    for path in folder.rglob("events.*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    number = float(make_ndarray(value.tensor).item())
                    curves.setdefault(value.tag, []).append((event.step, number))
    return curves
