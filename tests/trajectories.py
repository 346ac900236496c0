"""Trajectories of CoolMomentum on the loss x**2 / 2 from x_0 = 1 at rest."""

from dataclasses import dataclass
from fractions import Fraction

from coolmomentum import Law


def fractions(text: str) -> tuple[Fraction, ...]:
    """The fractions of a line."""
    return tuple(Fraction(word) for word in text.split())


@dataclass(frozen=True)
class Rational:
    """A trajectory in exact fractions."""

    name: str
    law: Law
    rho0: Fraction
    total_steps: int
    learning_rate: Fraction
    rhos: tuple[Fraction, ...]
    xs: tuple[Fraction, ...]  # x_1, x_2, ...
    weight_decay: Fraction = Fraction(0)


RATIONAL = (
    Rational(
        "A",
        law="constant",
        rho0=Fraction(9, 10),
        total_steps=6,
        learning_rate=Fraction(1, 10),
        rhos=fractions("9/10 " * 6),
        xs=fractions(
            "181/200 29341/40000 4076101/8000000 415196461/1600000000 3146286421/320000000000"
            " -13811263198019/64000000000000"
        ),
    ),
    Rational(
        "B",
        law="paper",
        rho0=Fraction(3, 4),
        total_steps=2,
        learning_rate=Fraction(1, 4),
        rhos=fractions("3/4 1/2 0 0 0"),
        xs=fractions("25/32 269/512 1883/4096 13181/32768 92267/262144"),
    ),
    Rational(
        "B'",
        law="paper",
        rho0=Fraction(3, 4),
        total_steps=2,
        learning_rate=Fraction(1, 4),
        weight_decay=Fraction(1, 2),
        rhos=fractions("3/4 1/2 0 0"),
        xs=fractions("43/64 653/2048 8489/32768 110357/524288"),
    ),
    Rational(
        "C",
        law="linear",
        rho0=Fraction(9, 10),
        total_steps=4,
        learning_rate=Fraction(1, 10),
        rhos=fractions("9/10 27/31 9/11 9/13 0 0"),
        xs=fractions(
            "181/200 45731/62000 363899/682000 2798291/8060000 53167529/161200000"
            " 1010183051/3224000000"
        ),
    ),
)


@dataclass(frozen=True)
class Authors:
    """What the authors' released code put out at rho0 = 0.9, S = 4, dt**2 = 0.1, in float64."""

    name: str
    law: Law
    printed: tuple[float, ...]  # x_1, x_2, ...
    rho0: str = "0.9"
    total_steps: int = 4


AUTHORS = (
    Authors(
        "optimizers/coolmom_pytorch.py",
        "paper",
        (
            0.905,
            0.7444403687257959,
            0.5719807498260865,
            0.4553866472196821,
            0.432617314858698,
            0.4109864491157631,
        ),
    ),
    Authors(
        "Coollin",
        "linear",
        (
            0.905,
            0.7375967741935484,
            0.5335762463343109,
            0.34718250620347396,
            0.3298233808933003,
            0.3133322118486353,
        ),
    ),
    Authors(
        "Coolmom",
        "exponential",
        (
            0.905,
            0.7472709055005413,
            0.5876254384100376,
            0.4916520955919973,
            0.46706949081239746,
            0.4437160162717776,
        ),
    ),
)
