"""The end of a run: longer runs, runs past it, and runs without one."""

import copy
import math
import warnings

import pytest
import torch
from checkpoint_tools import through_a_file
from exact import COOLING_LAWS
from habits_tools import GOOD, trained
from torch._dynamo.testing import CompileCounterWithBackend
from torch_tools import clock, displacements, follow, gradients, parameters, path, same

from coolmomentum import CoolingSchedule
from coolmomentum.torch import CoolMomentum


@pytest.mark.parametrize("law", COOLING_LAWS)
def test_extend_is_the_longer_run(law):
    """After extend every step is that of a run of the new length, bit for bit."""
    params = parameters((3,), (2, 3))
    grads = gradients(params, 20)
    optimizer = CoolMomentum(params, **GOOD, law=law)
    follow(params, optimizer, grads[:10])
    assert optimizer.rho == 0
    longer = copy.deepcopy((params, optimizer))
    longer[1].param_groups[0]["total_steps"] = 20  # what the longer run has
    optimizer.extend(20)
    assert optimizer.rho == optimizer.param_groups[0]["cooling_rho"]
    assert optimizer.rho == CoolingSchedule(20, 0.5, law)(10)
    for each in ((params, optimizer), longer):
        follow(*each, grads[10:])
    assert same(params, longer[0])
    assert optimizer.rho == 0
    optimizer.add_param_group({"params": parameters((4,))})
    assert optimizer.param_groups[1]["total_steps"] == 20


def test_extend_after_loading():
    """A fresh optimizer with the longer total_steps, a shorter checkpoint, then extend."""
    params, optimizer = trained(10)
    resumed = CoolMomentum(params, **GOOD | {"total_steps": 40})
    with pytest.warns(UserWarning, match="total_steps=10 replaces 40"):
        resumed.load_state_dict(optimizer.state_dict())
    resumed.extend(40)
    assert resumed.rho == CoolingSchedule(40, 0.5)(10)


@pytest.mark.parametrize(
    ("settings", "total_steps", "error", "message"),
    [
        ({}, 4.0, TypeError, "total_steps must be an integer: 4.0"),
        ({}, 0, ValueError, "total_steps must be >= 1: 0"),
        ({}, 3, ValueError, "total_steps must be >= the 4 steps taken: 3"),
        ({"hold_steps": 6}, 6, ValueError, "hold_steps must be < total_steps = 6: 6"),
        ({"warmup_steps": 6}, 5, ValueError, "warmup_steps must be < total_steps = 5: 6"),
        ({"capturable": True}, 20, RuntimeError, "extend is not for capturable=True"),
    ],
)
def test_extend_refuses(settings, total_steps, error, message):
    """What cannot be, in one line; nothing has been changed."""
    _, optimizer = trained(4, **settings)
    before = copy.deepcopy(optimizer.state_dict()["param_groups"])
    with pytest.raises(error, match=f"^{message}"):
        optimizer.extend(total_steps)
    assert optimizer.state_dict()["param_groups"] == before
    assert optimizer.defaults["total_steps"] == 10


def test_extend_refuses_a_schedule_of_one_s_own():
    """A function of the step has no length; of two groups neither is changed."""
    a, b = parameters((3,), (3,))
    optimizer = CoolMomentum([{"params": [a]}, {"params": [b], "schedule": lambda n: 0.5}], **GOOD)
    with pytest.raises(TypeError, match=r"^extend is for a run that cools by total_steps"):
        optimizer.extend(20)
    assert optimizer.param_groups[0]["total_steps"] == 10


def test_a_compiled_step_is_extended_with_one_compilation():
    """torch.compile compiles once more, and the steps are those of the eager run."""
    params, twins = (parameters((3,), (2, 3), dtype=torch.float32) for _ in "ab")
    optimizer, eager = CoolMomentum(params, **GOOD), CoolMomentum(twins, **GOOD)
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(optimizer.step, backend=counter, fullgraph=True)
    frames = []
    for n, grads in enumerate(gradients(params, 16)):
        if n == 8:
            frames.append(counter.frame_count)
            optimizer.extend(16)
            eager.extend(16)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        step()
        follow(twins, eager, [grads])
        assert optimizer.rho == pytest.approx(eager.rho, abs=1e-7)
    assert counter.frame_count <= frames[0] + 1
    for p, twin in zip(params, twins, strict=True):
        # 16 steps of six roundings of numbers below 4, as in test_torch_tools.assert_rounded.
        torch.testing.assert_close(p, twin, rtol=0, atol=6 * 16 * 4 * 2**-23)


def test_the_clock_past_the_end_warns_once():
    """At more than 5 % past total_steps, with the way out; a copy of the run may say it again."""
    params = parameters((3,))
    optimizer = CoolMomentum(params, **GOOD | {"total_steps": 40})
    grads = gradients(params, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        follow(params, optimizer, grads[:42])
    with pytest.warns(UserWarning, match=r"^43 steps are more than 5 % past ") as caught:
        follow(params, optimizer, grads[42:])
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith("43 steps are more than 5 % past total_steps=40, when rho came to 0.")
    assert "optimizer.extend(total_steps)" in message


@pytest.mark.parametrize(
    "settings",
    [
        {"law": "constant", "rho0": 0.5},
        {"law": "constant", "total_steps": 4},
        {"schedule": math.cos},
    ],
    ids=["endless", "constant", "callable"],
)
def test_what_has_no_end_does_not_warn(settings):
    """The constant law, with or without total_steps, and functions of the step."""
    params = parameters((3,))
    settings = {"schedule": lambda n: 0.5} if "schedule" in settings else settings
    optimizer = CoolMomentum(params, 0.125, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        follow(params, optimizer, gradients(params, 20))
    assert clock(optimizer) == 20


def test_a_constant_law_needs_no_end():
    """It goes through a checkpoint as numbers, and may be given an end and a law later."""
    params = parameters((3,))
    optimizer = CoolMomentum(params, 0.125, law="constant", rho0=0.5)
    follow(params, optimizer, gradients(params, 3))
    saved = through_a_file(optimizer.state_dict())
    assert (saved["param_groups"][0]["total_steps"], saved["param_groups"][0]["schedule"]) == (
        None,
        None,
    )
    resumed = CoolMomentum(parameters((3,)), 0.125, law="constant", rho0=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.load_state_dict(saved)
    assert (clock(resumed), resumed.rho) == (3, 0.5)
    resumed.param_groups[0].update(law="linear", hold_steps=3, total_steps=7)
    assert resumed.rho == 0.5
    follow(resumed.param_groups[0]["params"], resumed, gradients(parameters((3,)), 4))
    assert resumed.rho == 0


@path
def test_held_then_cooled_is_the_uninterrupted_run(path):
    """Held by the constant law, saved, told to cool at step 5: bit for bit hold_steps=5."""
    whole, held = parameters((3,), (2, 3)), parameters((3,), (2, 3))
    grads = gradients(whole, 12)
    settings = {"lr": 0.125, "rho0": 0.75, **path}
    optimizer = CoolMomentum(whole, total_steps=12, hold_steps=5, law="linear", **settings)
    follow(whole, optimizer, grads)
    first = CoolMomentum(held, law="constant", **settings)
    follow(held, first, grads[:5])
    branched = CoolMomentum(held, law="constant", **settings)
    branched.load_state_dict(through_a_file(first.state_dict()))
    branched.param_groups[0].update(law="linear", hold_steps=5, total_steps=12)
    follow(held, branched, grads[5:])
    assert same(held, whole)
    assert same(displacements(held, branched), displacements(whole, optimizer))


def test_the_warning_of_the_end_names_the_group_and_the_caller():
    """The group that is past its end, and the line that called step, through a scheduler too."""
    a, b = parameters((3,), (3,))
    groups = [{"params": [a], "total_steps": 100}, {"params": [b], "total_steps": 2}]
    optimizer = CoolMomentum(groups, lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 5)
    a.grad = b.grad = torch.ones(3, dtype=torch.float64)
    optimizer.step()
    optimizer.step()
    message = r"^3 steps are more than 5 % past total_steps=2,"
    with pytest.warns(UserWarning, match=message) as caught:
        optimizer.step()
    assert [warning.filename for warning in caught] == [__file__]
