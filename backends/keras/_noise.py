"""The gradient noise of Keras' optimizers, from their momenta."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from coolmomentum import thermometer as core
from coolmomentum._arrays import bits, namespace
from coolmomentum.keras._common import Tensor, Variable
from coolmomentum.keras._dynamics import Rule
from coolmomentum.keras._values import JAX, TENSORFLOW, Reader, apart, compiled, iterations, reader


class _Kept(NamedTuple):
    """What is kept of a step."""

    momenta: list[Tensor]  # after the step, as a reader gives values
    rule: core.Momentum
    before: Tensor  # shape (): iterations before the step
    after: Tensor


class NoiseMeter:
    """The gradient noise of some variables, in a window."""

    def __init__(
        self,
        optimizer: Any,
        variables: list[Variable],
        rule: Rule,
        layout: core.Layout,
        dtype: str,
        batch_size: int,
    ) -> None:
        self._optimizer, self._variables, self._rule = optimizer, variables, rule
        self._layout, self._dtype, self._batch_size = layout, dtype, batch_size
        self.why_none = rule.why_none
        self._copy: Callable[..., Any] = compiled(lambda tensors: [ops.copy(x) for x in tensors])
        self._measure = compiled(self._measured)
        self._momenta: Reader | None = None

    def begin(self, zeros: Tensor) -> None:
        """Begin anew, without copies; the sums are zeros like these."""
        empty = core.GradientNoise.empty(zeros, self._batch_size, xp=ops)
        size = ops.convert_to_tensor(self._batch_size, "int32")
        self.noise = empty._replace(counts=ops.zeros(1, "int32"), batch_size=size)
        self._kept: list[_Kept] = []  # of the last steps, the newest first

    def after(self, ahead: int, before: Tensor, rate: Tensor) -> None:
        """After a step that is as many steps before a measured one, or is measured itself.

        Before it were so many iterations.
        """
        self._momenta = self._momenta or self._found()
        if self._momenta is None:
            return
        momenta = self._momenta()
        kept = _Kept(
            momenta if ahead == 0 else self._copy(momenta),
            core.Momentum(*(ops.cast(x, self._dtype) for x in self._rule.momentum(rate))),
            before,
            iterations(self._optimizer),
        )
        self._kept = [kept, *self._kept][: core.BLOCK]
        if ahead == 0:
            if len(self._kept) == core.BLOCK:
                self.noise = self._measure(self.noise, self._kept)
            self._kept = []

    def _found(self) -> Reader | None:
        """What reads the momenta, which are there once the optimizer is built, if they will do."""
        if self.why_none or self._rule.momenta is None:
            return None
        momenta, index = self._rule.momenta(), self._optimizer._get_variable_index
        chosen = [momenta[index(x)] for x in self._variables]
        if any(bits(keras.backend.standardize_dtype(x.dtype)) < 32 for x in chosen):
            self.why_none = "in 16 bits"
            return None
        return reader(chosen, self._dtype)

    def _measured(self, noise: core.GradientNoise, kept: list[_Kept]) -> core.GradientNoise:
        applied = ops.ones((), "bool")
        for step in kept[:-1]:
            applied = ops.logical_and(applied, ops.equal(step.after - step.before, 1))
        momenta = [apart(x.momenta, self._layout.sizes, self._dtype) for x in kept]
        rules = [x.rule for x in kept[:-1]]
        # On PyTorch each operation is a call, and by way of Keras takes twice as long.
        xp = ops if JAX or TENSORFLOW else namespace(noise.sums)
        how: dict[str, Any] = {"dot": lambda x, y: xp.sum(x * y), "xp": xp}
        return noise.measure(momenta, rules, self._layout, applied=applied, **how)
