"""What the tests of the training benchmark share: small problems, a config, and signals."""

import signal

import numpy as np

from benchmarks.training._data import Images
from benchmarks.training._networks import initial_weights
from benchmarks.training._problem import Problem
from benchmarks.training._rules import Settings

SGD = Settings("sgd", 1.0, 0.0)

CONFIG = """
dataset: digits
objective: training[phase=report,network=mlp,epochs=12,batch=32]
n-repetitions: 2
solver:
  - torch: {rule: coolmomentum, lr: 0.01, momentum: 0.9}
"""


def some_images(size: int, width: int, seed: int = 0) -> Images:
    """Normal noise in three colours, of ten classes in turn."""
    random = np.random.default_rng(seed)
    pixels = random.normal(size=(size, width, width, 3)).astype(np.float32)
    return Images(pixels, (np.arange(size) % 10).astype(np.int32))


def small_problem(network: str, width: int = 16, **more: object) -> Problem:
    """Of one step."""
    images = some_images(10, width)
    return Problem(network, images, images, epochs=1, batch=10, augment=True, **more)


def short_problem(network: str) -> Problem:
    """Of two epochs of three steps."""
    images = some_images(24, 8)
    return Problem(network, images, images, epochs=2, batch=8, augment=True)


def first_weights(problem: Problem, seed: int = 0) -> dict:
    """Those that a run starts from."""
    return initial_weights(problem.network, problem.shape, problem.classes, seed)


def first_half(content: bytes) -> bytes:
    """What is left of a file that was cut."""
    return content[: len(content) // 2]


def heed_signals() -> None:
    """Under nohup, and in the background of a script, some are ignored, by children too."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
