"""The array libraries that the core must run on, behind one small face."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import array_api_strict
import numpy as np
from frameworks import installed


def _as_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@dataclass(frozen=True)
class Library:
    """An array library, and whether functions run in it as they are or compiled."""

    name: str
    xp: Any
    compile: Callable[[Callable[..., Any]], Callable[..., Any]] = _as_is

    def array(self, values: object, dtype: str | None = None) -> Any:
        """An array of the library; ``dtype`` by name."""
        return self.xp.asarray(values, dtype=dtype and getattr(self.xp, dtype))

    def owns(self, value: object) -> bool:
        """Whether ``value`` is an array of this library (a NumPy scalar is one of NumPy's)."""
        array = np.ndarray | np.generic if self.xp is np else type(self.xp.asarray(0.0))
        return isinstance(value, array)

    def dtype_name(self, x: Any) -> str:
        """The dtype of ``x`` in the words of the array API."""
        return str(x.dtype).rsplit(".", 1)[-1]


NUMPY = Library("numpy", np)
STRICT = Library("array_api_strict", array_api_strict)
LIBRARIES = [NUMPY, STRICT]
if installed("torch"):
    import torch

    LIBRARIES += [Library("torch", torch)]
if installed("jax"):
    import jax
    import jax.numpy as jnp

    LIBRARIES += [Library("jax", jnp), Library("jax-jit", jnp, jax.jit)]


def libraries(*names: str) -> list[Library]:
    """Those of these names that are installed."""
    return [library for library in LIBRARIES if library.name in names]
