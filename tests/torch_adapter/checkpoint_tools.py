"""What the tests of checkpoints share: small optimizers of every kind, and a file to go through."""

import io

import torch
from torch_tools import parameters as draw_parameters

from coolmomentum import CoolingSchedule
from coolmomentum.torch import CoolMomentum

SETTINGS = {"lr": 0.125, "total_steps": 5, "rho0": 0.9, "weight_decay": 0.25}
STEPS = 8  # past total_steps
SHAPES = [(17,), (3, 4), ()]


def parameters(dtype=torch.float32):
    """Parameters of a few shapes, always the same."""
    return draw_parameters(*SHAPES, dtype=dtype)


def through_a_file(state_dict, **options):
    """Saved and loaded again, as from a source that is not trusted."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True, **options)


def one_group(params, **path):
    """All parameters in one group."""
    return CoolMomentum(params, **SETTINGS, **path)


def several_groups(params, **path):
    """Groups with lr, law, length and warm-up of their own."""
    groups = [
        {"params": params[:1], "law": "linear", "lr": 0.25},
        {"params": params[1:2], "total_steps": 3, "warmup_steps": 1, "maximize": True},
        {"params": params[2:], "schedule": CoolingSchedule(7, 0.5, law="exponential")},
    ]
    return CoolMomentum(groups, **SETTINGS, **path)


def tensor_lr(params, **path):
    """A tensor as lr."""
    return CoolMomentum(params, **SETTINGS | {"lr": torch.tensor(0.125)}, **path)


def wide_displacements(params, **path):
    """float32 displacements, whatever the parameters are."""
    return CoolMomentum(params, **SETTINGS, displacement_dtype=torch.float32, **path)


def callable_schedule(params, **path):
    """A schedule that a checkpoint cannot hold."""
    return CoolMomentum(params, lr=0.125, schedule=lambda n: 0.5 / (1 + n), **path)
