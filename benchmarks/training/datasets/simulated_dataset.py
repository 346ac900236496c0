"""Noisy copies of a few random images, for tests."""

from typing import Any

from benchopt import BaseDataset

from benchmarks.training._data import simulated


class Dataset(BaseDataset):  # type: ignore[misc]  # benchopt is not typed
    """Noisy copies of a few random images, for tests."""

    name = "simulated"

    def get_data(self) -> dict[str, Any]:
        """The images of each part."""
        return simulated()._asdict()
