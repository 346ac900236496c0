"""The gradient transformation: the core's update rule over a pytree of parameters."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from coolmomentum import _check, _defaults
from coolmomentum import step_size as step_size_of
from coolmomentum._arrays import DType, Scalar, upcast
from coolmomentum.jax import _common as common
from coolmomentum.jax._common import RhoSchedule
from coolmomentum.jax._kept import chosen
from coolmomentum.jax._tree import Leaf, unboxed
from coolmomentum.schedules import (
    CoolingSchedule,
    Law,
    Schedule,
    WarmupClock,
    check_schedule,
    resolve_schedule,
)
from coolmomentum.update import next_displacement

Coefficients = Callable[[DType], tuple[jax.Array, jax.Array]]  # rho and step size in a precision


@common.exportable
class CoolMomentumState(NamedTuple):
    """What the next step needs."""

    # Shape (), int32: the steps already taken.
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as the clocks of optax do
    displacement: optax.Params  # last change of each parameter, of its shape; see accumulator_dtype


def cool_momentum(
    learning_rate: optax.ScalarOrSchedule = _defaults.LEARNING_RATE,
    total_steps: int | jax.Array | None = None,
    rho0: float | jax.Array | None = None,
    *,
    law: Law | None = None,
    warmup_steps: int | jax.Array | None = None,
    warmup_clock: WarmupClock | None = None,
    hold_steps: int | jax.Array | None = None,
    schedule: RhoSchedule | None = None,
    accumulator_dtype: DType | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The CoolMomentum optimizer.

    Momentum SGD read as Langevin dynamics: the momentum coefficient :math:`\rho` cools from
    ``rho0`` to 0 over ``total_steps`` steps, and the temperature of the walk falls with it. With
    :math:`n` the steps already taken, :math:`g_n` the gradient and :math:`dt^2` the learning rate,

    .. math::

        \eta_n &= dt^2 (1 + \rho_n) / 2 \\
        \Delta x_{n+1} &= \rho_n \Delta x_n - \eta_n g_n

    and :math:`\Delta x_{n+1}` is both the update and the state. Unlike in :func:`optax.sgd` the
    learning rate acts inside the momentum, so that the state is the change of the parameters
    whatever a learning-rate schedule does, and no learning rate goes after it in a chain. The
    first update of ``cool_momentum(0.25, 2, rho0=0.75)`` for a gradient of 1 is
    ``-0.25 * 1.75 / 2 = -0.21875``.

    The arithmetic is done in float32 at least (float64 for float64 leaves). Integer and boolean
    leaves and typed PRNG keys do not move. A leaf whose gradient is None gets None and keeps its
    displacement (the update counts as a step, and the displacement in a temperature, all the same).

    Under :func:`optax.inject_hyperparams` float hyperparameters take the dtype of the parameters:
    with bfloat16 parameters pass it ``hyperparam_dtype=jnp.float32``, or rho0 = 0.99 becomes
    0.98828. It asks a schedule at its own count: if it is around :class:`optax.MultiSteps`, pass it
    ``static_args="schedule"``, or the run cools too fast.

    To train longer, build the optimizer with the new total_steps and keep the state: rho is then
    where the longer run would have it.

    Parameters
    ----------
    learning_rate : base learning rate, the squared time step ``dt**2``, finite and >= 0; a number,
        a scalar array, an optax schedule, or a Variable of ``flax.nnx``, read in each step. (The
        other numbers may be Variables too, and are read once.)
    total_steps : the optimizer steps over which rho cools to 0, an integer >= 1; after them the
        optimizer is SGD with step ``learning_rate / 2``. Required, unless a schedule is given or
        the law is constant.
    rho0 : initial momentum coefficient in [0, 1); 0.99 if None.
    law : "paper" (if None), "linear", "exponential" or "constant", see
        :class:`coolmomentum.CoolingSchedule`.
    warmup_steps : steps at the start with rho = 0, an integer in [0, total_steps).
    warmup_clock : "run" or "hold", whether the cooling clock runs during the warm-up.
    hold_steps : steps at the start with rho = rho0, the warm-up included, before the law begins;
        an integer in [0, total_steps).
    schedule : in place of all these a :class:`coolmomentum.CoolingSchedule` or any callable
        ``step -> rho`` in [-1, 1). An array is a constant rho; :func:`optax.inject_hyperparams`
        makes one of a callable.
    accumulator_dtype : floating dtype of the displacements; that of the parameters if None.

    Returns
    -------
    the transformation, whose state is a :class:`CoolMomentumState`; its updates are in the dtype of
    the parameters, or of the gradients if ``update`` is called without parameters

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range. Arrays, which may be traced, are taken unchecked.

    References
    ----------
    Borysenko and Byshkin, "CoolMomentum: a method for stochastic optimization by Langevin dynamics
    with simulated annealing", Scientific Reports 11, 10705 (2021), Eqs 14, 16, 20 and 21.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> from coolmomentum.jax import cool_momentum, rho, temperature
    >>> from coolmomentum import CoolingSchedule
    >>> cooling = CoolingSchedule(total_steps=2, rho0=0.75)
    >>> tx = cool_momentum(learning_rate=0.25, schedule=cooling)
    >>> params = {"w": jnp.array([1.0])}
    >>> opt_state = tx.init(params)
    >>> for _ in range(2):
    ...     grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2) / 2)(params)
    ...     updates, opt_state = tx.update(grads, opt_state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> float(params["w"][0]), float(rho(opt_state, cooling))
    (0.525390625, 0.0)
    >>> round(float(temperature(opt_state, learning_rate=0.25)), 6)
    0.261856
    """
    common.check_setting("learning_rate", learning_rate, _check.non_negative)
    cooling = _cooling(
        schedule,
        total_steps=total_steps,
        rho0=rho0,
        law=law,
        warmup_steps=warmup_steps,
        warmup_clock=warmup_clock,
        hold_steps=hold_steps,
    )
    accumulator = _accumulator_dtype(accumulator_dtype)

    def init_fn(params: optax.Params) -> CoolMomentumState:
        at_rest = functools.partial(_at_rest, dtype=accumulator)
        return CoolMomentumState(jnp.zeros([], jnp.int32), jax.tree.map(at_rest, params))

    def update_fn(updates: Any, state: CoolMomentumState, params: Any = None, **_: Any) -> Any:
        @functools.cache  # one rho and one step size for all leaves of a precision
        def coefficients(dtype: DType) -> tuple[jax.Array, jax.Array]:
            rho = common.rho_at(cooling, state.count, dtype)
            return rho, step_size_of(common.value_at(learning_rate, state.count, dtype), rho)

        with common.promoting():
            return _step(updates, state, params, coefficients)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _step(
    gradients: Any, state: CoolMomentumState, params: Any, coefficients: Coefficients
) -> tuple[optax.Updates, CoolMomentumState]:
    """The updates and the state after them."""
    # A None among the gradients is a leaf.
    with_none = functools.partial(jax.tree.map, is_leaf=lambda g: g is None)

    def moved_by(g: Leaf, dx: jax.Array) -> Any:
        stays = g is None or not common.is_trainable(dx)
        return dx if stays else _moved(g, dx, coefficients)

    always = state.count > np.iinfo(state.count.dtype).min  # and XLA cannot know

    def update(g: Leaf, dx: jax.Array, x: Leaf) -> Any:
        if g is None or not common.is_trainable(dx):
            return None if g is None else dx
        return chosen(_stored(dx, x), always)

    moved = with_none(moved_by, gradients, state.displacement)
    updates = with_none(update, gradients, moved, gradients if params is None else params)
    displacement = jax.tree.map(_stored, moved, state.displacement)
    return updates, CoolMomentumState(optax.safe_increment(state.count), displacement)


def _cooling(schedule: Any, **settings: Any) -> Schedule:
    settings = {name: unboxed(value) for name, value in settings.items()}
    schedule, rho0 = unboxed(schedule), settings["rho0"]
    if common.is_array(rho0):  # inject_hyperparams may have made it bfloat16, or complex
        settings["rho0"] = jnp.real(rho0).astype(common.precision(rho0))
    given = (lambda step: schedule) if common.is_array(schedule) else schedule
    resolved = resolve_schedule(given, **settings)
    if common.is_array(schedule) or isinstance(resolved, CoolingSchedule):
        return resolved
    return _probed(resolved, settings["total_steps"])


def _probed(schedule: Schedule, total_steps: Scalar) -> Schedule:
    """``schedule``, after a check of rho at the ends and in the middle, called as by ``update``."""

    def probe(step: int) -> Any:
        rho = schedule(jnp.asarray(step, jnp.int32))
        # A schedule that closes over a traced hyperparameter has no value yet to check.
        if isinstance(rho, jax.core.Tracer):
            return 0.0
        return rho.item() if isinstance(rho, jax.Array) and rho.size == 1 else rho

    known = total_steps is not None and not common.is_array(total_steps)
    length = min(total_steps, 2**31 - 1) if known else 1
    # The transformation may be built inside jit.
    with jax.ensure_compile_time_eval(), common.promoting():
        check_schedule(probe, length)
    return schedule


def _accumulator_dtype(dtype: DType | None) -> DType | None:
    if dtype is None:
        return None
    canonical = jax.dtypes.canonicalize_dtype(dtype)  # float64 is float32 without jax_enable_x64
    if not jnp.issubdtype(canonical, jnp.inexact):
        raise TypeError(f"accumulator_dtype must be a floating dtype: {dtype!r}")
    return canonical


def _at_rest(x: Leaf, dtype: DType | None) -> jax.Array:
    if common.is_key(x):
        return jnp.zeros_like(x)
    # An explicit dtype makes the zeros strongly typed, or the second step would compile again.
    chosen = dtype is not None and common.is_trainable(x)
    return jnp.zeros_like(x, dtype if chosen else jnp.result_type(x))


def _moved(gradient: Leaf, displacement: jax.Array, coefficients: Callable[[DType], Any]) -> Any:
    """The next displacement, in the precision in which it is computed."""
    g, dx = upcast(jnp.asarray(gradient), jnp), upcast(displacement, jnp)
    if jnp.iscomplexobj(g) and not jnp.iscomplexobj(dx):
        raise TypeError(
            "gradients must be real where the parameter, or accumulator_dtype, is: "
            f"{g.dtype} for {displacement.dtype}"
        )
    rho, step_size = coefficients(common.precision(g, dx))
    return next_displacement(dx, g, rho=rho, step_size=step_size)


def _stored(value: jax.Array, like: Leaf) -> jax.Array:
    return value if value is like else value.astype(jnp.result_type(like))
