"""Linear layers whose products are of 8-bit floats while a model trains."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..kernels import kernels_in_use
from ..kernels.products.fp8_matmul import Scaling
from ..kernels.products.product import has_fp8
from ..modules import Linear
from ..optim.groups import find, is_under
from ..problem import Problem

NONE = "none"
SCALINGS: Mapping[str, Scaling] = {"rows": "rows", "blocks": "blocks"}


def use_fp8(model: nn.Module, chosen: Mapping[str, str]) -> int:
    """Has the linear layers under each path compute in fp8, "rows" or "blocks", "none" leaving them as they are; the
    longest path counts. How many do then.

    Raises Problem for a path without such layers, and where the device has no 8-bit floats.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    for path in chosen:
        if not any(is_under(name, path) for name in layers):
            raise Problem(f"the model has no linear layers under {path} to compute in fp8")
    count, paths = 0, list(chosen)
    for name, layer in layers.items():
        place = find(name, paths)
        scaling = NONE if place is None else chosen[paths[place]]
        assert scaling in (NONE, *SCALINGS), scaling
        if scaling != NONE and layer.compute is None:  # what asks for a dtype of its own, a router, keeps it
            layer.fp8 = SCALINGS[scaling]
            count += 1
    device = next(model.parameters()).device
    if count and kernels_in_use(device) and not has_fp8(device):
        raise Problem(
            f"{torch.cuda.get_device_name(device)} has no 8-bit floats, which the recipe computes in",
            "train with another recipe, or on a GPU of compute capability 8.9 or more",
        )
    return count
