"""Shared by the optimizer, its readings and the thermometer: dtypes, settings, sums over shards."""

import contextlib
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import export, lax

from coolmomentum import _check
from coolmomentum._arrays import DType
from coolmomentum.jax._tree import Leaf, unboxed
from coolmomentum.schedules import CoolingSchedule, Schedule
from coolmomentum.temperature import coordinates, inner_product

AxisName = Hashable | Sequence[Hashable]  # of shard_map, pmap or vmap
RhoSchedule = Schedule | jax.Array  # step -> rho, or a rho that does not depend on the step
State = TypeVar("State")
Kind = TypeVar("Kind", bound=type)


def exportable(kind: Kind) -> Kind:
    """The class of a state, with the name by which jax.export writes it: without one it refuses."""
    # Where a module was reloaded the name is taken, by a class of the same fields.
    with contextlib.suppress(ValueError):
        export.register_namedtuple_serialization(
            kind, serialized_name=f"coolmomentum.jax.{kind.__name__}"
        )
    return kind


def states_in(tree: Any, *kinds: type[State]) -> list[State]:
    """Every state of these kinds in a tree."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kinds))
    return [node for node in nodes if isinstance(node, kinds)]


def map_states(f: Callable[[State], Any], tree: Any, kind: type[State]) -> Any:
    """The tree with a function of every state of a kind in its place."""

    def mapped(node: Any) -> Any:
        return f(node) if isinstance(node, kind) else node

    return jax.tree.map(mapped, tree, is_leaf=lambda x: isinstance(x, kind))


# --- dtypes -------------------------------------------------------------------------------------


def promoting() -> contextlib.AbstractContextManager[Any]:
    """JAX's standard dtype promotion: under the strict one float32 times complex64 is an error."""
    standard: contextlib.AbstractContextManager[Any] = jax.numpy_dtype_promotion("standard")
    return standard


def is_key(x: Leaf) -> bool:
    """Whether it is an array of typed PRNG keys, of which JAX knows no ``result_type``."""
    return hasattr(x, "dtype") and bool(jnp.issubdtype(x.dtype, jax.dtypes.extended))


def is_trainable(x: Leaf) -> bool:
    """Whether steps move a leaf: not integers, booleans and PRNG keys."""
    return not is_key(x) and bool(jnp.issubdtype(jnp.result_type(x), jnp.inexact))


def precision(*arrays: jax.Array) -> DType:
    """The real dtype to compute in: float64 if an array has it, else float32."""
    double = any(x.dtype in (jnp.float64, jnp.complex128) for x in arrays)
    return jnp.float64 if double else jnp.float32


# --- settings -----------------------------------------------------------------------------------


def is_array(value: object) -> bool:
    """Whether it may be traced, so that Python cannot read its value."""
    return isinstance(value, jax.Array | np.ndarray)


def check_setting(name: str, value: Any, check: Callable[[str, Any], object]) -> None:
    """Check a number; the values of schedules and arrays are not known yet."""
    value = unboxed(value)
    if not (callable(value) or is_array(value)):
        check(name, value)


check_rho = functools.partial(_check.half_open, low=-1.0)


def rho_at(schedule: RhoSchedule | float, count: jax.Array, dtype: DType) -> jax.Array:
    """Momentum coefficient of the step after ``count`` steps."""
    if isinstance(schedule, CoolingSchedule):
        return jnp.asarray(schedule(count, dtype=dtype, xp=jnp), dtype)
    return value_at(schedule, count, dtype)


def value_at(value: optax.ScalarOrSchedule, count: jax.Array, dtype: DType) -> jax.Array:
    """A hyperparameter after ``count`` steps, in the precision of the leaves that it acts on."""
    value = unboxed(value)  # a Variable of nnx is callable, too
    if callable(value):
        # int32 / int is float32 in JAX even with x64; int64 / int is float64.
        value = value(count.astype(jnp.int64) if dtype == jnp.float64 else count)
    # inject_hyperparams makes complex numbers if the parameters are complex.
    return jnp.asarray(jnp.real(value), dtype)


# --- sharded arrays -----------------------------------------------------------------------------


def product_in(dtype: DType, axis_name: AxisName | None) -> Callable[[Any, Any], jax.Array]:
    """The :func:`global_product` of two arrays in a precision."""
    return lambda x, y: global_product(x, y, axis_name).astype(dtype)


def global_product(x: jax.Array, y: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """Sum of the products of coordinates of two arrays, over all shards."""
    total: jax.Array = inner_product(x, y, xp=jnp)
    axes = _axes_of(total, axis_name)
    # JAX does not type psum.
    return total if axes == () else lax.psum(total, axes)  # type: ignore[no-untyped-call]


def global_coordinates(x: jax.Array, axis_name: AxisName | None) -> int:
    """Number of coordinates in all shards; shapes alone tell it."""
    parts: int = lax.psum(1, _axes_of(x, axis_name))  # type: ignore[no-untyped-call]  # JAX does not type it; an int
    return coordinates(x, xp=jnp) * parts


def _axes_of(x: jax.Array, axis_name: AxisName | None) -> Any:
    """Mapped axes that split an array; under shard_map the axes along which it may vary."""
    if axis_name is not None:
        return axis_name
    kind = jax.typeof(x)
    # The type says so in ``mat.varying`` since JAX 0.10, and said so in ``vma`` before.
    return tuple(kind.mat.varying if hasattr(kind, "mat") else kind.vma)
