"""Whole runs of the training benchmark in miniature, and the pages drawn from them."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from training_tools import CONFIG

from benchmarks.training.__main__ import main
from benchmarks.training._command import locked
from benchmarks.training._config import number_of_runs, read, solvers
from benchmarks.training._results import CELL, read_results
from benchmarks.training._tables import chosen
from coolmomentum import adiabatic_rho0


def test_a_config_is_tuned_and_reported(ci: Path) -> None:
    """The tuning sees no seed of the report; what is reported is what the tuning chose."""
    runs, about = read_results(ci / "results.parquet")
    tuning, report = (runs[runs.phase == phase] for phase in ("tuning", "report"))
    assert tuning.groupby("rule").size().to_dict() == {"coolmomentum": 2, "sgd-cosine": 2}
    assert not set(tuning.seed) & set(report.seed)
    assert report.groupby("rule").seed.nunique().eq(2).all()
    assert list(report[report.rule == "sgd-cosine"].epoch) == [0, 1, 2] * 2
    # A seed starts all rules alike, to the last bit, and no two seeds do.
    before = report[report.epoch == 0].groupby("seed").training_loss
    assert before.nunique().eq(1).all()
    assert before.first().nunique() == 2
    choice = chosen(tuning)
    assert report.groupby("rule").momentum.first().to_dict() == choice.momentum.to_dict()
    assert about["command"].startswith("python -m benchmarks.training ci ")
    assert f"torch {torch.__version__}" in report.versions.iloc[0]


def test_a_page_and_figures_are_drawn(ci: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Again from the results alone; the page needs nothing from anywhere else."""
    (ci / "report.html").unlink()
    assert main(["ci", "--draw", "--output", str(ci.parent)]) == 0
    assert "coolmomentum" in capsys.readouterr().out
    page = (ci / "report.html").read_text()
    assert page.count("<img") == 4
    assert "The images are noise" in page  # with accuracies that nobody should take for a result
    assert "http" not in page.replace("data:image", "")
    svg = (ci / "training-torch.svg").read_text()
    for text in ("(a) Training loss", "(b) Test accuracy", "(c) Rescaled temperature", "Eq. 19"):
        assert text in svg


def test_what_is_finished_is_drawn_before_the_end(
    ci: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same records as of a whole run, and how many runs they are of how many.

    What is broken, or not at its last epoch, does not count. The folder may be in use.
    """
    copy = tmp_path / "results" / "ci"
    shutil.copytree(ci / "torch", copy / "torch")
    drawing = ["ci", "--draw", "--output", str(copy.parent), "--to", str(tmp_path / "drawn")]
    drawn = tmp_path / "drawn" / "ci"
    whole, _ = read_results(ci / "results.parquet")
    known = [c for c in whole if c not in ("seconds", "kernel", "processor", "processors", "gpu")]
    of_report = sorted(copy.glob("torch/*/*report*/*/*/checkpoint.npz"))
    for count, means, each in (
        (8, "means of 2 seeds.", None),
        (7, "means of 1 to 2 seeds.", of_report[0]),
        (6, "one seed.", of_report[3]),
        (4, "", None),
    ):
        if count == 7:
            each.write_bytes(each.read_bytes()[:-9])
        elif count == 6:
            with np.load(each) as file:
                records = json.loads(str(file["records"]))[:-1]
                members = {**file, "records": json.dumps(records)}
            np.savez(each, **members)
        elif count == 4:
            for path in of_report:
                path.unlink()
            shutil.rmtree(drawn)
        capsys.readouterr()
        with locked(copy):
            assert main(drawing) == (2 if count == 4 else 0)
        if count == 4:
            (line,) = capsys.readouterr().err.splitlines()
            assert line.endswith("(4 of 8 runs are finished, none of a report)")
            break
        number = f"Not all runs are finished: {count} of 8. Seeds of each rule: "
        said = " ".join(capsys.readouterr().out.split())
        page = (drawn / "report.html").read_text()
        assert number in said
        assert number in page
        assert f"on the test images, {means}" in page
        ours, _ = read_results(drawn / "results.parquet")
        assert ours.seconds.isna().all()
        order = [*CELL, "seed", "epoch"]
        merged = ours[known].merge(whole[known], how="left", indicator=True)
        assert (merged._merge == "both").all()
        assert len(ours.groupby(order[:-1])) == count
    assert not drawn.exists()
    assert {path.name for path in copy.iterdir()} == {"torch", ".lock"}


def test_runs_that_do_not_belong_together_are_not_drawn(
    ci: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of other code, or of another cell, that an interrupted command has left there."""
    for key, value, message in (
        ("code", "other", "has runs of several codes: "),
        ("lr", 7.0, "has reports of several cells: coolmomentum in torch"),
    ):
        copy = tmp_path / key / "ci"
        shutil.copytree(ci / "torch", copy / "torch")
        path = min(copy.glob("torch/*/*report*/*rule=coolmomentum,*/rep_0/checkpoint.npz"))
        with np.load(path) as file:
            members = {**file, "about": json.dumps(json.loads(str(file["about"])) | {key: value})}
        np.savez(path, **members)
        assert main(["ci", "--draw", "--output", str(copy.parent)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{copy} {message}")


def test_a_run_that_two_files_ask_for_is_made_once(tmp_path: Path) -> None:
    """The second file only reads it, and adds a seed."""
    config = tmp_path / "config"
    config.mkdir()
    (config / "report.yml").write_text(CONFIG.replace("repetitions: 2", "repetitions: 1"))
    assert main([str(config), "--output", str(tmp_path)]) == 0
    (first,) = tmp_path.rglob("checkpoint.npz")
    before = first.stat()
    (config / "report-2.yml").write_text(CONFIG)
    assert number_of_runs(str(config)) == 2
    assert main([str(config), "--output", str(tmp_path)]) == 0
    assert len(list(tmp_path.rglob("checkpoint.npz"))) == 2
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    runs, _ = read_results(tmp_path / "config" / "results.parquet")
    assert runs.groupby("seed").epoch.apply(list).tolist() == [[*range(13)]] * 2


def test_the_long_run_is_what_its_protocol_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """rho0 is adiabatic in the tuning; three seeds in turn of the same rules; 30 runs."""
    monkeypatch.setattr("benchmarks.training._data.cifar10", lambda: None)
    name, tuning, reports = read("laptop-resnet20")
    assert tuning is not None
    steps = 45_000 // 128 * 5
    for (_, cells), law in zip(solvers(tuning), ("paper", "linear"), strict=False):
        assert cells["momentum"] == 0.987 <= adiabatic_rho0(steps, law=law)
    for _, cells in solvers(tuning):
        # Half a decade, to two digits: 3.2 stands for 3.16, within half a unit of the second.
        rounding = np.log10(1 + 0.05 / 3.16)
        assert np.diff(np.log10(cells["lr"])) == pytest.approx([0.5, 0.5], abs=rounding)
    repetitions = [of.pop("n-repetitions") for of in reports.values()]
    assert (list(reports), repetitions) == (["report", "report-2", "report-3"], [1, 2, 3])
    assert all(of == reports["report"] for of in reports.values())
    assert number_of_runs(name) == 30


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-1", "utf-8"])
def test_the_table_can_be_read_in_any_encoding(
    ci: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """What the terminal lacks is written in other letters, and columns are as wide as these."""
    stdout = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr("benchmarks.training._report.figures", lambda runs: [])
    assert main(["ci", "--draw", "--output", str(ci.parent)]) == 0
    stdout.flush()
    lines = stdout.buffer.getvalue().decode(encoding).splitlines()
    interval, square = {"ascii": ("+/-", "^2"), "utf-8": ("±", "²")}.get(encoding, ("±", "²"))
    text = " ".join(lines)
    assert f"{interval} is the 95 % t-interval" in text
    assert f"A low T dt{square} is" in text
    assert ("†" in text) == (encoding == "utf-8")
    assert "?" not in text or encoding == "ascii"  # the é of the folder
    start = next(i for i, line in enumerate(lines) if line.startswith("rule"))
    rows = [line for line in lines[start:] if line.startswith(("rule", "coolmomentum ", "sgd-"))]
    assert len(rows) == 3
    assert len({len(line) for line in rows}) == 1
    assert "±" in (ci / "report.html").read_text(encoding="utf-8")
