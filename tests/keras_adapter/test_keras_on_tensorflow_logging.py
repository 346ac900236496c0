"""The recipe of docs/logging.md for Keras, whose TensorBoard callback writes with TensorFlow."""

from pathlib import Path

import pytest
from recipes import code, scalars

from coolmomentum import CoolingSchedule


def test_what_tensorboard_shows_of_a_fit(tmp_path, monkeypatch):
    """Rho and temperature of each epoch are in the history and in TensorBoard's file."""
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code("Keras and TensorBoard"), names)
    history, optimizer = names["history"].history, names["model"].optimizer
    rho = CoolingSchedule(24, rho0=0.9)
    # rho is made in float32, by a closed form of a few operations on numbers below 3.
    assert history["rho"] == pytest.approx([rho(8), rho(16), 0.0], abs=16 * 2**-24)
    assert history["temperature"][-1] == optimizer.temperature() > 0
    curves = scalars(Path("runs/keras"))
    for name in "rho", "temperature":
        assert [step for step, _ in curves[f"epoch_{name}"]] == [0, 1, 2]
        shown = [value for _, value in curves[f"epoch_{name}"]]
        assert shown == pytest.approx(history[name], rel=2**-24)  # stored in float32
