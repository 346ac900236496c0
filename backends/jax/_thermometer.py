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
from coolmomentum.jax._kept import (
    is_masked,
    layout_of,
    leaves_like,
    released,
    run_if_in_place,
    values_like,
)
from coolmomentum.jax._noise import GradientNoiseState, Momenta, NoiseMeter
from coolmomentum.jax._tree import unboxed
from coolmomentum.langevin import adam_mass
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


class NoisyThermometerState(NamedTuple):
    """The state of a thermometer that measures the gradient noise, too."""

    thermometer: ThermometerState
    noise: GradientNoiseState


class AdamThermometerState(NamedTuple):
    """The state of the optimizer, and the state of the thermometer around it."""

    inner_state: optax.OptState
    thermometer: ThermometerState | NoisyThermometerState


for _state in (ThermometerState, NoisyThermometerState, AdamThermometerState, Window):
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
    gradient_noise: bool = False,
    batch_size: int | None = None,
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
    gradient_noise : whether the critical batch size is read too; ``every`` is then 4 at least, and
        the state has two arrays more of each parameter. It is that of CoolMomentum if rho is a
        function, and of :func:`optax.sgd`, whose momentum waits for the learning rate, if rho is a
        number; of others put :func:`gradient_thermometer` first in the chain.
    batch_size : examples in a step, for that: those of all processes and accumulated batches.
    axis_name : mapped axis along which all displacements are split, where JAX does not know it, see
        :func:`rescaled_temperature`.

    Returns
    -------
    the transformation, whose state is a :class:`ThermometerState`, with ``gradient_noise`` in a
    :class:`NoisyThermometerState`

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
    batch_size = core.check_gradient_noise(gradient_noise, batch_size, every)
    for name, value in (("learning_rate", learning_rate), ("rho", rho)):
        if batch_size is not None and value is None:
            raise ValueError(f"{name} must be given with gradient_noise=True: None")
    if batch_size is not None and temperature is not None:
        raise ValueError(f"temperature must be None with gradient_noise=True: {temperature!r}")

    def dynamics(count: jax.Array, dtype: DType) -> core.Dynamics:
        return core.Dynamics(
            None if rho is None else common.rho_at(rho, count, dtype),
            None if learning_rate is None else common.value_at(learning_rate, count, dtype),
            None
            if temperature is None
            else core.Bath(common.value_at(temperature, count, dtype), noise),
        )

    meter = _Meter(core.Sampling(every, span), dynamics, axis_name)
    if batch_size is None:

        def update(updates: Any, state: ThermometerState, params: Any = None, **_: Any) -> Any:
            done, state = meter.step(state, updates, params)
            return released(updates, done), state

        return optax.GradientTransformationExtraArgs(_init, update)

    def momentum(count: jax.Array, dtype: DType) -> core.Momentum:
        return core.Momentum.of_displacements(dynamics(count, dtype))

    momenta = Momenta(momentum, waits=not callable(unboxed(rho)))
    noise_meter = NoiseMeter(meter.sampling, momenta, batch_size, axis_name)

    def init_noisy(params: optax.Params) -> NoisyThermometerState:
        state = _init(params)
        return NoisyThermometerState(state, noise_meter.init(state.previous, (2, 3)))

    def update_noisy(
        updates: Any, state: NoisyThermometerState, params: Any = None, **_: Any
    ) -> Any:
        seen, n = state.thermometer, optax.safe_increment(state.thermometer.count)
        recent = {1: jax.tree.leaves(seen.previous)}
        now = values_like(updates, seen.previous)
        done, noise = noise_meter.step(n, state.noise, now, (2, 3), recent)
        done, seen = meter.step(seen, updates, params, done=done)
        return released(updates, done), NoisyThermometerState(seen, noise)

    return optax.GradientTransformationExtraArgs(init_noisy, update_noisy)


def adam_thermometer(
    optimizer: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    *,
    every: int = core.EVERY,
    span: int = core.SPAN,
    gradient_noise: bool = False,
    batch_size: int | None = None,
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
    every, span : see :func:`thermometer`.
    gradient_noise, batch_size : likewise; the state has then three arrays more of each parameter.
    axis_name : see :func:`thermometer`.

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
    batch_size = core.check_gradient_noise(gradient_noise, batch_size, every)
    inner = optax.with_extra_args_support(optimizer)

    def dynamics(count: jax.Array, dtype: DType) -> core.Dynamics:
        return core.adam(*(common.value_at(x, count, dtype) for x in (learning_rate, b1)))

    def momentum(count: jax.Array, dtype: DType) -> core.Momentum:
        beta1 = common.value_at(b1, count, dtype)
        return core.Momentum(beta1, 1 - beta1)

    meter = _Meter(core.Sampling(every, span), dynamics, axis_name)
    noise_meter, lags = None, (1, 2, 3)
    if batch_size is not None:
        noise_meter = NoiseMeter(meter.sampling, Momenta(momentum), batch_size, axis_name)

    def init(params: optax.Params) -> AdamThermometerState:
        inner_state = inner.init(params)
        adam = _adam_in(inner_state)
        state = _init(_masked_as(_second_moment(adam), params))
        if noise_meter is None:
            return AdamThermometerState(inner_state, state)
        noisy = NoisyThermometerState(state, noise_meter.init(adam.mu, lags))
        return AdamThermometerState(inner_state, noisy)

    def update(updates: Any, state: AdamThermometerState, params: Any = None, **extra: Any) -> Any:
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
        adam, seen, done = _adam_in(inner_state), state.thermometer, True
        noise: GradientNoiseState | None = None
        if noise_meter is not None and isinstance(seen, NoisyThermometerState):
            n = optax.safe_increment(seen.noise.count)
            done, noise = noise_meter.step(n, seen.noise, jax.tree.leaves(adam.mu), lags)
        seen = seen.thermometer if isinstance(seen, NoisyThermometerState) else seen
        masses = functools.partial(_adam_masses, adam, seen.previous, b2, eps)
        now, here = (_masked_as(_second_moment(adam), x) for x in (updates, params))
        done, seen = meter.step(seen, now, here, masses, done)
        both = seen if noise is None else NoisyThermometerState(seen, noise)
        return released(updates, done), AdamThermometerState(inner_state, both)

    return optax.GradientTransformationExtraArgs(init, update)


def gradient_thermometer(
    rho: RhoSchedule | float,
    batch_size: int,
    *,
    every: int = core.EVERY,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformation:
    """The critical batch size of any optimizer with momentum: it goes first in the chain.

    It measures the gradients that pass it and changes nothing. What the momentum remembers it does
    not see, so that it is less true than :func:`thermometer` and :func:`adam_thermometer` are: in
    the first order of the curvature, see :func:`coolmomentum.thermometer.true_square`.

    Parameters
    ----------
    rho : momentum coefficient of the optimizer, such as b1 of :func:`optax.lion`: a number or a
        function of the step. Not Nesterov's.
    batch_size : examples in a step, those of all processes and accumulated batches.
    every : one step in this many is measured, 4 at least.
    axis_name : see :func:`thermometer`.

    Returns
    -------
    the transformation, whose state is a :class:`GradientNoiseState`

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> from coolmomentum.jax import gradient_thermometer, read
    >>> tx = optax.chain(gradient_thermometer(rho=0.9, batch_size=64, every=4), optax.lion(0.001))
    >>> params = jnp.zeros(2)
    >>> opt_state = tx.init(params)
    >>> for _ in range(40):
    ...     _, opt_state = tx.update(jnp.array([3.0, 4.0]), opt_state, params)
    >>> round(read(opt_state)["gradient_norm"], 3)
    5.0
    """
    common.check_setting("rho", rho, functools.partial(_check.half_open, low=-1.0))
    told = core.check_gradient_noise(True, batch_size, core.Sampling(every, every).every)

    def momentum(count: jax.Array, dtype: DType) -> core.Momentum:
        return core.Momentum(common.rho_at(rho, count, dtype), 1.0)

    sampling, lags = core.Sampling(every, every), (1, 2)
    meter = NoiseMeter(sampling, Momenta(momentum, are_gradients=True), told or 1, axis_name)

    def init(params: optax.Params) -> GradientNoiseState:
        return meter.init(_zeros(params), lags)

    def update(updates: Any, state: GradientNoiseState, params: Any = None) -> Any:
        n = optax.safe_increment(state.count)
        done, state = meter.step(n, state, values_like(updates, state.lags[0]), lags)
        return released(updates, done), state

    return optax.GradientTransformation(init, update)


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
    for moment in leaves_like(_second_moment(adam), previous):
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
    "steps", the steps of the window; NaN where something is not known. Where the gradient noise is
    measured, also those of :meth:`coolmomentum.thermometer.GradientNoise.readings`.
    By group or parameter a dict of such dicts, by the names of the nodes in the tree without boxes,
    as ``"dense/kernel"``;
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
        bath: the warning says why. Likewise if the gradient noise is measured and there is no
        critical batch size.

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
    noises = common.states_in(opt_state, GradientNoiseState)
    found = common.states_in(opt_state, ThermometerState)
    if len(found) > 1 or len(noises) > 1 or not (found or noises):
        raise ValueError(
            "opt_state must have the state of one thermometer in it: "
            f"{len(found) or len(noises)} found"
        )
    noise = noises[0].on_host() if noises else None
    if found:
        window = Window(*map(np.asarray, jax.tree.leaves(found[0].window)))
        layout = layout_of(found[0].previous)
    else:
        layout = layout_of(noises[0].lags[0])
        count, begun = map(int, jax.tree.leaves(noises[0][:2]))
        window = Window.empty(np.zeros(len(layout))).step(count - begun)
    reading = core.report(window, layout, by, noise)
    if found and layout.parameters and (why := core.why_unmeasured(window)):
        warnings.warn(why, stacklevel=2)
    if noise is not None and (why := noise.why_unknown(noises[0].reason())):
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

    opt_state = common.map_states(begun, opt_state, ThermometerState)
    return common.map_states(GradientNoiseState.next, opt_state, GradientNoiseState)


# --- measuring ----------------------------------------------------------------------------------


def _zeros(params: optax.Params) -> Any:
    """Of each leaf that moves, strongly typed, or the second step would compile again."""

    def zeros(x: Any) -> Any:
        stays = not common.is_trainable(x)
        return optax.MaskedNode() if stays else jnp.zeros_like(x, jnp.result_type(x))

    return jax.tree.map(zeros, params)


def _init(params: optax.Params) -> ThermometerState:
    previous, start = (_zeros(params) for _ in range(2))  # both can be donated
    columns, dtype = len(layout_of(previous)), common.precision(*jax.tree.leaves(previous))
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
        self,
        state: ThermometerState,
        updates: Any,
        params: Any,
        masses: Masses | None = None,
        done: Any = True,
    ) -> tuple[Any, ThermometerState]:
        """The state after a step, and a flag that is True once all is measured.

        ``done`` is such a flag of something that reads the state before.
        """
        n, sampling = optax.safe_increment(state.count), self.sampling
        state = state._replace(count=n, window=state.window.step(xp=jnp))
        previous, start = jax.tree.leaves(state.previous), jax.tree.leaves(state.start)
        if not previous:
            return done, state
        now = values_like(updates, state.previous)
        if params is not None:
            begins, ends = sampling.begins_span(n), sampling.ends_span(n)

            def follow(x0: jax.Array, x: jax.Array, dx: jax.Array) -> jax.Array:
                x0 = jnp.where(begins, x, x0)
                # In the memory of x0, which is done with: elsewhere every step would allocate it.
                path = upcast(x, jnp) - upcast(x0, jnp) + upcast(dx, jnp)
                return jnp.where(ends, path.astype(x0.dtype), x0)

            here = values_like(params, state.previous)
            wanted = begins | ends if done is True else (begins | ends) & done
            done, start = run_if_in_place(
                wanted, lambda start: list(map(follow, start, here, now)), start
            )
        path = None if params is None else start
        done, window = run_if_in_place(
            sampling.measures(n) & done,
            lambda window: self._measured(window, state, now, path, masses),
            state.window,
        )
        done, previous = run_if_in_place(sampling.precedes(n) & done, lambda _: now, previous)
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
        n, dtype, layout = state.count, window.sums.dtype, layout_of(state.previous)

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


def _masked_as(mask: Any, tree: Any) -> Any:
    """The tree without the branches that are masked in another."""

    def masked(m: Any, x: Any) -> Any:
        return m if isinstance(m, optax.MaskedNode) else x

    return None if tree is None else jax.tree.map(masked, mask, tree, is_leaf=is_masked)
