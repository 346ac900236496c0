"""A transformation that measures the updates that pass it, and what can be read of its state.

The arithmetic is that of :mod:`coolmomentum.thermometer`. The state holds its sums, and two arrays
of the shape of each parameter, which are written on one step in ``every`` and two in ``span``.
"""

import contextlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import export, lax

from coolmomentum import _check
from coolmomentum._arrays import is_number, upcast
from coolmomentum._thermometer_before import (
    EVERY,
    SPAN,
    PairSums,
    Rows,
    Window,
    check_intervals,
    pair_sums,
)
from coolmomentum.jax._readings import AxisName, axes_of, shards
from coolmomentum.jax._transform import RhoSchedule, is_trainable, precision, rho_at, value_at
from coolmomentum.langevin import adam_mass, learning_rate_from_adam
from coolmomentum.temperature import coordinates, inner_product, squared_norm

By = Literal["all", "group", "parameter"]
Masses = Callable[[], list[jax.Array]]  # the mass of each coordinate of each walking parameter


class ThermometerState(NamedTuple):
    """What the thermometer remembers."""

    # tuple.count is hidden on purpose: optax calls every clock so
    count: jax.Array  # type: ignore[assignment]  # shape (), int32: the steps seen
    sums: jax.Array  # the arrays of the window, shape (14, rows), float32 or float64
    counts: jax.Array  # the numbers of the window, shape (6,), int32
    previous: optax.Updates  # displacement of the step before a measured one
    start: optax.Params  # where the span that is going on began; when it ends, how far it came


class AdamThermometerState(NamedTuple):
    """The state of the optimizer, and that of the thermometer around it."""

    inner_state: optax.OptState
    thermometer: ThermometerState


for _state in (ThermometerState, AdamThermometerState):
    # As for CoolMomentumState: the name is taken where the module was reloaded.
    with contextlib.suppress(ValueError):
        export.register_namedtuple_serialization(
            _state, serialized_name=f"coolmomentum.jax.{_state.__name__}"
        )


def thermometer(
    learning_rate: optax.ScalarOrSchedule | None = None,
    rho: RhoSchedule | float | None = None,
    *,
    every: int = EVERY,
    span: int = SPAN,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A thermometer for any optimizer: it goes last in the chain and changes nothing.

    The updates that reach it are the displacements. Decoupled weight decay is none, so put it
    after the thermometer. What was measured is had from :func:`read`; :func:`reset` begins another
    window.

    Parameters
    ----------
    learning_rate : squared time step ``dt**2`` of the optimizer, a number or an optax schedule: the
        learning rate of CoolMomentum, ``coolmomentum.learning_rate_from_sgd(lr, momentum)`` of
        :func:`optax.sgd`. Without it the readings that need it are NaN; so they are without rho.
    rho : momentum coefficient of the optimizer: a number, the
        :class:`coolmomentum.CoolingSchedule` of CoolMomentum, or a function of the step.
    every : one step in this many is measured.
    span : steps over which the freeze-out meter follows the parameters, a multiple of ``every``.
        It needs the parameters as an argument of ``update``; without them it reads NaN.
    axis_name : mapped axis along which all displacements are split, where JAX does not know it, see
        :func:`rescaled_temperature`.

    Returns
    -------
    the transformation, whose state is a :class:`ThermometerState`

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range. Arrays, which may be traced, are taken unchecked.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> from coolmomentum.jax import read, thermometer
    >>> tx = optax.chain(optax.sgd(0.5), thermometer(learning_rate=1.0, rho=0.0, every=1))
    >>> opt_state = tx.init(jnp.zeros(2))
    >>> for gradient in (jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0])):
    ...     _, opt_state = tx.update(gradient, opt_state, jnp.zeros(2))
    >>> reading = read(opt_state)
    >>> reading["rescaled_temperature"], reading["correlation"]  # (0.25 + 0 + 0 + 1) / 4
    (0.3125, 0.0)
    """
    if is_number(learning_rate):
        _check.positive("learning_rate", learning_rate)
    if rho is not None and not callable(rho) and not hasattr(rho, "dtype"):
        _check.half_open("rho", rho, -1.0)
    meter = _Meter(learning_rate, rho, *check_intervals(every, span), axis_name)

    def update(
        updates: optax.Updates,
        state: ThermometerState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ThermometerState]:
        del extra_args
        return meter.update(updates, state, params)

    return optax.GradientTransformationExtraArgs(_init, update)


def adam_thermometer(
    optimizer: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    every: int = EVERY,
    span: int = SPAN,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam with a thermometer that knows its masses.

    Adam moves a coordinate as momentum SGD moves one of mass ``sqrt(nu_hat) + eps``, where nu_hat
    is its second moment, at ``rho = b1`` and ``dt**2 = 2 learning_rate (1 - b1) / (1 + b1)``. Its
    temperature, ``mass <dx**2> / dt**2``, is ``learning_rate sigma / 2`` where noise of standard
    deviation sigma dominates the gradient.

    Parameters
    ----------
    optimizer : :func:`optax.adam`, or what else has an :class:`optax.ScaleByAdamState` in its
        state. The weight decay of :func:`optax.adamw` would be measured with it: chain
        ``optax.add_decayed_weights(-learning_rate * weight_decay)`` after this instead.
    learning_rate, b1, b2, eps : of the optimizer.
    every, span, axis_name : see :func:`thermometer`.

    Returns
    -------
    the transformation, whose state is an :class:`AdamThermometerState`

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or there is not one ``ScaleByAdamState`` in the state.

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> from coolmomentum.jax import adam_thermometer, read
    >>> tx = adam_thermometer(optax.adam(1e-3), 1e-3, every=1)
    >>> params = jnp.zeros(2)
    >>> _, opt_state = tx.update(jnp.array([3.0, -3.0]), tx.init(params), params)
    >>> reading = read(opt_state)  # mass 3, moved by 1e-3, dt**2 = 2e-4 / 1.9
    >>> round(reading["temperature"], 6)
    0.0285
    """
    first, second = _check.half_open("b1", b1), _check.half_open("b2", b2)
    inner = optax.with_extra_args_support(optimizer)

    def square_time(count: jax.Array) -> Any:
        lr = learning_rate(count) if callable(learning_rate) else learning_rate
        return learning_rate_from_adam(lr, first)

    meter = _Meter(square_time, first, *check_intervals(every, span), axis_name)

    def init(params: optax.Params) -> AdamThermometerState:
        return AdamThermometerState(inner.init(params), _init(params))

    def update(
        updates: optax.Updates,
        state: AdamThermometerState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AdamThermometerState]:
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        (adam,) = _nodes(inner_state, optax.ScaleByAdamState)

        def masses() -> list[jax.Array]:
            leaves = [upcast(x, jnp) for x in jax.tree.leaves(adam.nu)]
            return [adam_mass(x, second, adam.count.astype(x.dtype), eps) for x in leaves]

        updates, measured = meter.update(updates, state.thermometer, params, masses)
        return updates, AdamThermometerState(inner_state, measured)

    return optax.GradientTransformationExtraArgs(init, update)


# --- reading ------------------------------------------------------------------------------------


def read(opt_state: optax.OptState, by: By = "all") -> dict[str, Any]:
    """What the thermometer in the state of an optimizer has measured since the last reset.

    Parameters
    ----------
    opt_state : the state, or whatever tree holds it: of ``chain``, ``masked``, ``partition``,
        ``inject_hyperparams``, ``MultiSteps``, ``apply_if_finite``, or a whole ``TrainState``.
    by : "all" pools all parameters; "parameter" gives each, and "group" those under one node of
        the parameter tree, as the weights of one layer.

    Returns
    -------
    a dict of floats with the readings of :meth:`coolmomentum.thermometer.Window.read` and
    "steps", the steps of the window; NaN where something is not known. By group or parameter a
    dict of such dicts, by the names of the nodes, as ``"dense/kernel"``.

    Raises
    ------
    ValueError
        If there is not one thermometer in ``opt_state``: of several, as in the groups of
        ``partition``, read the state of each.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from coolmomentum.jax import read, thermometer
    >>> tx = thermometer(every=1)
    >>> params = {"dense": {"bias": jnp.zeros(1), "kernel": jnp.zeros((2, 1))}}
    >>> moves = {"dense": {"bias": jnp.ones(1), "kernel": 2 * jnp.ones((2, 1))}}
    >>> _, state = tx.update(moves, tx.init(params), params)
    >>> read(state)["rescaled_temperature"], read(state)["steps"]
    (3.0, 1)
    >>> {name: x["rescaled_temperature"] for name, x in read(state, "parameter").items()}
    {'dense/bias': 1.0, 'dense/kernel': 4.0}
    """
    _check.one_of("by", by, ("all", "group", "parameter"))
    found = _nodes(opt_state, ThermometerState)
    if len(found) != 1:
        raise ValueError(
            f"opt_state must have the state of one thermometer in it: {len(found)} found"
        )
    (state,) = found
    layout = _Layout.of(state.previous)
    rows = Rows(tuple(coordinates(x, xp=jnp) for x in layout.leaves(state.previous)), layout.groups)
    (sums,), (counts,) = jax.tree.leaves(state.sums), jax.tree.leaves(state.counts)
    window = _unpacked(np.asarray(sums, np.float64), [int(n) for n in np.asarray(counts)])
    with np.errstate(divide="ignore", invalid="ignore"):
        readings = window.read(rows, xp=np)
    dicts = [
        {name: float(x[i]) for name, x in readings.items()} | {"steps": window.steps}
        for i in range(len(rows))
    ]
    if by == "all":
        return dicts[-1]
    names, begin = (
        (layout.names, 0) if by == "parameter" else (layout.group_names, len(layout.names))
    )
    return dict(zip(names, dicts[begin : begin + len(names)], strict=True))


def reset(opt_state: optax.OptState) -> optax.OptState:
    """The state with every thermometer in it at the beginning of a new window, for the next step.

    The span of the freeze-out meter goes on. Works under ``jit``.

    Parameters
    ----------
    opt_state : as for :func:`read`.

    Returns
    -------
    a state of the same structure

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from coolmomentum.jax import read, reset, thermometer
    >>> tx = thermometer(every=1)
    >>> _, state = tx.update(jnp.ones(3), tx.init(jnp.zeros(3)), jnp.zeros(3))
    >>> read(reset(state))["steps"]
    0
    """

    def closed(node: Any) -> Any:
        if not isinstance(node, ThermometerState):
            return node
        sums, counts = _packed(_unpacked(node.sums, node.counts).closed(), node)
        return node._replace(sums=sums, counts=counts)

    return jax.tree.map(closed, opt_state, is_leaf=lambda x: isinstance(x, ThermometerState))


def _nodes(tree: Any, kind: type) -> list[Any]:
    nodes = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind))
    return [node for node in nodes if isinstance(node, kind)]


# --- measuring ----------------------------------------------------------------------------------


def _init(params: optax.Params) -> ThermometerState:
    def zeros(x: Any) -> Any:
        # An explicit dtype makes them strongly typed, or the second step would compile again.
        return jnp.zeros_like(x, jnp.result_type(x)) if is_trainable(x) else optax.MaskedNode()

    previous = jax.tree.map(zeros, params)
    layout = _Layout.of(previous)
    rows = len(layout.names) + len(layout.groups) + 1
    dtype = precision(*jax.tree.leaves(previous))
    return ThermometerState(
        jnp.zeros([], jnp.int32),
        jnp.zeros((_ARRAYS, rows), dtype),
        jnp.zeros(_NUMBERS, jnp.int32),
        previous,
        jax.tree.map(zeros, params),  # its own arrays: both can be donated
    )


class _Meter(NamedTuple):
    """What a thermometer knows of the optimizer, and how it measures a step."""

    learning_rate: optax.ScalarOrSchedule | None
    rho: RhoSchedule | float | None
    every: int
    span: int
    axis_name: AxisName | None

    def update(
        self,
        updates: optax.Updates,
        state: ThermometerState,
        params: optax.Params | None,
        masses: Masses | None = None,
    ) -> tuple[optax.Updates, ThermometerState]:
        """The updates as they are, and the state after them."""
        n = optax.safe_increment(state.count)
        counts = state.counts + jnp.asarray(_STEP, jnp.int32)
        state = state._replace(count=n, counts=counts)
        moved = _walking(updates, state.previous)
        if not jax.tree.leaves(moved):
            return updates, state
        done, ends = n > 0, None
        if params is not None:
            begins, ends = n % self.span == 1 % self.span, n % self.span == 0

            def follow(x0: jax.Array, x: jax.Array, dx: jax.Array) -> jax.Array:
                x0 = jnp.where(begins, x, x0)
                # In the memory of x0, which is done with: elsewhere every step would allocate it.
                way = upcast(x, jnp) - upcast(x0, jnp) + upcast(dx, jnp)
                return jnp.where(ends, way.astype(x0.dtype), x0)

            here = _walking(params, state.start)
            done, start = _once(
                begins | ends, lambda start: jax.tree.map(follow, start, here, moved), state.start
            )
            state = state._replace(start=start)
        done, (sums, counts) = _once(
            (n % self.every == 0) & done,
            lambda window: self._measured(window, moved, state, ends, masses),
            (state.sums, state.counts),
        )
        done, previous = _once(((n + 1) % self.every == 0) & done, lambda _: moved, state.previous)
        # The updates are let go when all is measured. XLA would otherwise copy the parameters and
        # the displacements on every step, because it may overwrite the first, which are donated,
        # before they are measured. The choice costs no pass: it is part of adding the updates.
        updates = jax.tree.map(lambda x: jnp.where(done, x, jnp.zeros_like(x)), updates)
        return updates, state._replace(sums=sums, counts=counts, previous=previous)

    def _measured(
        self,
        window: tuple[jax.Array, jax.Array],
        moved: optax.Updates,
        state: ThermometerState,
        ends: jax.Array | None,
        masses: Masses | None,
    ) -> tuple[jax.Array, jax.Array]:
        layout, dtype = _Layout.of(state.previous), state.sums.dtype
        now, before, way = map(layout.leaves, (moved, state.previous, state.start))
        axes = [axes_of(x, self.axis_name) for x in now]
        rows = Rows(
            tuple(coordinates(x, xp=jnp) * shards(over) for x, over in zip(now, axes, strict=True)),
            layout.groups,
        )
        last = state.count - 1
        rho = self._value(self.rho, last, dtype, rho_at)
        weighted = None
        if masses is not None:
            roots = [jnp.sqrt(x) for x in layout.ordered(masses())]
            weighted = _pair_sums(_times(before, roots), _times(now, roots), axes, dtype)
        unpacked = _unpacked(*window).add(
            _pair_sums(before, now, axes, dtype),
            rows,
            rho=rho,
            dt2=self._value(self.learning_rate, last, dtype, value_at),
            weighted=weighted,
            paired=(state.count > 1).astype(
                jnp.int32
            ),  # false on the first step, if it is measured
            xp=jnp,
        )
        if ends is None:
            return _packed(unpacked, state)

        def ended() -> tuple[jax.Array, jax.Array]:
            distance = _totals([squared_norm(y, xp=jnp) for y in way], axes, dtype)
            overlap = _totals(
                [inner_product(y, dx, xp=jnp) for y, dx in zip(way, now, strict=True)], axes, dtype
            )
            return _packed(unpacked.end_span(distance, overlap, rows, rho=rho, xp=jnp), state)

        result: tuple[jax.Array, jax.Array] = lax.cond(
            ends, ended, lambda: _packed(unpacked, state)
        )
        return result

    @staticmethod
    def _value(value: Any, count: jax.Array, dtype: Any, at: Callable[..., jax.Array]) -> jax.Array:
        return jnp.asarray(jnp.nan, dtype) if value is None else at(value, count, dtype)


def _once(wanted: jax.Array, f: Callable[[Any], Any], value: Any) -> tuple[jax.Array, Any]:
    """``f(value)`` if it is wanted, else ``value``; and True, when it is there.

    XLA gives the result of a loop the buffers of its operand, where a conditional copies it.
    """
    value = lax.stop_gradient(value)  # a loop has no reverse-mode derivative, and this needs none
    left, value = lax.while_loop(
        lambda carry: carry[0],
        lambda carry: (jnp.zeros_like(carry[0]), lax.stop_gradient(f(carry[1]))),
        (wanted, value),
    )
    return ~left, value


def _walking(tree: Any, like: Any) -> Any:
    """The leaves of a tree where ``like`` has leaves, in its dtypes; None, which stands, as 0."""

    def leaf(node: Any, x: Any) -> Any:
        if x is None or isinstance(x, optax.MaskedNode):
            return x
        return jnp.zeros_like(x) if node is None else lax.stop_gradient(jnp.asarray(node, x.dtype))

    masked = lambda x: x is None or isinstance(x, optax.MaskedNode)  # noqa: E731  # said once
    return jax.tree.map(leaf, tree, like, is_leaf=masked)


def _times(xs: list[jax.Array], factors: list[jax.Array]) -> list[jax.Array]:
    return [upcast(x, jnp) * factor for x, factor in zip(xs, factors, strict=True)]


def _pair_sums(
    before: list[jax.Array], now: list[jax.Array], axes: list[Any], dtype: Any
) -> PairSums:
    """The sums over all shards; one parameter after the other, as not all need be sharded alike."""
    each = [pair_sums([x], [y], xp=jnp) for x, y in zip(before, now, strict=True)]
    return PairSums(
        *(_totals([x[0] for x in sums], axes, dtype) for sums in zip(*each, strict=True))
    )


def _totals(sums: list[jax.Array], axes: list[Any], dtype: Any) -> jax.Array:
    totals = [
        x if over == () else lax.psum(x, over)  # type: ignore[no-untyped-call]  # no types in JAX
        for x, over in zip(sums, axes, strict=True)
    ]
    return jnp.stack([x.astype(dtype) for x in totals])


class _Layout(NamedTuple):
    """How the leaves of a parameter tree are the rows of a window: those of a node are together."""

    order: tuple[int, ...]  # of the leaves of the tree
    names: tuple[str, ...]  # of the leaves, in that order
    groups: tuple[int, ...]  # leaves of each node
    group_names: tuple[str, ...]

    @classmethod
    def of(cls, tree: Any) -> "_Layout":
        nodes: dict[str, list[tuple[int, str]]] = {}
        for i, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(tree)):
            nodes.setdefault(_name(path[:-1]), []).append((i, _name(path)))
        rows = [row for node in nodes.values() for row in node]
        return cls(
            tuple(i for i, _ in rows),
            tuple(name for _, name in rows),
            tuple(map(len, nodes.values())),
            tuple(nodes),
        )

    def leaves(self, tree: Any) -> list[jax.Array]:
        return self.ordered(jax.tree.leaves(tree))

    def ordered(self, leaves: list[Any]) -> list[Any]:
        return [leaves[i] for i in self.order]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


# --- the window in two arrays: each argument of a jitted step costs time ------------------------

_EMPTY = Window.empty(np.zeros(1))
_ARRAYS = sum(isinstance(x, np.ndarray) for x in jax.tree.leaves(_EMPTY))
_NUMBERS = len(jax.tree.leaves(_EMPTY)) - _ARRAYS
_STEP = jax.tree.leaves(_EMPTY.step())[_ARRAYS:]


def _unpacked(sums: Any, counts: Any) -> Window:
    window: Window = jax.tree.unflatten(jax.tree.structure(_EMPTY), [*sums, *counts])
    return window


def _packed(window: Window, like: ThermometerState) -> tuple[jax.Array, jax.Array]:
    leaves = jax.tree.leaves(window)
    return (
        jnp.stack(leaves[:_ARRAYS]).astype(like.sums.dtype),
        jnp.stack(leaves[_ARRAYS:]).astype(like.counts.dtype),
    )
