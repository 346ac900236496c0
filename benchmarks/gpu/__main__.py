"""The answers of a borrowed GPU, within nine minutes: ``python -m benchmarks.gpu``.

Three parts, each in processes of its own: whether all is right on CUDA, how long a step takes, and
how ResNet-20 trains with the numbers of the paper. Each prints as it goes, and what it has found is
in a file as soon as it is there, so that nothing is lost when the time is over. What is done is not
done again, and the training goes on, when the command is given again with the same folder.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["main"]

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "jax", "jaxlib", "triton", "numpy", "optax", "flax", "array-api-compat")
RULES = ("coolmomentum", "sgd-step", "adam-step")
SHARES = {
    "checks": 0.3,
    "speed-torch": 0.2,
    "speed-jax": 0.1,
}  # of the time, at most; then training
LAST = 10.0  # seconds to end in


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; the exit status is 0, or 1 if one has failed or was not finished."""
    options = _parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    deadline = time.monotonic() + options.seconds - LAST
    output = options.output.resolve()
    if options.resume:
        shutil.copytree(options.resume, output, dirs_exist_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    # Before anything is imported that may need them.
    luggage = sorted(str(p.resolve()) for p in options.luggage.glob("*/*.whl"))
    sys.path[:0] = luggage
    path = os.pathsep.join([*luggage, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "COOLMOMENTUM_GPU": options.device,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # three processes share the memory
    }
    _write(output / "machine.json", _machine(arguments))
    runner = _Runner(output, environment, deadline)
    miniature = ["--miniature"] * options.miniature
    tests = ["-m", "pytest", "-c", os.devnull, f"--rootdir={ROOT}", "--noconftest", "-v", "-rs"]
    tests += ["-o", "markers=gpu", "-p", "no:cacheprovider", str(ROOT / "tests" / "test_gpu.py")]
    speed = ["-m", "benchmarks.gpu.speed", *miniature, "--device", options.device]
    commands = {"checks": tests} | {
        f"speed-{name}": [*speed, name, str(output / f"speed-{name}.json")]
        for name in ("torch", "jax")
    }
    good = [
        runner.run(name, commands[name], SHARES[name] * options.seconds)
        for name in commands
        if name in options.parts
    ]
    if "training" in options.parts:
        good.append(_train(runner, options, [*miniature, "--device", options.device]))
    return 0 if all(good) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    parts = [*SHARES, "training"]
    add("--output", type=Path, default=Path("results/gpu"), help="a folder for what is found")
    add("--resume", type=Path, help="such a folder that was brought back: go on from it")
    add("--luggage", type=Path, default=Path("luggage"), help="what make gpu-luggage has packed")
    add("--seconds", type=float, default=540.0, help="in which to end")
    add("--parts", nargs="+", choices=parts, default=parts, help="only these")
    add("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal")
    add("--miniature", action="store_true", help="everything small, no CIFAR-10: a rehearsal")
    return parser


class _Runner:
    """Runs parts, until each has ended or its time is over."""

    def __init__(self, output: Path, environment: dict[str, str], deadline: float) -> None:
        self.output, self.environment, self.deadline = output, environment, deadline

    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.deadline - time.monotonic())

    def run(self, name: str, command: list[str], seconds: float) -> bool:
        """A part that makes one run; whether it ended well, now or before.

        What it prints goes to the terminal and, when it has ended, to a file.
        """
        done = self.output / f"{name}.done.json"
        if done.exists():
            status = json.loads(done.read_text())["status"]
            print(f"== {name}: done before, status {status}", flush=True)
            return bool(status == 0)
        seconds = min(seconds, self.left())
        print(f"== {name}: at most {seconds:.0f} s", flush=True)
        begun = time.monotonic()
        log = self.output / f"{name}.txt"
        with log.open("w") as lines:
            child = self.start(command, stdout=subprocess.PIPE)
            assert child.stdout is not None
            # Ends the child, and with it what it prints, even where it prints nothing.
            alarm = subprocess.Popen(
                [sys.executable, "-c", _ALARM, str(seconds), str(child.pid)], stdin=subprocess.PIPE
            )
            try:
                for line in child.stdout:
                    print(line, end="", flush=True)
                    lines.write(line)
                    lines.flush()
                status = child.wait()
            finally:
                child.kill()
                alarm.kill()
                alarm.communicate()
        took = time.monotonic() - begun
        print(f"== {name}: status {status} after {took:.0f} s", flush=True)
        if status >= 0:  # else it was ended
            _write(done, {"status": status, "seconds": round(took, 1)})
        return status == 0

    def start(self, command: list[str], **options: Any) -> "subprocess.Popen[str]":
        """A process of this Python."""
        return subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=self.environment, text=True, **options
        )


# Waits, or ends with its parent, whose end of the pipe is closed then; both ends the child.
_ALARM = """
import os, select, signal, sys
select.select([sys.stdin], [], [], float(sys.argv[1]))
try:
    os.kill(int(sys.argv[2]), signal.SIGKILL)
except ProcessLookupError:
    pass
"""


def _train(runner: _Runner, options: argparse.Namespace, more: list[str]) -> bool:
    """Three rules at once, as many epochs as there is time for."""
    from benchmarks.gpu import luggage
    from benchmarks.training._files import write_whole

    output = runner.output
    if not options.miniature and "COOLMOMENTUM_DATA" not in os.environ:
        if absent := luggage.missing(options.luggage):
            print(f"== training: left out, {options.luggage} lacks {', '.join(absent)}", flush=True)
            return False
        images = options.luggage.resolve() / "unpacked"
        luggage.unpack(options.luggage, images)
        runner.environment["COOLMOMENTUM_DATA"] = str(images)
    print(f"== training: at most {runner.left():.0f} s", flush=True)
    command = ["-m", "benchmarks.gpu.training", *more]
    children = [
        runner.start([*command, rule, str(output / rule)], stdin=subprocess.PIPE) for rule in RULES
    ]
    try:
        while any(child.poll() is None for child in children) and runner.left():
            time.sleep(0.1)
    finally:
        for child in children:
            child.kill()
            child.communicate()
    from benchmarks.training._checkpoint import all_records

    runs = all_records(output)
    write_whole(output / "training.json", json.dumps(runs).encode())
    for rule in RULES:
        if own := [record for record in runs if record["rule"] == rule]:
            last = own[-1]
            print(
                f"{rule}: epoch {last['epoch']} of {last['epochs']}, "
                f"test accuracy {last['accuracy']:.2%}, temperature {last['temperature']:.1e}",
                flush=True,
            )
    # Time that is over is no failure; a child that has failed, or has made nothing, is.
    ended = [child.returncode in (0, -9) for child in children]
    return all(ended) and {record["rule"] for record in runs} == set(RULES)


def _machine(arguments: Sequence[str] | None) -> dict[str, Any]:
    """What is needed to repeat it."""
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv"]
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        gpu = ""
    return {
        "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "arguments": list(sys.argv[1:] if arguments is None else arguments),
        "python": platform.python_version(),
        "versions": versions,
        "gpu": gpu.splitlines(),
    }


def _write(path: Path, content: Any) -> None:
    from benchmarks.training._files import write_whole

    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
