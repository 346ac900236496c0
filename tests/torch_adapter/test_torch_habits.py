"""Habits of people: wrappers, edited groups, other checkpoints, longer runs, readings."""

import copy
import math
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_tools import through_a_file
from exact import COOLING_LAWS, ONE_OF_LAWS
from torch._dynamo.testing import CompileCounterWithBackend
from torch_tools import (
    clock,
    displacements,
    draw,
    follow,
    gradients,
    parameters,
    path,
    same,
    wrapped,
)

from coolmomentum import CoolingSchedule, portable
from coolmomentum.torch import CoolMomentum, Thermometer, export_state, import_state

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


# --- shapes -------------------------------------------------------------------------------------


def test_tensors_of_other_shapes_reach_no_kernel():
    """Whatever was saved or edited: the right trajectory, or a refusal that changed nothing.

    In a process of its own, as it used to end in SIGSEGV; freed memory is overwritten there.
    """
    program = Path(__file__).with_name("shapes_program.py")
    out = run_alone(str(program), MALLOC_PERTURB_="165", OMP_NUM_THREADS="1")
    assert out == "every draw was right or refused\n"


def test_the_refusal_names_parameter_and_shapes():
    """By its name where it has one, else by its place in the optimizer."""
    _, saved = trained(1)
    a, b = parameters((3,), (3, 2))
    named = CoolMomentum([("weight", a), ("head.bias", b)], **GOOD)
    for optimizer, name in ((named, "'head.bias'"), (CoolMomentum([a, b], **GOOD), "1")):
        message = rf"the displacement of parameter {name} must have its shape, \(3, 2\): \(2, 3\)"
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(saved.state_dict())


# --- keys of a group ----------------------------------------------------------------------------


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation in the layout of its public repository."""

    def __init__(self, params, base_optimizer, rho=0.05, **kwargs):
        super().__init__(params, {"rho": rho, **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)

    @torch.no_grad()
    def first_step(self):
        """Climb by rho along the gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                e = p.grad * group["rho"] / p.grad.norm()
                p.add_(e)
                self.state[p]["e"] = e

    @torch.no_grad()
    def second_step(self):
        """Climb down again and step with the gradient found above."""
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(self.state[p]["e"])
        self.base_optimizer.step()


def test_sam_keeps_its_radius():
    """A wrapper that shares the groups keeps group["rho"]; the steps are the optimizer's."""
    params, twins = parameters((3,), (2, 3)), parameters((3,), (2, 3))
    sam, alone = SAM(params, CoolMomentum, **GOOD), CoolMomentum(twins, **GOOD)
    for first, second in zip(gradients(params, 6), gradients(params, 12)[6:], strict=True):
        for p, g in zip(params, first, strict=True):
            p.grad = g.clone()
        sam.first_step()
        for p, g in zip(params, second, strict=True):
            p.grad = g.clone()
        sam.second_step()
        follow(twins, alone, [second])
        assert [group["rho"] for group in sam.param_groups] == [0.05]
    assert sam.base_optimizer.rho == alone.rho == CoolingSchedule(10, 0.5)(6)
    # Each step climbs and comes back: two roundings of numbers below 4.
    for p, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(p, twin, rtol=0, atol=6 * 2 * 4 * 2**-53)
    again = SAM(parameters((3,), (2, 3)), CoolMomentum, **GOOD)
    again.load_state_dict(sam.state_dict())
    again.base_optimizer.param_groups = again.param_groups  # as its repository does
    assert again.base_optimizer.rho == alone.rho


def test_sam_of_pytorch_optimizer():
    """The real package: its radius stays, the clock counts its steps."""
    pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
    params = parameters((3,), (2, 3))
    sam = pytorch_optimizer.SAM(params, CoolMomentum, rho=0.05, **GOOD)
    for n in range(4):
        for _ in range(2):
            for p in params:
                p.grad = p.detach() * (n + 1)
            if n % 2:
                sam.step(closure=lambda: sum((p**2).sum() for p in params).backward())
                break
            (sam.second_step if _ else sam.first_step)(zero_grad=False)
    assert [group["rho"] for group in sam.param_groups] == [0.05]
    assert clock(sam.base_optimizer) == 4


def test_schedule_free_wrapper_of_pytorch_optimizer():
    """The real wrapper counts in its own way and steps the optimizer; the clock is ours alone."""
    pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
    params = parameters((3,), (2, 3))
    optimizer = CoolMomentum(params, **GOOD)
    wrapper = pytorch_optimizer.ScheduleFreeWrapper(optimizer)
    wrapper.train()
    for n in range(4):
        for p in params:
            p.grad = p.detach() * (n + 1)
        wrapper.step()
    assert clock(optimizer) == 4
    assert optimizer.rho == CoolingSchedule(10, 0.5)(4)


def test_a_step_key_of_the_user_is_the_user_s():
    """Whatever a group holds under step, rho or last_lr is left alone and does not count."""
    (w,) = parameters((3,))
    own = {"step": 7, "rho": 0.05, "last_lr": "mine"}
    optimizer = CoolMomentum([{"params": [w]} | own], **GOOD)
    for n in range(3):
        follow([w], optimizer, gradients([w], 1))
        optimizer.param_groups[0]["step"] += 1  # as fused optimizers and wrappers count
        assert clock(optimizer) == n + 1
    assert {name: optimizer.param_groups[0][name] for name in own} == own | {"step": 10}
    assert optimizer.state_dict()["param_groups"][0]["rho"] == 0.05


def test_groups_of_another_optimizer_begin_anew():
    """The clock of old groups stays theirs; their settings come along, as everywhere in torch."""
    params, old = trained(4)
    new = CoolMomentum(old.param_groups, total_steps=99)
    assert (clock(new), clock(old), new.rho) == (0, 4, 0.5)
    follow(params, new, gradients(params, 2))
    assert (clock(new), clock(old)) == (2, 4)
    new.add_param_group({"params": parameters((5,)), **_without_params(old.param_groups[0])})
    assert clock(new) == 2


def _without_params(group):
    return {name: value for name, value in group.items() if name != "params"}


def test_groups_that_are_cleared_and_added_keep_the_clock():
    """param_groups.clear() and add_param_group, as for unfreezing, go on at the same step."""
    params, optimizer = trained(4)
    saved = through_a_file(optimizer.state_dict())
    resumed = CoolMomentum(parameters((3,), (2, 3)), **GOOD)
    resumed.load_state_dict(saved)
    for each in (optimizer, resumed):
        kept = each.param_groups[0]["params"]
        each.param_groups.clear()
        each.add_param_group({"params": kept})
        assert (clock(each), each.rho) == (4, CoolingSchedule(10, 0.5)(4))
    follow(params, optimizer, gradients(params, 1))
    assert clock(optimizer) == 5


def test_rho_is_a_float_or_one_for_each_group():
    """A list only where groups differ."""
    a, b = parameters((3,), (3,))
    assert CoolMomentum([{"params": [a]}, {"params": [b]}], **GOOD).rho == 0.5
    groups = [{"params": [a]}, {"params": [b], "rho0": 0.75}]
    assert CoolMomentum(groups, **GOOD).rho == [0.5, 0.75]


# --- groups that are edited by hand -------------------------------------------------------------

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


@path
@pytest.mark.parametrize(("edit", "error", "message"), EDITS, ids=[str(*e[0]) for e in EDITS])
def test_a_bad_edit_fails_in_the_words_of_the_constructor(path, edit, error, message):
    """Before the next step has changed anything; mended, the run goes on."""
    params, optimizer = trained(2, **path)
    group, before = optimizer.param_groups[0], [p.detach().clone() for p in params]
    good = {name: group[name] for name in edit}
    group.update(edit)
    for call in (optimizer.step, lambda: optimizer.rho):
        with pytest.raises(error, match=f"^{message}"):
            call()
    assert same([p.detach() for p in params], before)
    group.update(good)
    follow(params, optimizer, gradients(params, 1))
    assert clock(optimizer) == 3


def test_a_good_edit_acts_on_the_next_step():
    """NumPy numbers too, which become plain ones; a schedule replaces the numbers."""
    params, optimizer = trained(2)
    group = optimizer.param_groups[0]
    group["total_steps"] = np.int64(20)
    assert optimizer.rho == CoolingSchedule(20, 0.5)(2)
    follow(params, optimizer, gradients(params, 1))
    assert (type(group["total_steps"]), group["cooling_rho"]) == (int, CoolingSchedule(20, 0.5)(3))
    group["schedule"] = CoolingSchedule(30, 0.25, "linear")
    follow(params, optimizer, gradients(params, 1))
    assert group["cooling_rho"] == CoolingSchedule(30, 0.25, "linear")(4)
    assert (group["total_steps"], group["law"], group["schedule"]) == (30, "linear", None)
    group["schedule"] = lambda n: 0.125
    assert optimizer.rho == 0.125


def test_a_key_that_is_gone_is_the_constructor_s_again():
    """No bare KeyError."""
    params, optimizer = trained(2)
    for name in ("law", "hold_steps", "fused", "maximize"):
        del optimizer.param_groups[0][name]
    follow(params, optimizer, gradients(params, 1))
    assert optimizer.param_groups[0]["law"] == "paper"
    assert clock(optimizer) == 3


# --- checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"total_steps": 40}, "total_steps=10 replaces 40"),
        ({"rho0": 0.75, "law": "linear"}, "rho0=0.5 replaces 0.75, law='paper' replaces 'linear'"),
        ({"hold_steps": 2, "warmup_steps": 1}, "warmup_steps=0 replaces 1, hold_steps=0 replaces"),
    ],
)
def test_other_settings_of_a_checkpoint_are_named_once(settings, named):
    """One warning with all of them and the way out; the settings are those of the checkpoint."""
    params, optimizer = trained(3)
    other = CoolMomentum(params, **GOOD | settings)
    with pytest.warns(UserWarning, match=rf"^of the checkpoint, {named}") as caught:
        other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert len(caught) == 1
    assert "optimizer.extend(total_steps)" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert other.rho == optimizer.rho


def test_a_learning_rate_that_was_scheduled_is_no_other_setting():
    """Resuming under a scheduler warns of nothing."""
    params, optimizer = trained(3)
    optimizer.param_groups[0]["lr"] = 0.01
    other = CoolMomentum(params, **GOOD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize("edit", [e for e in EDITS if "schedule" not in e[0]], ids=str)
def test_a_checkpoint_with_bad_settings_is_refused(edit):
    """In the words of the constructor, and the optimizer is as it was."""
    params, optimizer = trained(3)
    saved, before = optimizer.state_dict(), copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0].update(edit[0])
    with pytest.raises(edit[1], match=f"^{edit[2]}"):
        optimizer.load_state_dict(saved)
    now = optimizer.state_dict()
    assert now["param_groups"] == before["param_groups"]
    torch.testing.assert_close(now["state"], before["state"], rtol=0, atol=0)
    follow(params, optimizer, gradients(params, 1))
    assert clock(optimizer) == 4


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


def test_state_of_others_is_no_obstacle():
    """A parameter whose state was only looked at, or holds another's key, has not moved yet."""
    a, b, c = parameters((3,), (3,), (3,), dtype=torch.float32)
    optimizer = CoolMomentum([a, b, c], **GOOD)
    assert optimizer.state[a] == {}  # a defaultdict: now it has an entry
    optimizer.state[b]["e"] = torch.ones(3)
    names = [("a", a), ("b", b), ("c", c)]
    exported = export_state(optimizer, names)
    assert all(not dx.any() for dx in exported.displacements.values())
    assert float(optimizer.temperature()) == 0
    with Thermometer(optimizer, every=1):
        follow([a, b, c], optimizer, [[None, None, torch.ones(3)], [torch.ones(3), None, None]])
    saved = through_a_file(optimizer.state_dict())
    resumed = CoolMomentum([a, b, c], **GOOD)
    resumed.load_state_dict(saved)
    assert resumed.state[b]["e"].tolist() == [1, 1, 1]
    exported = export_state(resumed, names)
    assert [bool(dx.any()) for dx in exported.displacements.values()] == [True, False, True]


@wrapped
def test_a_state_is_exported_and_imported_through_a_wrapper(wrap):
    """It is that of the optimizer in it; another optimizer is refused, and stays as it is."""
    params, optimizer = trained(3)
    names = [("a", params[0]), ("b", params[1])]
    exported = export_state(wrap(optimizer), names)
    assert exported.clock == 3
    resumed = CoolMomentum(params, **GOOD)
    import_state(wrap(resumed), names, exported)
    assert clock(resumed) == 3
    assert same(displacements(params, resumed), displacements(params, optimizer))
    other = torch.optim.SGD(params, lr=0.125)
    for use in (lambda: export_state(other, names), lambda: import_state(other, names, exported)):
        with pytest.raises(TypeError, match=r"must be a coolmomentum\.torch\.CoolMomentum: SGD"):
            use()
    assert not other.state


def test_looking_at_the_state_does_not_hide_the_dry_run():
    """torch.distributed.checkpoint's step with lr 0 does not count, whatever the state holds."""
    (w,) = parameters((3,))
    optimizer = CoolMomentum([w], **GOOD | {"lr": 0.0})
    assert optimizer.state[w] == {}
    follow([w], optimizer, [[torch.zeros(3, dtype=torch.float64)]])
    assert clock(optimizer) == 0


NUMPY = {
    "lr": np.float64(0.125),
    "total_steps": np.int64(10),
    "law": np.str_("linear"),
    "warmup_steps": np.int32(1),
    "warmup_clock": np.str_("hold"),
    "hold_steps": np.uint8(2),
    "weight_decay": np.float32(0.5),
}


def test_only_plain_numbers_reach_the_checkpoint():
    """NumPy's in settings, by a scheduler and in keys of the user; weights_only reads it back."""
    (w,) = parameters((3,))
    own = {"tag": np.float32(0.5), "betas": (np.float64(0.9), [np.int64(1)]), "zero": np.array(0)}
    optimizer = CoolMomentum([{"params": [w]} | own], **GOOD | NUMPY)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: np.float64(0.5) ** n)
    follow([w], optimizer, gradients([w], 1))
    scheduler.step()
    optimizer.param_groups[0]["rho0"] = np.float64(0.25)
    (group,) = through_a_file(optimizer.state_dict())["param_groups"]
    assert (group["lr"], group["rho0"], group["law"]) == (0.0625, 0.25, "linear")
    assert (group["tag"], group["betas"], group["zero"]) == (0.5, (0.9, [1]), 0)
    kinds = {type(value) for value in group.values()}
    assert kinds <= {float, int, str, bool, list, tuple, torch.Tensor, type(None)}
    assert isinstance(optimizer.param_groups[0]["tag"], np.float32)  # the user's stays as it is


def test_without_parameters_the_clock_runs_on():
    """As in a process of ZeroRedundancyOptimizer that holds none; one without gradients stands."""
    group = {"params": parameters((3,))}
    empty = CoolMomentum([group], **GOOD)
    empty.param_groups[0]["params"] = []
    idle = CoolMomentum(parameters((3,)), **GOOD)
    for optimizer, steps in ((empty, 3), (idle, 0)):
        for _ in range(3):
            optimizer.step()
        assert (clock(optimizer), optimizer.rho) == (steps, CoolingSchedule(10, 0.5)(steps))
        assert float(optimizer.temperature()) == 0


@pytest.mark.parametrize("default", ["float64", "bfloat16", "float16"])
def test_the_default_dtype_does_not_switch_paths_off(default):
    """Whatever it is when the package is imported, the fast paths are those of float32's."""
    program = (
        f"import torch; torch.set_default_dtype(torch.{default});"
        "from coolmomentum.torch import _kernels, CoolMomentum;"
        "p = torch.zeros(3, dtype=torch.float32, requires_grad=True);"
        "o = CoolMomentum([p], lr=1.0, total_steps=3, rho0=0.9, capturable=True);"
        "p.grad = torch.ones_like(p); o.step();"
        "print(len(_kernels.FUSED_DTYPES['cpu']), o.rho, float(o.temperature()))"
    )
    fused, rho, temperature = run_alone("-c", program).split()
    assert fused == "2"
    assert float(rho) == pytest.approx(CoolingSchedule(3, 0.9)(1), abs=2**-24)
    assert float(temperature) == pytest.approx(0.95**2, rel=2**-22)


# --- temperatures -------------------------------------------------------------------------------


@path
def test_the_temperature_is_of_what_the_last_step_moved(path):
    """A parameter without a gradient did not move: 0.5, not 5000.5; both readings agree."""
    a, b = (torch.zeros(1, requires_grad=True) for _ in "ab")
    optimizer = CoolMomentum([a, b], lr=1.0, total_steps=9, rho0=0.0, **path)
    with Thermometer(optimizer, every=1) as thermometer:
        follow([a, b], optimizer, [[torch.full((1,), 200.0), torch.full((1,), 2.0)]])
        assert float(optimizer.temperature()) == (100**2 + 1) / 2
        thermometer.reset()
        follow([a, b], optimizer, [[None, torch.full((1,), 2.0)]])
        assert thermometer.read()["temperature"] == 0.5
    for each in (optimizer, resumed := CoolMomentum([a, b], lr=1.0, total_steps=9, rho0=0.0)):
        if each is resumed:
            each.load_state_dict(through_a_file(optimizer.state_dict()))
        assert float(each.temperature()) == float(each.rescaled_temperature()) == 0.5
        assert {k: float(t) for k, t in each.temperatures().items()} == {0: 0.0, 1: 1.0}
    follow([a, b], optimizer, [[torch.full((1,), 200.0), torch.full((1,), 2.0)]])
    assert float(optimizer.temperature()) == (100**2 + 1) / 2


def test_a_player_whose_gradients_are_off_keeps_its_temperature():
    """GANs toggle requires_grad between the steps of their players: what moved last has moved."""
    a, b = (torch.zeros(1, requires_grad=True) for _ in "ab")
    optimizer = CoolMomentum([a, b], lr=1.0, total_steps=9, rho0=0.0)
    follow([a, b], optimizer, [[torch.full((1,), 2.0), torch.full((1,), 4.0)]])
    optimizer.zero_grad()
    for x in (a, b):
        x.requires_grad_(False)
    assert float(optimizer.temperature()) == (1 + 4) / 2


def test_temperatures_are_keyed_by_name():
    """Where the optimizer has names; one that comes again gets a number, so none is lost."""
    a, b, c = (torch.zeros(1, requires_grad=True) for _ in "abc")
    named = [{"params": [("weight", a)]}, {"params": [("weight", b), ("bias", c)]}]
    optimizer = CoolMomentum(named, lr=1.0, total_steps=9, rho0=0.0)
    follow([a, b, c], optimizer, [[torch.full((1,), 2.0 * n) for n in (1, 2, 3)]])
    readings = {name: float(t) for name, t in optimizer.temperatures().items()}
    assert readings == {"weight": 1.0, "weight#2": 4.0, "bias": 9.0}


def test_a_portable_state_has_what_it_had():
    """hold_steps goes along, and the exported cooling is the one after extend."""
    (w,) = parameters((3,))
    optimizer = CoolMomentum([w], **GOOD, hold_steps=3)
    follow([w], optimizer, [[draw(3)]])
    optimizer.extend(20)
    exported = export_state(optimizer, [("w", w)])
    assert isinstance(exported, portable.PortableState)
    assert exported.cooling == CoolingSchedule(20, 0.5, hold_steps=3)


def test_a_wrapper_that_poses_as_the_class_reads_edited_groups():
    """Lightning's wrapper has the methods but not the attributes of the optimizer."""
    pytest.importorskip("pytorch_lightning", reason="its wrapper is what is tested")
    from pytorch_lightning.core.optimizer import LightningOptimizer

    _, optimizer = trained(0)
    wrapper = LightningOptimizer(optimizer)
    optimizer.param_groups[0]["schedule"] = CoolingSchedule(30, 0.25, "linear")
    assert wrapper.rho == optimizer.rho == 0.25
    assert float(wrapper.temperature()) == 0
    wrapper.extend(40)
    assert optimizer.param_groups[0]["total_steps"] == optimizer.defaults["total_steps"] == 40


def test_groups_that_are_replaced_keep_the_clock():
    """A list of new dicts, in the optimizer itself, in a deep copy and after import_state."""
    for change in (lambda o: o, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))):
        params, optimizer = change(trained(4))
        optimizer.param_groups = [{"params": params, "lr": 0.125}]
        assert optimizer.rho == CoolingSchedule(10, 0.5)(4)
        follow(params, optimizer, gradients(params, 1))
        assert clock(optimizer) == 5
        again, twin = copy.deepcopy((params, optimizer))
        twin.param_groups.clear()
        twin.add_param_group({"params": again})
        assert clock(twin) == 5


def test_an_edit_counts_before_the_next_step():
    """In the checkpoint, for extend and for a copy; so does a group without our keys."""
    _, optimizer = trained(2)
    optimizer.param_groups[0]["schedule"] = CoolingSchedule(30, 0.25, "linear")
    twin = copy.deepcopy(optimizer)
    saved = optimizer.state_dict()["param_groups"][0]
    assert (saved["schedule"], saved["total_steps"], saved["law"]) == (None, 30, "linear")
    assert twin.rho == optimizer.rho
    twin.extend(60)
    assert twin.rho == CoolingSchedule(60, 0.25, "linear")(2)
    del optimizer.param_groups[0]["cooling_idle"]
    optimizer.param_groups[0]["cooling_step"] = 5
    assert float(optimizer.temperature()) >= 0
    optimizer.add_param_group({"params": parameters((4,))})
    assert clock(optimizer) == 5


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"state": {}},
        {"state": {}, "param_groups": None},
        {"state": {}, "param_groups": [{"cooling_step": 1}]},
        {"epoch": 3, "state_dict": {}, "optimizer_states": []},
        [],
        None,
    ],
    ids=str,
)
def test_what_is_no_checkpoint_is_refused(bad):
    """In one line, and nothing has been changed."""
    params, optimizer = trained(2)
    with pytest.raises(ValueError, match=r"^state_dict must be of a CoolMomentum"):
        optimizer.load_state_dict(bad)
    follow(params, optimizer, gradients(params, 1))
    assert clock(optimizer) == 3


def test_displacements_that_would_be_lost_or_bent_are_refused():
    """Keys of no parameter (a JSON round trip makes strings), complex for real, integers."""
    _, optimizer = trained(2)
    saved, before = optimizer.state_dict(), copy.deepcopy(optimizer.state_dict())
    state = saved["state"]
    with pytest.raises(ValueError, match="must list in its groups each parameter: '0'"):
        optimizer.load_state_dict(saved | {"state": {str(key): x for key, x in state.items()}})
    for dtype, text in ((torch.complex64, "be real"), (torch.int32, "be of floating point")):
        bent = {key: {"displacement": x["displacement"].to(dtype)} for key, x in state.items()}
        with pytest.raises(TypeError, match=f"^the displacement of parameter 0 must {text}"):
            optimizer.load_state_dict(saved | {"state": bent})
    now = optimizer.state_dict()
    torch.testing.assert_close(now["state"], before["state"], rtol=0, atol=0)
    assert clock(optimizer) == 2


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(2, 3, dtype=torch.int32),
        torch.zeros(2, 3, dtype=torch.complex128),
        torch.zeros(3, dtype=torch.float64).expand(2, 3),
        torch.zeros(2, 3, dtype=torch.float64).to_sparse(),
        torch.zeros(2, 3, dtype=torch.float64, device="meta"),
        [[0.0] * 3] * 2,
    ],
    ids=["int", "complex", "expanded", "sparse", "meta", "list"],
)
@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1, "decoupled_weight_decay": True}])
def test_a_bad_displacement_moves_nothing(bad, settings):
    """What somebody put into the state is refused before any parameter has moved."""
    params, optimizer = trained(2, **settings)
    optimizer.state[params[1]]["displacement"] = bad
    before = [p.detach().clone() for p in params]
    for p, g in zip(params, gradients(params, 1)[0], strict=True):
        p.grad = g
    with pytest.raises((TypeError, ValueError), match=r"^the displacement of parameter 1 must "):
        optimizer.step()
    assert same([p.detach() for p in params], before)
    assert clock(optimizer) == 2


def test_labels_are_unique_whatever_the_names():
    """A name may look like the number that an equal one gets."""
    a, b, c = (torch.zeros(1, requires_grad=True) for _ in "abc")
    named = [{"params": [("w", a)]}, {"params": [("w", b), ("w#2", c)]}]
    optimizer = CoolMomentum(named, lr=1.0, total_steps=9, rho0=0.0)
    follow([a, b, c], optimizer, [[torch.full((1,), 2.0 * n) for n in (1, 2, 3)]])
    assert sorted(map(float, optimizer.temperatures().values())) == [1.0, 4.0, 9.0]
    assert len(optimizer.temperatures()) == 3


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


def test_negated_and_conjugated_parameters_are_moved():
    """Lazily negated or conjugated memory, which kernels do not look at: as torch.optim.SGD."""
    z = draw(4, dtype=torch.float64).to(torch.complex128)
    for view in (z.conj().imag.detach(), z.conj().detach()):
        plain = view.resolve_conj().resolve_neg().clone()
        params = [view.requires_grad_(), plain.requires_grad_()]
        for p in params:
            p.grad = torch.ones_like(p.detach().resolve_conj().resolve_neg())
            CoolMomentum([p], **GOOD).step()
        torch.testing.assert_close(params[0].detach() + 0, params[1].detach() + 0)


def test_expanded_gradients_and_empty_parameters_are_taken():
    """Autograd expands the gradient of a sum, and an empty tensor has strides of 0."""
    a, b = (torch.zeros(shape, requires_grad=True) for shape in ((2, 3), (2, 0, 3)))
    optimizer = CoolMomentum([a, b], lr=1.0, total_steps=9, rho0=0.0)
    (a.sum() + b.sum()).backward()
    a.grad = torch.ones(()).expand(2, 3)
    optimizer.step()
    assert a.tolist() == [[-0.5] * 3] * 2
