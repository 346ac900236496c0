"""What the core needs of an array library beyond operators: its namespace and its dtypes.

``keras.ops`` will do for a namespace, though it has other names for some things. Arguments ``xp``
are ``Any``: a protocol would refuse ``array_api_compat.torch``, most of whose functions are made
at its import, where no type checker sees them.
"""

import math
import re
from typing import Any, TypeGuard

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj

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


def is_checkable(value: object) -> bool:
    """Whether ``value`` is a plain number or no number at all; arrays may be traced."""
    return not hasattr(value, "shape") or isinstance(value, np.generic)


def namespace(*values: object) -> Any:
    """The array namespace of ``values``; ``math`` if all of them are Python numbers.

    A masked array is refused: where NumPy drops the mask, a result would be wrong in silence.
    """
    arrays = [value for value in values if not is_number(value)]
    if not arrays:
        return math
    if any(isinstance(value, np.ma.MaskedArray) for value in arrays):
        raise TypeError("masked arrays lose their mask here: pass x.compressed() or x.filled(...)")
    try:
        return array_namespace(*arrays)
    except TypeError:
        kinds = ", ".join(sorted({type(value).__name__ for value in arrays}))
        raise TypeError(
            f"arguments must be numbers or arrays of one array-API library: {kinds}"
        ) from None


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


def concat(arrays: list[Array], xp: Any, axis: int = 0) -> Array:
    """Arrays one after another; ``keras.ops`` says ``concatenate``."""
    join = xp.concat if hasattr(xp, "concat") else xp.concatenate
    return join(arrays, axis=axis)


def is_kind(x: Array, kind: str, xp: Any = None) -> bool:
    """Whether the dtype of ``x`` is of a kind of the array API, one of those in ``_PREFIXES``.

    By its name: the namespace, which is not needed, need not know bfloat16 (NumPy does not).
    """
    return _name(x.dtype).startswith(_PREFIXES[kind])


def real_dtype(x: Array, dtype: DType, xp: Any) -> DType:
    """``dtype`` if given; else that of ``x`` or, for integers, the namespace's default float."""
    if dtype is not None:
        return dtype
    return x.dtype if is_kind(x, "real floating", xp) else as_array(0.0, xp).dtype


def wide_dtype(dtype: DType, xp: Any) -> DType:
    """float32 for a shorter floating dtype, which is a format to store, not to compute in."""
    return getattr(xp, "float32", "float32") if bits(dtype) < 32 else dtype


def bits(dtype: DType) -> int:
    """The size of a real number of a dtype: 8 of float8_e4m3fn, 64 of Python's float."""
    digits = re.findall(r"\d+", _name(dtype))
    return int(digits[0]) if digits else 64


def upcast(x: Array, xp: Any) -> Array:
    """``x`` in float32 or better; integers in the namespace's default float, or in float32."""
    if xp is math or is_number(x) or is_kind(x, "complex floating", xp):
        return x
    if not is_kind(x, "real floating", xp) and not is_kind(x, "integral", xp):
        raise TypeError(f"arrays must be of real or complex numbers: dtype {x.dtype}")
    dtype = wide_dtype(real_dtype(x, None, xp), xp)
    return x if x.dtype == dtype else astype(x, dtype, xp)


def computable(*values: Scalar) -> tuple[Any, ...]:
    """The values in float32 or better, and how to round what is computed from them.

    Half precision comes back in half precision, rounded once. Integers give the default float.
    """
    arrays = [value for value in values if is_array_api_obj(value)]
    chosen = [upcast(x, namespace(x)) if is_array_api_obj(x) else x for x in values]
    floats = [x for x in arrays if not is_kind(x, "integral")] or arrays
    dtypes = {real_dtype(x, None, namespace(x)) for x in floats}
    if len(dtypes) != 1 or all(x is value for x, value in zip(chosen, values, strict=True)):
        return *chosen, _as_it_is
    dtype, xp = dtypes.pop(), namespace(arrays[0])
    return *chosen, lambda result: astype(result, dtype, xp)


def _as_it_is(result: Scalar) -> Scalar:
    return result


def _name(dtype: DType) -> str:
    """The name of a dtype in the words of the array API, whatever the library."""
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    return str(name).rpartition(".")[2]  # torch.float16, array_api_strict.float64


_PREFIXES = {
    "real floating": ("float", "bfloat"),
    "complex floating": ("complex",),
    "integral": ("int", "uint"),
}
