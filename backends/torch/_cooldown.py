"""Hold hot, cool when told: a scheduler for CoolMomentum and for any other optimizer."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from coolmomentum import _check
from coolmomentum.cooldown import COLDEST, HELD, learning_rate_share
from coolmomentum.schedules import COOLING_LAWS, Law
from coolmomentum.torch import _coefficients as coefficients
from coolmomentum.torch._dynamics import follow
from coolmomentum.torch._optimizer import CoolMomentum
from coolmomentum.torch._tensors import Group
from coolmomentum.torch._validation import checked_cooling


class Cooldown(LRScheduler):
    """Scheduler that holds until it is told to cool: for CoolMomentum or any other optimizer.

    CoolMomentum then cools its rho to 0, and its learning rate stays. The learning rate of another
    optimizer falls to 1/199 of its value: by :func:`coolmomentum.learning_rate_share`, along the
    temperature that the same law gives from rho0 = 0.99. Held and then cooled is a run whose
    learning rate decays; it buys no accuracy over one that was planned. It is for runs whose end is
    not known: a held checkpoint can be cooled as often as you like, and trained on.

    It counts the steps that the optimizer took, not its own calls: those of microbatches, of other
    processes (Accelerate) and of skipped steps do not count. Call ``step`` after each step of the
    optimizer. Make it before the optimizer loads a checkpoint, as every scheduler of torch.

    Parameters
    ----------
    optimizer : any optimizer whose step calls the hooks of torch, or a wrapper of Accelerate,
        Lightning or Fabric. A CoolMomentum that is held: made with ``law="constant"``, or with
        ``**coolmomentum.HELD``.
    warmup_steps : steps at the start over which the learning rate rises linearly to its value, of
        any optimizer; an integer >= 0.
    law : "linear", "exponential" or "paper": how it will cool.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or a CoolMomentum cools by itself.
    RuntimeError
        If a CoolMomentum is capturable: a captured graph does not see the change.

    Notes
    -----
    The checkpoint is of plain numbers. What CoolMomentum was told is in the checkpoint of the
    optimizer. A compiled step with the learning rate in a tensor goes on as it is compiled; that of
    CoolMomentum is compiled once more at the start.

    Examples
    --------
    >>> import torch
    >>> from coolmomentum.torch import Cooldown
    >>> x = torch.ones(1, requires_grad=True)
    >>> optimizer = torch.optim.AdamW([x], lr=0.1)
    >>> cooldown = Cooldown(optimizer)
    >>> def train(steps):
    ...     for _ in range(steps):
    ...         optimizer.zero_grad()
    ...         (x**2).sum().backward()
    ...         optimizer.step()
    ...         cooldown.step()
    >>> train(40)
    >>> cooldown.get_last_lr()
    [0.1]
    >>> cooldown.start(fraction=0.25)
    10
    >>> train(5)
    >>> round(cooldown.get_last_lr()[0], 6), cooldown.steps_left
    (0.050251, 5)
    """

    def __init__(self, optimizer: Optimizer, *, warmup_steps: int = 0, law: Law = "linear") -> None:
        self.law: Law = law
        _check.one_of("law", law, COOLING_LAWS)
        self.warmup_steps = _check.integer("warmup_steps", warmup_steps, 0)
        self._hold_steps, self._end = HELD.values()
        self._held = 1.0  # share of the learning rate until hold_steps
        # A tensor, so that a compiled step counts without another compilation.
        self._taken = torch.zeros((), dtype=torch.int64, device="cpu")
        inner, hooks = follow(optimizer, _nothing, self._count)
        try:
            if isinstance(inner, CoolMomentum):
                _check_held(inner)
                inner._cools_when_told = True
        except Exception:
            for hook in hooks:
                hook.remove()
            raise
        super().__init__(inner)

    def _count(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """A hook after each step: one that a loss scaler skips inside the kernel is none."""
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not bool(found_inf):
            self._taken.add_(1)

    @property
    def steps_taken(self) -> int:
        """Steps that the optimizer has applied."""
        if isinstance(self.optimizer, CoolMomentum):
            return int(self.optimizer.param_groups[0]["cooling_step"])
        return int(self._taken)

    @property
    def steps_left(self) -> int | None:
        """Steps until it has cooled; None while it holds."""
        end = self._end
        if isinstance(self.optimizer, CoolMomentum):
            end = self.optimizer.param_groups[0]["total_steps"]
        return None if end in (None, HELD["total_steps"]) else max(0, end - self.steps_taken)

    # --- told -----------------------------------------------------------------------------------

    def start(self, steps: int | None = None, *, fraction: float | None = None) -> int:
        """Cool from now on, from the temperature that there is; again, to extend what is left.

        Parameters
        ----------
        steps : over which to cool, an integer >= 1; or
        fraction : of the steps so far, > 0, of which it is rounded to 1 at least.

        Returns
        -------
        the steps over which it cools

        Raises
        ------
        TypeError, ValueError
            If an argument is out of range, or it has cooled already. Nothing has been changed then.

        Examples
        --------
        >>> optimizer = CoolMomentum([torch.ones(1, requires_grad=True)], law="constant", rho0=0.9)
        >>> Cooldown(optimizer).start(steps=100)
        100
        >>> optimizer.param_groups[0]["total_steps"]
        100
        """
        taken = self.steps_taken
        if (steps is None) == (fraction is None):
            raise TypeError(f"start takes steps or a fraction: {steps!r} and {fraction!r}")
        if fraction is None:
            steps = _check.integer("steps", steps, 1)
        elif taken == 0:
            raise ValueError(f"fraction is of the steps so far, and none was taken: {fraction!r}")
        else:
            steps = max(1, round(_check.positive("fraction", fraction) * taken))
        if isinstance(self.optimizer, CoolMomentum):
            counts = {"law": self.law, "hold_steps": taken, "total_steps": taken + steps}
            if not any(_rho_of(group) for group in self.optimizer.param_groups):
                raise ValueError(f"{_COOLED}: rho is 0")
            _cool(self.optimizer, counts)
        else:
            share = self._share(taken)
            if share <= COLDEST:
                raise ValueError(f"{_COOLED}: the learning rate is 1/199 of what it was")
            self._held, self._hold_steps, self._end = share, taken, taken + steps
        return steps

    def stop(self) -> None:
        """Stop to cool, and hold the temperature that there is until it is started again.

        Examples
        --------
        >>> optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
        >>> cooldown = Cooldown(optimizer)
        >>> cooldown.start(steps=100)
        100
        >>> cooldown.stop()
        >>> cooldown.steps_left is None
        True
        """
        if isinstance(self.optimizer, CoolMomentum):
            _cool(self.optimizer, {"law": "constant", "hold_steps": 0, "total_steps": None})
        else:
            self._held = self._share(self.steps_taken)
            self._hold_steps, self._end = HELD.values()

    # --- the learning rate ----------------------------------------------------------------------

    def _share(self, step: int) -> float:
        if isinstance(self.optimizer, CoolMomentum):
            return 1.0
        share: float = learning_rate_share(step, self._hold_steps, self._end, self.law, self._held)
        return share

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates of the next step, of each group."""
        step = self.steps_taken
        scale = self._share(step)
        if step < self.warmup_steps:
            scale *= (step + 1) / self.warmup_steps
        groups = self.optimizer.param_groups
        return [group.setdefault("initial_lr", _copy(group["lr"])) * scale for group in groups]

    def step(self, epoch: int | None = None) -> None:
        """Set the learning rates of the next step; as often as you like.

        Parameters
        ----------
        epoch : ignored, as it is deprecated in torch.
        """
        self._step_count += 1
        self._set_rates()

    @torch.no_grad()
    def _set_rates(self) -> None:
        self.last_epoch = self.steps_taken
        groups = self.optimizer.param_groups
        if self.warmup_steps or not isinstance(self.optimizer, CoolMomentum):
            for group, lr in zip(groups, self.get_lr(), strict=True):
                if isinstance(group["lr"], Tensor):  # in place: a compiled step has this one
                    group["lr"].fill_(lr)
                else:
                    group["lr"] = lr
        self._last_lr = [_copy(group["lr"]) for group in groups]

    # --- checkpoints ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The checkpoint: the steps taken, and what it was told.

        Returns
        -------
        dict of plain numbers and the name of the law
        """
        return {
            "steps_taken": self.steps_taken,
            "hold_steps": self._hold_steps,
            "end": self._end,
            "held": self._held,
            "law": self.law,
            "_step_count": self._step_count,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, bit for bit; load that of the optimizer too.

        Parameters
        ----------
        state_dict : from :meth:`state_dict`. If it held, the law stays that of the constructor.
        """
        self._taken.fill_(state_dict["steps_taken"])
        self._hold_steps, self._end = state_dict["hold_steps"], state_dict["end"]
        self._held, self._step_count = state_dict["held"], state_dict["_step_count"]
        if self._end != HELD["total_steps"]:
            self.law = state_dict["law"]
        self._set_rates()


_COOLED = "it has cooled already, load a held checkpoint"


def _nothing(*_: Any) -> None:
    """The hook before a step."""


def _copy(lr: float | Tensor) -> float | Tensor:
    return lr.detach().clone() if isinstance(lr, Tensor) else lr


def _check_held(optimizer: CoolMomentum) -> None:
    for group in optimizer.param_groups:
        if group["schedule"] is not None:
            raise ValueError(
                "CoolMomentum must cool by a law to be told, not by a schedule of your own: "
                f"{group['schedule']!r}"
            )
        if group["capturable"]:
            raise RuntimeError(
                "Cooldown is not for capturable=True, as a captured graph would not see it"
            )
        if group["law"] != "constant" and not group["hold_steps"]:
            raise ValueError(
                "CoolMomentum must be held, by law='constant' or **coolmomentum.HELD, or it cools "
                f"by itself: law={group['law']!r}, total_steps={group['total_steps']}"
            )


def _rho_of(group: Group) -> float:
    """The momentum coefficient that a group has come to, its warm-up apart."""
    if group["law"] == "constant" or int(group["cooling_step"]) <= group["hold_steps"]:
        return float(group["rho0"])
    return float(coefficients.next_rho(group))


def _cool(optimizer: CoolMomentum, counts: dict[str, Any]) -> None:
    """Let every group cool from its present rho, and groups that are added later."""
    optimizer._check_groups()
    told = [
        checked_cooling(group | counts | {"rho0": _rho_of(group)}, whole=True)
        for group in optimizer.param_groups
    ]
    for group, cooling in zip(optimizer.param_groups, told, strict=True):
        group.update(cooling)
    optimizer.defaults.update(counts)
    optimizer._check_groups()
