"""Habits of people: shapes, other checkpoints, wrappers, readings."""

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_tools import through_a_file
from habits_tools import EDITS, GOOD, run_alone, trained
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
