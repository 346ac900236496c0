"""CIFAR-10; training=0 is all images that are not for validation."""

from typing import Any, ClassVar

from benchopt import BaseDataset

from benchmarks.training._data import cifar10


class Dataset(BaseDataset):  # type: ignore[misc]  # benchopt is not typed
    """CIFAR-10; training=0 is all images that are not for validation."""

    name = "cifar10"
    parameters: ClassVar[dict[str, list[int]]] = {"validation": [5_000], "training": [0]}

    def get_data(self) -> dict[str, Any]:
        """The images of each part."""
        return cifar10(self.validation, self.training)._asdict()
