"""What FlexAttention is told of a mask is the mask."""

from __future__ import annotations

import pytest
import torch

from dskc.runtime import reference
from dskc.runtime.bench.flex import _rule
from dskc.runtime.reference.mask import Mask, everything

IDS = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3], [0] * 12])
MASKS = {
    "everything": everything,
    "causal": reference.causal,
    "window": reference.window(3),
    "causal window": reference.causal & reference.window(4),
    "documents": reference.causal & reference.documents(IDS),
    "blocks": reference.causal & reference.blocks(size=2, window=1, global_=1, random=1, seed=5),
    "either": (reference.causal & reference.window(2)) | reference.documents(IDS),
}


@pytest.mark.parametrize("name", MASKS)
def test_the_same_pairs(name: str) -> None:
    mask: Mask = MASKS[name]
    rule = _rule(mask, 12, torch.device("cpu"))
    b, i, j = torch.arange(2)[:, None, None], torch.arange(12)[:, None], torch.arange(12)
    found = rule(b, 0, i, j).expand(2, 12, 12)
    assert torch.equal(found, mask.allowed(12, 12, torch.device("cpu")).expand(2, 12, 12))
