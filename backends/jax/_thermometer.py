"""A transformation that measures the updates that pass it, and what can be read of its state.

:mod:`coolmomentum.thermometer` adds up and reads. The state holds its window, and two arrays of the
shape of each parameter, which are written only on the steps that need them.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import export, lax

from coolmomentum import _check
from coolmomentum import thermometer as core
from coolmomentum._arrays import DType, upcast
from coolmomentum.jax import _common as common
from coolmomentum.jax._common import AxisName, RhoSchedule
from coolmomentum.jax._tree import paths
from coolmomentum.langevin import adam_mass
from coolmomentum.temperature import coordinates
from coolmomentum.thermal import Noise
from coolmomentum.thermometer import Window

Masses = Callable[[], Iterable[jax.Array]]  # the mass of each coordinate of each parameter


class ThermometerState(NamedTuple):
    """What the thermometer remembers."""

    # tuple.count is hidden on purpose: optax calls every clock so
    count: jax.Array  # type: ignore[assignment]  # shape (), int32: the steps seen
    window: Window  # of arrays of float32 or float64, and of int32
    previous: optax.Updates  # displacement of the step before a measured one
    start: optax.Params  # where the span that is going on began; when it ends, how far it came


class AdamThermometerState(NamedTuple):
    """The state of the optimizer, and the state of the thermometer around it."""

    inner_state: optax.OptState
    thermometer: ThermometerState


for _state in (ThermometerState, AdamThermometerState, Window):
    # As for CoolMomentumState: the name is taken where the module was reloaded.
    with contextlib.suppress(ValueError):
        export.register_namedtuple_serialization(
            _state, serialized_name=f"coolmomentum.jax.{_state.__name__}"
        )


def thermometer(
    learning_rate: optax.ScalarOrSchedule | None = None,
    rho: RhoSchedule | float | None = None,
    *,
    every: int = core.EVERY,
    span: int = core.SPAN,
    temperature: optax.ScalarOrSchedule | None = None,
    noise: Noise = "averaged",
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A thermometer for any optimizer: it goes last in the chain and changes nothing.

    The updates that reach it are the displacements. Decoupled weight decay is none, so put it
    after the thermometer. :func:`read` gives the readings, :func:`reset` begins another window.

    Put :class:`optax.MultiSteps` around the chain: inside, microbatches would count as steps. Under
    :func:`optax.inject_hyperparams` numbers and schedules may be injected as those of
    :func:`cool_momentum` are.

    Parameters
    ----------
    learning_rate : squared time step ``dt**2`` of the optimizer, a number, an optax schedule or a
        Variable of ``flax.nnx``: the learning rate of CoolMomentum,
        ``coolmomentum.learning_rate_from_sgd(lr, momentum)`` of :func:`optax.sgd`. Without it the
        readings that need it are NaN; so they are without rho.
    rho : momentum coefficient of the optimizer: a number, the
        :class:`coolmomentum.CoolingSchedule` of CoolMomentum, or a function of the step.
    every : each of the first ten steps is measured, then one in this many.
    span : steps over which the freeze-out meter follows the parameters, a multiple of ``every``.
        It needs the parameters as an argument of ``update``; without them it reads NaN.
    temperature, noise : of the heat bath, where :func:`add_thermal_noise` is in the chain.
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
    >>> tx = optax.chain(optax.sgd(0.5), thermometer(learning_rate=1.0, rho=0.0))
    >>> opt_state = tx.init(jnp.zeros(2))
    >>> for gradient in (jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0])):
    ...     _, opt_state = tx.update(gradient, opt_state, jnp.zeros(2))
    >>> reading = read(opt_state)
    >>> reading["rescaled_temperature"], reading["correlation"]  # (0.25 + 0 + 0 + 1) / 4
    (0.3125, 0.0)
    """
    if learning_rate is not None:
        common.check_setting("learning_rate", learning_rate, _check.positive)
    if rho is not None:
        common.check_setting("rho", rho, functools.partial(_check.half_open, low=-1.0))
    if temperature is not None:
        common.check_setting("temperature", temperature, _check.non_negative)
    _check.one_of("noise", noise, get_args(Noise))

    def dynamics(count: jax.Array, dtype: DType) -> core.Dynamics:
        return core.Dynamics(
            None if rho is None else common.rho_at(rho, count, dtype),
            None if learning_rate is None else common.value_at(learning_rate, count, dtype),
            None
            if temperature is None
            else core.Bath(common.value_at(temperature, count, dtype), noise),
        )

    meter = _Meter(core.Sampling(every, span), dynamics, axis_name)

    def update(updates: Any, state: ThermometerState, params: Any = None, **_: Any) -> Any:
        done, state = meter.step(state, updates, params)
        return _released(updates, done), state

    return optax.GradientTransformationExtraArgs(_init, update)


def adam_thermometer(
    optimizer: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    *,
    every: int = core.EVERY,
    span: int = core.SPAN,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam with a thermometer that knows its masses.

    Adam moves a coordinate as momentum SGD moves one of mass ``sqrt(nu_hat) + eps``, where nu_hat
    is its second moment, at ``rho = b1`` and ``dt**2 = 2 learning_rate (1 - b1) / (1 + b1)``. Its
    temperature, ``mass <dx**2> / dt**2``, is ``learning_rate sigma / 2`` where noise of standard
    deviation sigma dominates the gradient.

    Parameters
    ----------
    optimizer : :func:`optax.adam`, :func:`optax.amsgrad`, or what else has one
        :class:`optax.ScaleByAdamState` or :class:`optax.ScaleByAmsgradState` in its state, as
        ``partition`` or ``masked`` with Adam for some of the parameters: the others do not count.
        The weight decay of :func:`optax.adamw` would be measured with it: chain
        ``optax.add_decayed_weights(-learning_rate * weight_decay)`` after this instead.
    learning_rate, b1, b2, eps : of the optimizer; an ``eps_root`` counts as 0.
    every, span, axis_name : see :func:`thermometer`.

    Returns
    -------
    the transformation, whose state is an :class:`AdamThermometerState`

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range. ``init`` raises ValueError if the state has not one second
        moment of Adam in it.

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> from coolmomentum.jax import adam_thermometer, read
    >>> tx = adam_thermometer(optax.adam(1e-3), 1e-3)
    >>> params = jnp.zeros(2)
    >>> _, opt_state = tx.update(jnp.array([3.0, -3.0]), tx.init(params), params)
    >>> reading = read(opt_state)  # mass 3, moved by 1e-3, dt**2 = 2e-4 / 1.9
    >>> round(reading["temperature"], 6)
    0.0285
    """
    common.check_setting("learning_rate", learning_rate, _check.non_negative)
    common.check_setting("b1", b1, _check.half_open)
    common.check_setting("b2", b2, _check.half_open)
    common.check_setting("eps", eps, _check.non_negative)
    inner = optax.with_extra_args_support(optimizer)

    def dynamics(count: jax.Array, dtype: DType) -> core.Dynamics:
        return core.adam(*(common.value_at(x, count, dtype) for x in (learning_rate, b1)))

    meter = _Meter(core.Sampling(every, span), dynamics, axis_name)

    def init(params: optax.Params) -> AdamThermometerState:
        inner_state = inner.init(params)
        moment = _second_moment(_adam_in(inner_state))
        return AdamThermometerState(inner_state, _init(_masked_as(moment, params)))

    def update(updates: Any, state: AdamThermometerState, params: Any = None, **extra: Any) -> Any:
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
        adam, seen = _adam_in(inner_state), state.thermometer
        masses = functools.partial(_adam_masses, adam, seen.previous, b2, eps)
        now, here = (_masked_as(_second_moment(adam), x) for x in (updates, params))
        done, seen = meter.step(seen, now, here, masses)
        return _released(updates, done), AdamThermometerState(inner_state, seen)

    return optax.GradientTransformationExtraArgs(init, update)


def _adam_in(state: optax.OptState) -> Any:
    """The one state of Adam or AMSGrad in the state of an optimizer."""
    found = common.states_in(state, optax.ScaleByAdamState, optax.ScaleByAmsgradState)
    if len(found) != 1:
        raise ValueError(
            "optimizer must have one ScaleByAdamState or ScaleByAmsgradState in its state: "
            f"{len(found)} found"
        )
    return found[0]


def _second_moment(adam: Any) -> optax.Updates:
    return adam.nu_max if isinstance(adam, optax.ScaleByAmsgradState) else adam.nu


def _adam_masses(adam: Any, previous: optax.Updates, b2: Any, eps: Any) -> Iterable[jax.Array]:
    for moment in _leaves(_second_moment(adam), previous):
        x = upcast(moment, jnp)
        n, decay, epsilon = (common.value_at(y, adam.count, x.dtype) for y in (adam.count, b2, eps))
        if isinstance(adam, optax.ScaleByAmsgradState):  # the bias of the maximum is corrected
            decay = jnp.zeros_like(decay)
        yield jnp.asarray(adam_mass(x, decay, n, epsilon))


# --- reading ------------------------------------------------------------------------------------


def read(opt_state: optax.OptState, by: core.By = "all") -> dict[str, Any]:
    """What the thermometer in the state of an optimizer has measured since the last reset.

    Of several processes that share the arrays one may call it.

    Parameters
    ----------
    opt_state : the state, or whatever tree holds it: of ``chain``, ``masked``, ``partition``,
        ``inject_hyperparams``, ``MultiSteps``, ``apply_if_finite``, an ``nnx.Optimizer``, or a
        whole ``TrainState``. Not traced: this gives floats.
    by : "all" pools all parameters; "parameter" gives each, and "group" those under one node of
        the parameter tree, as the weights of one layer.

    Returns
    -------
    a dict of floats with the readings of :meth:`coolmomentum.thermometer.Window.readings` and
    "steps", the steps of the window; NaN where something is not known. By group or parameter a
    dict of such dicts, by the names of the nodes in the tree without boxes, as ``"dense/kernel"``;
    equal names get a number, as ``"dense/kernel#2"``

    Raises
    ------
    ValueError
        If there is not one thermometer in ``opt_state``: of several, as in the groups of
        ``partition``, read the state of each. Or if ``by`` is none of the three.

    Warns
    -----
    UserWarning
        If nothing was measured in the window, or the walk is more than 5 per cent hotter than its
        bath: the warning says why.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from coolmomentum.jax import read, thermometer
    >>> tx = thermometer()
    >>> params = {"dense": {"bias": jnp.zeros(1), "kernel": jnp.zeros((2, 1))}}
    >>> moves = {"dense": {"bias": jnp.ones(1), "kernel": 2 * jnp.ones((2, 1))}}
    >>> _, state = tx.update(moves, tx.init(params), params)
    >>> read(state)["rescaled_temperature"], read(state)["steps"]
    (3.0, 1)
    >>> {name: x["rescaled_temperature"] for name, x in read(state, "parameter").items()}
    {'dense/bias': 1.0, 'dense/kernel': 4.0}
    """
    found = common.states_in(opt_state, ThermometerState)
    if len(found) != 1:
        raise ValueError(
            f"opt_state must have the state of one thermometer in it: {len(found)} found"
        )
    (state,) = found
    window = Window(*map(np.asarray, jax.tree.leaves(state.window)))
    layout = _layout(state.previous)
    reading = core.report(window, layout, by)
    if layout.parameters and (why := core.why_unmeasured(window)):
        warnings.warn(why, stacklevel=2)
    if why := core.why_hotter(core.report(window, layout), layout):
        warnings.warn(why, stacklevel=2)
    return reading


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
    >>> tx = thermometer()
    >>> _, state = tx.update(jnp.ones(3), tx.init(jnp.zeros(3)), jnp.zeros(3))
    >>> read(reset(state))["steps"]
    0
    """

    def begun(state: ThermometerState) -> ThermometerState:
        arrays, structure = jax.tree.flatten(state.window)  # perhaps in boxes
        window = Window(*map(jnp.asarray, arrays)).next(xp=jnp)
        return state._replace(window=jax.tree.unflatten(structure, window))

    return common.map_states(begun, opt_state, ThermometerState)


# --- measuring ----------------------------------------------------------------------------------


def _init(params: optax.Params) -> ThermometerState:
    def zeros(x: Any) -> Any:
        # An explicit dtype makes them strongly typed, or the second step would compile again.
        stays = not common.is_trainable(x)
        return optax.MaskedNode() if stays else jnp.zeros_like(x, jnp.result_type(x))

    previous, start = (jax.tree.map(zeros, params) for _ in range(2))  # both can be donated
    columns, dtype = len(_layout(previous)), common.precision(*jax.tree.leaves(previous))
    sums, counts = ((len(core.SUMS), columns), dtype), ((len(core.COUNTS),), jnp.int32)
    window = Window(jnp.zeros(*sums), jnp.zeros(*counts))
    return ThermometerState(jnp.zeros([], jnp.int32), window, previous, start)


@dataclass(frozen=True)
class _Meter:
    """What a thermometer knows of the optimizer, and how it measures a step."""

    sampling: core.Sampling
    dynamics: Callable[[jax.Array, DType], core.Dynamics]  # by the steps taken before the step
    axis_name: AxisName | None

    def step(
        self, state: ThermometerState, updates: Any, params: Any, masses: Masses | None = None
    ) -> tuple[Any, ThermometerState]:
        """The state after a step, and a flag that is True once all is measured."""
        n, sampling = optax.safe_increment(state.count), self.sampling
        state = state._replace(count=n, window=state.window.step(xp=jnp))
        previous, start = jax.tree.leaves(state.previous), jax.tree.leaves(state.start)
        if not previous:
            return True, state
        now = _like(updates, state.previous)
        done: Any = True
        if params is not None:
            begins, ends = sampling.begins_span(n), sampling.ends_span(n)

            def follow(x0: jax.Array, x: jax.Array, dx: jax.Array) -> jax.Array:
                x0 = jnp.where(begins, x, x0)
                # In the memory of x0, which is done with: elsewhere every step would allocate it.
                path = upcast(x, jnp) - upcast(x0, jnp) + upcast(dx, jnp)
                return jnp.where(ends, path.astype(x0.dtype), x0)

            here = _like(params, state.previous)
            done, start = _run_if_in_place(
                begins | ends, lambda start: list(map(follow, start, here, now)), start
            )
        path = None if params is None else start
        done, window = _run_if_in_place(
            sampling.measures(n) & done,
            lambda window: self._measured(window, state, now, path, masses),
            state.window,
        )
        done, previous = _run_if_in_place(sampling.precedes(n) & done, lambda _: now, previous)
        tree = jax.tree.structure(state.previous)
        trees = (jax.tree.unflatten(tree, leaves) for leaves in (previous, start))
        return done, ThermometerState(n, window, *trees)

    def _measured(
        self,
        window: Window,
        state: ThermometerState,
        now: list[jax.Array],
        path: list[jax.Array] | None,
        masses: Masses | None,
    ) -> Window:
        n, dtype, layout = state.count, window.sums.dtype, _layout(state.previous)

        def moments(*displacements: Any) -> Any:
            def dot(x: jax.Array, y: jax.Array) -> jax.Array:
                return common.global_product(x, y, self.axis_name).astype(dtype)

            return core.moments(*displacements, dot=dot, xp=jnp)

        with common.promoting():
            how = self.dynamics(n - 1, dtype)
            table = moments(now, jax.tree.leaves(state.previous), masses and masses())
            weight = self.sampling.weight(n, xp=jnp)
            window = window.add(table, layout, how, weight=weight, paired=n > 1, xp=jnp)
            if path is None:
                return window
            ended: Window = lax.cond(
                self.sampling.ends_span(n),
                # its squares and its products with the displacements
                lambda: window.end_span(moments(now, path)[1:3], layout, how.rho, xp=jnp),
                lambda: window,
            )
            return ended


def _run_if_in_place(
    wanted: jax.Array, f: Callable[[Any], Any], value: Any
) -> tuple[jax.Array, Any]:
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


def _released(updates: optax.Updates, done: Any) -> optax.Updates:
    """The updates as they are, once all is measured.

    XLA would otherwise copy the parameters and the displacements on every step, because it may
    overwrite the first, which are donated, before they are measured. The choice costs no pass: it
    is part of adding the updates.
    """
    return jax.tree.map(lambda x: jnp.where(done, x, jnp.zeros_like(x)), updates)


def _is_masked(node: Any) -> bool:
    return node is None or isinstance(node, optax.MaskedNode)


def _leaves(tree: Any, like: Any) -> list[Any]:
    """The leaves where ``like`` has leaves, in order: boxes do not matter, None is a leaf."""
    nodes, others = (jax.tree.leaves(x, is_leaf=_is_masked) for x in (tree, like))
    if len(nodes) != len(others):
        raise ValueError(
            f"updates and params must have the leaves of init: {len(nodes)}, not {len(others)}"
        )
    return [node for node, x in zip(nodes, others, strict=True) if not _is_masked(x)]


def _like(tree: Any, like: Any) -> list[jax.Array]:
    """The leaves where ``like`` has leaves, in its dtypes; of None, which stands, zeros."""
    return [
        jnp.zeros_like(x) if node is None else lax.stop_gradient(jnp.asarray(node, x.dtype))
        for node, x in zip(_leaves(tree, like), jax.tree.leaves(like), strict=True)
    ]


def _masked_as(mask: Any, tree: Any) -> Any:
    """The tree without the branches that are masked in another."""

    def masked(m: Any, x: Any) -> Any:
        return m if isinstance(m, optax.MaskedNode) else x

    return None if tree is None else jax.tree.map(masked, mask, tree, is_leaf=_is_masked)


def _layout(tree: Any) -> core.Layout:
    """The names and sizes of the leaves of a tree; groups are its nodes."""
    leaves = paths(tree)
    sizes = [coordinates(x, xp=jnp) for _, x in leaves]
    return core.Layout.from_paths([path for path, _ in leaves], sizes)
