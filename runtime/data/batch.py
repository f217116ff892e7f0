"""What one forward pass is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100  # the target of a position that has nothing to predict (torch's `ignore_index`)


@dataclass(frozen=True)
class Batch:
    """Packed sequences: B rows of S tokens, cut from documents that follow one another.

    tokens_BS: int64 ids.
    targets_BS: int64, the token after each; IGNORED after the end of a document, where the next one is not predictable.
    documents_BS: int32, the number of the document within its row, from 0 and growing; attention must not cross it.
    """

    tokens: Tensor
    targets: Tensor
    documents: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on the device; from pinned memory without waiting for the copy."""
        if device.type == "cpu":
            return self
        pinned = device.type == "cuda"
        tokens, targets, documents = (
            (x.pin_memory() if pinned else x).to(device, non_blocking=pinned)
            for x in (self.tokens, self.targets, self.documents)
        )
        return Batch(tokens, targets, documents)

    @property
    def predicted(self) -> Tensor:
        """How many targets count (a scalar)."""
        return (self.targets != IGNORED).sum()
