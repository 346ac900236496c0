"""A config: what is to be run, read and checked before anything is; no framework.

The files are committed before their runs: ``configs/NAME.yml``.
"""

from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import yaml

from benchmarks.imagenet import recipe
from benchmarks.imagenet.recipe import Timing

__all__ = ["CONFIGS", "Config", "ConfigError", "Run", "read"]

CONFIGS = Path(__file__).parent / "configs"
RULES = ("rmsprop", "coolmomentum")
AUGMENTS = ("crop", "flip", "none")
KINDS = ("runs", "scan")  # Fig. 2 or Table 3


class ConfigError(Exception):
    """A config cannot be run; the message is for the user."""


@dataclass(frozen=True)
class Run:
    """One run: a rule with its numbers."""

    rule: Literal["rmsprop", "coolmomentum"]
    lr: float  # of RMSProp the one before it decays
    rho0: float | None = None  # of CoolMomentum

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(f"rule must be one of {', '.join(RULES)}: {self.rule}")
        if not (isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"lr must be a finite number > 0: {self.lr!r}")
        if (self.rule == "coolmomentum") != (self.rho0 is not None):
            raise ConfigError(f"rho0 must be given for coolmomentum, and for it only: {self.rho0}")
        if self.rho0 is not None and not 0 <= self.rho0 < 1:
            raise ConfigError(f"rho0 must be in [0, 1): {self.rho0}")

    @property
    def name(self) -> str:
        """A name for people and folders, another for each run of a config."""
        return f"{self.rule}-lr{self.lr:g}" + (
            f"-rho{self.rho0:g}" if self.rho0 is not None else ""
        )


@dataclass(frozen=True)
class Config:
    """What all runs of a config share, and these. The defaults are the recipe's."""

    name: str
    kind: Literal["runs", "scan"]
    what: str  # for the page: what it is,
    cannot: str  # and what it cannot show
    runs: tuple[Run, ...]
    steps: int = recipe.AUTHORS_STEPS
    epoch_steps: float | None = None  # None: the 350th part of the steps
    batch: int = recipe.BATCH
    size: int = 224
    training_images: int | None = recipe.TRAINING_IMAGES  # None: all there are
    validation_images: int | None = recipe.VALIDATION_IMAGES
    evaluate: Literal["validation", "train"] = "validation"
    evaluation_batch: int = recipe.EVALUATION_BATCH
    evaluation_epochs: float = recipe.EVALUATION_EPOCHS  # from one to the next, of 350
    augment: Literal["crop", "flip", "none"] = "crop"
    label_smoothing: float = 0.1
    dropout: float = 0.2
    drop_connect: float = 0.2
    bn_momentum: float = 0.99
    backup_steps: int = 625
    seed: int = 0
    reference: bool = False  # draw the authors' curves beside ours: it is their experiment

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "size", "evaluation_batch", "backup_steps"):
            value = getattr(self, name)
            least = 32 if name == "size" else 1
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} must be an integer >= {least}: {value!r}")
        for name in ("label_smoothing", "dropout", "drop_connect", "bn_momentum"):
            value = getattr(self, name)
            if not isinstance(value, float | int) or not 0 <= value < 1:
                raise ConfigError(f"{name} must be in [0, 1): {value!r}")
        for name, among in (
            ("kind", KINDS),
            ("augment", AUGMENTS),
            ("evaluate", ("validation", "train")),
        ):
            if getattr(self, name) not in among:
                raise ConfigError(
                    f"{name} must be one of {', '.join(among)}: {getattr(self, name)}"
                )
        if not self.runs:
            raise ConfigError(f"runs must not be empty: {self.name}")
        names = [run.name for run in self.runs]
        if len(set(names)) < len(names):
            raise ConfigError(f"runs must differ: {', '.join(names)}")
        if self.kind == "scan" and len({len(x) for x in self.by_rule().values()}) > 1:
            raise ConfigError("runs of a scan must have as many values for each rule")

    @property
    def timing(self) -> Timing:
        """What happens at which step."""
        return replace(
            Timing.of(self.steps, self.epoch_steps), evaluation_epochs=self.evaluation_epochs
        )

    def by_rule(self) -> dict[str, list[Run]]:
        """The runs of each rule, in their order."""
        return {rule: its for rule in RULES if (its := [r for r in self.runs if r.rule == rule])}

    def departures(self) -> list[str]:
        """Where it is another experiment than the recipe's; the devices have theirs."""
        recipes = {f.name: f.default for f in fields(Config)}
        said = {
            "steps": "{} steps in place of {}",
            "batch": "batch {} in place of {}",
            "size": "{} pixels in place of {}",
            "evaluation_epochs": "evaluations {} epochs of 350 apart in place of {}",
            "augment": "augmentation {} in place of {}",
            "label_smoothing": "label smoothing {} in place of {}",
            "dropout": "dropout {} in place of {}",
            "drop_connect": "drop-connect {} in place of {}",
            "bn_momentum": "momentum {} of the moving statistics in place of {}",
        }
        found = [
            text.format(getattr(self, name), recipes[name])
            for name, text in said.items()
            if getattr(self, name) != recipes[name]
        ]
        if self.training_images != recipe.TRAINING_IMAGES:
            found.append(f"{self.training_images or 'other'} training images")
        if self.evaluate == "train":
            found.append("evaluated on the training images")
        if self.epoch_steps is None:
            found.append("warm-up, decay and evaluations at the recipe's shares of the steps")
        return [*found, "images shuffled whole by their position, in place of a buffer of 1,024"]

    def settings(self) -> dict[str, Any]:
        """What all runs have in common, and whoever goes on with one must have as well."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in ("runs", "what", "cannot", "backup_steps", "reference")
        }


def read(name: str) -> Config:
    """The config of that name, or in that file.

    Raises
    ------
    ConfigError
        If there is none, or if it could not be run.
    """
    path = next((p for p in (CONFIGS / f"{name}.yml", Path(name)) if p.is_file()), None)
    if path is None:
        names = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.yml")))
        raise ConfigError(f"config must be one of {names}, or a file: {name}")
    try:
        its = yaml.safe_load(path.read_text(encoding="utf-8"))
        runs = tuple(Run(**run) for run in its.pop("runs"))
        return Config(name=path.stem, runs=runs, **its)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
