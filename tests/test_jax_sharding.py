"""On eight devices: the checks of jax_on_eight_devices.py, in a process that has them."""

import os
import subprocess
import sys
from pathlib import Path


def test_on_eight_devices():
    """XLA makes host devices only before it starts, so the checks run in their own pytest."""
    checks = Path(__file__).with_name("jax_on_eight_devices.py")
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped" not in run.stdout
