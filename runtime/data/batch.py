"""What one forward pass is given."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

IGNORED = -100  # the target of a position that has nothing to predict (torch's `ignore_index`)


@dataclass(frozen=True)
class Batch:
    """B rows of one kind of data: packed sequences of text, or records such as images with their labels.

    tokens_BS: int64 ids, of text cut from documents that follow one another; None where the rows hold no text.
    targets_BS: int64, the token after each; IGNORED after the end of a document, where the next one is not predictable.
    documents_BS: int32, the number of the document within its row, from 0 and growing; attention must not cross it.
    inputs: the model's other inputs that these rows have, by name, [B, ..] each.
    padding: positions that hold no token, so that all rows are of one length.
    labels: what `classify` and `regress` terms compare with, by the name of the result: int64 [B], or float [B, ..].
    """

    tokens: Tensor | None = None
    targets: Tensor | None = None
    documents: Tensor | None = None
    inputs: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, Tensor] = field(default_factory=dict)
    padding: int = 0

    def to(self, device: torch.device) -> Batch:
        """The same batch on the device; from pinned memory without waiting for the copy."""
        if device.type == "cpu":
            return self
        pinned = device.type == "cuda"

        def move(x: Tensor) -> Tensor:
            return (x.pin_memory() if pinned else x).to(device, non_blocking=pinned)

        tokens, targets, documents = (
            None if x is None else move(x) for x in (self.tokens, self.targets, self.documents)
        )
        return Batch(
            tokens,
            targets,
            documents,
            {name: move(x) for name, x in self.inputs.items()},
            {name: move(x) for name, x in self.labels.items()},
            self.padding,
        )

    @property
    def predicted(self) -> int:
        """How many tokens are to be predicted: targets that count."""
        return 0 if self.targets is None else int((self.targets != IGNORED).sum())

    @property
    def rows(self) -> int:
        """B."""
        some = self.tokens if self.tokens is not None else next(iter(self.inputs.values()))
        return len(some)

    @property
    def positions(self) -> int:
        """In the model's sequence, of all rows, without padding: of every input its second axis."""
        given = [*self.inputs.values(), *([] if self.tokens is None else [self.tokens])]
        return sum(len(x) * (x.shape[1] if x.dim() > 1 else 1) for x in given) - self.padding
