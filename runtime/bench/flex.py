"""FlexAttention (torch.nn.attention.flex_attention) for any of this project's masks, with softcap and sinks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..reference.mask import Blocks, Both, Causal, Documents, Either, Everything, Mask, Window
from .case import Run

Rule = Callable[[Any, Any, Any, Any], Any]  # of batch, head, query and key


def flex(q: Tensor, k: Tensor, v: Tensor, mask: Mask, softcap: float | None, sinks: Tensor | None) -> Run:
    """Compiled, of tensors [B, H, S, E]. Raises what torch raises where it cannot."""
    import torch._functorch.config
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._functorch.config.donated_buffer = False  # backward runs many times
    length = q.shape[2]
    batches = q.shape[0] if _has_documents(mask) else None
    blocks = create_block_mask(
        _rule(mask, length, q.device), batches, None, length, length, device=q.device, _compile=True
    )
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)
    options: dict[str, Any] = {"block_mask": blocks, "enable_gqa": q.shape[1] != k.shape[1]}

    def capped(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert softcap is not None
        return softcap * torch.tanh(score / softcap)

    options |= {"score_mod": capped} if softcap is not None else {}
    if sinks is None:
        return lambda: compiled(q, k, v, **options)

    def scaled() -> Tensor:
        """What transformers does for gpt-oss: by how much the sinks take of the sum."""
        o, lse = compiled(q, k, v, return_lse=True, **options)
        return o * torch.sigmoid(lse - sinks[None, :, None]).unsqueeze(-1).to(o.dtype)

    return scaled


def _has_documents(mask: Mask) -> bool:
    if isinstance(mask, Both | Either):
        return _has_documents(mask.a) or _has_documents(mask.b)
    return isinstance(mask, Documents)


def _rule(mask: Mask, length: int, device: torch.device) -> Rule:
    """What the mask allows, as flex_attention asks for it."""
    if isinstance(mask, Everything):
        return lambda b, h, i, j: i >= 0
    if isinstance(mask, Causal):
        return lambda b, h, i, j: i >= j
    if isinstance(mask, Window):
        return lambda b, h, i, j: (i - j < mask.size) & (j - i < mask.size)
    if isinstance(mask, Documents):
        return lambda b, h, i, j: mask.ids_BT[b, i] == mask.ids_BT[b, j]
    if isinstance(mask, Blocks):
        count = -(-length // mask.size)
        seen = Blocks(1, mask.window, mask.leading, mask.random, mask.seed).allowed(count, count, device)
        return lambda b, h, i, j: seen[i // mask.size, j // mask.size]
    assert isinstance(mask, Both | Either), mask
    left, right = _rule(mask.a, length, device), _rule(mask.b, length, device)
    if isinstance(mask, Both):
        return lambda b, h, i, j: left(b, h, i, j) & right(b, h, i, j)
    return lambda b, h, i, j: left(b, h, i, j) | right(b, h, i, j)
