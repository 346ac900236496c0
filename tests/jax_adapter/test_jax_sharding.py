"""On eight devices: the checks of two other files, each in a process that has them."""

import os
import socket
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


def test_two_processes_share_a_run():
    """Rho is read by one, the temperature by both; a state is gathered, exported and imported."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = str(found.getsockname()[1])
    script = str(Path(__file__).with_name("jax_in_two_processes.py"))
    runs = [
        subprocess.Popen(
            [sys.executable, script, str(rank), port],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [run.communicate(timeout=300)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], "\n".join(said)
    assert all("done" in text for text in said)
