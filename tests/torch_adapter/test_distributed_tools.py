"""A distributed test fails with its workers, whichever way they fail, and with nothing else."""

import multiprocessing
import os
import re
import signal
import sys
import threading
import time

import distributed_tools
import pytest
import torch
import torch.distributed as dist
from distributed_tools import WorkerError, run_distributed


def failure(worker, tmp_path, *arguments, **settings):
    """The message with which a run fails; none of its processes is left."""
    with pytest.raises(WorkerError) as caught:
        run_distributed(worker, tmp_path, *arguments, **settings)
    assert multiprocessing.active_children() == []
    return str(caught.value)


def summing_worker(rank, shift):
    """A tensor of more than a pipe holds."""
    total = torch.full((100_000,), float(rank + shift))
    dist.all_reduce(total)
    return rank, total


def test_returned_values_come_by_rank(tmp_path):
    """Tensors among them; and a test may run as many groups as it likes."""
    for processes, shift, expected in [(2, 1.0, 3.0), (1, 5.0, 5.0)]:
        values = run_distributed(summing_worker, tmp_path, shift, processes=processes)
        assert [rank for rank, _ in values] == [*range(processes)]
        assert all(torch.equal(total, torch.full((100_000,), expected)) for _, total in values)


def aborting_worker(rank, tmp_path):
    """The first dies of another thread when it has reported; the second is still at work."""

    def abort():
        while not [*tmp_path.glob("*/0.*.report")]:
            time.sleep(0.01)
        os.abort()

    if rank == 0:
        threading.Thread(target=abort, daemon=True).start()
    time.sleep(rank)


def test_what_a_process_does_after_its_report(tmp_path):
    """It may abort, as gloo's threads do, and nobody waits for it."""
    assert run_distributed(aborting_worker, tmp_path, tmp_path) == [None, None]


SENT = []  # a message that nobody holds is given up


def early_worker(rank):
    """The first is done before the second has read what it sent."""
    message = torch.full((100_000,), 7.0) if rank == 0 else torch.zeros(100_000)
    if rank == 0:
        SENT.append(dist.isend(message, 1))
        return None
    time.sleep(0.5)
    dist.recv(message, 0)
    return float(message.mean())


def test_a_worker_that_is_done_waits_for_the_others(tmp_path):
    """They may still be reading from it."""
    assert run_distributed(early_worker, tmp_path) == [None, 7.0]


def hang(sign=None):
    """Come to no end."""
    if sign:
        sign.touch()
    while True:
        time.sleep(1)


def raising_worker(rank, sign, handler):
    """The second raises when the first hangs, which may ignore SIGTERM."""
    if rank == 0:
        if handler:
            signal.signal(signal.SIGTERM, handler)
        hang(sign)
    while not sign.exists():
        time.sleep(0.01)
    raise ValueError("a mistake")


def test_a_worker_that_raises(tmp_path):
    """Its traceback is in the message, and nobody waits for the others: it says where they were."""
    message = failure(raising_worker, tmp_path, tmp_path / "sign", None)
    stopped, raised = message.split("rank 1 raised\n")
    assert stopped.startswith("rank 0 reported 0 times, exit code -15\n")
    assert "in hang\n" in stopped
    assert 'in raising_worker\n    raise ValueError("a mistake")' in raised


def test_a_worker_that_does_not_want_to_end(tmp_path, monkeypatch):
    """It is killed."""
    monkeypatch.setattr(distributed_tools, "GRACE", 1)
    message = failure(raising_worker, tmp_path, tmp_path / "sign", signal.SIG_IGN)
    assert message.startswith("rank 0 reported 0 times, exit code -9\n")


def kill():
    """End this process at once, as the system does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def twice():
    """Come back from the work in two processes."""
    if child := os.fork():
        os.waitpid(child, 0)


ENDS = {
    "leaves as if all were well": (sys.exit, (0,), "rank 0 raised(.|\n)*SystemExit: 0"),
    "exits at once": (os._exit, (0,), "rank 0 reported 0 times, exit code 0"),
    "aborts": (os.abort, (), "rank 0 reported 0 times, exit code -6(.|\n)*in misbehaving_worker"),
    "is killed": (kill, (), "rank 0 reported 0 times, exit code -9"),
    "returns what cannot be pickled": (sys._getframe, (), "rank 0 raised(.|\n)*cannot pickle"),
    "reports twice": (twice, (), "rank 0 reported 2 times"),
    "hangs": (hang, (), "rank 0 reported 0 times, exit code 1\nTimeout (.|\n)*in hang"),
}


def misbehaving_worker(rank, end):
    """One of the ends."""
    function, arguments, _ = ENDS[end]
    return function(*arguments)


@pytest.mark.parametrize("end", ENDS)
def test_a_worker_that_does_not_report_success_once(end, tmp_path):
    """It fails the test, and the message says what became of it."""
    seconds = 2 if end == "hangs" else 300
    message = failure(misbehaving_worker, tmp_path, end, processes=1, seconds=seconds)
    assert re.match(ENDS[end][2], message)


def waiting_worker(rank):
    """The second hangs, and the first waits for it in a collective."""
    if rank == 1:
        hang()
    dist.barrier()


def test_a_collective_gives_up_before_the_process(tmp_path):
    """It raises at half of the time."""
    assert "rank 0 raised" in failure(waiting_worker, tmp_path, seconds=8)


def stopped_worker(rank):
    """Not even the thread runs that watches the time."""
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_process_that_does_not_run(tmp_path, monkeypatch):
    """It cannot see to it that it ends; the test does."""
    monkeypatch.setattr(distributed_tools, "STARTUP", 1)
    monkeypatch.setattr(distributed_tools, "GRACE", 1)
    message = failure(stopped_worker, tmp_path, processes=1, seconds=1)
    assert re.match("rank 0 reported 0 times, exit code -(9|15)\n", message)
