"""Train, scan and draw: ``python -m benchmarks.imagenet CONFIG --images WHERE``.

Each run of a config is a process of its own. An interrupted command goes on, from the last backup,
when it is given again.
"""

import argparse
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from benchmarks.imagenet.config import CONFIGS, Config, ConfigError, Run, read
from benchmarks.imagenet.records import RecordsError
from benchmarks.imagenet.report import report
from benchmarks.training._benchopt import PARENT, end_with
from benchmarks.training._command import STOPS, Stopped, locked, stoppable
from benchmarks.training._config import UnavailableError
from benchmarks.training._report import Terminal

BACKENDS = ("tensorflow", "jax")
FAILED, CANNOT_BEGIN = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run configs; the exit status is 0, 1 (failed), 2 (cannot begin) or 128 + that of a signal."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.draw and not options.images:
        parser.error("--images must say where they are")
    if options.to and not options.draw:
        parser.error("--to is for --draw")
    with stoppable():
        try:
            return _main(options)
        except Stopped as stopped:
            if not options.only:
                with suppress(OSError):  # the terminal may be gone
                    print("Interrupted; the same command goes on from here.", file=sys.stderr)
            return 128 + stopped.number


def _main(options: argparse.Namespace) -> int:
    try:
        configs = {name: read(name) for name in options.configs}  # all of them, before any run
        if not options.draw:
            _check_images(options.images)
        for name, config in configs.items():
            if options.only:
                _child(config, options)
            elif options.draw:
                _draw(config, options, Terminal())
            elif status := _run(name, config, options, Terminal()):
                return status
    except (ConfigError, UnavailableError) as error:
        print(error, file=sys.stderr)
        return CANNOT_BEGIN
    except RecordsError as error:
        print(error, file=sys.stderr)
        return FAILED
    except OSError as error:
        room = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what_to_do = ": make room; the same command goes on from here" * room
        print(" ".join(f"{error}{what_to_do}".split()), file=sys.stderr)
        return FAILED
    return 0


def _check_images(images: str) -> None:
    """Before TensorFlow is imported, which is asked for those of a bucket."""
    if images != "simulated" and "://" not in images and not Path(images).exists():
        raise UnavailableError(f"--images must be a tar or a folder: {images} is not there")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.imagenet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="KERAS_BACKEND=tensorflow (the default) or jax chooses the engine.",
    )
    names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yml")))
    add = parser.add_argument
    add("configs", nargs="+", metavar="CONFIG", help=f"of: {names}; or files of your own")
    add("--images", help='a folder or tar with train/ and val/, TFRecords, or "simulated"')
    add("--devices", type=int, help="how many; all there are")
    add("--microbatch", type=int, help="on one device: images at once, a divisor of the batch")
    add("--dtype", choices=("float32", "mixed_bfloat16"), default="float32")
    add("--hosts", action="store_true", help="this is one of several hosts with the same command")
    add("--output", type=Path, default=Path("results/imagenet"), help="a folder in it for each")
    add("--draw", action="store_true", help="make no runs: page and figures of what is there")
    add("--to", type=Path, help="of --draw: there, with a copy of the records without times")
    add("--only", help=argparse.SUPPRESS)  # the run of this name, in this process
    return parser


def _run(name: str, config: Config, options: argparse.Namespace, console: Console) -> int:
    """All runs of a config, one after the other; the status of the first that fails."""
    output = options.output / config.name
    output.mkdir(parents=True, exist_ok=True)
    with locked(output) as lock:
        for number, run in enumerate(config.runs, 1):
            console.print(f"{config.name}: run {number} of {len(config.runs)}, {run.name}")
            if status := _in_a_process(_arguments(name, run, options), lock):
                return status
        report(config, output, output, console)
    return 0


def _arguments(name: str, run: Run, options: argparse.Namespace) -> list[str]:
    """Of the process that makes a run."""
    its = [name, "--only", run.name, "--images", options.images, "--dtype", options.dtype]
    its += ["--output", str(options.output), *["--hosts"] * options.hosts]
    for option in ("devices", "microbatch"):
        if (value := getattr(options, option)) is not None:
            its += [f"--{option}", str(value)]
    return its


def _in_a_process(arguments: list[str], lock: int) -> int:
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", "KERAS_BACKEND": BACKENDS[0]} | os.environ
    environment |= {PARENT: str(os.getpid())}
    command = [sys.executable, "-m", "benchmarks.imagenet", *arguments]
    child = subprocess.Popen(command, env=environment, pass_fds=[lock])
    try:
        status = child.wait()
    finally:
        child.terminate()  # nothing, if it has ended
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if (stopped := -status if status < 0 else status - 128) in STOPS:
        raise Stopped(stopped)
    if status < 0:
        print(f"the run was ended by {signal.Signals(-status).name}", file=sys.stderr)
    return FAILED if status < 0 else status


def _child(config: Config, options: argparse.Namespace) -> None:
    """One run. Only here is Keras imported, of which a process has one backend."""
    if PARENT in os.environ:
        end_with(int(os.environ[PARENT]))
    from benchmarks.imagenet.devices import choose
    from benchmarks.imagenet.images import UnavailableImagesError
    from benchmarks.imagenet.train import train

    run = next(run for run in config.runs if run.name == options.only)
    engine = choose(
        config.batch,
        config.evaluation_batch,
        devices=options.devices,
        microbatch=options.microbatch,
        dtype=options.dtype,
        hosts=options.hosts,
    )
    try:
        train(config, run, engine, options.images, options.output / config.name / run.name)
    except UnavailableImagesError as error:
        raise ConfigError(str(error)) from None


def _draw(config: Config, options: argparse.Namespace, console: Console) -> None:
    """Only what is written to is locked."""
    target = (options.to or options.output) / config.name
    target.mkdir(parents=True, exist_ok=True)
    with locked(target):
        report(config, options.output / config.name, target, console)


if __name__ == "__main__":
    sys.exit(main())
