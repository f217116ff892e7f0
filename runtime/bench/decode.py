"""Attention of decoding: what it reads of caches a second.

The smaller caches fit into a GPU's own: their figures hold where that is emptied before each run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.decode.attention import decode_attention
from ..kernels.decode.latent import latent_decode
from .case import OURS, Case, Run, later
from .workload import Workload

BATCHES, CONTEXTS = (1, 8, 64), (600, 4096, 32768)
LATENT_BATCHES = (1, 8, 32)
PAGE, E, C, R = 64, 128, 512, 64


def cases(asked: Workload | None = None) -> Iterator[Case]:
    """Heads with keys of their own, heads in groups, and latents; bf16, every sequence as long as the context.

    Of a model its heads, at its length; what it keeps of latents is not told from its calls.
    """
    if asked is not None:
        for heads, groups, width in dict.fromkeys(_read_heads(asked)):
            for batch in (1, 8):
                yield _of_heads(batch, asked.length, heads, groups, width)
        return
    for heads, groups in ((32, 32), (32, 8)):
        for batch in BATCHES:
            for context in CONTEXTS:
                yield _of_heads(batch, context, heads, groups, E)
    for heads in (16, 128):
        for batch in LATENT_BATCHES:
            for context in CONTEXTS:
                # With 128 heads it is products that bound it: 242 operations for each byte.
                rate, ceiling = ("GB/s", "copy") if heads == 16 else ("TFLOP/s", "bf16")
                yield Case(
                    "latent decode", f"B{batch} T{context} H{heads} C{C} R{R}",
                    2.0 * batch * heads * context * (2 * C + R),
                    2.0 * batch * (context * (C + R) + heads * (2 * C + R)),
                    partial(_latents, batch, context, heads), rate, ceiling,  # type: ignore[arg-type]
                )  # fmt: skip


def _read_heads(asked: Workload) -> Iterator[tuple[int, int, int]]:
    """Heads, groups and width of each attention whose keys and values are equally wide."""
    for call in asked.calls:
        q, k, v = (t.shape for t in call.tensors[:3]) if call.is_attention else ((), (), ())
        if len(q) == 4 and q[-1] == k[-1] == v[-1]:
            yield q[2], k[2], q[3]


def _of_heads(batch: int, context: int, heads: int, groups: int, width: int) -> Case:
    return Case(
        "decode attention", f"B{batch} T{context} H{heads}/{groups} E{width}",
        4.0 * batch * heads * context * width, 4.0 * batch * width * (context * groups + heads),
        partial(_heads, batch, context, heads, groups, width), "GB/s", "copy",
    )  # fmt: skip


def _heads(batch: int, context: int, heads: int, groups: int, width: int) -> Mapping[str, Run]:
    q_BSHE = _random(batch, 1, heads, width)
    pages_k, pages_v = (_random(batch * -(-context // PAGE), PAGE, groups, width) for _ in range(2))
    k, v = (pages.view(batch, -1, groups, width)[:, :context] for pages in (pages_k, pages_v))  # the same memory
    lengths_B, table_BN = _lengths(batch, context), _table(batch, context)

    def sdpa(backend: str) -> Tensor:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        q_BHSE, k_BGTE, v_BGTE = (x.transpose(1, 2) for x in (q_BSHE, k, v))
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return F.scaled_dot_product_attention(q_BHSE, k_BGTE, v_BGTE, enable_gqa=heads != groups)

    def flex() -> Run:
        from torch.nn.attention.flex_attention import flex_attention

        compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)
        given = [x.transpose(1, 2) for x in (q_BSHE, k, v)]
        return lambda: compiled(*given, enable_gqa=heads != groups)

    return {
        OURS: lambda: decode_attention(q_BSHE, k, v, lengths_B),
        "dskc, in pages": lambda: decode_attention(
            q_BSHE, pages_k, pages_v, lengths_B, table_BN=table_BN, longest=context
        ),
        "torch flash": partial(sdpa, "FLASH_ATTENTION"),
        "torch cudnn": partial(sdpa, "CUDNN_ATTENTION"),
        "torch flex": later(flex),
    }


def _latents(batch: int, context: int, heads: int) -> Mapping[str, Run]:
    q_BSHC, q_rope_BSHR = _random(batch, 1, heads, C), _random(batch, 1, heads, R)
    pages = _random(batch * -(-context // PAGE), PAGE, C + R)
    cache = pages.view(batch, -1, C + R)[:, :context]
    c, k_rope = cache[..., :C].contiguous(), cache[..., C:].contiguous()
    lengths_B, table_BN = _lengths(batch, context), _table(batch, context)

    def ours(c: Tensor, k_rope: Tensor, table_BN: Tensor | None = None) -> Tensor:
        return latent_decode(q_BSHC, q_rope_BSHR, c, k_rope, lengths_B, scale=0.1, table_BN=table_BN, longest=context)

    def sdpa() -> Tensor:
        q_BHSE, k_BGTE = torch.cat((q_BSHC, q_rope_BSHR), -1).transpose(1, 2), cache.unsqueeze(1)
        return F.scaled_dot_product_attention(q_BHSE, k_BGTE, k_BGTE[..., :C], scale=0.1, enable_gqa=True)

    return {
        OURS: partial(ours, cache[..., :C], cache[..., C:]),
        "dskc, in two tensors": partial(ours, c, k_rope),
        "dskc, in pages": partial(ours, pages[..., :C], pages[..., C:], table_BN),
        "torch": sdpa,
    }


def _random(*shape: int) -> Tensor:
    return torch.empty(shape, device="cuda", dtype=torch.bfloat16).normal_()


def _lengths(batch: int, context: int) -> Tensor:
    return torch.full((batch,), context, device="cuda", dtype=torch.int32)


def _table(batch: int, context: int) -> Tensor:
    count = batch * -(-context // PAGE)
    return torch.randperm(count, device="cuda").int().view(batch, -1)
