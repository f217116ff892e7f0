"""Low-rank adapters of linear layers (LoRA, arXiv:2106.09685): small maps beside frozen ones, which they can become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .modules import Linear
from .optim.groups import find, is_under
from .problem import Problem


@dataclass(frozen=True)
class Lora:
    """What is put beside a linear layer: a map through `rank` numbers, whose result counts alpha / rank times.

    dropout: of what it takes, while training.
    """

    rank: int
    alpha: float
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise Problem(f"the rank of an adapter is {self.rank}: it is at least 1")
        if not 0 <= self.dropout < 1:
            raise Problem(f"the dropout of an adapter is {self.dropout}: it is from 0 to under 1")


class Adapter(nn.Module):
    """`alpha / rank * up(down(x))` for x [..., inputs]. It begins as nothing: `up` is zero."""

    def __init__(self, layer: nn.Linear, lora: Lora) -> None:
        super().__init__()
        inputs, outputs = layer.in_features, layer.out_features
        at, dtype = layer.weight.device, layer.weight.dtype
        self.lora = lora
        self.down = nn.Parameter(torch.empty(lora.rank, inputs, device=at, dtype=dtype))
        self.up = nn.Parameter(torch.empty(outputs, lora.rank, device=at, dtype=dtype))

    @property
    def scale(self) -> float:
        return self.lora.alpha / self.lora.rank

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """`down` from the normal distribution with deviation 1 / sqrt(inputs), `up` zero."""
        self.down.normal_(0.0, self.down.shape[1] ** -0.5, generator=generator)
        self.up.zero_()

    def forward(self, x: Tensor) -> Tensor:
        narrow = F.linear(F.dropout(x, self.lora.dropout, self.training), self.down.to(x.dtype))
        return F.linear(narrow, self.up.to(x.dtype)) * self.scale

    def weight(self) -> Tensor:
        """What it adds to the layer's weight [outputs, inputs], in fp32 at least."""
        wide = torch.promote_types(self.up.dtype, torch.float32)
        return self.up.to(wide) @ self.down.to(wide) * self.scale


def attach(model: nn.Module, chosen: Mapping[str, Lora], outside: tuple[str, ...] = ()) -> dict[str, Adapter]:
    """Puts adapters beside the linear layers under each path, the longest counting; all other parameters are frozen.

    outside: layers that something applies by their weight alone, such as heads in a loss. By the names of the layers.
    Raises Problem for a path without a linear layer that can have one.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, Linear) and n not in outside}
    for path in chosen:
        if not any(is_under(name, path) for name in layers):
            raise Problem(f"the model has no linear layers under {path} that an adapter could be put beside")
    model.requires_grad_(False)
    paths, made = list(chosen), {}
    for name, layer in layers.items():
        place = find(name, paths)
        if place is not None:
            layer.adapter = made[name] = Adapter(layer, chosen[paths[place]])
    return made


@torch.no_grad()
def merge(model: nn.Module) -> int:
    """Adds every adapter to the weight of its layer, and takes it away: the model computes the same, up to rounding.

    How many there were.
    """
    count = 0
    for layer in model.modules():
        if isinstance(layer, Linear) and layer.adapter is not None:
            adapter = layer.adapter
            assert isinstance(adapter, Adapter), type(adapter)
            layer.weight.copy_((layer.weight.to(adapter.weight().dtype) + adapter.weight()).to(layer.weight.dtype))
            layer.adapter = None
            count += 1
    return count
