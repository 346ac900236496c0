"""The figure that a page of the docs ends with: ``python -m benchmarks.page_figures start_torch``.

The page's own blocks are run, in order; the one that draws is run once for light pages and once for
dark ones. Keras has one backend a process, so a process does one page.
"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot, rc_context, style, use

from benchmarks.styles import STYLES

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the page and write its figure in each style; the exit status is 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.page_figures", description="Draw the figure of a page."
    )
    parser.add_argument("page", help="name of the page in docs/, without .md")
    parser.add_argument("--output", type=Path, default=DOCS / "figures", help="folder")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)

    use("agg")
    names: dict[str, Any] = {"__name__": options.page}
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # for what the page writes
        try:
            for block in BLOCK.findall((DOCS / f"{options.page}.md").read_text(encoding="utf-8")):
                if "plt.figure" not in block:
                    exec(block, names)
                    continue
                for shade, name in STYLES.items():
                    with rc_context(), style.context(name):
                        pyplot.rcParams["figure.figsize"] = (6.4, 3.6)
                        exec(block, names)
                        path = output / f"{options.page}-{shade}.png"
                        pyplot.savefig(path, dpi=150, transparent=True)
                        pyplot.close("all")
                break
        finally:
            os.chdir(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
