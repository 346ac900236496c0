"""Runs a function in processes that form a gloo group, and what its tests train there.

A process reports how its work went and leaves by ``os._exit``; only reports are judged. PyTorch's
teardown of gloo aborts on some CPUs ("terminate called without an active exception"), after the
work and whatever the optimizer.
"""

import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

BATCHES = 12
STARTUP = 300  # seconds that all processes may take to start and to import
GRACE = 5  # seconds to write down the stacks


class WorkerError(Exception):
    """A process did not report success exactly once."""


def run_distributed(worker, tmp_path, *arguments, processes=2, seconds=300):
    """Call ``worker(rank, *arguments)`` in each process; gives back the returned values by rank.

    Worker, arguments and values are pickled. An environment as torchrun's is set. No process leaves
    before all are done. If one raises, dies, or works for longer than ``seconds``, all are ended,
    and WorkerError has the traceback of each that has not reported success. A collective gives up
    after half of the time.
    """
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    spawn = multiprocessing.get_context("spawn")  # PyTorch's threads do not survive a fork
    shared = (processes, worker, arguments, seconds, folder, spawn.Barrier(processes))
    group = [spawn.Process(target=_run, args=(rank, *shared)) for rank in range(processes)]
    deadline = time.monotonic() + STARTUP + seconds
    try:
        for process in group:
            process.start()
        while any(process.is_alive() for process in group) and time.monotonic() < deadline:
            ended = [rank for rank, process in enumerate(group) if not process.is_alive()]
            if any(_outcome(folder, rank, group[rank].exitcode)[0] for rank in ended):
                break
            time.sleep(0.02)
    finally:
        _end(group)
    outcomes = [_outcome(folder, rank, process.exitcode) for rank, process in enumerate(group)]
    if faults := [fault for fault, _ in outcomes if fault]:
        raise WorkerError("\n".join(faults))
    return [value for _, value in outcomes]


def _run(rank, processes, worker, arguments, seconds, folder, together):
    """The whole life of a process."""
    stacks = (folder / f"{rank}.stacks").open("w")
    faulthandler.enable(stacks)
    faulthandler.register(signal.SIGTERM, stacks, chain=True)
    torch.set_num_threads(1)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
    numbers |= {"LOCAL_WORLD_SIZE": processes, "OMP_NUM_THREADS": 1}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    faulthandler.dump_traceback_later(STARTUP, exit=True, file=stacks)
    together.wait()
    faulthandler.dump_traceback_later(seconds, exit=True, file=stacks)  # in place of the other
    try:
        dist.init_process_group(
            "gloo",
            f"file://{folder}/meet",
            rank=rank,
            world_size=processes,
            timeout=timedelta(seconds=seconds / 2),
        )
        fault, report = None, pickle.dumps((None, worker(rank, *arguments)))
    except BaseException:  # pytest's own are no Exception, nor is that of sys.exit
        fault = f"rank {rank} raised\n{traceback.format_exc()}"
        report = pickle.dumps((fault, None))
    unfinished = folder / f"{rank}.{os.getpid()}.part"
    unfinished.write_bytes(report)
    unfinished.replace(unfinished.with_suffix(".report"))
    sys.stdout.flush()
    sys.stderr.flush()
    while not fault and len([*folder.glob("*.report")]) < processes:
        time.sleep(0.02)  # another may still be reading from this one
    os._exit(0)


def _outcome(folder, rank, exitcode):
    """What is wrong with a process that has ended, or None; and what its worker returned."""
    reports = [*folder.glob(f"{rank}.*.report")]
    if len(reports) == 1:
        return pickle.loads(reports[0].read_bytes())
    stacks = folder / f"{rank}.stacks"
    seen = stacks.read_text() if stacks.exists() else "It had not started."
    return f"rank {rank} reported {len(reports)} times, exit code {exitcode}\n{seen}", None


def _end(group):
    """End the processes that still run; those that can write down where they were."""
    running = [process for process in group if process.is_alive()]
    for process in running:
        process.terminate()
    for process in running:
        process.join(GRACE)
        process.kill()
        process.join()


# --- what they train ------------------------------------------------------------------------------


def make_model():
    """A network whose first layers do not divide by two: shards are uneven, and one is empty."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1), nn.Tanh(), nn.Linear(1, 1))


def batches():
    """The global batches of a run, of 8 examples each."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCHES, 8, 5, generator=generator)


def sharded(model):
    """The model with every layer sharded over the processes."""
    from torch.distributed.fsdp import fully_shard  # a third of the time a process needs to start

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)
