"""The ImageNet benchmark without Keras: its arithmetic, configs, records, figures and pages.

``keras_adapter/test_keras_on_*_imagenet.py`` have its parts, ``imagenet_smoke.py`` whole runs.
"""

import errno
import json
import os
import re
import sys
from dataclasses import asdict, replace
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from benchmarks.imagenet import recipe
from benchmarks.imagenet.__main__ import main
from benchmarks.imagenet.config import CONFIGS, Config, ConfigError, Run, read
from benchmarks.imagenet.figures import REFERENCE, figures
from benchmarks.imagenet.records import Record, RecordsError, as_line, read_records
from coolmomentum import adiabatic_rho0

NAMES = sorted(path.stem for path in CONFIGS.glob("*.yml"))


# --- the recipe -----------------------------------------------------------------------------------


def test_the_arithmetic_is_that_of_the_recipe() -> None:
    """Steps of an epoch and of the warm-up, rates, rho, evaluations: numbers of the facts sheet."""
    timing = read("imagenet").timing
    assert timing.epoch_steps == recipe.EPOCH_STEPS
    assert timing.epoch_steps == pytest.approx(625.5698242, abs=1e-7)
    assert (timing.warmup_steps, timing.evaluation_steps) == (3127, 6255)
    assert timing.decay_steps == pytest.approx(1501.3676, abs=5e-5)  # half of the last digit
    assert recipe.peak_rate(2048) == pytest.approx(0.128)
    rate = recipe.RmspropRate(recipe.peak_rate(2048), timing)
    assert rate(0) == 0
    assert rate(3127) == pytest.approx(0.120435, abs=5e-7)
    assert rate(218_947) == pytest.approx(0.00154565, abs=5e-9)
    assert rate(218_947) == pytest.approx(0.128 * 0.97**145)
    rho = recipe.cooling(timing)
    assert rho(3126) == 0
    assert rho(3127) == pytest.approx(0.989320181798821, abs=1e-15)
    assert rho(109_474) == pytest.approx(0.9, abs=1e-6)
    assert rho(218_947) == pytest.approx(2.1e-5, abs=1e-6)
    assert len(timing.evaluations) == 36
    assert timing.evaluations[-2:] == (218_925, 218_948)
    assert recipe.evaluated_images(50_000, 1024) == 49_152
    assert 218_948 * 2048 == 448_405_504


def test_the_average_is_ramped_for_ninety_thousand_steps() -> None:
    """min(.9999, (1 + n) / (10 + n))."""
    assert recipe.average_decay(1) == 2 / 11
    assert recipe.average_decay(89_989) < 0.9999 == recipe.average_decay(89_991)


# --- configs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_configs_can_be_run(name: str) -> None:
    """Each is read, says what it cannot show, and has as many values for each rule in a scan."""
    config = read(name)
    assert config.what
    assert config.cannot
    if config.kind == "scan":
        assert len({len(runs) for runs in config.by_rule().values()}) == 1
    if name.startswith("imagenet"):
        (departure,) = config.departures()
        assert departure.startswith("images shuffled whole")
    else:
        assert "evaluated on the training images" in config.departures()
    if name.startswith("sample"):
        assert f"adiabatic_rho0({config.steps}) is {adiabatic_rho0(config.steps):.2f}".replace(
            "0.", "."
        ) in " ".join(config.cannot.split())


CONFIG = {
    "kind": "runs",
    "what": "a",
    "cannot": "b",
    "runs": [{"rule": "rmsprop", "lr": 0.1}, {"rule": "coolmomentum", "lr": 0.6, "rho0": 0.99}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1: 0"),
        ({"size": 16}, "size must be an integer >= 32: 16"),
        ({"bn_momentum": 1}, r"bn_momentum must be in \[0, 1\): 1"),
        ({"kind": "other"}, "kind must be one of runs, scan: other"),
        ({"augment": "mixup"}, "augment must be one of crop, flip, none: mixup"),
        ({"runs": []}, "runs must not be empty"),
        ({"runs": [{"rule": "adam", "lr": 1}]}, "rule must be one of rmsprop, coolmomentum: adam"),
        ({"runs": [{"rule": "rmsprop", "lr": -1}]}, "lr must be a finite number > 0: -1"),
        ({"runs": [{"rule": "rmsprop", "lr": 1, "rho0": 0.9}]}, "rho0 must be given for coolm"),
        ({"runs": [{"rule": "coolmomentum", "lr": 1}]}, "rho0 must be given for coolmomentum"),
        ({"runs": [CONFIG["runs"][0]] * 2}, "runs must differ"),
        (
            {"kind": "scan", "runs": [*CONFIG["runs"], {"rule": "rmsprop", "lr": 2}]},
            "as many values for each rule",
        ),
        ({"stpes": 3}, "cannot be read: .*stpes"),
        ({"runs": 3}, "cannot be read"),
    ],
)
def test_a_config_that_cannot_be_run_is_one_clear_line(
    tmp_path: Path, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, before anything is run."""
    file = tmp_path / "mine.yml"
    file.write_text(yaml.safe_dump(CONFIG | change))
    assert main([str(file), "--images", "simulated", "--output", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yml"]


def test_an_unknown_config_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    """It says which there are."""
    assert main(["imagnet", "--images", "simulated"]) == 2
    assert capsys.readouterr().err == (
        f"config must be one of {', '.join(NAMES)}, or a file: imagnet\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [([], "--images must say where they are"), (["--images", "x", "--to", "y"], "--to is for")],
)
def test_options_that_do_not_go_together_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2."""
    with pytest.raises(SystemExit, match="2"):
        main(["smoke", *options])
    assert message in capsys.readouterr().err


def test_images_that_are_not_there_are_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, before anything is imported or written."""
    output = tmp_path / "results"
    assert main(["smoke", "--images", "/nowhere", "--output", str(output)]) == 2
    assert capsys.readouterr().err == "--images must be a tar or a folder: /nowhere is not there\n"
    assert not output.exists()


@pytest.mark.parametrize(
    ("ends", "status", "message"),
    [
        ("exit 2", 2, ""),
        ("exit 1", 1, ""),
        ("kill -SEGV $$", 1, "the run was ended by SIGSEGV"),
        ("kill -TERM $$", 143, "Interrupted; the same command goes on from here."),
        ("exit 130", 130, "Interrupted; the same command goes on from here."),
    ],
)
def test_the_command_ends_as_its_run_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ends: str,
    status: int,
    message: str,
) -> None:
    """The process of the first run that fails is the last one."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/asked\n{ends}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    options = ["--images", "simulated", "--output", str(tmp_path), "--devices", "2"]
    assert main(["sample", *options]) == status
    assert capsys.readouterr().err.strip() == message
    (asked,) = (tmp_path / "asked").read_text().splitlines()
    assert asked == (
        "-m benchmarks.imagenet sample --only coolmomentum-lr0.01-rho0.99 --images simulated "
        f"--dtype float32 --output {tmp_path} --devices 2"
    )


# --- records, figures, pages ----------------------------------------------------------------------


def _record(config: Config, run: Run, step: int, **changes: Any) -> dict[str, Any]:
    share = step / config.steps
    record = Record(
        config=config.name,
        rule=run.rule,
        lr=run.lr,
        rho0=run.rho0,
        seed=0,
        step=step,
        total_steps=config.steps,
        images=step * config.batch,
        running_loss=7 - 5 * share,
        top1=0.75 * share**0.1,
        top5=0.93 * share**0.1,
        top1_raw=0.7 * share**0.1,
        top5_raw=0.9 * share**0.1,
        learning_rate=run.lr,
        rho=0.9,
        temperature=float("nan"),
        rescaled_temperature=1e-8,
        images_per_second=20.0,
        diverged=False,
        evaluated_on=config.evaluate,
        evaluated_images=49_152,
        device="1 CPU, TensorFlow",
        global_batch=config.batch,
        bn_group=256,
        accumulated=1,
        dtype="float32",
        versions="",
        commit="",
        departures=[*config.departures(), "batch statistics of 32 images in place of 256"],
    )
    return as_line(replace(record, **changes))


def _write(output: Path, config: Config, **changes: Any) -> None:
    for run in config.runs:
        folder = output / config.name / run.name
        folder.mkdir(parents=True)
        lines = [_record(config, run, step, **changes) for step in config.timing.evaluations]
        (folder / "records.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


def test_what_is_no_number_is_none_in_records() -> None:
    """JSON has no NaN."""
    config = read("imagenet")
    record = _record(config, config.runs[0], 6255, running_loss=float("inf"))
    assert record["running_loss"] is record["temperature"] is None
    assert set(record) == set(asdict(Record(**record)))


def test_figure_2_is_drawn_from_records_alone(tmp_path: Path) -> None:
    """A step axis, four lines, and what was digitised in grey, with its label."""
    config = read("imagenet")
    _write(tmp_path, config)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    assert main(["imagenet", "--draw", "--output", str(tmp_path)]) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == before
    folder = tmp_path / "imagenet"
    assert {p.name for p in folder.iterdir() if p.is_file()} == {
        *("figure-2.png", "thermometer.png", "report.html", "table.csv", ".lock")
    }
    records = pd.DataFrame(read_records(folder))
    (name, _, figure), _ = figures(records, "runs", reference=True)
    assert name == "figure-2"
    (axes,) = figure.axes
    assert axes.get_xlabel() == "step"
    assert axes.get_xlim() == (0, 218_948)
    assert axes.get_ylim() == (0.48, 0.96)
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    ours = {label: line for label, line in lines.items() if "authors" not in label}
    assert {(line.get_color(), line.get_linestyle()) for line in ours.values()} == {
        *(("#004488", "-"), ("#004488", "--"), ("#EE7733", "-"), ("#EE7733", "--"))
    }
    assert len(ours) == 4
    for label, line in lines.items():
        if label not in ours:
            assert "authors, digitised" in label
            assert 0 < float(line.get_color()) < 1  # a grey
    assert len(lines) == 8
    for line in ours.values():
        assert list(line.get_xdata()) == list(config.timing.evaluations)


def test_the_authors_coolmomentum_is_below_their_rmsprop_throughout() -> None:
    """By .2 to .3 points at the end; steps and top-1 are those of the facts sheet."""
    (cool, cool5), (rms, rms5) = REFERENCE["coolmomentum"], REFERENCE["rmsprop"]
    assert len(cool) == len(rms) == 8
    assert all(x < y for x, y in zip(cool, rms, strict=True))
    assert 0.002 <= rms[-1] - cool[-1] <= 0.003
    assert (cool[0], rms[0], cool5, rms5) == (0.503, 0.648, 0.932, 0.934)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("made", [True, False])
def test_every_page_says_what_it_is_not(tmp_path: Path, name: str, made: bool) -> None:
    """No full run by us, n, departures, what it cannot show; with and without records."""
    config = read(name)
    if made:
        _write(tmp_path, config)
    assert main([name, "--draw", "--output", str(tmp_path)]) == 0
    page = (tmp_path / name / "report.html").read_text()
    assert "A full run was not made by us" in page
    count = len(config.runs)
    assert f"n = {count if made else 0} of {count} runs" in page
    assert " ".join(config.cannot.split()).split("'")[0] in " ".join(page.split())
    for departure in config.departures():
        assert f"<li>{escape(departure)}</li>" in page
    assert ("<li>batch statistics of 32 images in place of 256</li>" in page) is made
    assert "http" not in page  # it needs no network
    assert ("CoolMomentum is below RMSProp throughout" in page) is (name == "imagenet")
    if config.kind == "scan":
        assert page.count("<td>not available</td>") == count
    if not made:
        assert page.count("<td>not run</td>") == count


def test_a_run_that_diverged_stays_in_table_and_figure(tmp_path: Path) -> None:
    """As a cross, and a yes."""
    config = read("sample-scan")
    _write(tmp_path, config, diverged=True, running_loss=None, top1=0.0)
    assert main(["sample-scan", "--draw", "--output", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "sample-scan" / "table.csv")
    assert list(table.diverged) == ["yes"] * 10
    assert list(table.authors) == ["not available"] * 10
    records = pd.DataFrame(read_records(tmp_path / "sample-scan"))
    ((_, _, figure),) = figures(records, "scan", reference=False)
    crosses = [x for x in figure.axes[0].get_lines() if "diverged" in str(x.get_label())]
    assert [len(x.get_xdata()) for x in crosses] == [5, 5]


def test_a_copy_has_no_times(tmp_path: Path) -> None:
    """--draw --to leaves the records in another folder, and draws them there."""
    config = read("smoke")
    _write(tmp_path / "from", config)
    options = ["--output", str(tmp_path / "from"), "--to", str(tmp_path / "to")]
    assert main(["smoke", "--draw", *options]) == 0
    found, copied = (read_records(tmp_path / name / "smoke") for name in ("from", "to"))
    assert [x.pop("images_per_second") for x in copied] == [None, None]
    assert [x.pop("images_per_second") for x in found] == [20.0, 20.0]
    assert copied == found
    assert (tmp_path / "to" / "smoke" / "report.html").is_file()
    assert not (tmp_path / "from" / "smoke" / "report.html").exists()


@pytest.mark.parametrize(
    ("line", "message"), [("{", "cannot be read"), ("[]", "lacks config"), ("{}", "lacks config")]
)
def test_broken_records_are_one_clear_line(
    tmp_path: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With file and line; exit status 1."""
    config = read("smoke")
    _write(tmp_path, config)
    (file,) = tmp_path.rglob("records.jsonl")
    file.write_text(file.read_text() + line + "\n")
    assert main(["smoke", "--draw", "--output", str(tmp_path)]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"{file}:3 ")
    assert message in said
    with pytest.raises(RecordsError):
        read_records(file.parents[1])


def test_a_full_disk_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1, and what was there is as it was."""
    config = read("smoke")
    _write(tmp_path, config)
    assert main(["smoke", "--draw", "--output", str(tmp_path)]) == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def full(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    capsys.readouterr()
    assert main(["smoke", "--draw", "--output", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device: make room; the same command goes on from here" in line
    monkeypatch.undo()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_runs_have_names_of_their_own() -> None:
    """They are folders."""
    with pytest.raises(ConfigError, match="runs must differ"):
        Config("x", "runs", "", "", (Run("rmsprop", 0.1), Run("rmsprop", 0.1)))
    assert Run("coolmomentum", 0.6, 0.99).name == "coolmomentum-lr0.6-rho0.99"
