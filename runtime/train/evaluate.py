"""The loss on text that was held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Batch, unigram_entropy, windows
from ..data.loader import Tokens, pack

Objective = Callable[[nn.Module, Batch], dict[str, Tensor]]

TOKEN_LOSS = "next_token"  # the term that compares with an entropy; the whole loss where an objective has none


@dataclass(frozen=True)
class HeldOut:
    """losses: of each term of the objective, means over the targets, in nats. loss: the one to compare with the
    entropy of the same targets. tokens: how many targets."""

    losses: dict[str, float]
    unigram_entropy: float
    tokens: int

    @property
    def loss(self) -> float:
        return self.losses.get(TOKEN_LOSS, self.losses["loss"])


@torch.no_grad()
def evaluate(
    model: nn.Module,
    objective: Objective,
    tokens: Tokens,
    end: int,
    length: int,
    microbatch: int,
    device: torch.device,
    most: int,
) -> HeldOut:
    """The objective's terms on the held-out tokens: all of them, or at most about `most`, from sequences evenly
    spread.
    """
    count = windows(len(tokens), length)
    count += count * length + 1 < len(tokens)  # the rest, padded
    chosen = max(1, min(count, most // length))
    index = np.arange(chosen) * count // chosen
    sums: dict[str, float] = {}
    targets: list[Tensor] = []
    training = model.training
    model.eval()
    try:
        for start in range(0, chosen, microbatch):
            batch = pack(tokens, index[start : start + microbatch], length, end)
            predicted = batch.predicted
            assert batch.targets is not None, "text without targets"
            targets.append(batch.targets)
            for name, loss in objective(model, batch.to(device)).items():
                sums[name] = sums.get(name, 0.0) + float(loss) * predicted
    finally:
        model.train(training)
    every = torch.cat([each.flatten() for each in targets])
    total = int((every >= 0).sum())
    means = {name: value / max(total, 1) for name, value in sums.items()}
    return HeldOut(means, unigram_entropy(every), total)
