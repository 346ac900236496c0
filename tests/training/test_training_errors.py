"""When the command of the training benchmark cannot begin: one clear line, and nothing is run."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from training_tools import CONFIG, first_half

from benchmarks.training.__main__ import main
from benchmarks.training._results import read_results


def test_an_unknown_config_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, and nothing is written."""
    assert main(["mnist", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "config must be a folder with a report.yml: mnist\n"
    assert not list(tmp_path.iterdir())


def test_a_framework_that_is_not_installed_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line says how to install it; nothing is run or written."""
    monkeypatch.setattr("benchmarks.training._frameworks.find_spec", lambda name: None)
    assert main(["ci", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == ("torch: torch not installed: pip install '.[demo]'\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "frameworks", "message"),
    [
        ("ci", ["torch", "jax"], "--frameworks must be among those that ci reports, torch: jax"),
        (
            "ci",
            ["keras_jax", "jax"],
            "--frameworks must be among those that ci reports, torch: keras_jax, jax",
        ),
        (
            "laptop-digits",
            ["keras_jax", "jax"],
            "tuning, keras_jax: demon is not to be had: the momentum of Keras' SGD cannot change",
        ),
    ],
)
def test_frameworks_that_cannot_be_run_are_one_clear_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: str,
    frameworks: list[str],
    message: str,
) -> None:
    """Exit status 2 before any run; none of them is dropped in silence."""
    assert main([config, "--output", str(tmp_path), "--frameworks", *frameworks]) == 2
    assert capsys.readouterr().err == f"{message}\n"
    assert not list(tmp_path.iterdir())


def test_a_framework_may_be_named_twice(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is run once."""
    monkeypatch.setenv("FAIL", "at once")
    output = tmp_path / "results"
    assert main([str(stand_in), "--output", str(output), "--frameworks", "torch", "torch"]) == 1
    (solver,) = yaml.safe_load((output / "config" / "report-torch.yml").read_text())["solver"]
    assert list(solver) == ["torch"]


def test_all_configs_are_checked_before_the_first_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that is misspelt is not found out hours later."""
    assert main(["ci", "mnist", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "config must be a folder with a report.yml: mnist\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["--frameworks", "torch"], ["--n-jobs", "2"]])
def test_what_drawing_does_not_heed_is_refused(
    ci: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """It draws what there is."""
    with pytest.raises(SystemExit, match="2"):
        main(["ci", "--output", str(ci.parent), "--draw", *options])
    assert "--draw draws whatever is in the results" in capsys.readouterr().err


TUNED = "{rule: coolmomentum, lr: tuned, momentum: tuned, weight_decay: tuned}"


@pytest.mark.parametrize(
    ("report", "tuning", "message"),
    [
        (CONFIG + "}", None, "report.yml cannot be read: "),
        ("- digits", None, "report.yml cannot be read: "),
        ("", None, "report.yml cannot be read: "),
        (CONFIG.replace("dataset", "data"), None, "report.yml must have dataset"),
        (CONFIG.replace("  - torch", "    torch"), None, "report.yml cannot be read: "),
        (CONFIG.replace("rule: coolmomentum, ", ""), None, "report.yml must have rule"),
        (
            CONFIG.replace("digits", "digit"),
            None,
            "report: dataset must be one of cifar10, digits, ",
        ),
        (
            CONFIG.replace("torch:", "pytorch:"),
            None,
            "report: framework must be one of torch, jax, ",
        ),
        (
            CONFIG.replace("coolmomentum", "cool"),
            None,
            "report, torch: rule must be one of coolmom",
        ),
        (CONFIG.replace("0.01", "tuned"), None, "a report with tuned numbers needs a tuning.yml"),
        (
            CONFIG.replace("0.01", "tuned"),
            CONFIG,
            "report: what is tuned must also have weight_decay",
        ),
        (
            CONFIG.replace("{rule: coolmomentum, lr: 0.01, momentum: 0.9}", TUNED),
            CONFIG.replace("coolmomentum", "sgd"),
            "rules must be in tuning.yml to be reported: coolmomentum",
        ),
        (
            CONFIG.replace("momentum: 0.9", "momentum: 0.9, autocast: true"),
            CONFIG,
            "torch: autocast must be the same for all rules and files: False, True",
        ),
        (
            CONFIG + "  - torch: {rule: sgd, lr: 0.1, momentum: 0.9, channels_last: true}",
            None,
            "torch: channels_last must be the same for all rules and files: False, True",
        ),
        (
            CONFIG,
            CONFIG.replace("torch:", "flax:"),
            "tuning: framework must be one of torch, jax, ",
        ),
    ],
)
def test_a_config_that_would_fail_is_one_clear_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    report: str,
    tuning: str | None,
    message: str,
) -> None:
    """Exit status 2 before any run, not after some."""
    config = tmp_path / "config"
    config.mkdir()
    (config / "report.yml").write_text(report)
    if tuning:
        (config / "tuning.yml").write_text(tuning)
    assert main([str(config), "--output", str(tmp_path / "results")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "results").exists()


def test_a_framework_that_only_tunes_has_to_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the report does not need may be needed before it."""
    (tmp_path / "report.yml").write_text(CONFIG)
    (tmp_path / "tuning.yml").write_text(CONFIG.replace("torch", "jax"))
    monkeypatch.setattr(
        "benchmarks.training._frameworks.find_spec", lambda name: None if name == "flax" else name
    )
    assert main([str(tmp_path), "--output", str(tmp_path / "results")]) == 2
    assert capsys.readouterr().err == "jax: flax not installed: pip install '.[demo]'\n"
    assert not (tmp_path / "results").exists()


def _table(content: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(content))


def _parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def _with_metadata(content: bytes, metadata: str) -> bytes:
    return _parquet(_table(content).replace_schema_metadata({"benchmark": metadata}))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda content: b"", "cannot be read: "),
        (first_half, "cannot be read: "),
        (lambda content: content[:-9] + content[-8:], "cannot be read: "),
        (lambda content: content[:9] + bytes(2000) + content[2009:], "cannot be read: "),
        (lambda content: _parquet(pa.table({"a": [1]})), "was not written by this benchmark"),
        (lambda content: _with_metadata(content, "[]"), "was not written by this benchmark"),
        (lambda content: _with_metadata(content, "{"), "cannot be read: "),
        (
            lambda content: _parquet(_table(content).drop_columns(["seed", "loss"])),
            "lacks columns: seed, loss",
        ),
        (lambda content: _parquet(_table(content)[:0]), "has no runs of a report"),
    ],
)
def test_broken_results_are_one_clear_line(
    ci: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    broken: Callable[[bytes], bytes],
    message: str,
) -> None:
    """Exit status 1; there is no page of them."""
    path = tmp_path / "ci" / "results.parquet"
    path.parent.mkdir()
    path.write_bytes(broken((ci / "results.parquet").read_bytes()))
    assert main(["ci", "--draw", "--output", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path} {message}")
    assert not (tmp_path / "ci" / "report.html").exists()


@pytest.mark.parametrize("draw", [[], ["--draw"]])
@pytest.mark.parametrize(
    "obstacle",
    [
        "results",
        "results/ci",
        "results/ci/.lock",
        "results/ci/report.html",
        pytest.param(
            "read-only",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere"),
        ),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_one_clear_line(
    ci: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    obstacle: str,
    draw: list[str],
) -> None:
    """A file in place of a folder, a folder in place of a file, or no permission: not 0."""
    output = tmp_path / "results" / "ci"
    if "/ci/" in obstacle or obstacle == "read-only":
        output.mkdir(parents=True)
        (output / "results.parquet").write_bytes((ci / "results.parquet").read_bytes())
        if obstacle == "read-only":
            output.chmod(0o500)
        else:
            (tmp_path / obstacle).mkdir()
    else:
        (tmp_path / obstacle).parent.mkdir(exist_ok=True)
        (tmp_path / obstacle).touch()
    if obstacle.endswith("html"):  # found out at the end
        monkeypatch.setattr("benchmarks.training._report.figures", lambda runs: [])
        results = read_results(ci / "results.parquet")
        monkeypatch.setattr("benchmarks.training.__main__._Bench.run", lambda *_: [results[0]])
    status = main(["ci", "--output", str(tmp_path / "results"), *draw])
    assert status == (2 if draw and "/ci/" not in obstacle and obstacle != "read-only" else 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / obstacle if obstacle != "read-only" else output) in line
