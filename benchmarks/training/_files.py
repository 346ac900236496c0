"""Files that are whole, or are not there, whatever happens to the process or the machine."""

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside the old one, and rename it when all of it is on the disk.

    Raises
    ------
    OSError
        If it could not be written; then the old one is still there.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_bytes(content)
        _sync(new)
        new.replace(path)
        _sync(path.parent)  # which has the name
    except OSError:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
