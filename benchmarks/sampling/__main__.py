"""Measure what the heat bath samples: ``python -m benchmarks.sampling``.

Parts: audit, llc, double-well, annealing, posterior, minima; all by default. Each prints its table
when it ends, and writes its records and its figure; the page is made of all records in the folder.
All numbers are from written seeds. Packages to compare with may be missing: their rows say so.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.sampling import _annealing, _audit, _double_well, _llc, _minima, _posterior
from benchmarks.sampling._report import page, write
from benchmarks.sampling._tables import as_markdown
from benchmarks.sampling._walks import ADAPTERS

PARTS = {
    "audit": _audit.measure,
    "llc": _llc.measure,
    "double-well": _double_well.measure,
    "annealing": _annealing.measure,
    "posterior": _posterior.measure,
    "minima": _minima.measure,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; the exit status is 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sampling", description="Measure what the heat bath samples."
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--quick", action="store_true", help="in miniature: does it run?")
    parser.add_argument("--adapter", choices=ADAPTERS, default="numpy", help="that makes our walks")
    parser.add_argument("--output", type=Path, default=Path("results/sampling"), help="folder")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"parts must be of {', '.join(PARTS)}: {', '.join(unknown)}")
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.parts or PARTS:
        part = PARTS[name](ADAPTERS[options.adapter], quick=options.quick)
        for table in part.tables:
            print(as_markdown(table), end="\n\n", flush=True)
        about = {"part": name, "adapter": options.adapter, "quick": options.quick}
        write(options.output, part, about)
    page(options.output, list(PARTS))
    print(f"The page: {options.output / 'report.md'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
