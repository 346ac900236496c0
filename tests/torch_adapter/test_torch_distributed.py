"""Two gloo processes train as one does on the same global batch: DDP, FSDP2, ZeRO, checkpoints."""

import math

import pytest
import torch
import torch.distributed as dist
from distributed_tools import BATCHES, batches, make_model, run_distributed, sharded
from torch import nn
from torch.distributed.checkpoint import state_dict as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from coolmomentum.torch import CoolMomentum, ThermalNoise, Thermometer

SETTINGS = {"lr": 0.1, "total_steps": 10, "rho0": 0.9, "weight_decay": 0.01}
PATHS = {
    "default": {},
    "one by one": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
}


def train(model, optimizer, data):
    """One step for each batch; gives back the temperatures."""
    temperatures = []
    for batch in data:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        temperatures.append(float(optimizer.temperature()))
    return temperatures


def alone(path):
    """Weights, temperatures and single temperatures of one process on the global batches."""
    model = make_model()
    optimizer = CoolMomentum(model.parameters(), **SETTINGS, **path)
    pooled = train(model, optimizer, batches())
    single = list(map(float, optimizer.temperatures().values()))
    return dict(model.named_parameters()), pooled, single


def full(tensor):
    """A sharded tensor, whole."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def check(model, optimizer, pooled, path):
    """The run equals that of one process; the mean of two half-batch gradients rounds once more."""
    weights, expected, single = alone(path)
    # 12 steps, some 20 roundings of numbers below 2 each (8 examples, three layers, the update).
    bound = BATCHES * 20 * 2**-23
    for name, param in model.named_parameters():
        name = name.removeprefix("module.")
        torch.testing.assert_close(full(param.detach()), weights[name].detach(), rtol=0, atol=bound)
    # Relative to the displacement, which is some hundredth of a weight.
    each = list(map(float, optimizer.temperatures().values()))
    assert each == pytest.approx(single, rel=2 * 100 * bound)
    assert pooled == pytest.approx(expected, rel=2 * 100 * bound)


def ddp_worker(rank):
    """Each path under DistributedDataParallel."""
    for path in PATHS.values():
        model = DistributedDataParallel(make_model())
        optimizer = CoolMomentum(model.parameters(), **SETTINGS, **path)
        pooled = train(model, optimizer, batches()[:, rank::2])
        check(model, optimizer, pooled, path)


def test_ddp(tmp_path):
    """DistributedDataParallel: every path trains as one process, with its temperature."""
    run_distributed(ddp_worker, tmp_path)


def fsdp_worker(rank):
    """Each path under fully_shard; state sharded like the parameters."""
    for path in PATHS.values():
        model = sharded(make_model())
        optimizer = CoolMomentum(model.parameters(), **SETTINGS, **path)
        pooled = train(model, optimizer, batches()[:, rank::2])
        check(model, optimizer, pooled, path)
        for param in model.parameters():
            displacement = optimizer.state[param]["displacement"]
            assert displacement.placements == param.placements
            assert displacement.to_local().shape == param.to_local().shape


def test_fsdp2(tmp_path):
    """fully_shard: every path trains as one process; displacements sharded, temperature global."""
    run_distributed(fsdp_worker, tmp_path)


def mixed_worker(rank):
    """One layer sharded, the other replicated by hand."""
    model = make_model()
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model[0], mesh=mesh)
    optimizer = CoolMomentum(model.parameters(), **SETTINGS)
    pooled = []
    for batch in batches()[:, rank::2]:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        for param in [*model[2].parameters(), *model[4].parameters()]:
            dist.all_reduce(param.grad)
            param.grad /= 2
        optimizer.step()
        pooled.append(float(optimizer.temperature()))
    check(model, optimizer, pooled, {})


def test_sharded_and_plain_parameters_in_one_group(tmp_path):
    """DTensors beside plain tensors: the update takes both, the temperature pools both."""
    run_distributed(mixed_worker, tmp_path)


def checkpoint_worker(rank, flatten):
    """Save in the middle through torch.distributed.checkpoint, load into a fresh run, go on."""
    options = dcp.StateDictOptions(flatten_optimizer_state_dict=flatten)
    data = batches()[:, rank::2]
    model = sharded(make_model())
    optimizer = CoolMomentum(model.parameters(), **SETTINGS)
    train(model, optimizer, data[:5])
    weights, state = dcp.get_state_dict(model, optimizer, options=options)
    weights, state = (torch.utils._pytree.tree_map(_copy, saved) for saved in (weights, state))
    train(model, optimizer, data[5:])

    again = sharded(make_model())
    resumed = CoolMomentum(again.parameters(), **SETTINGS)
    dcp.set_state_dict(
        again, resumed, model_state_dict=weights, optim_state_dict=state, options=options
    )
    assert [int(group["cooling_step"]) for group in resumed.param_groups] == [5]
    train(again, resumed, data[5:])
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(full(one.detach()), full(other.detach()))
    assert float(optimizer.temperature()) == float(resumed.temperature())


def _copy(value):
    return value.clone() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("flatten", [False, True], ids=["nested", "flattened"])
def test_distributed_checkpoint_resumes_bit_for_bit(tmp_path, flatten):
    """get_state_dict and set_state_dict carry clock and displacements of a sharded run."""
    run_distributed(checkpoint_worker, tmp_path, flatten)


def warm_up_worker(rank):
    """A first step with lr = 0 on parameters of which this process may hold nothing."""
    model = sharded(make_model())
    last = model[4]  # one weight and one bias: both on the first process
    optimizer = CoolMomentum(last.parameters(), lr=0.0, total_steps=10)
    train(model, optimizer, batches()[:1, rank::2])
    assert int(optimizer.param_groups[0]["cooling_step"]) == 1


def test_a_warm_up_from_zero_starts_the_clock_on_every_process(tmp_path):
    """What tells it from the dry run of a checkpoint, gradients, is asked of all processes."""
    run_distributed(warm_up_worker, tmp_path)


def pull(param, optimizer, lrs):
    """A step of each learning rate in the potential ``param**2 / 2``."""
    for lr in lrs:
        optimizer.param_groups[0]["lr"] = lr
        param.grad = param.detach().clone()
        optimizer.step()


def steps_taken(group):
    """The clock of a group."""
    return int(group.get("cooling_step", group.get("step")))


WARM_UPS = {"none": (0.1, 0.2, 0.1), "from zero": (0.0, 0.1, 0.1)}  # learning rates


def zero_worker(rank):
    """One parameter for two processes: the second holds none, and it saves."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns, which here is no error

    results = {}
    for name, lrs in WARM_UPS.items():
        param = nn.Parameter(torch.ones(3))
        optimizer = ZeroRedundancyOptimizer([param], optimizer_class=CoolMomentum, **SETTINGS)
        pull(param, optimizer, lrs)
        optimizer.consolidate_state_dict(to=1)
        (group,) = optimizer.optim.param_groups
        saved = optimizer.state_dict() if rank == 1 else None
        results[name] = len(group["params"]), steps_taken(group), param.detach(), saved
    return results


@pytest.fixture(scope="module")
def zero_runs(tmp_path_factory):
    """What both processes have of each run."""
    return run_distributed(zero_worker, tmp_path_factory.mktemp("zero"))


@pytest.mark.parametrize("warm_up", WARM_UPS)
def test_the_clock_of_a_process_without_parameters(zero_runs, warm_up):
    """It goes with the others, and its checkpoint continues like a run in one process."""
    held, steps, weights, saved = zip(*[run[warm_up] for run in zero_runs], strict=True)
    assert (held, steps) == ((1, 0), (3, 3))
    alone, param = nn.Parameter(torch.ones(3)), nn.Parameter(weights[1].clone())
    optimizer, resumed = (CoolMomentum([p], **SETTINGS) for p in (alone, param))
    pull(alone, optimizer, WARM_UPS[warm_up])
    resumed.load_state_dict(saved[1])
    assert float(resumed.temperature()) == float(optimizer.temperature())  # of the same last lr
    for p, o in [(alone, optimizer), (param, resumed)]:
        pull(p, o, (0.1, 0.1))
    assert torch.equal(param, alone)


def zero_resume_worker(rank):
    """Six parameters over two processes, saved in the middle; gives back what a whole run gives."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns, which here is no error

    def made():
        model = make_model()
        settings = SETTINGS | {"total_steps": BATCHES}
        sharded_state = ZeroRedundancyOptimizer(
            model.parameters(), optimizer_class=CoolMomentum, **settings
        )
        return model, sharded_state, CoolMomentum(model.parameters(), **settings)

    def trained(model, optimizer, data):
        for batch in data:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()

    whole, _, optimizer = made()
    trained(whole, optimizer, batches())
    first, optimizer, _ = made()
    trained(first, optimizer, batches()[:4])
    optimizer.consolidate_state_dict(to=0)
    saved = [optimizer.state_dict() if rank == 0 else None]
    dist.broadcast_object_list(saved, src=0)
    second, optimizer, _ = made()
    second.load_state_dict(first.state_dict())
    optimizer.load_state_dict(saved[0])
    trained(second, optimizer, batches()[4:])
    steps = {steps_taken(group) for group in optimizer.optim.param_groups}
    return steps, [
        torch.equal(x, y) for x, y in zip(second.parameters(), whole.parameters(), strict=True)
    ]


def test_zero_resumes_bit_for_bit(tmp_path):
    """ZeroRedundancyOptimizer, saved and loaded in mid-run, ends where one process ends."""
    for steps, equal in run_distributed(zero_resume_worker, tmp_path):
        assert steps == {BATCHES}
        assert equal == [True] * 6


def zero_readings_worker(rank):
    """Readings by ZeroRedundancyOptimizer and by CoolMomentum, without a bath and in one."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns, which here is no error

    def reading(heated, make, **settings):
        model = DistributedDataParallel(make_model().double())
        optimizer = make(model.parameters(), **settings, **SETTINGS | {"total_steps": BATCHES})
        if heated:
            ThermalNoise(optimizer, 0.01)
        with Thermometer(optimizer, every=1, span=4) as thermometer:
            for batch in batches()[:, rank::2].double():
                optimizer.zero_grad()
                model(batch).square().mean().backward()
                optimizer.step()
        return thermometer.read()

    return [
        (
            reading(heated, ZeroRedundancyOptimizer, optimizer_class=CoolMomentum),
            reading(heated, CoolMomentum),
        )
        for heated in (False, True)
    ]


def test_every_process_of_zero_reads_all_parameters(tmp_path):
    """A thermometer on the wrapper knows motion and bath of the optimizer in it.

    It compares copies where CoolMomentum has displacements, of some 0.01 beside weights of about 1:
    2**-53 of these twice in a square, and readings subtract like numbers at worst a hundredfold.
    """
    for pairs in run_distributed(zero_readings_worker, tmp_path):
        for (divided, whole), heated in zip(pairs, (False, True), strict=True):
            assert whole["temperature"] > 0
            assert math.isnan(whole["bath_ratio"]) == (not heated)
            bound = 100 * 2 * 2**-53 / 0.01
            assert divided == pytest.approx(whole, rel=bound, abs=bound, nan_ok=True)
