"""What a machine without a network lacks, in pieces for small uploads: ``make gpu-luggage``.

Wheels of pure Python, which are imported as they are, and CIFAR-10, two files in each piece.
"""

import argparse
import gzip
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.training import _data
from benchmarks.training._files import write_whole

__all__ = ["LUGGAGE", "missing", "pack", "unpack", "wheels"]

LUGGAGE = Path("luggage")
WHEELS = ("array-api-compat",)  # of what runs there, all that an image for machine learning lacks
LARGEST = 60_000_000  # bytes of a piece
FILES = 2  # of CIFAR-10, in each piece
CIFAR10 = "cifar-10-batches-py"


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack; the exit status is 0, or 2 if the images are not to be had."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.luggage", description=__doc__)
    parser.add_argument("--to", type=Path, default=LUGGAGE, help="a folder for the pieces")
    to = parser.parse_args(sys.argv[1:] if arguments is None else arguments).to
    try:
        pack(to)
    except _data.UnavailableDataError as error:
        print(error, file=sys.stderr)
        return 2
    for name in WHEELS:
        command = ["download", "--quiet", "--no-deps", f"--dest={to / '1'}"]
        wheel = f"{name}=={version(name)}"
        subprocess.run([sys.executable, "-m", "pip", *command, wheel], check=True)
    for piece in sorted(to.iterdir()):
        size = sum(file.stat().st_size for file in piece.iterdir())
        assert size < LARGEST
        print(f"{piece}: {size / 1e6:.1f} MB")
    return 0


def pack(to: Path) -> None:
    """Write the images."""
    contents = _data.cifar10_files()
    for at, (name, content) in enumerate(contents.items()):
        piece = to / str(1 + at // FILES)
        piece.mkdir(parents=True, exist_ok=True)
        write_whole(piece / f"{name}.gz", gzip.compress(content, 6, mtime=0))


def unpack(luggage: Path, to: Path) -> None:
    """Write the images where ``COOLMOMENTUM_DATA=to`` finds them; what is there already stays."""
    folder = to / CIFAR10
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(luggage.glob("*/*.gz")):
        if not (folder / file.stem).exists():
            write_whole(folder / file.stem, gzip.decompress(file.read_bytes()))


def missing(luggage: Path) -> list[str]:
    """The files of CIFAR-10 that no piece has."""
    there = {file.stem for file in luggage.glob("*/*.gz")}
    return [name for name in _data.CIFAR10 if name not in there]


def wheels(luggage: Path) -> list[str]:
    """For ``sys.path`` and ``PYTHONPATH``: Python imports from wheels that are pure Python."""
    return [str(path.resolve()) for path in sorted(luggage.glob("*/*.whl"))]


if __name__ == "__main__":
    sys.exit(main())
