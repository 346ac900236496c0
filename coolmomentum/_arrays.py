"""What the core needs of an array library beyond operators: its namespace and its dtypes.

``keras.ops`` will do for a namespace, though it has other names for some things.
"""

import math
import re
from typing import Any, TypeGuard

import numpy as np
from array_api_compat import array_namespace, device

Array = Any  # an array of any array-API namespace, traced or not
Scalar = Any  # a Python number or a 0-d (or broadcastable) array
DType = Any  # a dtype of the namespace in hand


# Made once: an optimizer asks this several times in each step. Tuples, as the compiler of PyTorch
# 2.6 raises at a union of types.
_NUMBERS = (int, float)
_NO_NUMBERS = (bool, np.generic)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether ``value`` is a Python number (a NumPy scalar is an array, a bool is neither)."""
    return isinstance(value, _NUMBERS) and not isinstance(value, _NO_NUMBERS)


def namespace(*values: object) -> Any:
    """The array namespace of ``values``; ``math`` if all of them are Python numbers."""
    arrays = [value for value in values if not is_number(value)]
    return array_namespace(*arrays) if arrays else math


def as_array(value: Scalar, xp: Any) -> Array:
    """A number as an array of the namespace; ``keras.ops`` calls that ``convert_to_tensor``."""
    return xp.asarray(value) if hasattr(xp, "asarray") else xp.convert_to_tensor(value)


def astype(x: Array, dtype: DType, xp: Any) -> Array:
    """``x`` in another dtype; ``keras.ops`` spells it ``cast``."""
    return xp.astype(x, dtype) if hasattr(xp, "astype") else xp.cast(x, dtype)


def array_like(values: list[float], like: Array, xp: Any) -> Array:
    """Numbers as an array of the dtype and the device of another."""
    if not hasattr(xp, "asarray"):
        return xp.convert_to_tensor(values, dtype=like.dtype)
    return xp.asarray(values, dtype=like.dtype, device=device(like))


def concat(arrays: list[Array], xp: Any) -> Array:
    """Arrays one after another; ``keras.ops`` says ``concatenate``."""
    return xp.concat(arrays) if hasattr(xp, "concat") else xp.concatenate(arrays)


def is_kind(x: Array, kind: str, xp: Any) -> bool:
    """Whether the dtype of ``x`` is of a kind of the array API, one of those in ``_PREFIXES``."""
    if hasattr(xp, "isdtype"):
        return bool(xp.isdtype(x.dtype, kind))
    name: str = xp.dtype(x)  # keras.ops: dtypes are known by name
    return name.startswith(_PREFIXES[kind])


def real_dtype(x: Array, dtype: DType, xp: Any) -> DType:
    """``dtype`` if given; else that of ``x`` or, for integers, the namespace's default float."""
    if dtype is not None:
        return dtype
    return x.dtype if is_kind(x, "real floating", xp) else as_array(0.0, xp).dtype


def wide(x: Array, xp: Any) -> Array:
    """``x`` in float32 or better: float16 and bfloat16 are formats to store, not to compute in."""
    if xp is math or is_kind(x, "complex floating", xp) or _bits(x, xp) >= 32:
        return x
    return astype(x, getattr(xp, "float32", "float32"), xp)


def _bits(x: Array, xp: Any) -> int:
    """Size of a number in a real floating array."""
    if hasattr(xp, "finfo"):
        return int(xp.finfo(x.dtype).bits)
    return int(re.findall(r"\d+", xp.dtype(x))[0])  # keras.ops: bfloat16, float8_e4m3fn


_PREFIXES = {
    "real floating": ("float", "bfloat"),
    "complex floating": ("complex",),
    "integral": ("int", "uint"),
}
