"""A run of a small network on JAX, as one of two hosts or as the only one: ``FOLDER [hosts]``.

``imagenet_smoke.py`` starts it; the addresses of the hosts are in the environment, where Keras
looks for them.
"""

import sys
from pathlib import Path

from benchmarks.imagenet.config import Config, Run
from benchmarks.imagenet.devices import choose

CONFIG = Config(
    name="small",
    kind="runs",
    what="",
    cannot="",
    runs=(Run("coolmomentum", 0.1, 0.9),),
    steps=12,
    epoch_steps=0.7,  # evaluations after 7 steps and 12
    batch=8,
    size=32,
    training_images=32,
    evaluate="train",
    evaluation_batch=16,
    bn_momentum=0.9,
    backup_steps=2,
)


def main(folder: str, *hosts: str) -> None:
    """Make the run, on two devices or on one of each host."""
    engine = choose(8, 16, devices=None if hosts else 2, hosts=bool(hosts))
    from imagenet_tools import small_network  # after JAX has found its hosts

    from benchmarks.imagenet import train

    train.efficientnet_b0 = small_network
    train.train(CONFIG, CONFIG.runs[0], engine, "simulated", Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
