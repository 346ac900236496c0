"""The objective: a network to train on images, for so long, judged by images held out."""

from typing import Any, ClassVar

from benchopt import BaseObjective

from benchmarks.training._data import Images
from benchmarks.training._problem import Problem
from benchmarks.training._runs import Record


class Objective(BaseObjective):  # type: ignore[misc]  # benchopt is not typed
    """Training of an image classifier; ``phase`` decides which images are held out.

    ``tuning`` holds out the validation images and measures after the last epoch only; ``report``
    holds out the test images and measures after every epoch. Seeds of the two differ.
    """

    name = "training"
    min_benchopt_version = "1.10"
    sampling_strategy = "run_once"
    test_dataset_name = "simulated"
    test_config: ClassVar[dict[str, Any]] = {"network": "convnet", "epochs": 1, "batch": 16}
    parameters: ClassVar[dict[str, list[Any]]] = {
        "phase": ["report"],
        "network": ["mlp"],  # or "convnet", "resnet20"
        "epochs": [80],
        "batch": [32],
        "augment": [False],
        "measured": [0],  # how many images of the training set are measured; 0: all
    }

    def skip(self, training: Images, validation: Images, test: Images) -> tuple[bool, str | None]:
        """Refuse to tune without images to tune by, the test images being no such thing."""
        if self.phase not in ("tuning", "report"):
            return True, f"phase must be one of tuning, report: {self.phase}"
        if self.phase == "tuning" and not len(validation.labels):
            return True, "phase=tuning needs validation images"
        return False, None

    def set_data(self, training: Images, validation: Images, test: Images) -> None:
        """Take the images of a data set."""
        self.problem = Problem(
            self.network,
            training,
            validation if self.phase == "tuning" else test,
            self.epochs,
            self.batch,
            self.augment,
            self.measured,
        )

    def get_objective(self) -> dict[str, Any]:
        """What a solver gets: the problem and the seed, which are those of all solvers."""
        seed = self.get_seed(use_objective=True, use_dataset=True, use_repetition=True)
        return {"problem": self.problem, "seed": seed, "phase": self.phase}

    def evaluate_result(
        self, records: list[Record], provenance: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """A line for each record."""
        return [vars(record) | provenance for record in records]

    def get_one_result(self) -> dict[str, Any]:
        """A result as solvers give it back."""
        record = Record(0, 0, training_loss=2.3, penalty=0.0, loss=2.3, accuracy=0.1)
        return {"records": [record], "provenance": {}}
