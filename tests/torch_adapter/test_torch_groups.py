"""Groups of parameters: keys of others, edits by hand, groups that are replaced."""

import copy
import pickle

import numpy as np
import pytest
import torch
from checkpoint_tools import through_a_file
from habits_tools import EDITS, GOOD, trained
from torch_tools import clock, follow, gradients, parameters, path, same

from coolmomentum import CoolingSchedule
from coolmomentum.torch import CoolMomentum


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
