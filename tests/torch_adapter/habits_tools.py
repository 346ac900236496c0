"""What the tests of habits share: good settings and bad ones, a run, a program by itself."""

import math
import os
import subprocess
import sys

import torch
from exact import ONE_OF_LAWS
from torch_tools import follow, gradients, parameters

from coolmomentum.torch import CoolMomentum

GOOD = {"lr": 0.125, "total_steps": 10, "rho0": 0.5}


def run_alone(*arguments, **environment):
    """A program in a process of its own; what it printed."""
    process = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


def trained(steps, params=None, **settings):
    """Parameters and their optimizer after some steps."""
    params = parameters((3,), (2, 3)) if params is None else params
    optimizer = CoolMomentum(params, **GOOD | settings)
    follow(params, optimizer, gradients(params, steps))
    return params, optimizer


EDITS = [
    ({"law": "cos"}, ValueError, f"{ONE_OF_LAWS}: 'cos'"),
    ({"total_steps": 40.0}, TypeError, "total_steps must be an integer: 40.0"),
    ({"total_steps": 0}, ValueError, "total_steps must be >= 1: 0"),
    ({"rho0": 1.5}, ValueError, r"rho0 must be in \[0, 1\): 1.5"),
    ({"warmup_steps": 10}, ValueError, "warmup_steps must be < total_steps = 10: 10"),
    ({"hold_steps": -1}, ValueError, "hold_steps must be >= 0: -1"),
    ({"schedule": "linear"}, TypeError, "schedule must be a CoolingSchedule or a function"),
    ({"schedule": lambda n: 2.0}, ValueError, r"schedule\(0\) must be in \[-1, 1\): 2.0"),
    ({"cooling_step": -1}, ValueError, "cooling_step must be >= 0: -1"),
    ({"cooling_step": 2.7}, TypeError, "cooling_step must be an integer: 2.7"),
    ({"cooling_step": True}, TypeError, "cooling_step must be an integer: True"),
    ({"cooling_step": torch.tensor([1, 2])}, TypeError, "cooling_step must be an integer"),
    ({"total_steps": None}, TypeError, "total_steps is required"),
    ({"rho0": torch.tensor(0.5)}, TypeError, "rho0 must be a Python number"),
    ({"lr": -1.0}, ValueError, "lr must be finite and >= 0: -1.0"),
    ({"lr": math.nan}, ValueError, "lr must be finite and >= 0: nan"),
    ({"lr": "0.1"}, TypeError, "lr must be a real number: '0.1'"),
    ({"weight_decay": -0.5}, ValueError, "weight_decay must be finite and >= 0: -0.5"),
    ({"maximize": 1}, TypeError, "maximize must be True or False: 1"),
    ({"displacement_dtype": torch.float16}, ValueError, "displacement_dtype must be torch.float32"),
]
