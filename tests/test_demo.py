"""The demo: its protocol, its numbers and its files, on runs of an epoch or two."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.demo import _jax, _torch
from benchmarks.demo.__main__ import RHO0, main
from benchmarks.demo._contenders import CONTENDERS, learning_rates
from benchmarks.demo._data import (
    BATCH,
    PARTS,
    STEPS_PER_EPOCH,
    Settings,
    Start,
    digits,
    start,
)
from benchmarks.demo._summary import best_lr, half_width, paired_differences, summarise
from benchmarks.training._noise import gradient_noise, predicted_rescaled_temperature
from coolmomentum import CoolingSchedule, adiabatic_rho0, largest_adiabaticity
from coolmomentum.torch import CoolMomentum

TINY = [
    "--frameworks",
    "torch",
    "--epochs",
    "2",
    "--grid",
    "2",
    "--tuning-seeds",
    "1",
    "--seeds",
    "2",
]
RUNS = 3 * (2 * 1 + 2)  # contenders times (grid times tuning seeds and seeds)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one tiny demo."""
    folder = tmp_path_factory.mktemp("demo")
    assert main([*TINY, "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def runs(output: Path) -> pd.DataFrame:
    """Its ``runs.csv``."""
    return pd.read_csv(output / "runs.csv")


# --- what a whole demo leaves behind --------------------------------------------------------------


def test_every_epoch_of_every_run_is_in_the_file(runs: pd.DataFrame) -> None:
    """Epochs 0, 1 and 2 of each, with the steps taken."""
    assert len(runs) == RUNS * 3  # epochs 0, 1 and 2
    keys = ["framework", "phase", "optimizer", "lr", "seed"]
    for _, run in runs.groupby(keys):
        assert list(run.epoch) == [0, 1, 2]
        assert list(run.step) == [0, STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH]


def test_seeds_and_images_of_the_report_are_fresh(runs: pd.DataFrame) -> None:
    """The tuning sees no test image and no seed of the report."""
    tuning, report = (runs[runs.phase == phase] for phase in ("tuning", "report"))
    assert set(tuning.seed) == {0}
    assert set(report.seed) == {1, 2}
    assert tuning[["test_loss", "test_accuracy"]].isna().all(axis=None)
    assert report[["validation_loss", "validation_accuracy"]].isna().all(axis=None)
    assert report[["test_loss", "test_accuracy"]].notna().all(axis=None)


def test_contenders_have_the_same_tuning_budget(runs: pd.DataFrame) -> None:
    """As many runs and as many learning rates for each."""
    tuning = runs[(runs.phase == "tuning") & (runs.epoch == 0)]
    assert list(tuning.groupby("optimizer").size()) == [2, 2, 2]
    assert list(tuning.groupby("optimizer").lr.nunique()) == [2, 2, 2]


def test_a_seed_starts_all_contenders_alike_and_no_two_seeds_do(runs: pd.DataFrame) -> None:
    """The losses before the first step are equal, to the last bit, if the seed is."""
    initial = runs[(runs.phase == "report") & (runs.epoch == 0)]
    assert list(initial.groupby("seed").training_loss.nunique()) == [1, 1]
    assert initial.training_loss.nunique() == 2
    assert initial.groupby("seed").test_loss.nunique().eq(1).all()


def test_only_coolmomentum_has_a_rho_that_ends_at_0_and_a_prediction(runs: pd.DataFrame) -> None:
    """And it begins at the largest adiabatic rho0, the run being short. All have a temperature."""
    cool = runs[runs.optimizer == "CoolMomentum"]
    others = runs[runs.optimizer != "CoolMomentum"]
    rho0 = adiabatic_rho0(2 * STEPS_PER_EPOCH)
    assert cool[cool.epoch == 0].rho.to_numpy() == pytest.approx(rho0, abs=1e-12)
    assert (cool[cool.epoch == 2].rho == 0).all()
    assert cool[cool.epoch > 0].predicted_temperature.gt(0).all()
    assert others[["rho", "predicted_temperature"]].isna().all(axis=None)
    assert runs[runs.epoch > 0].temperature.gt(0).all()


def test_summary_has_a_line_for_each_contender(output: Path, runs: pd.DataFrame) -> None:
    """Its means are those of the last epochs in ``runs.csv``, made here without pandas' groupby."""
    summary = pd.read_csv(output / "summary.csv")
    assert list(summary.optimizer) == ["CoolMomentum", "SGD", "Adam"]
    assert list(summary.seeds) == [2, 2, 2]
    assert summary.lr_at_edge_of_grid.all()  # a grid of two has nothing but edges
    lines = [line for line in runs.itertuples() if line.phase == "report" and line.epoch == 2]
    for name, line in zip(summary.optimizer, summary.itertuples(), strict=True):
        own = [run for run in lines if run.optimizer == name]
        assert line.lr == own[0].lr == own[1].lr
        assert line.test_accuracy == pytest.approx(sum(r.test_accuracy for r in own) / 2)
        assert line.training_loss == pytest.approx(sum(r.training_loss for r in own) / 2)
        assert line.temperature == pytest.approx(sum(r.temperature for r in own) / 2)


def test_figure_is_written_as_png_and_svg(output: Path) -> None:
    """With its three panels and the prediction."""
    assert (output / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    svg = (output / "figure.svg").read_text()
    for text in ("(a) Training loss", "(b) Test accuracy", "(c) Rescaled temperature", "Eq. 19"):
        assert text in svg


def test_provenance_tells_how_to_repeat_it(output: Path) -> None:
    """Command, versions and seeds are those of the run."""
    provenance = json.loads((output / "provenance.json").read_text())
    assert provenance["command"].startswith("python -m benchmarks.demo --frameworks torch ")
    assert provenance["versions"]["torch"] == str(torch.__version__)
    assert provenance["protocol"]["seeds"] == [1, 2]
    assert provenance["protocol"]["tuning_seeds"] == [0]


def test_plain_output_has_no_control_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a terminal it prints ten lines of progress, the table and where the files are."""
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE"):  # by which rich would believe in a terminal
        monkeypatch.delenv(variable, raising=False)
    main([*TINY, "--epochs", "1", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert not any(ord(character) < 32 and character != "\n" for character in printed)
    assert printed.count(f" of {RUNS} runs; ") == 10
    for text in ("CoolMomentum", "SGD", "Adam", "at the edge of its grid", str(tmp_path)):
        assert text in printed


def test_the_same_command_gives_the_same_numbers(tmp_path: Path, runs: pd.DataFrame) -> None:
    """And what an earlier demo left in the folder is gone."""
    (tmp_path / "runs.csv").write_text("of an earlier demo")
    main([*TINY, "--output", str(tmp_path)])
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "runs.csv"), runs, check_exact=True)


# --- when it cannot go on -------------------------------------------------------------------------


def test_an_interrupted_demo_keeps_the_finished_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the middle of the fourth run leaves three whole ones, and says where."""
    steps = itertools.count()
    step = torch.optim.SGD.step

    def interrupted(*args: object, **kwargs: object) -> object:
        if next(steps) == STEPS_PER_EPOCH + 5:  # SGD comes after the two runs of CoolMomentum
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", interrupted)
    assert main([*TINY, "--epochs", "1", "--output", str(tmp_path)]) == 130
    kept = pd.read_csv(tmp_path / "runs.csv")
    assert list(kept.optimizer) == ["CoolMomentum"] * 4 + ["SGD"] * 2
    assert str(tmp_path / "runs.csv") in capsys.readouterr().out
    assert not (tmp_path / "summary.csv").exists()


def test_an_unknown_framework_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, and nothing is written."""
    folder = tmp_path / "demo"
    assert main(["--frameworks", "torch", "theano", "--output", str(folder)]) == 2
    assert capsys.readouterr().err == "framework must be one of torch, jax, tensorflow: theano\n"
    assert not folder.exists()


def test_a_framework_that_is_not_installed_is_one_clear_line(tmp_path: Path) -> None:
    """The line names the extra that installs it."""
    without_torch = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch': raise ModuleNotFoundError(\"No module named 'torch'\")\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from benchmarks.demo.__main__ import main\n"
        "sys.exit(main(['--output', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", without_torch, str(tmp_path / "demo")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "torch cannot be imported (No module named 'torch'): pip install 'coolmomentum[torch]'\n"
    )


@pytest.mark.parametrize("option", ["--epochs", "--grid", "--tuning-seeds", "--seeds"])
def test_counts_that_are_too_small_are_refused(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With argparse's line and exit status 2."""
    with pytest.raises(SystemExit) as stopped:
        main([option, "0"])
    assert stopped.value.code == 2
    least = 2 if option == "--seeds" else 1  # an interval needs two
    assert f"argument {option}: must be >= {least}: 0" in capsys.readouterr().err


# --- images, weights and batches ------------------------------------------------------------------


def test_each_image_is_in_one_part() -> None:
    """1,797 different images (no two of the set are alike), each part with all ten digits."""
    parts = digits()
    assert [len(part.labels) for part in parts] == list(PARTS.values())
    pixels = np.concatenate([part.pixels for part in parts])
    assert len(np.unique(pixels, axis=0)) == 1797
    for part in parts:
        share = np.bincount(part.labels, minlength=10) / len(part.labels)
        assert share == pytest.approx(0.1, abs=0.01)  # stratified: 9.7 to 10.2 % in the whole set


def test_an_epoch_sees_each_image_once_and_seeds_differ() -> None:
    """A seed always gives the same, and its weights do not depend on the length of the run."""
    first, again, other = start(3, epochs=2), start(3, epochs=2), start(4, epochs=2)
    assert first.batches.shape == (2, STEPS_PER_EPOCH, BATCH)
    for epoch in first.batches:
        assert sorted(epoch.ravel()) == list(range(PARTS["training"]))
    assert np.array_equal(first.batches, again.batches)
    assert not np.array_equal(first.batches, other.batches)
    assert all(map(np.array_equal, first.weights, start(3, epochs=1).weights))
    assert not np.array_equal(first.weights[0], other.weights[0])


def test_grids_are_half_a_decade_apart_around_their_middles() -> None:
    """To two digits."""
    assert learning_rates(CONTENDERS[1], 5) == [0.01, 0.032, 0.1, 0.32, 1.0]
    assert [learning_rates(contender, 1) for contender in CONTENDERS] == [[0.01], [0.1], [0.01]]


def test_the_default_run_is_long_enough_for_the_rho0_of_the_paper() -> None:
    """The adiabaticity number of 80 epochs is below 0.1, so that rho0 is 0.99 and not less."""
    steps = 80 * STEPS_PER_EPOCH
    assert largest_adiabaticity(CoolingSchedule(steps, RHO0)) < 0.1
    assert RHO0 == 0.99 < adiabatic_rho0(steps)


# --- the run in PyTorch ---------------------------------------------------------------------------


def _last(settings: Settings, begin: Start):  # type: ignore[no-untyped-def]
    images = digits()
    return list(_torch.train(settings, begin, images.training, images.validation))[-1]


def test_the_network_computes_what_its_weights_say_in_numpy() -> None:
    """The loss before the first step is that of ``tanh(x W + b) V + c``, written out here."""
    begin, images = start(0, epochs=1), digits()
    record = next(
        _torch.train(Settings("SGD", 0.1, 0.0), begin, images.training, images.validation)
    )
    w, b, v, c = (weight.astype(np.float64) for weight in begin.weights)
    for (pixels, labels), loss in (
        (images.training, record.training_loss),
        (images.validation, record.loss),
    ):
        logits = np.tanh(pixels @ w + b) @ v + c
        logs = logits[np.arange(len(labels)), labels] - np.log(np.exp(logits).sum(axis=1))
        # float32 logits of size 1 are good to 1e-6, and so is the mean of their logarithms
        assert loss == pytest.approx(-logs.mean(), abs=1e-6)
        accuracy = (logits.argmax(axis=1) == labels).mean()
    assert record.accuracy == accuracy


@pytest.mark.parametrize("steps", [1, 7])
def test_the_temperature_is_the_mean_of_what_coolmomentum_itself_reads(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From parameters or from displacements: the same, up to the rounding of the parameters."""
    readings = []

    class Read(CoolMomentum):
        def step(self, closure=None):  # type: ignore[no-untyped-def]
            super().step(closure)
            readings.append(float(self.rescaled_temperature()))

    monkeypatch.setattr(_torch, "CoolMomentum", Read)
    whole = start(0, epochs=1)
    begin = Start(whole.weights, whole.batches[:, :steps], whole.noise_batches[:, :1])
    record = _last(Settings("CoolMomentum", 0.01, 0.9), begin)
    assert len(readings) == steps
    # A parameter below 1/2 is rounded by 1.5e-8 at most, a displacement is 1e-3 (root mean square):
    # a relative error of 3e-5 in its square if all roundings conspired. The rest is float32 sums.
    assert record.temperature == pytest.approx(sum(readings) / steps, rel=3e-5)


@pytest.mark.parametrize("optimizer", ["CoolMomentum", "SGD", "Adam"])
def test_the_frameworks_make_the_same_run(optimizer: str) -> None:
    """From the same weights and batches, PyTorch and JAX write the same records, to rounding."""
    begin, images = start(0, epochs=2), digits()
    settings = Settings(optimizer, 0.01, 0.9)
    one, other = (
        list(framework.train(settings, begin, images.training, images.test))
        for framework in (_torch, _jax)
    )
    # 64 steps, whose gradients are sums of some 64 rounded products: 2**-24 each, if all conspired.
    np.testing.assert_allclose(one, other, rtol=64 * 64 * 2**-24, atol=0)


def test_tensorflow_makes_the_same_runs_of_coolmomentum(runs: pd.DataFrame, tmp_path: Path) -> None:
    """In a process of its own, whose Keras backend it is; records as those of PyTorch."""
    command = [sys.executable, "-m", "benchmarks.demo", *TINY, "--output", str(tmp_path)]
    command[command.index("torch")] = "tensorflow"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    theirs = pd.read_csv(tmp_path / "runs.csv")
    ours, theirs = (r[(r.optimizer == "CoolMomentum") & (r.lr < 0.1)] for r in (runs, theirs))
    numbers = ours.select_dtypes("number").columns
    # 64 steps, whose gradients are sums of some 64 rounded products: 2**-24 each, if all conspired.
    np.testing.assert_allclose(ours[numbers], theirs[numbers], rtol=64 * 64 * 2**-24, atol=0)


def test_the_temperature_of_sgd_is_its_first_step() -> None:
    """One step of SGD moves by lr times the gradient: the mean square of that, by NumPy alone."""
    whole, images = start(0, epochs=1), digits()
    begin = Start(whole.weights, whole.batches[:, :1], whole.noise_batches[:, :1])
    record = _last(Settings("SGD", 0.5, 0.0), begin)
    gradient = _numpy_gradient(begin, *(part[begin.batches[0, 0]] for part in images.training))
    # Roundings as above; the displacement is larger.
    assert record.temperature == pytest.approx(0.25 * np.mean(gradient**2), rel=3e-5)


def test_the_prediction_is_eq_19_with_the_noise_of_two_minibatches() -> None:
    """One step at rho0: lr**2 (1 + rho) / (4 (1 - rho)) times the mean of (g - g')**2 / 2."""
    whole, images = start(0, epochs=1), digits()
    begin = Start(whole.weights, whole.batches[:, :1], whole.noise_batches[:, :1])
    record = _last(Settings("CoolMomentum", 0.1, 0.75), begin)
    first, second = (
        _numpy_gradient(begin, *(part[batch] for part in images.training))
        for batch in (begin.batches[0, 0], begin.noise_batches[0, 0])
    )
    variance = np.mean((first - second) ** 2) / 2
    # float32 gradients: relative errors of 1e-6 of the gradients, twice in a square
    assert record.predicted_temperature == pytest.approx(0.1**2 * 7 / 4 * variance, rel=1e-5)


def _numpy_gradient(begin: Start, pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Backpropagation by hand, in float64."""
    w, b, v, c = (weight.astype(np.float64) for weight in begin.weights)
    hidden = np.tanh(pixels @ w + b)
    weights = np.exp(hidden @ v + c)
    error = (weights / weights.sum(axis=1, keepdims=True) - np.eye(10)[labels]) / len(labels)
    back = (error @ v.T) * (1 - hidden**2)
    parts = (pixels.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0))
    return np.concatenate([part.ravel() for part in parts])


def test_an_annealed_learning_rate_leaves_nothing_for_the_last_step() -> None:
    """SGD's cosine: the mean squared step falls faster than without, by orders of magnitude."""
    record = _last(Settings("SGD", 0.03, 0.0), start(0, epochs=4))
    first = next(itertools.islice(_records(Settings("SGD", 0.03, 0.0), 4), 1, None))
    assert record.temperature < 1e-3 * first.temperature


def _records(settings: Settings, epochs: int):  # type: ignore[no-untyped-def]
    images = digits()
    return _torch.train(settings, start(0, epochs), images.training, images.validation)


# --- the noise of Eq. 19 --------------------------------------------------------------------------


def test_gradient_noise_is_unbiased() -> None:
    """Over all pairs of minibatches of 2 from 5 images, its mean is the variance of one of them.

    The variance of a mean of B out of N without replacement is S**2 / B (1 - B / N), S**2 being
    the variance with divisor N - 1.
    """
    images = np.asarray([[1.0, 0.0], [2.0, 5.0], [4.0, -1.0], [8.0, 2.0], [-3.0, 1.0]])
    minibatches = [images[list(pair)].mean(axis=0) for pair in itertools.combinations(range(5), 2)]
    estimates = [gradient_noise(a, b) for a in minibatches for b in minibatches]
    exact = images.var(axis=0, ddof=1).mean() / 2 * (1 - 2 / 5)
    assert np.mean(estimates) == pytest.approx(exact, rel=1e-14)


def test_predicted_temperature_of_a_known_noise() -> None:
    """<R**2> = 1, lr = 1/100, rho = 99/100: T = 0.4975 (science, section 6) and T lr = 0.004975."""
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([1.0 + math.sqrt(2), 2 - math.sqrt(2)])
    predicted = predicted_rescaled_temperature(first, second, lr=0.01, rho=0.99)
    assert predicted == pytest.approx(0.004975, rel=1e-6)  # float32 gradients


# --- the numbers of the table ---------------------------------------------------------------------


def test_half_width_is_that_of_the_tables_of_student() -> None:
    """For 1..5: s = sqrt(5/2), t(0.975, 4 degrees of freedom) = 2.776445, s t / sqrt(5)."""
    assert half_width([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2.776445 / math.sqrt(2), rel=1e-6)
    assert half_width([0.97, 0.97]) == 0.0


def _tuning(*runs: tuple[float, int, int, float, float]) -> pd.DataFrame:
    columns = ["lr", "seed", "epoch", "validation_accuracy", "validation_loss"]
    return pd.DataFrame(runs, columns=columns)


def test_the_best_learning_rate_has_the_best_mean_at_the_last_epoch() -> None:
    """Neither a better epoch before nor a better single seed counts; of equals, the lowest loss."""
    tuning = _tuning(
        (0.1, 0, 1, 0.99, 0.1),
        (0.1, 0, 2, 0.90, 0.1),
        (0.1, 1, 2, 0.90, 0.1),
        (0.2, 0, 2, 0.99, 0.1),
        (0.2, 1, 2, 0.80, 0.1),
        (0.3, 0, 2, 0.92, 0.5),
        (0.3, 1, 2, 0.94, 0.5),
        (0.4, 0, 2, 0.93, 0.2),
        (0.4, 1, 2, 0.93, 0.2),
        (0.5, 0, 2, 0.10, math.nan),
        (0.5, 1, 2, 0.10, math.nan),
    )
    assert best_lr(tuning) == 0.4


def _report(accuracies: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"phase": phase, "optimizer": optimizer, "lr": lr, "seed": seed, "test_accuracy": value}
            for optimizer, values in accuracies.items()
            for phase, lr in (("tuning", 0.1), ("report", 0.2), ("tuning", 0.2), ("tuning", 0.3))
            for seed, value in enumerate(values)
        ]
    ).assign(
        framework="torch",
        epoch=1,
        training_loss=1.0,
        test_loss=1.0,
        temperature=1e-9,
        predicted_temperature=1e-9,
    )


def test_differences_are_paired_by_seed() -> None:
    """A constant lead has an interval of no length, however much the seeds differ."""
    runs = _report({"CoolMomentum": [0.5, 0.75, 1.0], "SGD": [0.25, 0.5, 0.75]})
    (line,) = paired_differences(runs).itertuples(index=False)
    assert line == ("torch", "SGD", -0.25, 0.0)


def test_a_learning_rate_inside_its_grid_is_not_marked() -> None:
    """The middle of three is not at the edge."""
    assert not summarise(_report({"CoolMomentum": [0.5, 0.75]})).lr_at_edge_of_grid.any()
