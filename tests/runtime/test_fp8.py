"""Linear layers in 8-bit floats: which ones, and that a model learns with them as without."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dskc.runtime import optim
from dskc.runtime.kernels import use_kernels
from dskc.runtime.modules import Linear
from dskc.runtime.problem import Problem
from dskc.runtime.train.fp8 import use_fp8


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"up": Linear(16, 64, bias=True), "down": Linear(64, 16)})] * 1)
        self.router = Linear(16, 4, compute=torch.float32)
        self.head = Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer["down"](torch.relu(layer["up"](x)))
        return self.head(x)


def test_the_longest_path_says_which_layers() -> None:
    model = Two()
    assert use_fp8(model, {"layers": "blocks", "layers.*.down": "none", "head": "rows"}) == 2
    assert model.layers[0]["up"].fp8 == "blocks" and model.layers[0]["down"].fp8 is None and model.head.fp8 == "rows"
    assert use_fp8(model, {"router": "rows"}) == 0 and model.router.fp8 is None
    assert Linear.fp8 is None and Two().head.fp8 is None
    with pytest.raises(Problem, match="no linear layers under embed"):
        use_fp8(model, {"embed": "rows"})


@pytest.mark.parametrize("scaling", ["rows", "blocks"])
def test_it_learns_as_in_full_precision(scaling: str) -> None:
    def train(chosen: dict[str, str]) -> list[float]:
        torch.manual_seed(0)
        model = Two()
        optim.normal(std=0.2)(model, 0)
        use_fp8(model, chosen)
        optimizer = optim.AdamW(model, lr=1e-2, decay=0.0)
        generator, losses = torch.Generator().manual_seed(1), []
        target = torch.randn(16, 16, generator=generator) / 4
        for _ in range(120):
            x = torch.randn(64, 16, generator=generator)
            loss = (model(x) - torch.tanh(x @ target)).square().mean()
            loss.backward()
            optimizer.step(1e-2)
            losses.append(float(loss.detach()))
        return losses

    with use_kernels("reference"):
        plain, eight = train({}), train({"layers": scaling, "head": scaling})
    assert plain[-1] < 0.05 * plain[0]
    assert plain != eight, "nothing was computed in 8 bits"
    assert sum(eight[-20:]) < 1.6 * sum(plain[-20:]) + 0.1
