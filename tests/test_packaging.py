"""What is shipped: the wheel's files, and what it does in an environment with nothing else."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ADAPTERS = sorted(path.name for path in (ROOT / "backends").iterdir() if path.is_dir())
ADAPTERS = [name for name in ADAPTERS if not name.startswith("_")]


def run(*command, **options):
    """The output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def dist(tmp_path_factory):
    """A wheel and an sdist, the wheel built from the sdist as a user's pip would."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    return folder


@pytest.fixture(scope="session")
def wheel(dist):
    """The built wheel."""
    (wheel,) = dist.glob("*.whl")
    return wheel


def test_every_adapter_is_linked_and_left_to_the_rename():
    """coolmomentum/<name> is a relative link to backends/<name>, and no wheel takes it twice."""
    settings = (ROOT / "pyproject.toml").read_text()
    for name in ADAPTERS:
        assert (ROOT / "coolmomentum" / name).readlink() == Path(f"../backends/{name}")
        assert f'"/coolmomentum/{name}"' in settings


def test_wheel_has_the_adapters_and_nothing_else(wheel):
    """One top-level package, adapters inside it, py.typed, no tests, no links."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        links = [i.filename for i in archive.infolist() if (i.external_attr >> 28) == 0xA]
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"coolmomentum"}
    assert len(names) == len(set(names))
    assert not links
    assert "coolmomentum/py.typed" in names
    assert not [name for name in names if name.endswith(".md")]
    for name in ADAPTERS:
        shipped = {n for n in names if n.startswith(f"coolmomentum/{name}/")}
        written = (ROOT / "backends" / name).glob("*.py")
        assert shipped == {f"coolmomentum/{name}/{path.name}" for path in written}


def test_the_distribution_is_fit_for_an_index(dist):
    """By twine's rules; with authors, addresses, Pythons, and README without a relative link."""
    files = sorted(map(str, dist.iterdir()))
    report = run(sys.executable, "-m", "twine", "check", "--strict", *files)
    assert report.count("PASSED") == len(files) == 2
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Author"] == "The coolmomentum developers"
    urls = {label.partition(",")[0] for label in metadata.get_all("Project-URL")}
    assert urls == {"Documentation", "Repository", "Changelog", "Paper"}
    pythons = {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)}
    assert pythons <= set(metadata.get_all("Classifier"))
    readme = metadata.get_payload()
    targets = re.findall(r'(?:\]\(|src="|srcset=")([^)"\s]+)', readme)
    assert len(targets) > 20
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []


def test_there_is_one_address_and_the_release_asks_for_it():
    """The stand-in is in the metadata only, and the workflow that publishes refuses it."""
    stand_in = "coolmomentum.example"
    named = [
        str(path.relative_to(ROOT))
        for folder in ("", "docs", "coolmomentum", "benchmarks")
        for path in (ROOT / folder).glob("*.*")
        if path.suffix in {".md", ".toml", ".py", ".cff"} and stand_in in path.read_text("utf-8")
    ]
    assert sorted(named) in (["docs/releasing.md", "pyproject.toml"], [])
    release = ROOT / ".github" / "workflows" / "release.yml"
    if release.exists():  # an sdist has no workflows
        assert r"grep -q 'coolmomentum\.example' pyproject.toml" in release.read_text("utf-8")


def test_sdist_has_what_a_packager_needs(dist):
    """Sources, tests, licence and the links of the checkout."""
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "LICENSE",
        "README.md",
        "tests/test_packaging.py",
        "backends/torch/__init__.py",
    } <= names


@pytest.fixture(scope="session")
def empty_python(tmp_path_factory, wheel):
    """The Python of a fresh environment that has only the wheel and what it requires."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pins = str(ROOT / "constraints.txt")
    run(str(python), "-m", "pip", "install", "--quiet", "-c", pins, str(wheel), cwd=folder)
    return python


def test_wheel_works_with_numpy_alone(empty_python, tmp_path):
    """The core and the reference optimizer work where no framework is installed."""
    code = (
        "import coolmomentum, coolmomentum.numpy, sys, numpy as np\n"
        "print(coolmomentum.CoolingSchedule(2, 0.75)(1))\n"
        "o = coolmomentum.numpy.CoolMomentum(learning_rate=0.25, total_steps=2, rho0=0.75)\n"
        "x = [np.ones(1)]; s = o.init(x); x, s = o.step(x, x, s); print(x[0][0])\n"
        "from importlib.metadata import version\n"
        "print(version('coolmomentum') == coolmomentum.__version__)"
    )
    assert run(str(empty_python), "-c", code, cwd=tmp_path).split() == ["0.5", "0.78125", "True"]


@pytest.mark.parametrize(
    ("adapter", "framework"),
    [
        ("torch", "PyTorch"),
        ("keras", "Keras 3"),
        ("tensorflow", "TensorFlow and Keras 3"),
        ("plot", "Matplotlib"),
    ],
)
def test_a_missing_framework_is_named_with_its_extra(empty_python, tmp_path, adapter, framework):
    """Importing a module without what it needs gives one line that says what to install."""
    command = [str(empty_python), "-c", f"import coolmomentum.{adapter}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: coolmomentum.{adapter} needs {framework}: "
        f'pip install "coolmomentum[{adapter}]"'
    )


def test_the_wheel_passes_the_tests(wheel, tmp_path):
    """The tests of core and adapters pass against the wheel's files, away from the checkout."""
    site = tmp_path / "site"
    run(
        sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)
    )
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    skipped = [
        "docstrings",
        "equations",
        "packaging",
        "distributed",
        "compile",
        "training",
        "sampling",
        "figures",
        "imagenet",
        "keras",
        "logging",
        "mutants",
        "agreement",
        "contract",
        "optax_suites",
        *(
            "frameworks",
            "versions",
            "from_sgd",
            "counting",
            "torch_cooldown",
            "site",
            "noise_networks",
        ),
    ]  # they test the checkout, or take long
    ignored = [f"--ignore-glob=*test_*{name}*" for name in skipped]
    (tmp_path / "conftest.py").write_text(
        "import coolmomentum\n"
        f"assert coolmomentum.__file__.startswith({str(site)!r}), coolmomentum.__file__\n"
    )
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "tests", *ignored]
    output = run(*command, cwd=tmp_path, env=environment)
    assert "passed" in output.splitlines()[-1]
