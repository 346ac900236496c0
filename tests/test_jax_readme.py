"""The JAX section of the documentation runs."""

import re
from pathlib import Path

import pytest

from coolmomentum.jax import CoolMomentumState

ROOT = Path(__file__).parents[1]


def blocks():
    """The python blocks of the section on JAX, wherever it is kept."""
    draft = ROOT / "docs-draft-jax.md"
    text = (draft if draft.exists() else ROOT / "README.md").read_text()
    section = text.split("## JAX", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_the_documented_run_finds_the_weights_and_its_readings_are_as_the_comments_say():
    """One program, block after block."""
    names = {}
    program, readings, checkpoint = blocks()
    exec(program, names)
    assert names["params"]["w"].tolist() == pytest.approx([1.0, -2.0, 0.5], abs=1e-3)
    values = [eval(line, names) for line in readings.splitlines()]
    assert values[0] >= 0
    assert set(values[1]) == {"w", "b"}
    assert values[2:] == [0.0, pytest.approx(0.025)]
    exec(checkpoint, names)
    restored = names["restored"]["opt_state"][2]
    assert isinstance(restored, CoolMomentumState)
    assert int(restored.count) == 1000
