"""What the thermometer may not do to a step; steps that are skipped, compiled or distributed."""

import copy
import math
import weakref

import pytest
import torch
from distributed_tools import batches, make_model, run_distributed, sharded
from test_torch_sync import host_reads
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch_meter_tools import ADAM, OPTIMIZERS, SGD, SHAPES
from torch_tools import draw, gradients, parameters

from coolmomentum.torch import CoolMomentum, Thermometer


@pytest.mark.parametrize("name", ["cool, capturable", "sgd, momentum", "adam", "rmsprop", "adamax"])
def test_no_step_waits(name):
    """Neither measured steps nor the others read a value of a tensor on the device.

    Adam's own step reads the counts of its steps, on the host, and so does torch's RMSprop.
    """
    params = parameters(*SHAPES)
    reads = []
    for with_thermometer in (False, True):
        optimizer = OPTIMIZERS[name](params)
        for p in params:
            p.grad = torch.ones_like(p)
        if with_thermometer:
            Thermometer(optimizer, every=2, span=4)
        reads.append(host_reads(lambda step=optimizer.step: [step() for _ in range(8)]))
    clock = optimizer.param_groups[0].get("cooling_step")
    extra = [x for x in reads[1] if clock is None or x.data_ptr() != clock.data_ptr()]
    assert len(extra) == len(reads[0])


def test_state_dict_and_copies_know_nothing_of_it():
    """A checkpoint is what it was, and a deep copy of the optimizer is not followed."""
    params = parameters((3,))
    optimizer = SGD(params, lr=0.1, momentum=0.5)
    keys = [*optimizer.param_groups[0]]
    thermometer = Thermometer(optimizer, every=1, span=1)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert [*optimizer.param_groups[0]] == keys
    assert [*optimizer.state_dict()["state"][0]] == ["momentum_buffer"]
    copy.deepcopy(optimizer).step()
    assert thermometer.read()["steps"] == 1


def test_leaving_it():
    """Hooks and copies are gone after the end of the context, and what was seen can be read."""
    (x,) = parameters((3,))
    optimizer = ADAM([x], lr=0.1)
    with Thermometer(optimizer, every=1, span=2) as thermometer:
        x.grad = torch.ones_like(x)
        optimizer.step()
        copies = [weakref.ref(thermometer._previous[0]), weakref.ref(thermometer._start[0])]
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert [copy() for copy in copies] == [None, None]
    optimizer.step()
    assert thermometer.read()["steps"] == 1


def test_a_window_ends_where_it_is_told():
    """Reading leaves it open; reset=True and reset() begin another, with its own means."""
    (x,) = parameters((3,))
    optimizer = SGD([x], lr=1.0)
    thermometer = Thermometer(optimizer, every=1, span=4)
    for size in (1.0, 2.0, 3.0):
        x.grad = torch.full_like(x, size)
        optimizer.step()
        assert thermometer.read()["steps"] == 1
        reading = thermometer.read(reset=size < 3)
        assert reading["rescaled_temperature"] == pytest.approx(size**2)
    thermometer.reset()
    assert thermometer.read()["steps"] == 0
    with pytest.raises(TypeError, match="reset must be True or False: 1"):
        thermometer.read(reset=1)


def test_a_step_that_raises_is_none():
    """The next one is seen as if it had not been tried."""
    (x,) = parameters((3,))
    optimizer = SGD([x], lr=1.0, momentum=0.5)
    thermometer = Thermometer(optimizer, every=1, span=1)

    def broken():
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        optimizer.step(broken)
    x.grad = torch.ones_like(x)
    optimizer.step()
    reading = thermometer.read()
    assert (reading["steps"], reading["rescaled_temperature"]) == (1, 1.0)


class Scaler:
    """What torch.amp.GradScaler does to an optimizer that unscales for itself, on the CPU."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, skipped):
        """A step in which a gradient was not finite, or one as usual."""
        self.optimizer.grad_scale = torch.tensor(1.0)
        self.optimizer.found_inf = torch.tensor(float(skipped))
        try:
            self.optimizer.step()
        finally:
            del self.optimizer.grad_scale, self.optimizer.found_inf


@pytest.mark.parametrize(
    "make",
    [
        lambda p: CoolMomentum(p, lr=0.1, total_steps=10, fused=True),
        lambda p: CoolMomentum(p, lr=0.1, total_steps=10, fused=True, capturable=True),
        lambda p: SGD(p, lr=0.1, momentum=0.9, fused=True),
        lambda p: ADAM(p, lr=0.1, fused=True),
    ],
    ids=["cool", "cool, capturable", "sgd", "adam"],
)
def test_steps_that_the_optimizer_skips(make):
    """They do not count, and the step before one is still the one before the next."""
    readings = []
    for skips in ([0, 0, 0, 0], [0, 1, 0, 1, 0, 0]):
        (x,) = parameters((3,), dtype=torch.float32)
        optimizer = make([x])
        thermometer = Thermometer(optimizer, every=2, span=2)
        for skipped in skips:
            x.grad = torch.ones_like(x)
            Scaler(optimizer).step(skipped)
        readings.append(thermometer.read())
    assert readings[0]["steps"] == readings[1]["steps"] == 4
    assert readings[0] == pytest.approx(readings[1], rel=1e-5, abs=1e-5, nan_ok=True)


def test_grad_scaler():
    """Steps that GradScaler does not take are not seen."""
    (x,) = parameters((3,), dtype=torch.float32)
    optimizer = SGD([x], lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    thermometer = Thermometer(optimizer, every=1, span=1)
    for bad in (False, True, False):
        optimizer.zero_grad()
        scaler.scale((x * (math.inf if bad else 1.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert thermometer.read()["steps"] == 2


def test_a_compiled_step():
    """Hooks run outside of the graph, and see what they see of a step that is not compiled."""
    readings = []
    for compiled in (False, True):
        params = parameters((3,), (4,))
        optimizer = CoolMomentum(params, lr=0.1, total_steps=20, rho0=0.9)
        thermometer = Thermometer(optimizer, every=2, span=4)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for grads in gradients(params, 9):
            for p, g in zip(params, grads, strict=True):
                p.grad = g
            step()
        readings.append(thermometer.read())
    assert readings[0] == pytest.approx(readings[1], rel=1e-6, abs=1e-6, nan_ok=True)
    torch.compiler.reset()


@pytest.mark.parametrize(("name", "lost"), [("cool", 2 * 4**2), ("adam", 2 * 1000)])
def test_a_compiled_model(name, lost):
    """A compiled model, and a compiled step with it, read as they do uncompiled.

    The graphs are those that TorchDynamo captures, run by PyTorch itself, in float64; but a
    compiled step has some coefficients in float32. Ours shows a rho that is rounded to it: a
    relative error of 2**-24, which the readings multiply by at most 2 |y|**2 / |dx|**2 = 2 *
    4**2 (freeze_out). That of Adam has 1 - beta2**n, where 1e-3 is left of 1 at first: 1000
    times as much in a displacement, and twice that in a square.
    """
    readings = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        optimizer = OPTIMIZERS[name](model.parameters())
        thermometer = Thermometer(
            optimizer, every=2, span=4, named_parameters=model.named_parameters()
        )
        call, step = model, optimizer.step
        if compiled:
            call, step = (torch.compile(f, backend="eager") for f in (model, step))
        for n in range(8):
            optimizer.zero_grad()
            call(draw(8, 3, dtype=torch.float64, seed=n)).square().mean().backward()
            step()
        readings.append(thermometer.read("parameter"))
    torch.compiler.reset()
    assert [*readings[0]] == [*readings[1]] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    for key, expected in readings[0].items():
        assert expected["steps"] == 8
        near = {"rel": lost * 2.0**-24, "abs": lost * 2.0**-24}
        assert readings[1][key] == pytest.approx(expected, **near, nan_ok=True)


DISTRIBUTED = ["sgd, momentum", "adamw"]  # displacements from the state, and from copies


def trained(model, optimizer, data):
    """Readings after the global batches of the distributed tests, pooled and by parameter."""
    names = [(name.removeprefix("module."), p) for name, p in model.named_parameters()]
    with Thermometer(optimizer, every=2, span=4, named_parameters=names) as thermometer:
        for batch in data:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
    return {"all": thermometer.read(), **thermometer.read("parameter")}


def distributed_worker(rank):
    """DDP, and fully_shard with uneven and empty shards, against one process."""
    for name in DISTRIBUTED:
        model = make_model().double()
        alone = trained(model, OPTIMIZERS[name](model.parameters()), batches().double())
        for wrap in (DistributedDataParallel, sharded):
            model = wrap(make_model().double())
            data = batches()[:, rank::2].double()
            readings = trained(model, OPTIMIZERS[name](model.parameters()), data)
            assert readings.keys() == alone.keys()
            for key, expected in alone.items():
                for reading in ("rescaled_temperature", "temperature", "correlation", "freeze_out"):
                    # 12 steps of some 20 roundings, divided by gradients a hundred times smaller.
                    bound = 12 * 20 * 100 * 2**-53
                    close = pytest.approx(expected[reading], rel=bound, abs=bound)
                    assert readings[key][reading] == close, (name, key, reading)


def test_two_processes_read_as_one(tmp_path):
    """Replicated or sharded, every process has the reading of one that has it all."""
    run_distributed(distributed_worker, tmp_path)
