"""A heat bath over two processes: shards, parameters of their own, parts like replicas."""

import itertools

import numpy as np
import pytest
import torch
from distributed_tools import run_distributed
from torch_tools import gradients, parameters

from coolmomentum.torch import CoolMomentum, ThermalNoise

SHAPES = [(17,), (3, 4), ()]
HOT = {"lr": 0.125, "law": "constant", "rho0": 0.9}


def sharded(rank):
    """A step of a parameter that is split over two processes, and of the whole on each."""
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    start = torch.arange(14.0).reshape(7, 2)
    split = torch.nn.Parameter(distribute_tensor(start, mesh, [Shard(0)]))
    whole = torch.nn.Parameter(start.clone())
    for param in (split, whole):
        optimizer = CoolMomentum([param], **HOT)
        ThermalNoise(optimizer, 1.0, seed=5)
        for _ in range(3):
            param.grad = torch.zeros_like(param)
            optimizer.step()
    return split.detach().full_tensor().tolist(), whole.detach().tolist()


def test_shards_are_parts_of_one_stream(tmp_path):
    """Each of two processes has its part of the numbers that one draws; replicas are equal."""
    results = run_distributed(sharded, tmp_path)
    for split, whole in results:
        np.testing.assert_array_equal(split, whole)
    assert results[0] == results[1]


def walked(make, **settings):
    """Parameters and optimizer after steps in a bath."""
    params = parameters(*SHAPES)
    optimizer = make(params, **settings, **HOT)
    ThermalNoise(optimizer, 1.5, seed=3)
    for grads in gradients(params, 3):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()
    return [param.tolist() for param in params], optimizer


def zero(rank):
    """Parameters after steps whose state is divided over two processes; nothing else is taken."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns, which here is no error

    params, optimizer = walked(ZeroRedundancyOptimizer, optimizer_class=CoolMomentum)
    other = ZeroRedundancyOptimizer(parameters((3,)), optimizer_class=torch.optim.SGD, lr=0.1)
    with pytest.raises(TypeError, match=r"torch\.CoolMomentum: ZeroRedundancyOptimizer$"):
        ThermalNoise(other, 1.5)
    return params, len(optimizer.optim.param_groups[0]["params"])


def test_processes_with_parameters_of_their_own_draw_what_one_does(tmp_path):
    """With ZeroRedundancyOptimizer a parameter has the numbers of its place among all, to the bit.

    Numbered in each process from 0, two parameters had the same numbers.
    """
    alone, _ = walked(CoolMomentum)
    results = run_distributed(zero, tmp_path)
    assert sum(held for _, held in results) == len(SHAPES)
    assert all(held for _, held in results)
    for params, _ in results:
        assert params == alone


def flattened(rank):
    """What a process has of a weight of FullyShardedDataParallel after steps, by seeds."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    results = {}
    for use_orig_params, seeds in itertools.product([True, False], [(3, 3), (3, 4)]):
        model = torch.nn.Linear(8, 8, bias=False)
        torch.nn.init.zeros_(model.weight)
        model = FullyShardedDataParallel(
            model, device_id=torch.device("cpu"), use_orig_params=use_orig_params
        )
        (param,) = model.parameters()
        optimizer = CoolMomentum([param], **HOT)
        message = "FullyShardedDataParallel .* each part has a seed of its own"
        with pytest.warns(UserWarning, match=message) as told:
            ThermalNoise(optimizer, 1.5, seed=seeds[rank])
        assert [each.filename for each in told] == [__file__]
        param.grad = torch.zeros_like(param)
        optimizer.step()
        results[use_orig_params, seeds] = param.tolist()
    return results


def test_parts_that_look_like_replicas_are_said(tmp_path):
    """One seed gives each part the same numbers, which would go unnoticed; two give others."""
    ours, theirs = run_distributed(flattened, tmp_path)
    for (how, seeds), numbers in ours.items():
        assert len(numbers) == 32
        assert (theirs[how, seeds] == numbers) == (seeds == (3, 3))
