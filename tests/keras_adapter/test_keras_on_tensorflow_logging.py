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
    history = names["history"].history
    rho = CoolingSchedule(24, rho0=0.9)  # of step n, which follows n - 1 others
    windows = [range(1, 9), (9, 10, 12, 12, 14, 14, 16, 16), (18, 20, 22, 24)]
    means = [sum(rho(n - 1) for n in window) / len(window) for window in windows]
    # rho is made in float32, by a closed form of a few operations on numbers below 3; the mean of
    # eight adds eight roundings.
    assert history["rho"] == pytest.approx(means, abs=20 * 2**-24)
    assert all(temperature > 0 for temperature in history["temperature"])
    curves = scalars(Path("runs/keras"))
    for name in "rho", "temperature":
        assert [step for step, _ in curves[f"epoch_{name}"]] == [0, 1, 2]
        shown = [value for _, value in curves[f"epoch_{name}"]]
        assert shown == pytest.approx(history[name], rel=2**-24)  # stored in float32
