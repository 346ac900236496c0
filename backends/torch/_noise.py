"""The gradient noise of torch's optimizers, from momentum buffers, or else from the gradients."""

from typing import NamedTuple

import array_api_compat.torch as xp
import torch
from torch import Tensor
from torch.optim import SGD, Adam, NAdam, Optimizer

from coolmomentum import thermometer as core
from coolmomentum.thermometer import Momentum
from coolmomentum.thermometer.layout import spread
from coolmomentum.torch import _dynamics as dynamics
from coolmomentum.torch._dynamics import Before, Settings
from coolmomentum.torch._optimizer import CoolMomentum
from coolmomentum.torch._reductions import all_reduced, dot, local_real_view
from coolmomentum.torch._tensors import HALF, Group, Number, scalar

# Kinds of optimizers and their momenta.
BUFFERS: dict[type[Optimizer], str] = {
    CoolMomentum: "displacement",
    SGD: "momentum_buffer",
    Adam: "exp_avg",
}


class Step(NamedTuple):
    """What is kept of a step, newest first; a list has one for each parameter."""

    rules: list[Momentum]  # by which the momenta went on
    rhos: list[Number | None]
    kept: list[Tensor]  # momenta after the step, or gradients in it
    found_inf: Tensor | None  # where a kernel skips the step, unknown to the host


class NoiseMeter:
    """The gradients of some parameters, and what it takes to know them."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size, self.warned = batch_size, False

    def begin(self, params: list[Tensor], zeros: Tensor) -> None:
        """Begin a window with these parameters."""
        self._params = params
        noise = core.GradientNoise.empty(zeros, self._batch_size, xp=xp)
        # On the device, which alone may know whether a step was one.
        self.noise = noise._replace(counts=torch.zeros(1, dtype=torch.int64, device=zeros.device))
        self._reason = ""
        self.forget()

    def forget(self) -> None:
        """Free the copies."""
        self._steps, self._befores = list[Step](), list[Before]()

    def why(self) -> str | None:
        """Why there is no reading of all parameters together."""
        return self.on_host().why_unknown(self._reason)

    def on_host(self) -> core.GradientNoise:
        """What was measured; this waits for the device."""
        sums, counts = self.noise.sums.cpu().double().numpy(), self.noise.counts.cpu().numpy()
        return core.GradientNoise(sums, counts, self._batch_size)

    def before(
        self, optimizer: Optimizer, groups: list[tuple[Group, Settings]], closure: bool
    ) -> None:
        """Before a step: how the momenta will go on, or which gradients it has.

        ``groups`` has the group of each parameter, and its settings.
        """
        self._kind = next((x for x in BUFFERS if dynamics.uses_step_of(optimizer, x)), None)
        self._befores = [
            dynamics.before(optimizer, group, x, how, closure, copies=False)
            for (group, how), x in zip(groups, self._params, strict=True)
        ]
        by_group = {id(group): (group, how) for group, how in groups}.items()
        rules = {key: self._rule(optimizer, group) for key, (group, _) in by_group}
        self._rules = [rules[id(group)] for group, _ in groups]
        self._rhos, self._gradients = [rule.rho for rule in self._rules], None
        if self._kind is None:
            told = {key: self._told(optimizer, *pair) for key, pair in by_group}
            self._rhos = [None if closure else told[id(group)] for group, _ in groups]
            self._gradients = [_gradient(x) for x in self._params]
            if closure:
                self._unknown("as gradients come in the closure")

    def after(self, optimizer: Optimizer, layout: core.Layout, ahead: int) -> None:
        """After a step that is as many steps before a measured one, or is measured itself."""
        if not self._befores:  # a hook came in between
            self._steps = []
            return
        kept = self._gradients
        if kept is None:
            kept = [self._momentum(optimizer, i, copy=ahead > 0) for i in range(len(self._params))]
        found_inf = getattr(optimizer, "found_inf", None)
        found_inf = None if found_inf is None else found_inf.clone()
        self._steps = [Step(self._rules, self._rhos, kept, found_inf), *self._steps][: core.BLOCK]
        if not ahead:
            if len(self._steps) == core.BLOCK:
                self._measure(layout)
            self.forget()
        self._befores = []

    def _measure(self, layout: core.Layout) -> None:
        now, kept = self._steps[0], [step.kept for step in self._steps]
        rules = [step.rules for step in self._steps[:-1]]
        device = self.noise.sums.device

        def product(a: Tensor, b: Tensor) -> Tensor:
            return dot(a, b).to(device)

        if self._gradients is None:
            table = core.momenta_moments(kept, rules, dot=product, xp=xp)
        else:
            table = core.noise_moments(zip(*kept[:-1], strict=True), dot=product, xp=xp)
        self.noise = self.noise.add(
            all_reduced(self._params, table.T).T,
            layout,
            spread(now.rhos, self.noise.sums[0, 0], xp),
            applied=self._applied(),
            xp=xp,
        )

    def _applied(self) -> bool | Tensor:
        """Whether each of the three steps was one; a tensor where the host does not know."""
        steps = self._steps[:-1]
        rules = {id(rule): rule for step in steps for rule in step.rules}.values()
        flags = [rule.shows() for rule in rules]
        flags += [step.found_inf == 0 for step in steps if step.found_inf is not None]
        unknown = [x.to(self.noise.sums.device).reshape(()) for x in flags if isinstance(x, Tensor)]
        known = all(x for x in flags if not isinstance(x, Tensor))
        return torch.stack(unknown).all() if known and unknown else known

    def _rule(self, optimizer: Optimizer, group: Group) -> Momentum:
        """The rule of the momenta of a group, if they show the gradient."""
        if self._kind is CoolMomentum:
            how = core.Dynamics(*dynamics.dynamics_of(optimizer, group)[:2])
            if dynamics.bath_of(optimizer) is not None:
                self._unknown("in a heat bath")
                return Momentum()
            rule = Momentum.of_displacements(how)
        elif self._kind is SGD:
            if group["nesterov"]:
                self._unknown("as Nesterov's is another")
                return Momentum()
            rule = Momentum(group["momentum"], 1 - group["dampening"])
        elif self._kind is Adam:
            beta1 = scalar(group["betas"][0])
            rule = Momentum(beta1, 1 - beta1)
        else:
            return Momentum()
        return Momentum(*map(dynamics.snapshot, rule))

    def _told(self, optimizer: Optimizer, group: Group, how: Settings) -> Number | None:
        """Rho of another optimizer."""
        if group.get("nesterov") or dynamics.uses_step_of(optimizer, NAdam):
            self._unknown("as Nesterov's is another")
            return None
        if how.rho is None:
            self._unknown(f"of {type(optimizer).__name__}; tell its rho, Thermometer(rho=...)")
        return how.rho

    def _momentum(self, optimizer: Optimizer, i: int, *, copy: bool) -> Tensor:
        """The momentum of a parameter after the step; its rule is changed if it has none."""
        param, rule = self._params[i], self._rules[i]
        name = BUFFERS[self._kind] if self._kind else ""
        buffer = optimizer.state.get(param, {}).get(name)
        if not dynamics.moved(param, self._befores[i]) and rule.rho is not None:
            self._rules[i] = rule._replace(rho=1.0)  # no gradient came, and the buffer waits
        if buffer is None or rule.rho is None:
            return torch.zeros_like(local_real_view(param))
        if buffer.dtype in HALF or buffer.layout != torch.strided:
            self._unknown("in 16 bits" if buffer.dtype in HALF else "which is sparse")
            self._rules[i], self._rhos[i] = Momentum(), None
            return torch.zeros_like(local_real_view(param))
        view = local_real_view(buffer)
        return view.clone() if copy else view

    def _unknown(self, reason: str) -> None:
        self._reason = self._reason or reason


def _gradient(param: Tensor) -> Tensor:
    """A copy of a gradient before the step, zeros where there is none."""
    if param.grad is None:
        return torch.zeros_like(local_real_view(param))
    gradient = param.grad.to_dense() if param.grad.is_sparse else param.grad
    return local_real_view(gradient).clone()
