"""On eight devices: the checks of two other files, each in a process that has them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "checks", ["jax_on_eight_devices.py", "jax_optax_suite_on_eight_devices.py"]
)
def test_on_eight_devices(checks):
    """XLA makes host devices only before it starts, so the checks run in their own pytest."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    checks = str(Path(__file__).with_name(checks))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", checks]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "this optax does not ship" in run.stdout:
        pytest.skip("this optax does not ship its sharding suite")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped" not in run.stdout
