"""Fashion-MNIST; training=0 is all images that are not for validation."""

from typing import Any, ClassVar

from benchopt import BaseDataset

from benchmarks.training._data import fashion_mnist


class Dataset(BaseDataset):  # type: ignore[misc]  # benchopt is not typed
    """Fashion-MNIST; training=0 is all images that are not for validation."""

    name = "fashion_mnist"
    parameters: ClassVar[dict[str, list[int]]] = {"validation": [10_000], "training": [0]}

    def get_data(self) -> dict[str, Any]:
        """The images of each part."""
        return fashion_mnist(self.validation, self.training)._asdict()
