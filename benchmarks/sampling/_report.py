"""Records of each part with what made them, a table of all numbers, and a page."""

import csv
import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any

from benchmarks.sampling._tables import Part, as_markdown, as_records

__all__ = ["page", "write"]

PACKAGES = [
    *("numpy", "scipy", "scikit-learn", "torch", "jax"),
    *("posteriors", "devinterp", "blackjax"),
]
COLUMNS = ["part", "table", "row", "column", "value", "error", "text"]


def write(folder: Path, part: Part, about: dict[str, Any]) -> None:
    """The records of a part, its tables as Markdown, and its figure."""
    made = about | {"commit": _commit(), "python": platform.python_version()}
    made["versions"] = {name: _version(name) for name in PACKAGES}
    record = {
        "about": made,
        "records": [cell for table in part.tables for cell in as_records(table)],
        "markdown": [as_markdown(table) for table in part.tables],
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (folder / f"{about['part']}.json").write_text(text + "\n", encoding="utf-8")
    if part.draw:
        part.draw().savefig(folder / f"{about['part']}.png", dpi=110, metadata={"Software": None})


def page(folder: Path, parts: list[str]) -> None:
    """``report.md`` and ``records.csv`` of all parts whose records are in the folder."""
    lines = ["# Sampling: what was measured", "", "Made by `python -m benchmarks.sampling`.", ""]
    file = StringIO()
    table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    table.writeheader()
    for part in parts:
        if not (folder / f"{part}.json").exists():
            continue
        record = json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))
        lines += [f"## {part}", "", *(f"{text}\n" for text in record["markdown"])]
        if (folder / f"{part}.png").exists():
            lines += [f"![{part}]({part}.png)", ""]
        made = record["about"]
        versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
        quick = " In miniature (`--quick`): the numbers mean nothing." if made["quick"] else ""
        lines += [
            f"Walks of ours by the {made['adapter']} adapter, commit {made['commit']}, Python "
            f"{made['python']}, {versions}.{quick}",
            "",
        ]
        table.writerows({"part": part, **cell} for cell in record["records"])
    (folder / "report.md").write_text("\n".join(lines), encoding="utf-8")
    (folder / "records.csv").write_text(file.getvalue(), encoding="utf-8")


def _commit() -> str:
    """Of the checkout, with a mark if something has been changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
