"""Bad arguments of the PyTorch adapter: each error names the argument, the rule and the value."""

import math

import numpy as np
import pytest
import torch
from exact import ONE_OF_LAWS
from torch_tools import clock, follow, gradients, parameters

from coolmomentum import CoolingSchedule
from coolmomentum.torch import CoolMomentum

GOOD = {"total_steps": 10}
BAD = [  # settings, error, message
    ({"lr": -0.1}, ValueError, "lr must be finite and >= 0: -0.1"),
    ({"lr": math.inf}, ValueError, "lr must be finite and >= 0: inf"),
    ({"lr": math.nan}, ValueError, "lr must be finite and >= 0: nan"),
    ({"lr": "0.1"}, TypeError, "lr must be a real number: '0.1'"),
    ({"lr": None}, TypeError, "lr must be a real number: None"),
    ({"lr": True}, TypeError, "lr must be a real number: True"),
    ({"lr": torch.tensor(-0.5)}, ValueError, "lr must be finite and >= 0: -0.5"),
    ({"lr": torch.tensor([0.1, 0.1])}, ValueError, "Tensor lr must be 1-element: shape (2,)"),
    ({"lr": torch.empty(0)}, ValueError, "Tensor lr must be 1-element: shape (0,)"),
    ({"rho0": 1.0}, ValueError, "rho0 must be in [0, 1): 1.0"),
    ({"rho0": -0.1}, ValueError, "rho0 must be in [0, 1): -0.1"),
    ({"rho0": math.nan}, ValueError, "rho0 must be in [0, 1): nan"),
    ({"rho0": "hot"}, TypeError, "rho0 must be a real number: 'hot'"),
    ({"total_steps": 0}, ValueError, "total_steps must be >= 1: 0"),
    ({"total_steps": -3}, ValueError, "total_steps must be >= 1: -3"),
    ({"total_steps": 10.0}, TypeError, "total_steps must be an integer: 10.0"),
    ({"total_steps": True}, TypeError, "total_steps must be an integer: True"),
    ({"total_steps": "10"}, TypeError, "total_steps must be an integer: '10'"),
    ({"warmup_steps": -1}, ValueError, "warmup_steps must be >= 0: -1"),
    ({"warmup_steps": 10}, ValueError, "warmup_steps must be < total_steps = 10: 10"),
    ({"warmup_steps": 1.5}, TypeError, "warmup_steps must be an integer: 1.5"),
    ({"warmup_clock": "walk"}, ValueError, "warmup_clock must be one of run, hold: 'walk'"),
    ({"law": "magic"}, ValueError, f"{ONE_OF_LAWS}: 'magic'"),
    ({"law": 3}, TypeError, f"{ONE_OF_LAWS}: 3"),
    (
        {"schedule": 0.9},
        TypeError,
        "schedule must be a CoolingSchedule or a function of the step (law names a law): 0.9",
    ),
    (
        {"schedule": "linear"},
        TypeError,
        "schedule must be a CoolingSchedule or a function of the step (law names a law): 'linear'",
    ),
    (
        {"schedule": lambda n: 0.5, "rho0": 0.9},
        ValueError,
        "rho0 must not be given beside a schedule: 0.9",
    ),
    ({"hold_steps": 10}, ValueError, "hold_steps must be < total_steps = 10: 10"),
    ({"schedule": lambda n: 1.5}, ValueError, "schedule(0) must be in [-1, 1): 1.5"),
    ({"schedule": lambda n: n / 9}, ValueError, "schedule(9) must be in [-1, 1): 1.0"),
    ({"schedule": lambda n: "hot"}, TypeError, "schedule(0) must be a real number: 'hot'"),
    (
        {"schedule": CoolingSchedule(20), "total_steps": 10},
        ValueError,
        "total_steps must not be given beside a schedule: 10",
    ),
    ({"weight_decay": -0.1}, ValueError, "weight_decay must be finite and >= 0: -0.1"),
    ({"weight_decay": math.inf}, ValueError, "weight_decay must be finite and >= 0: inf"),
    ({"weight_decay": "L2"}, TypeError, "weight_decay must be a real number: 'L2'"),
    (
        {"weight_decay": torch.tensor(0.5)},
        TypeError,
        "weight_decay must be a Python number: tensor(0.5000)",
    ),
    (
        {"decoupled_weight_decay": 0.1},
        TypeError,
        "decoupled_weight_decay must be True or False: 0.1",
    ),
    ({"maximize": 1}, TypeError, "maximize must be True or False: 1"),
    ({"capturable": "yes"}, TypeError, "capturable must be True or False: 'yes'"),
    ({"differentiable": None}, TypeError, "differentiable must be True or False: None"),
    ({"foreach": "auto"}, TypeError, "foreach must be True or False: 'auto'"),
    ({"fused": 0}, TypeError, "fused must be True or False: 0"),
    (
        {"fused": True, "foreach": True},
        RuntimeError,
        "`fused` and `foreach` cannot be `True` together",
    ),
    (
        {"fused": True, "differentiable": True},
        RuntimeError,
        "`fused` and `differentiable` cannot be `True` together",
    ),
    (
        {"displacement_dtype": torch.bfloat16},
        ValueError,
        "displacement_dtype must be torch.float32, or None for that of the parameter: "
        "torch.bfloat16",
    ),
]
bad = pytest.mark.parametrize(
    ("settings", "error", "message"),
    BAD,
    ids=[" ".join(f"{k}={v}" for k, v in case[0].items()).split(" at 0x")[0] for case in BAD],
)


def refused(error, message, make):
    """The error is of this very class and its message contains this."""
    with pytest.raises(error) as caught:
        make()
    assert caught.type is error
    assert message in str(caught.value)


@bad
def test_construction(settings, error, message):
    """The constructor refuses it."""
    refused(error, message, lambda: CoolMomentum(parameters((2,)), **GOOD | settings))


@bad
def test_construction_before_parameters(settings, error, message):
    """A bad setting is named first, whatever the parameters are."""
    refused(error, message, lambda: CoolMomentum(None, **GOOD | settings))


@bad
def test_construction_of_a_group(settings, error, message):
    """A group in the constructor's list is refused alike."""
    a, b = parameters((2,), (2,))
    refused(
        error,
        message,
        lambda: CoolMomentum([{"params": [a]}, {"params": [b]} | settings], **GOOD),
    )


@bad
def test_adding_a_group(settings, error, message):
    """add_param_group refuses it, and the optimizer goes on as if nothing had been said."""
    a, b = parameters((2,), (2,))
    grads = gradients([a], 4)
    twin = a.detach().clone().requires_grad_()
    optimizer, untroubled = CoolMomentum([a], **GOOD), CoolMomentum([twin], **GOOD)
    follow([a], optimizer, grads[:2])
    before = dict(optimizer.param_groups[0])
    refused(error, message, lambda: optimizer.add_param_group({"params": [b]} | settings))
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0] == before
    assert list(optimizer.state) == [a]
    follow([a], optimizer, grads[2:])
    follow([twin], untroubled, grads)
    assert torch.equal(a, twin)
    assert clock(optimizer) == 4


def test_no_schedule_at_all():
    """Without total_steps or a schedule the message names both."""
    message = (
        "total_steps is required: the optimizer steps over which rho cools to 0 (or pass a "
        "schedule)"
    )
    refused(TypeError, message, lambda: CoolMomentum(parameters((2,))))
    a, b = parameters((2,), (2,))
    groups = [{"params": [a], "total_steps": 3}, {"params": [b]}]
    refused(TypeError, message, lambda: CoolMomentum(groups))
    groups[1]["total_steps"] = None
    refused(TypeError, message, lambda: CoolMomentum(groups))


def test_numbers_of_other_libraries_are_numbers():
    """NumPy scalars and integers are taken, and kept as Python numbers."""
    optimizer = CoolMomentum(
        parameters((2,)),
        lr=np.float32(0.5),
        total_steps=np.int64(10),
        rho0=np.float64(0.5),
        weight_decay=1,
    )
    for settings in (optimizer.defaults, optimizer.param_groups[0]):
        kinds = [type(settings[name]) for name in ("lr", "total_steps", "rho0", "weight_decay")]
        assert kinds == [float, int, float, float]


# --- what is wrong with parameters is torch's to say --------------------------------------------


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (
            torch.zeros(2, requires_grad=True),
            TypeError,
            "should be an iterable of Tensors or dicts",
        ),
        ([1.0], TypeError, "optimizer can only optimize Tensors"),
        ([torch.zeros(2, requires_grad=True) * 2], ValueError, "can't optimize a non-leaf Tensor"),
        ([{"params": {torch.zeros(2)}}], TypeError, "ordered collections"),
        (
            [("a", torch.zeros(2)), torch.zeros(2)],
            ValueError,
            "should be with/without names",
        ),
    ],
    ids=["tensor", "number", "non-leaf", "set", "half named"],
)
def test_parameters(params, error, message):
    """Parameters that no optimizer of torch takes are refused in its words."""
    refused(error, message, lambda: CoolMomentum(params, **GOOD))


def test_parameters_twice():
    """The same parameter twice in a group is a warning, in two groups an error."""
    (param,) = parameters((2,))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        CoolMomentum([param, param], **GOOD)
    optimizer = CoolMomentum([param], **GOOD)
    refused(
        ValueError,
        "some parameters appear in more than one parameter group",
        lambda: optimizer.add_param_group({"params": [param]}),
    )
    assert len(optimizer.param_groups) == 1


def test_a_group_that_is_no_dict():
    """add_param_group wants a dict, as torch says."""
    optimizer = CoolMomentum(parameters((2,)), **GOOD)
    refused(TypeError, "param_group must be a dict", lambda: optimizer.add_param_group([1]))
    assert len(optimizer.param_groups) == 1


def test_a_group_whose_schedule_takes_no_tensor_is_not_added():
    """Capturable steps ask a schedule for tensors; if it fails, the optimizer is as it was."""
    optimizer = CoolMomentum([torch.zeros(1, requires_grad=True)], total_steps=9, capturable=True)

    def by_bits(step):
        return 0.5 / (1 + step.bit_length())  # which tensors do not have

    group = {"params": [torch.zeros(1, requires_grad=True)], "schedule": by_bits}
    with pytest.raises(AttributeError, match="bit_length"):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    assert optimizer.rho == CoolMomentum([torch.zeros(1, requires_grad=True)], total_steps=9).rho
