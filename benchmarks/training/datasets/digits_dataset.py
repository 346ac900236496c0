"""scikit-learn's digits."""

from typing import Any

from benchopt import BaseDataset

from benchmarks.training._data import digits


class Dataset(BaseDataset):  # type: ignore[misc]  # benchopt is not typed
    """scikit-learn's digits."""

    name = "digits"

    def get_data(self) -> dict[str, Any]:
        """The images of each part."""
        return digits()._asdict()
