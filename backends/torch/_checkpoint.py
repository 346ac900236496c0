"""What a checkpoint of the optimizer must be, and how a parameter group goes on from one."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from coolmomentum.torch._tensors import Group
from coolmomentum.torch._validation import SCHEDULE_KEYS, checked, checked_step

OWN_SCHEDULE = "a function of the step"  # stands for it in a checkpoint


def check_form(state_dict: Any) -> None:
    """Refuse anything but a checkpoint of this optimizer, before any of it is used."""
    saved = state_dict if isinstance(state_dict, dict) else {}
    groups: Any = saved.get("param_groups")
    state: Any = saved.get("state")
    if not (isinstance(groups, list) and isinstance(state, dict)) or not all(
        isinstance(group, dict) and {"params", "cooling_step"} <= group.keys() for group in groups
    ):
        raise ValueError(
            "state_dict must be of a CoolMomentum: to start anew from the weights of another "
            "optimizer, load the model only and leave this optimizer as it was made"
        )
    listed = {key for group in groups for key in group["params"]}
    for key, entry in state.items():
        if key in listed and not isinstance(entry, dict):
            raise ValueError(f"state_dict must hold a dict for each parameter: {key!r}: {entry!r}")
        if key not in listed and isinstance(entry, dict) and "displacement" in entry:
            raise ValueError(f"state_dict must list in its groups each parameter: {key!r}")


def displacements_in(
    saved: dict[str, Any], groups: list[Group]
) -> Iterator[tuple[Tensor, Group, Any]]:
    """Parameters, their groups, and their displacements in a checkpoint that has them."""
    for group, theirs in zip(groups, saved["param_groups"], strict=True):
        for param, key in zip(group["params"], theirs["params"], strict=False):
            if "displacement" in (state := saved["state"].get(key, {})):
                yield param, group, state["displacement"]


def continued(own: Group, saved: Group) -> Group:
    """The settings of a group that continues a saved one; raises if it cannot."""
    kept = {name: own[name] for name in own if name not in saved}  # say, flags of later versions
    step = torch.tensor(checked_step(saved["cooling_step"]), dtype=torch.int64, device="cpu")
    names = ("schedule", *SCHEDULE_KEYS)
    # A function of the step is not in the checkpoint.
    follows = own["schedule"] is not None or saved.get("schedule") is not None
    settings = checked(own | saved | {k: own[k] for k in names if follows}, whole=True)
    return kept | {name: settings[name] for name in names} | {"cooling_step": step}


def difference(own: Group, saved: Group) -> str:
    """A warning for a group that continues a saved one that cooled in another way, or ""."""
    followed = saved.get("schedule") is not None
    if own["schedule"] is not None:
        return "" if followed else "the checkpoint did not follow this optimizer's own schedule"
    if followed:
        return "the checkpoint followed a schedule of its own, which it does not hold"
    names = [name for name in SCHEDULE_KEYS if name in saved and saved[name] != own[name]]
    changes = ", ".join(f"{name}={saved[name]!r} replaces {own[name]!r}" for name in names)
    return changes and (
        f"of the checkpoint, {changes}; to train for longer than planned call "
        "optimizer.extend(total_steps)"
    )
