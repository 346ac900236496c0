"""The pages of the documentation: what `make docs`, which builds them, does not see."""

import ast
import csv
import importlib
import inspect
import re
from importlib.metadata import version
from pathlib import Path

import pytest

from coolmomentum.thermometer import READINGS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = {
    "": "coolmomentum/__init__.py",
    **{f".{path.parent.name}": path for path in ROOT.glob("backends/*/__init__.py")},
    ".thermometer": "coolmomentum/thermometer/__init__.py",
    **{f".{name}": f"coolmomentum/{name}.py" for name in ("plot", "portable", "audit", "thermal")},
}
DIRECTIVE = re.compile(r"^\.\. (?:auto)?(?:class|function|data):: (coolmomentum[\w.]+)$", re.M)


def written(path: str | Path) -> set[str]:
    """The names in ``__all__`` of a file; nothing is imported."""
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def table(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table after a heading, without its two lines of heading."""
    rows = text.partition(heading)[2].partition("\n|")[2].partition("\n\n")[0]
    return [[x.strip() for x in row.strip("|").split("|")] for row in rows.split("\n")[2:]]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_on_a_page_of_the_api(module):
    """With a directive of its own; that it can be imported, the build of the site shows."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in DOCS.glob("api/*.md"))
    on_pages = {name.removeprefix(f"coolmomentum{module}.") for name in DIRECTIVE.findall(pages)}
    names = written(MODULES[module])
    if module == ".thermal":  # the rest of it is of the core
        names -= written(MODULES[""])
    assert names - on_pages == set()


def test_every_page_is_in_the_contents():
    """A page that no table of contents names can be found by search only."""
    contents = (DOCS / "index.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^(\w+)$", contents, re.MULTILINE))
    assert {path.stem for path in DOCS.glob("*.md")} - named == {"index"}


def test_each_equation_has_a_section_with_its_functions_and_its_test():
    """The page of the equations has what the table of the mathematics has."""
    page = (DOCS / "equations.md").read_text(encoding="utf-8")
    core = (DOCS / "core.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| Eq\. (\d+) \| .*? \| (.*) \| `(test_\w+)` \|$", core, re.MULTILINE)
    for number, functions, test in rows:
        section = page.partition(f"## Eq. {number}\n")[2].partition("\n## ")[0]
        assert all(f"`{name}`" in section for name in re.findall(r"`(\w+)`", functions))
        assert f":pyobject: {test}\n" in page


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"])
def test_what_a_page_of_the_checkout_links_to_is_there(page):
    """Those of docs/ are checked by the build; these are also read in the checkout."""
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    links += re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_readme_is_read_in_a_minute():
    """At most 8,000 characters, and both commands."""
    assert len(README) <= 8000
    assert "make demo" in README
    assert "make test" in README


def test_the_accuracies_of_readme_are_those_of_the_results():
    """As `benchmarks.training` wrote them into summary.csv."""
    columns = []
    for framework, config in (("torch", "laptop-resnet20"), ("jax", "laptop-digits")):
        path = ROOT / "benchmarks/training/results" / config / "summary.csv"
        with path.open(encoding="utf-8") as file:
            rows = {
                row["rule"]: row for row in csv.DictReader(file) if row["framework"] == framework
            }
        columns.append(
            [
                f"{100 * float(rows[rule]['accuracy']):.2f} ± "
                f"{100 * float(rows[rule]['accuracy_half_width']):.2f}"
                for rule in (
                    *("coolmomentum", "coolmomentum-linear"),
                    *("sgd-step", "sgd-cosine", "adam-cosine"),
                )
            ]
        )
    assert [row[1:] for row in table(README, "## How well it trains")] == list(
        map(list, zip(*columns, strict=True))
    )


def test_the_table_of_choosing_has_the_numbers_of_the_package():
    """Its numbers by run length."""
    from coolmomentum import adiabatic_rho0, settings_from_sgd

    text = (DOCS / "choosing.md").read_text(encoding="utf-8")
    *rows, _ = table(text, "## By the length of the run")
    assert len(rows) == 6
    for steps, _, largest, rho0, lr in rows:
        total_steps = int(steps.replace(",", ""))
        settings = settings_from_sgd(lr=0.1, momentum=0.9, total_steps=total_steps)
        digits = len(largest.partition(".")[2])
        assert float(largest) == round(adiabatic_rho0(total_steps, law="linear"), digits)
        assert float(rho0) == pytest.approx(settings["rho0"], rel=1e-4)
        assert float(f"{settings['lr']:.3g}") == float(lr)


class TestTheComparison:
    """docs/comparison.md, of the packages that are installed here."""

    PAGE = (DOCS / "comparison.md").read_text(encoding="utf-8")

    @pytest.mark.parametrize("name", ["schedulefree", "optax", "pytorch_optimizer"])
    def test_the_versions_are_those_that_are_installed(self, name):
        """A new one has to be looked at again."""
        assert f"| {name} {version(name)} " in self.PAGE

    def test_schedulefree(self):
        """Weights for evaluation apart, one array of state with SGD, nothing of a temperature."""
        import schedulefree
        import torch

        x = torch.ones(1, requires_grad=True)
        optimizer = schedulefree.SGDScheduleFree([x], lr=0.1)
        optimizer.train()
        x.grad = torch.ones(1)
        optimizer.step()
        arrays = [v for v in optimizer.state[x].values() if isinstance(v, torch.Tensor)]
        assert len(arrays) == 1
        optimizer.eval()
        assert not [name for name in dir(schedulefree) if "temperature" in name.lower()]

    def test_pytorch_optimizer(self):
        """128 optimizers, none of which is CoolMomentum, Demon or a Langevin sampler."""
        names = importlib.import_module("pytorch_optimizer").get_supported_optimizers()
        assert f"a collection of {len(names)} optimizers" in self.PAGE
        assert not [x for x in names if re.search("cool|demon|langevin|sgld", x)]

    def test_optax(self):
        """A momentum of optax.sgd is a number; schedule-free, Muon and noisy_sgd are there."""
        optax = importlib.import_module("optax")
        assert "schedule" not in str(inspect.signature(optax.sgd).parameters["momentum"]).lower()
        assert {"schedule_free", "muon"} <= set(dir(optax.contrib))
        assert "eta" in inspect.signature(optax.noisy_sgd).parameters
        assert not [name for name in dir(optax) if "temperature" in name or "langevin" in name]


def test_every_reading_is_on_the_page_of_the_thermometer():
    """In the table of what it reads, once."""
    rows = table((DOCS / "thermometer.md").read_text(encoding="utf-8"), "## What it reads")
    keys = [key for row in rows for key in re.findall("`(.*?)`", row[0])]
    assert sorted(keys) == sorted(["steps", *READINGS])
