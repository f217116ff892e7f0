"""The losses on what was held out, and how many labels are right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..data import Batch, Task, unigram_entropy
from ..spec_module import HIDDEN

Objective = Callable[[nn.Module, Batch], dict[str, Tensor]]

TOKEN_LOSS = "next_token"  # the term that compares with an entropy; the whole loss where an objective has none


@dataclass(frozen=True)
class HeldOut:
    """Of one source. losses: of each term of the objective, means over targets (in nats) or records. tokens: how many
    targets, with the unigram_entropy of the same; 0 and None without text. rows: sequences or records. accuracy: the
    share of rows whose likeliest class is the label, by result.
    """

    losses: dict[str, float]
    unigram_entropy: float | None
    tokens: int
    rows: int = 0
    accuracy: Mapping[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """The one to compare with the entropy."""
        return self.losses.get(TOKEN_LOSS, self.losses["loss"])

    def describe(self) -> str:
        """`held-out loss 2.1 nats on 4,000 tokens, 3.0 below their unigram entropy of 5.1`, `digit 97.2 % of 180`."""
        parts = []
        if self.tokens and self.unigram_entropy is not None:
            below = self.unigram_entropy - self.loss
            parts.append(
                f"held-out loss {self.loss:.4f} nats on {self.tokens:,} tokens, {abs(below):.4f} "
                f"{'below' if below >= 0 else 'above'} their unigram entropy of {self.unigram_entropy:.4f}"
            )
        else:
            parts.append(f"held-out loss {self.loss:.4f}")
        parts += [f"{name} right in {share:.1%} of {self.rows:,}" for name, share in self.accuracy.items()]
        return ", ".join(parts)


@torch.no_grad()
def evaluate(
    model: nn.Module, objective: Objective, batches: Iterable[Batch], tasks: Mapping[str, Task], device: torch.device
) -> HeldOut:
    """The objective's terms, and the accuracy of the `classify` tasks, on batches of one source."""
    sums: dict[str, float] = {}
    right: dict[str, int] = {}
    targets: list[Tensor] = []
    rows = weights = 0
    training = model.training
    model.eval()
    try:
        with _outputs(model) as outputs:
            for batch in batches:
                count = batch.rows
                weight = count if batch.labels else batch.predicted
                rows, weights = rows + count, weights + weight
                if batch.targets is not None:
                    targets.append(batch.targets)
                on_device = batch.to(device)
                for name, loss in objective(model, on_device).items():
                    sums[name] = sums.get(name, 0.0) + float(loss) * weight
                for name, label in on_device.labels.items():
                    if tasks[name].loss == "classify":
                        found = _result(outputs[-1], name).argmax(-1)
                        right[name] = right.get(name, 0) + int((found == label).reshape(count, -1).all(1).sum())
                outputs.clear()
    finally:
        model.train(training)
    means = {name: value / max(weights, 1) for name, value in sums.items()}
    every = torch.cat([each.flatten() for each in targets]) if targets else torch.empty(0, dtype=torch.int64)
    tokens = int((every >= 0).sum())
    accuracy = {name: count / rows for name, count in right.items()}
    return HeldOut(means, unigram_entropy(every) if tokens else None, tokens, rows, accuracy)


@contextmanager
def _outputs(model: nn.Module) -> Iterator[list[object]]:
    """What the model gives while the objective runs, which gives only losses.

    That is what `forward` gives, or `hidden` where a loss applies the last linear map itself: all that is compared with
    labels is the same in both.
    """
    found: list[object] = []
    handle = model.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    hidden: Callable[..., object] | None = getattr(model, HIDDEN) if hasattr(type(model), HIDDEN) else None

    def noted(*inputs: object) -> object:
        assert hidden is not None
        found.append(output := hidden(*inputs))
        return output

    if hidden is not None:
        setattr(model, HIDDEN, noted)  # the instance's own hides its class's
    try:
        yield found
    finally:
        handle.remove()
        if hidden is not None:
            delattr(model, HIDDEN)


def _result(output: object, name: str) -> Tensor:
    """A model of one result gives it as it is, others a tuple with their names."""
    result = output if isinstance(output, Tensor) else getattr(output, name)
    assert isinstance(result, Tensor), type(result)
    return result
