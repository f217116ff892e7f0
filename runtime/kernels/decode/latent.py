"""Attention of decoding over latents: all heads share one key, and its larger part is the value too."""

from __future__ import annotations

import torch
from torch import Tensor

from ...reference import paged
from .. import flops
from ..choice import kernels_in_use
from ..row_kernel import KernelError
from ..tuning import tile
from .split import Attention, Part, Scores, attend, observed

WIDEST, WIDEST_ROPE = 512, 128
# Sums of 16 heads take half of what a program has of registers, so that a piece and its chunk can both be held. Those
# of more heads leave no room for a second: they are cut into pieces only, larger ones, since more is written for each.
FEW_TILES = tuple(
    tile(warps, stages, BLOCK_N=keys, BLOCK_R=16, PIECE=256, CHUNK=2048)
    for warps, stages, keys in ((4, 3, 32), (4, 4, 32), (8, 2, 64), (4, 2, 64), (8, 3, 32), (8, 4, 32), (4, 2, 32))
)
TILES = tuple(
    tile(warps, stages, BLOCK_N=keys, BLOCK_R=rows, PIECE=512, CHUNK=512)
    for warps, stages, keys, rows in (
        (8, 2, 64, 32), (8, 2, 64, 64), (4, 2, 64, 32), (8, 3, 32, 64), (8, 3, 32, 32), (8, 2, 32, 64),
    )
)  # fmt: skip


def latent_decode(
    q_BSHC: Tensor,
    q_rope_BSHR: Tensor,
    c: Tensor,
    k_rope: Tensor,
    lengths_B: Tensor,
    *,
    scale: float,
    table_BN: Tensor | None = None,
    longest: int | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """Absorbed multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1.2): [B, S, H, C], dtype of q.

    The score of a head is `scale * (q · c + q_rope · k_rope)`, and its value is c: the maps of keys and values are at
    the queries and behind attention. q is [B, S, H, C], C up to 512, and [B, S, H, R], R up to 128, in bf16, fp16 or
    fp32. The cache is contiguous, c [B, T, C] and k_rope [B, T, R], or in pages, [P, page, C] and [P, page, R], with
    table [B, N]. Both may be views of one tensor, [..., C + R], and then a row is one run of memory. All else, and
    what a row depends on, is as in `decode_attention`: a latent is read once for the heads of a program, 16 to 64, as
    key and as value.
    """
    return latent_decode_lse(
        q_BSHC, q_rope_BSHR, c, k_rope, lengths_B, scale=scale, table_BN=table_BN, longest=longest, window=window,
        softcap=softcap, sinks_H=sinks_H,
    )[0]  # fmt: skip


def latent_decode_lse(
    q_BSHC: Tensor,
    q_rope_BSHR: Tensor,
    c: Tensor,
    k_rope: Tensor,
    lengths_B: Tensor,
    *,
    scale: float,
    table_BN: Tensor | None = None,
    longest: int | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`latent_decode`, and the natural logarithm of each softmax's denominator: [B, S, H] in float32."""
    if not kernels_in_use(q_BSHC.device):
        return paged.latent_decode(
            q_BSHC, q_rope_BSHR, c, k_rope, lengths_B, scale=scale, table_BN=table_BN, window=window, softcap=softcap,
            sinks_H=sinks_H,
        )  # fmt: skip
    if longest is None:
        longest = c.shape[1] * (1 if table_BN is None else table_BN.shape[1])
    given = (q_BSHC, q_rope_BSHR, c, k_rope, lengths_B, table_BN, longest, scale, window, softcap, sinks_H)
    made: tuple[Tensor, Tensor] = _operation(*given) if observed(q_BSHC) else _run(*given)
    return made


def _run(
    q_BSHC: Tensor,
    q_rope_BSHR: Tensor,
    c: Tensor,
    k_rope: Tensor,
    lengths_B: Tensor,
    table_BN: Tensor | None,
    longest: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks_H: Tensor | None,
) -> tuple[Tensor, Tensor]:
    width, rope = q_BSHC.shape[-1], q_rope_BSHR.shape[-1]
    if width > WIDEST or rope > WIDEST_ROPE:
        raise KernelError(
            f"latent_decode: latents and turned keys are {width} and {rope} wide, and kernels take {WIDEST} and "
            f"{WIDEST_ROPE} at most"
        )
    if c.ndim != 3 or k_rope.ndim != 3:
        raise KernelError(f"latent_decode: caches are {list(c.shape)} and {list(k_rope.shape)}, without heads")
    q_BSHC, q_rope_BSHR = (q if q.stride(-1) == 1 else q.contiguous() for q in (q_BSHC, q_rope_BSHR))
    first, second = Part(q_BSHC, c.unsqueeze(2)), Part(q_rope_BSHR, k_rope.unsqueeze(2))
    scores = Scores(scale, window, softcap)
    call = Attention("latent_decode", first, second, None, lengths_B, table_BN, longest, scores, sinks_H)
    return attend(call, lambda: FEW_TILES if q_BSHC.shape[1] * q_BSHC.shape[2] <= 16 else TILES)


def _fake(q_BSHC: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q_BSHC, memory_format=torch.contiguous_format), q_BSHC.new_empty(
        q_BSHC.shape[:3], dtype=torch.float32
    )


_operation = torch.library.custom_op(
    "dskc::latent_decode", _run, mutates_args=(),
    schema="(Tensor q, Tensor q_rope, Tensor c, Tensor k_rope, Tensor lengths, Tensor? table, SymInt longest, "
    "float scale, SymInt? window, float? softcap, Tensor? sinks) -> (Tensor, Tensor)",
)  # fmt: skip
_operation.register_fake(_fake)
flops.register_flops("dskc::latent_decode", flops.latent_decode)
