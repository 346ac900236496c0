"""What the core needs of an array library beyond operators: its namespace and its dtypes."""

import math
from typing import Any, TypeGuard

import numpy as np
from array_api_compat import array_namespace

Array = Any  # an array of any array-API namespace, traced or not
Scalar = Any  # a Python number or a 0-d (or broadcastable) array
DType = Any  # a dtype of the namespace in hand


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether ``value`` is a Python number (a NumPy scalar is an array, a bool is neither)."""
    return isinstance(value, int | float) and not isinstance(value, bool | np.generic)


def namespace(*values: object) -> Any:
    """The array namespace of ``values``; ``math`` if all of them are Python numbers."""
    arrays = [value for value in values if not is_number(value)]
    return array_namespace(*arrays) if arrays else math


def astype(x: Array, dtype: DType, xp: Any) -> Array:
    """``x`` in another dtype; ``keras.ops`` spells it ``cast``."""
    return xp.astype(x, dtype) if hasattr(xp, "astype") else xp.cast(x, dtype)


def real_dtype(x: Array, dtype: DType, xp: Any) -> DType:
    """``dtype`` if given; else that of ``x`` or, for integers, the namespace's default float."""
    if dtype is not None:
        return dtype
    return x.dtype if xp.isdtype(x.dtype, "real floating") else xp.asarray(0.0).dtype


def wide(x: Array, xp: Any) -> Array:
    """``x`` in float32 or better: float16 and bfloat16 are formats to store, not to compute in."""
    if xp is math or xp.isdtype(x.dtype, "complex floating") or xp.finfo(x.dtype).bits >= 32:
        return x
    return astype(x, xp.float32, xp)
