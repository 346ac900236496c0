"""CoolMomentum in a heat bath: the random force of the core, drawn in each step."""

from collections.abc import Callable
from typing import Any, get_args

import keras
from keras import ops

from coolmomentum import _check, _defaults
from coolmomentum.keras._common import Tensor, Variable, wide_dtype
from coolmomentum.keras._optimizer import CoolMomentum, Step
from coolmomentum.keras._schedule import registered
from coolmomentum.thermal import Noise, draw_key, random_force, random_force_scale

# Stateless: a SeedGenerator of Keras is in no optimizer's variables, so that nothing would resume.
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    def _normals(key: int, step: Tensor, shape: tuple[int, ...], dtype: str) -> Tensor:
        seed = tf.random.experimental.stateless_fold_in([key >> 32, key & 0x7FFFFFFF], step)
        return tf.random.stateless_normal(shape, seed, dtype=dtype)

elif keras.backend.backend() == "jax":
    import jax

    def _normals(key: int, step: Tensor, shape: tuple[int, ...], dtype: str) -> Tensor:
        keys = jax.random.fold_in(jax.random.key(key >> 32), key & 0xFFFFFFFF)
        return jax.random.normal(jax.random.fold_in(keys, step), shape, dtype)

else:
    import torch

    def _normals(key: int, step: Tensor, shape: tuple[int, ...], dtype: str) -> Tensor:
        device = ops.convert_to_tensor(step).device
        generator = torch.Generator(device).manual_seed(draw_key(key, 0, int(step)))
        kind = getattr(torch, dtype)
        return torch.randn(shape, generator=generator, dtype=kind, device=device)


@keras.saving.register_keras_serializable(package="coolmomentum")
class Langevin(CoolMomentum):
    """CoolMomentum with the random force of a heat bath, which makes it sample and anneal.

    With it the walk samples ``exp(-loss / temperature)``, whatever rho is and however it cools. The
    force is added after clipping and accumulation.

    The normal numbers of a step depend on the seed, the index of the variable in the optimizer and
    ``iterations``; all replicas of a strategy draw the same. A loaded run draws the numbers of one
    that never stopped. On PyTorch's backend with a GPU each draw waits for the device, as in Keras'
    own layers.

    Parameters
    ----------
    learning_rate, total_steps, rho0 : as of :class:`CoolMomentum`; ``law="constant"`` needs no
        total_steps.
    temperature : of the bath, an energy in the unit of the loss, >= 0; or a function of the step,
        which inside a step gets a 0-d floating tensor and is to be registered as a schedule is. For
        a loss that is a mean over n data the posterior is at 1 / n.
    noise : "averaged" over two steps, exact on every quadratic; or "white", Eq. 17 as it stands.
    seed : integer >= 0.
    name : of the optimizer.
    **kwargs : the other arguments of :class:`CoolMomentum`.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    On ``k x**2 / 2`` the mean of ``k x**2`` is the temperature.

    >>> import keras
    >>> from coolmomentum.keras import Langevin
    >>> x = keras.Variable(keras.ops.zeros(100_000))
    >>> optimizer = Langevin(0.5, rho0=0.5, law="constant", temperature=2.0)
    >>> for _ in range(30):
    ...     optimizer.apply([4 * x.value], [x])
    >>> round(float((4 * x.numpy() ** 2).mean()), 1)
    2.0
    """

    def __init__(
        self,
        learning_rate: Any = _defaults.LEARNING_RATE,
        total_steps: int | None = None,
        rho0: float | None = None,
        *,
        temperature: float | Callable[[Any], Any],
        noise: Noise = "averaged",
        seed: int = 0,
        name: str = "langevin",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, total_steps, rho0, name=name, **kwargs)
        if not callable(temperature):
            temperature = _check.non_negative("temperature", temperature)
        self._bath_temperature = temperature
        self.noise: Noise = noise
        _check.one_of("noise", noise, get_args(Noise))
        self.seed = _check.integer("seed", seed, 0)
        self._normals: list[Variable] = []

    def build(self, variables: list[Variable]) -> None:
        """Make the variables of CoolMomentum, and after them the normal numbers of a step."""
        if self.built:
            return
        super().build(variables)
        if self.noise == "averaged":
            self._normals = self.add_optimizer_variables(variables, "normals")

    def bath_temperature(self, step: Tensor, dtype: str) -> Tensor:
        """Temperature of the bath in a step.

        Parameters
        ----------
        step : 0-d tensor, the steps already taken.
        dtype : floating dtype of the result.
        """
        value = self._bath_temperature
        return ops.cast(value(ops.cast(step, dtype)) if callable(value) else value, dtype)

    def update_step(
        self, gradient: Tensor, variable: Variable, learning_rate: "Tensor | Step"
    ) -> None:
        """One step of one variable, with the random force; as of :class:`CoolMomentum`."""
        step = self._step_of(learning_rate, [variable])
        super().update_step(self._forced(gradient, variable, step), variable, step)

    def _backend_update_step(
        self, grads: list[Tensor], trainable_variables: list[Variable], learning_rate: Any
    ) -> None:
        if keras.backend.backend() == "torch":  # which takes no step of one variable
            step = self._step(learning_rate, trainable_variables)
            pairs = zip(grads, trainable_variables, strict=True)
            grads = [self._forced(gradient, variable, step) for gradient, variable in pairs]
            learning_rate = step
        super()._backend_update_step(grads, trainable_variables, learning_rate)

    def _step(self, learning_rate: Any, variables: list[Variable]) -> Step:
        dtype, n = wide_dtype(variables), self.iterations
        rate, last = (ops.cast(x, dtype) for x in (learning_rate, self._last_learning_rate))
        last = ops.where(ops.equal(n, 0), rate, last)
        step = super()._step(learning_rate, variables)
        bath = self.bath_temperature(n, dtype)
        scale = random_force_scale(bath, rate, ops.cast(step.rho, dtype), last, xp=ops)
        return step._replace(force_scale=scale)

    def _forced(self, gradient: Tensor, variable: Variable, step: Step) -> Tensor:
        """The gradient less the random force, in the dtype to compute in."""
        index, dtype = self._get_variable_index(variable), wide_dtype([variable])
        key, shape = draw_key(self.seed, index, 0), tuple(variable.shape)
        new = old = _normals(key, self.iterations, shape, dtype)
        if self.noise == "averaged":
            kept = self._normals[index]
            old = ops.cast(ops.copy(ops.convert_to_tensor(kept)), dtype)
            new = ops.cast(ops.cast(new, kept.dtype), dtype)  # as the next step will have it
            self.assign(kept, new)
        force = random_force(old, new, ops.cast(step.force_scale, dtype), noise=self.noise, xp=ops)
        return ops.subtract(ops.cast(gradient, dtype), force)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, as Keras can write them."""
        temperature = self._bath_temperature
        if callable(temperature):
            temperature = registered("temperature", temperature)
        config: dict[str, Any] = super().get_config()
        return config | {"temperature": temperature, "noise": self.noise, "seed": self.seed}
