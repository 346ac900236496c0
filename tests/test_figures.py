"""The figures of README and docs: that they are there, and that the script draws them."""

import re
from pathlib import Path

import numpy as np
import pytest
from exact import LAWS
from matplotlib.image import imread

from benchmarks import page_figures
from benchmarks.figures import OPTIMIZERS, draw_layers, draw_schedules, main, train
from benchmarks.speed.__main__ import LARGE, REASONS, SMALL, USERS, for_users

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]


def test_the_page_of_speed_has_the_remarks_of_today():
    """It is written by ``python -m benchmarks.speed`` from measurements and from remarks.md."""
    remarks = (ROOT / "benchmarks" / "speed" / "remarks.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert all(part.strip() in page for part in remarks.split(REASONS))


def test_the_page_of_speed_begins_with_what_users_need():
    """A row for each of USERS, of the tables below it; the largest size first."""
    text = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    first = re.search(r"^\|.*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)[0].split("\n")
    seconds = {"CoolMomentum": {"cpu": [2.0, 3.0, 8.0]}, "torch.optim.SGD": {"cpu": [4.0] * 3}}
    seconds["torch.optim.SGD, fused"] = {"cpu": [2.0, 2.0, 2.0]}
    benchmark = {"name": f"test_paths[{LARGE}]", "extra_info": {"seconds": seconds}}
    made = for_users({"torch": {"benchmarks": [benchmark]}}).split("\n")
    assert made[:2] == first[:2] == [f"| | beside | {LARGE} | {SMALL} |", first[1]]
    assert made[2:4] == [
        "| PyTorch, a step | `torch.optim.SGD`, its default | 0.75 |  |",
        "|  | the same, `fused=True` | 1.50 |  |",
    ]
    names = [[x.strip() for x in row.split("|")[1:3]] for row in first[2:]]
    assert names == [list(row[:2]) for row in USERS]
    for row in first[2:]:
        for value in re.findall(r"\d\.\d\d", row):
            assert f"**{value}**" in text


def test_every_figure_of_a_page_is_there_and_for_both_kinds_of_page():
    """What README and docs show exists, and each light figure has its dark one beside it."""
    shown = set()
    for page in PAGES:
        names = re.findall(r'(?:src|srcset)="([^"]+\.png)"', page.read_text(encoding="utf-8"))
        shown |= {(page.parent / name).resolve() for name in names}
    assert shown == set((ROOT / "docs" / "figures").glob("*"))
    assert {str(path).replace("-light", "-dark") for path in shown} == {
        str(path) for path in shown if "-dark" in path.name
    }


def test_the_script_writes_each_figure_light_and_dark(tmp_path):
    """Transparent images, with dark words on light pages and light words on dark ones."""
    assert main(["--epochs", "1", "--output", str(tmp_path)]) == 0
    committed = {path.name for path in (ROOT / "docs" / "figures").iterdir()}
    committed = {name for name in committed if not name.startswith("start_")}
    assert {path.name for path in tmp_path.iterdir()} == committed
    for path in tmp_path.iterdir():
        image = imread(path)
        assert image[0, 0, 3] == 0, "the corner is not transparent"
        words = {"light": [0, 0, 0], "dark": [1, 1, 1]}[path.stem.rpartition("-")[2]]
        opaque = image[image[..., 3] == 1][:, :3]
        assert (opaque == words).all(axis=1).any()
        assert not (opaque == np.subtract(1, words)).all(axis=1).any()


def test_a_page_draws_its_figure_by_its_own_blocks(tmp_path):
    """Light and dark, and nothing that the page writes is left in the folder it is run from."""
    before = set(Path.cwd().iterdir())
    assert page_figures.main(["start_numpy", "--output", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "start_numpy-light.png",
        "start_numpy-dark.png",
    }
    light, dark = (imread(tmp_path / f"start_numpy-{shade}.png") for shade in ("light", "dark"))
    assert light.shape == dark.shape
    assert (light != dark).any()
    assert set(Path.cwd().iterdir()) == before


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_is_read_after_each_epoch(name):
    """Every step counts, every parameter has its name and a temperature, and the loss is there."""
    ((whole, each),) = train(name, 1)
    assert whole["steps"] == 32
    assert list(each)[:2] == ["conv1.weight", "conv1.bias"]
    temperatures = [readings["rescaled_temperature"] for readings in each.values()]
    assert len(temperatures) == 8
    assert min(temperatures) > 0
    # Near the loss of a guess among ten: it begins there, and an epoch is short.
    assert whole["loss"] == pytest.approx(np.log(10), rel=0.2)


def test_heat_maps_side_by_side_have_one_scale():
    """From the coldest to the hottest temperature of all optimizers."""
    runs = {
        name: [{"a": {"rescaled_temperature": x}}] for name, x in (("cold", 1e-9), ("hot", 1e-3))
    }
    figure = draw_layers(runs)
    assert [ax.get_title() for ax in figure.axes] == ["cold", "hot", ""]
    norms = [ax.collections[0].norm for ax in figure.axes[:2]]
    assert [(norm.vmin, norm.vmax) for norm in norms] == [(1e-9, 1e-3)] * 2


def test_the_figure_of_schedules_has_all_laws():
    """Every law, in both panels."""
    for ax in draw_schedules().axes:
        labels = [line.get_label() for line in ax.lines]
        assert labels == [*LAWS]
