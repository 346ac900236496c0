"""The recipes of docs/logging.md as code, and what TensorBoard shows of their files."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "logging.md"


def code(heading: str = "") -> str:
    """The Python blocks of a section of the page; without a heading, those before the first."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = {"": sections[0]} | {part.partition("\n")[0]: part for part in sections[1:]}
    return "\n".join(re.findall(r"^```python\n(.*?)^```", named[heading], re.DOTALL | re.MULTILINE))


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
