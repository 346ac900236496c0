"""Checks of the arguments a user passes: name, rule and value in one message."""

import math
import operator
from typing import SupportsIndex

import numpy as np


def real(name: str, value: object) -> float:
    """``value`` as a float, or ``TypeError``: booleans, strings and arrays are no numbers here."""
    if isinstance(value, bool | np.bool_) or not hasattr(type(value), "__float__"):
        raise TypeError(f"{name} must be a real number: {value!r}")
    try:
        return float(value)  # type: ignore[arg-type]  # has __float__, by the line above
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number: {value!r}") from None
    except OverflowError:
        raise ValueError(f"{name} must be a number that a float can hold") from None


def non_negative(name: str, value: object) -> float:
    """``value`` as a finite float >= 0."""
    number = real(name, value)
    if not (number >= 0 and math.isfinite(number)):
        raise ValueError(f"{name} must be finite and >= 0: {value!r}")
    return number


def positive(name: str, value: object) -> float:
    """``value`` as a finite float > 0."""
    number = real(name, value)
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"{name} must be finite and > 0: {value!r}")
    return number


def half_open(name: str, value: object, low: float = 0.0) -> float:
    """``value`` as a float in [low, 1)."""
    number = real(name, value)
    if not low <= number < 1:
        raise ValueError(f"{name} must be in [{low:g}, 1): {value!r}")
    return number


def integer(name: str, value: object, least: int) -> int:
    """``value`` as an int >= least; whole floats are refused, NumPy integers are not."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} must be an integer: {value!r}")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name} must be >= {least}: {value!r}")
    if number >= 2**63:
        raise ValueError(f"{name} must be < 2**63: a number of {number.bit_length()} bits")
    return number


def flag(name: str, value: object) -> bool:
    """``value`` if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False: {value!r}")
    return value


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> str:
    """``value`` if it is one of the strings allowed."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(allowed)}: {value!r}")
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}: {value!r}")
    return value
