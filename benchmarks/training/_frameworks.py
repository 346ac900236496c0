"""Which frameworks there are, and the trainer of each, imported only where it is used."""

import os
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from benchmarks.training._problem import Problem
from benchmarks.training._rules import Settings
from benchmarks.training._trainer import Trainer

__all__ = ["FRAMEWORKS", "OPTIONS", "trainer", "unavailable", "versions"]

OPTIONS = {"torch": ("channels_last", "autocast")}  # of the trainer, for speed; off by default

FRAMEWORKS = {  # its trainer, and the packages it needs
    "torch": ("_torch.TorchTrainer", ("torch",)),
    "jax": ("_jax.JaxTrainer", ("jax", "flax", "optax")),
    "keras_tensorflow": ("_keras.KerasTrainer", ("keras", "tensorflow")),
    "keras_jax": ("_keras.KerasTrainer", ("keras", "jax")),
    "keras_torch": ("_keras.KerasTrainer", ("keras", "torch")),
}


def unavailable(framework: str) -> str | None:
    """Why it cannot be used here, if so."""
    absent = [name for name in FRAMEWORKS[framework][1] if find_spec(name) is None]
    return f"{', '.join(absent)} not installed: pip install '.[demo]'" if absent else None


def trainer(framework: str, problem: Problem, settings: Settings, **options: bool) -> Trainer:
    """A trainer of that framework, with its own options.

    Raises
    ------
    RuntimeError
        If Keras has another backend in this process: it has one only.
    """
    _, _, backend = framework.partition("_")
    if backend and os.environ.setdefault("KERAS_BACKEND", backend) != backend:
        used = os.environ["KERAS_BACKEND"]
        raise RuntimeError(f"{framework} needs KERAS_BACKEND={backend}: {used}")
    module, name = FRAMEWORKS[framework][0].split(".")
    new = getattr(import_module(f"benchmarks.training.{module}"), name)
    made: Trainer = new(problem, settings, **options)
    if backend and sys.modules["keras"].backend.backend() != backend:
        used = sys.modules["keras"].backend.backend()
        raise RuntimeError(f"{framework} needs KERAS_BACKEND={backend} from the start: {used}")
    return made


def versions(framework: str) -> dict[str, str]:
    """What is installed of it. TensorFlow is shipped under several names."""
    found = {}
    for name in FRAMEWORKS[framework][1]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = str(import_module(name).__version__)
    return found
