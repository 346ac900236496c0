"""A transformation that measures the updates that pass it, and what can be read of its state."""

import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from coolmomentum import _check
from coolmomentum import thermometer as core
from coolmomentum._arrays import DType, upcast
from coolmomentum.jax import _common as common
from coolmomentum.jax._common import AxisName, RhoSchedule
from coolmomentum.jax._kept import is_masked, layout_of, leaves_like, next_window, released
from coolmomentum.jax._meter import Meter, NoisyThermometerState, ThermometerState
from coolmomentum.jax._noise import GradientNoiseState, NoiseMeter
from coolmomentum.jax._tree import unboxed
from coolmomentum.langevin import adam_mass
from coolmomentum.thermal import Noise
from coolmomentum.thermometer import Window


@common.exportable
class AdamThermometerState(NamedTuple):
    """The state of the optimizer, and the state of the thermometer around it."""

    inner_state: optax.OptState
    thermometer: ThermometerState | NoisyThermometerState


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
    temperature, noise : of the heat bath, as :func:`add_thermal_noise` in the chain has them:
        settings, with which the walk that is measured is compared. None without a bath.
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
    batch_size = core.check_gradient_noise(gradient_noise, batch_size, every)
    _check_settings(learning_rate, rho, temperature, noise, batch_size)

    def dynamics(count: jax.Array, dtype: DType) -> core.Dynamics:
        def at(read: Callable[..., jax.Array], setting: Any) -> jax.Array | None:
            return None if setting is None else read(setting, count, dtype)

        heat = at(common.value_at, temperature)
        bath = None if heat is None else core.Bath(heat, noise)
        return core.Dynamics(at(common.rho_at, rho), at(common.value_at, learning_rate), bath)

    known, noise_meter = (core.Sampling(every, span), dynamics, axis_name), None
    if batch_size is not None:
        waits = not callable(unboxed(rho))
        noise_meter = NoiseMeter(*known, core.Momentum.of_displacements, batch_size, waits)
    meter = Meter(*known, noise_meter)

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> Any:
        done, state = meter.step(state, updates, params)
        return released(updates, done), state

    return optax.GradientTransformationExtraArgs(meter.init, update)


def _check_settings(
    learning_rate: Any, rho: Any, temperature: Any, noise: str, batch_size: int | None
) -> None:
    _check.one_of("noise", noise, get_args(Noise))
    if temperature is not None:
        common.check_setting("temperature", temperature, _check.non_negative)
        if batch_size is not None:
            raise ValueError(f"temperature must be None with gradient_noise=True: {temperature!r}")
    for name, value, check in (
        ("learning_rate", learning_rate, _check.positive),
        ("rho", rho, common.check_rho),
    ):
        if value is not None:
            common.check_setting(name, value, check)
        elif batch_size is not None:
            raise ValueError(f"{name} must be given with gradient_noise=True: None")


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
    common.check_setting("eps", eps, _check.non_negative)
    for name, value in (("b1", b1), ("b2", b2)):
        common.check_setting(name, value, _check.half_open)
    batch_size = core.check_gradient_noise(gradient_noise, batch_size, every)
    inner = optax.with_extra_args_support(optimizer)

    def dynamics(count: jax.Array, dtype: DType) -> core.Dynamics:
        return core.adam(*(common.value_at(x, count, dtype) for x in (learning_rate, b1)))

    known, noise_meter = (core.Sampling(every, span), dynamics, axis_name), None
    if batch_size is not None:
        noise_meter = NoiseMeter(*known, _first_moment, batch_size)
    meter = Meter(*known, noise_meter)

    def init(params: optax.Params) -> AdamThermometerState:
        inner_state = inner.init(params)
        adam = _adam_in(inner_state)
        seen = meter.init(_masked_as(_second_moment(adam), params), adam.mu)
        return AdamThermometerState(inner_state, seen)

    def update(updates: Any, state: AdamThermometerState, params: Any = None, **extra: Any) -> Any:
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
        adam = _adam_in(inner_state)
        masses = functools.partial(_adam_masses, adam, b2, eps)
        now, here = (_masked_as(_second_moment(adam), x) for x in (updates, params))
        done, seen = meter.step(state.thermometer, now, here, masses, adam.mu)
        return released(updates, done), AdamThermometerState(inner_state, seen)

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


def _first_moment(how: core.Dynamics) -> core.Momentum:
    """How it goes on: ``mu = b1 mu + (1 - b1) g``."""
    b1: Any = how.rho
    return core.Momentum(b1, 1 - b1)


def _second_moment(adam: Any) -> optax.Updates:
    return adam.nu_max if isinstance(adam, optax.ScaleByAmsgradState) else adam.nu


def _adam_masses(adam: Any, b2: Any, eps: Any, like: optax.Updates) -> Iterable[jax.Array]:
    for moment in leaves_like(_second_moment(adam), like):
        x = upcast(moment, jnp)
        n, decay, epsilon = (common.value_at(y, adam.count, x.dtype) for y in (adam.count, b2, eps))
        if isinstance(adam, optax.ScaleByAmsgradState):  # the bias of the maximum is corrected
            decay = jnp.zeros_like(decay)
        yield jnp.asarray(adam_mass(x, decay, n, epsilon))


def _masked_as(mask: Any, tree: Any) -> Any:
    """The tree without the branches that are masked in another."""

    def masked(m: Any, x: Any) -> Any:
        return m if isinstance(m, optax.MaskedNode) else x

    return None if tree is None else jax.tree.map(masked, mask, tree, is_leaf=is_masked)


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
    common.check_setting("rho", rho, common.check_rho)
    sampling = core.Sampling(every, every)
    checked = cast(int, core.check_gradient_noise(True, batch_size, sampling.every))

    def dynamics(count: jax.Array, dtype: DType) -> core.Dynamics:
        return core.Dynamics(common.rho_at(rho, count, dtype))

    def momentum(how: core.Dynamics) -> core.Momentum:
        return core.Momentum(how.rho)

    meter = NoiseMeter(sampling, dynamics, axis_name, momentum, checked, of_gradients=True)

    def init(params: optax.Params) -> GradientNoiseState:
        return meter.init(params, core.BLOCK - 2)

    def update(updates: Any, state: GradientNoiseState, params: Any = None) -> Any:
        done, state = meter.step(state, updates)
        return released(updates, done), state

    return optax.GradientTransformation(init, update)


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
        ``partition``, read the state of each. Or if it has a :func:`gradient_thermometer` of other
        parameters, or ``by`` is none of the three.

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
    found = common.states_in(opt_state, ThermometerState)
    noises = common.states_in(opt_state, GradientNoiseState)
    if (most := max(len(found), len(noises))) != 1:
        raise ValueError(f"opt_state must have the state of one thermometer in it: {most} found")
    layouts = {*(layout_of(x.previous) for x in found), *(layout_of(x.lags[0]) for x in noises)}
    if len(layouts) > 1:
        raise ValueError(
            "the thermometers in opt_state must be of the same parameters: read the state of each"
        )
    (layout,), reasons = layouts, list[str | None]()
    if found:
        window = Window(*map(np.asarray, jax.tree.leaves(found[0].window)))
        reasons += [core.why_unmeasured(window)] if layout.parameters else []
    else:
        count, begun = map(int, jax.tree.leaves(noises[0][:2]))
        window = Window.empty(np.zeros(len(layout))).step(count - begun)
    noise = noises[0].on_host() if noises else None
    reading = core.report(window, layout, by, noise)
    if noise is not None:
        reasons.append(noise.why_unknown(noises[0].reason()))
    reasons.append(core.why_hotter(core.report(window, layout), layout))
    for why in filter(None, reasons):
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
        return state._replace(window=next_window(state.window))

    opt_state = common.map_states(begun, opt_state, ThermometerState)
    return common.map_states(GradientNoiseState.next, opt_state, GradientNoiseState)
