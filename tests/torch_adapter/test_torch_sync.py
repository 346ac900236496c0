"""A step never waits for its device: every value that the host reads from a tensor is recorded."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from coolmomentum.torch import CoolMomentum

VARIANTS = {
    "one by one": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "half precision": {"dtype": torch.bfloat16},
}


class HostReads(TorchDispatchMode):
    """Remembers the tensors whose value the host has asked for, which on a GPU is to wait."""

    def __init__(self):
        super().__init__()
        self.tensors = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Record ``item()`` and its kin, and whatever has a shape that depends on values."""
        if function is torch.ops.aten._local_scalar_dense.default:
            self.tensors.append(args[0])
        assert torch.Tag.dynamic_output_shape not in function.tags
        return function(*args, **(kwargs or {}))


def make(dtype=torch.float32, **settings):
    """An optimizer with gradients in place that has taken its first step."""
    params = [torch.zeros(shape, dtype=dtype) for shape in [(3, 4), (5,)]]
    for param in params:
        param.requires_grad_()
        param.grad = torch.ones_like(param)
    optimizer = CoolMomentum(params, total_steps=10, **settings)
    optimizer.step()
    return optimizer


def host_reads(function):
    """The tensors that a call reads values of."""
    with HostReads() as reads:
        function()
    return reads.tensors


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_step_reads_its_clock_only(settings):
    """The clock is on the host; of the parameters' device nothing is read."""
    optimizer = make(**settings)
    clock = optimizer.param_groups[0]["cooling_step"]
    read = host_reads(optimizer.step)
    assert read
    assert all(tensor.data_ptr() == clock.data_ptr() for tensor in read)


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
def test_a_capturable_step_reads_nothing(settings, lr):
    """Clock, rho and learning rate stay on the device and are changed in place."""
    optimizer = make(capturable=True, lr=lr, **settings)
    group = optimizer.param_groups[0]
    clock, rho = group["cooling_step"], group["cooling_rho"]
    assert host_reads(optimizer.step) == []
    assert group["cooling_step"] is clock
    assert group["cooling_rho"] is rho


def test_only_reading_the_temperature_waits():
    """The temperatures are made without reading; float() reads one value."""
    optimizer = make()
    assert host_reads(optimizer.temperature) == []
    assert host_reads(optimizer.rescaled_temperatures) == []
    assert host_reads(make(capturable=True).temperature) == []
    assert len(host_reads(lambda: float(optimizer.temperature()))) == 1


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("path", [{}, {"fused": True}, {"foreach": True}, {"foreach": False}])
def test_a_step_allocates_no_more_than_that_of_sgd(path, weight_decay):
    """On each path: no temporaries, but for the numbers that go into the operators.

    With weight decay both have the decayed gradients as temporaries, or ours in the kernel none.
    """
    shapes = [(100, 100)] * 4 + [(100,)] * 4
    ours, theirs = (
        allocated(make, shapes)
        for make in (
            lambda params: CoolMomentum(params, total_steps=10, weight_decay=weight_decay, **path),
            lambda params: torch.optim.SGD(
                params, lr=0.1, momentum=0.9, weight_decay=weight_decay, **path
            ),
        )
    )
    assert ours <= theirs
    assert theirs < 100 or weight_decay
    assert allocated(lambda params: torch.optim.Adam(params), shapes) > 40_000  # the control


class Passes(TorchDispatchMode):
    """Remembers the operators that go through tensors of more than one number."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Whatever reads or writes one, or a list of them."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if any(x.numel() > 1 for x in tensors) and not function.is_view:
            self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({}, ["_fused_sgd_"]),
        ({"weight_decay": 0.1}, ["_fused_sgd_"]),
        ({"foreach": True}, ["_foreach_mul_", "_foreach_add_", "_foreach_add_"]),
    ],
    ids=["default", "weight decay", "foreach"],
)
def test_the_passes_over_memory_of_a_step(settings, passes):
    """By default one, of 20 bytes a float32 parameter. That of the temperature is NumPy's."""
    optimizer = make(**settings)
    with Passes() as seen:
        optimizer.step()
    assert seen.names == passes
    with Passes() as seen:
        optimizer.temperature()
    assert seen.names == []


def allocated(make, shapes):
    """Bytes that operators allocate in the third step."""
    params = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = make(params)
    optimizer.step()
    optimizer.step()
    # PyTorch 2.11 warns, once, unless events are kept.
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(
        activities=activities, profile_memory=True, acc_events=True
    ) as profile:
        optimizer.step()
    return sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
