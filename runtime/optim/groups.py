"""Parameters that are trained otherwise than the rest: another rate, another decay."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..problem import Problem
from . import check


@dataclass(frozen=True)
class Group:
    """What is under a path of the model, `layers.*.attention` with `*` for an index, or is one parameter of it.

    rate: times the schedule's. decay: weight decay of all its parameters, norms and biases too; None leaves it as the
    optimizer has it.
    """

    path: str
    rate: float = 1.0
    decay: float | None = None

    def __post_init__(self) -> None:
        check.rate(self.rate, f"the rate of {self.path}")
        if self.decay is not None:
            check.between(self.decay, 0, 1e4, f"weight decay of {self.path}")


def is_under(name: str, path: str) -> bool:
    """Whether a parameter is this path or below it."""
    pattern = re.escape(path).replace(r"\*", r"[^.]+")
    return re.match(rf"{pattern}(\.|$)", name) is not None


def find(name: str, paths: Sequence[str]) -> int | None:
    """The place of the path that a parameter is under: the longest, of equals the last; None when there is none."""
    found = [(path.count("."), i) for i, path in enumerate(paths) if is_under(name, path)]
    return max(found)[1] if found else None


def members(group: Group, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """The names of those that a group's path leads to."""
    return [name for name in parameters if is_under(name, group.path)]


def require_members(chosen: Sequence[Group], parameters: Mapping[str, nn.Parameter]) -> None:
    """Raises Problem for a group that no parameter is in."""
    for group in chosen:
        if not members(group, parameters):
            raise Problem(f"the model has no parameter under {group.path}", "a group names a part of the model")


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], decay: float, chosen: Sequence[Group] = ()
) -> list[dict[str, Any]]:
    """Parameter groups for torch, each with its `weight_decay`, and its `share` of the rate.

    Unless a group says otherwise matrices have the weight decay, and norms and biases none. Raises Problem for a group
    that no parameter is in.
    """
    check.between(decay, 0, 1e4, "weight decay")
    require_members(chosen, parameters)
    alike: dict[tuple[float, float], list[nn.Parameter]] = {}
    paths = [group.path for group in chosen]
    for name, parameter in parameters.items():
        place = find(name, paths)
        group = Group("") if place is None else chosen[place]
        own = group.decay if group.decay is not None else decay if _decays(name, parameter) else 0.0
        alike.setdefault((own, group.rate), []).append(parameter)
    return [{"params": members, "weight_decay": own, "share": share} for (own, share), members in alike.items()]


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and name.rpartition(".")[2] != "bias"  # biases of stacked experts have two axes
