"""A heat bath: the random force of the core, which CoolMomentum's step adds to its gradients."""

import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from coolmomentum import _check
from coolmomentum.thermal import Noise, bath_temperature, draw_key, random_force, random_force_scale
from coolmomentum.torch._dynamics import stepper_of, unwrapped, unwrapped_cool_momentum
from coolmomentum.torch._tensors import Coefficients, Group

Kept = dict[int, tuple[int, Tensor]]  # by the place of a parameter: a step n, and its xi_n


class ThermalNoise:
    """The random force of a heat bath, which makes CoolMomentum sample and anneal.

    With it the walk samples ``exp(-loss / temperature)``, whatever rho is and however it cools. The
    step adds the force to its gradients after closure, unscaling and the test for inf; ``.grad``
    stays as it is.

    The normal numbers of a step depend on the seed, the place of the parameter among those of the
    optimizer, and the step counter. Nothing is added to checkpoints: a resumed run with the same
    seed draws the same numbers, on the same kind of device. Processes draw what one would: replicas
    of DistributedDataParallel the same, of a DTensor each its part, with ZeroRedundancyOptimizer
    each its parameters. Where they have parts of a parameter that nothing tells from replicas, as
    with FullyShardedDataParallel, DeepSpeed or Megatron, give each part a seed of its own, and
    processes with the same part the same.

    Parameters
    ----------
    optimizer : a CoolMomentum, or a wrapper of it, of Accelerate, Lightning or Fabric; or the
        ZeroRedundancyOptimizer that made it, itself and not its ``.optim``.
    temperature : of the bath, an energy in the unit of the loss, >= 0; or a function of the step.
        For a loss that is a mean over n data the posterior is at 1 / n.
    noise : "averaged" over two steps, exact on every quadratic; or "white", Eq. 17 as it stands.
    seed : integer >= 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range. The step raises RuntimeError if it is capturable, because a
        captured graph would draw the same numbers again and again; if its lr requires grad; and, as
        the constructor, if a ZeroRedundancyOptimizer lacks a parameter that its ``.optim`` steps.

    Examples
    --------
    On ``k x**2 / 2`` the mean of ``k x**2`` is the temperature.

    >>> import torch
    >>> from coolmomentum.torch import CoolMomentum, ThermalNoise
    >>> x = torch.zeros(100_000, requires_grad=True)
    >>> optimizer = CoolMomentum([x], lr=0.5, law="constant", rho0=0.5)
    >>> bath = ThermalNoise(optimizer, temperature=2.0)
    >>> for _ in range(30):
    ...     optimizer.zero_grad()
    ...     (4 * x**2 / 2).sum().backward()
    ...     optimizer.step()
    >>> round((4 * x**2).mean().item(), 1)
    2.0
    >>> bath.remove()
    """

    def __init__(
        self,
        optimizer: Optimizer,
        temperature: float | Callable[[int], float],
        *,
        noise: Noise = "averaged",
        seed: int = 0,
    ) -> None:
        whole = unwrapped(optimizer)
        inner = stepper_of(whole)
        if whole is None or inner is whole:
            whole = inner = unwrapped_cool_momentum(optimizer)
        if inner._bath is not None:
            raise ValueError("optimizer must have no other ThermalNoise: first call its remove()")
        if not callable(temperature):
            temperature = _check.non_negative("temperature", temperature)
        self.temperature = temperature
        self.noise: Noise = noise
        self.seed = _check.integer("seed", seed, 0)
        _check.one_of("noise", noise, get_args(Noise))
        self._kept: Kept = {}
        self._optimizer, self._whole = inner, whole
        if any([_may_be_a_part(param) for param in self.places()]):
            warnings.warn(
                "parts of a parameter of FullyShardedDataParallel look like whole ones, and draw "
                "the same numbers by one seed: see to it that each part has a seed of its own, and "
                "processes with the same part the same; or use fully_shard, whose parts are known",
                stacklevel=2,
            )
        inner._bath = self

    def remove(self) -> None:
        """Take the force away from the steps that follow."""
        if self._optimizer._bath is self:
            self._optimizer._bath = None

    def __enter__(self) -> "ThermalNoise":
        return self

    def __exit__(self, *_: types.TracebackType | BaseException | type | None) -> None:
        self.remove()

    def temperature_at(self, step: int) -> float:
        """Temperature of the bath in a step.

        Parameters
        ----------
        step : the steps already taken.

        Returns
        -------
        the temperature

        Raises
        ------
        ValueError
            If a function of your own gives one that is negative or not finite.
        """
        return bath_temperature(self.temperature, step)

    def places(self) -> dict[Tensor, int]:
        """The parameters, those of other processes included, and the place of each."""
        places = {param: place for place, param in enumerate(_params_of(self._whole))}
        if self._whole is not self._optimizer and not places.keys() >= {
            *_params_of(self._optimizer)
        }:
            raise RuntimeError(
                "optimizer must have in its param_groups all that its .optim steps: "
                f"{type(self._whole).__name__}"
            )
        return places

    # It draws by the number of the step, which a compiled step cannot know.
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch does not type it
    def forced(
        self, group: Group, places: Sequence[int], grads: list[Tensor], how: Coefficients
    ) -> list[Tensor]:
        """The gradients less the random force of the step that comes next; new tensors."""
        if group["capturable"]:
            raise RuntimeError(
                "ThermalNoise is not for capturable=True: it needs a step on the host"
            )
        if isinstance(how.lr, Tensor) and how.lr.requires_grad:
            raise RuntimeError(
                f"lr must not require grad, as the force has no derivative by it: {how.lr!r}"
            )
        step = int(group["cooling_step"])
        lr = float(how.lr)
        last = lr if step == 0 else float(group["cooling_lr"])
        scale = random_force_scale(self.temperature_at(step), lr, float(how.rho), last)
        return [
            self._forced(place, grad, step, scale)
            for place, grad in zip(places, grads, strict=True)
        ]

    def _forced(self, place: int, grad: Tensor, step: int, scale: float) -> Tensor:
        kept, old = self._kept.get(place, (-1, grad))
        new = self._normals(place, step + 1, grad)
        if self.noise == "averaged":
            if kept != step or old.shape != new.shape or old.device != new.device:
                old = torch.zeros_like(new) if step == 0 else self._normals(place, step, grad)
            self._kept[place] = step + 1, new
        force = random_force(old, new, scale, noise=self.noise)
        forced: Tensor = (grad.to(force.dtype) - force).to(grad.dtype)
        return forced

    def _normals(self, place: int, step: int, like: Tensor) -> Tensor:
        """Unit normal numbers in the shape of a gradient; of complex ones in both parts."""
        generator = torch.Generator(like.device).manual_seed(draw_key(self.seed, place, step))
        dtype = torch.float64 if like.dtype in (torch.float64, torch.complex128) else torch.float32
        to: dict[str, Any] = {"generator": generator, "dtype": dtype, "device": like.device}
        if like.is_complex():
            return torch.view_as_complex(torch.randn((*like.shape, 2), **to))
        whole = torch.randn(like.shape, **to)
        if not isinstance(like, DTensor):
            return whole
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def _params_of(optimizer: Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def _may_be_a_part(param: Tensor) -> bool:
    """Whether FullyShardedDataParallel has marked it; nothing public tells its tensors apart."""
    return getattr(param, "_fsdp_flattened", False) and torch.distributed.get_world_size() > 1
