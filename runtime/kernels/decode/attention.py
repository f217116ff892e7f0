"""Attention of decoding: one or a few new queries of each sequence over a cache of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from ...reference import paged
from .. import flops
from ..choice import kernels_in_use
from ..row_kernel import KernelError
from ..tuning import Tile, tile
from .split import Attention, Part, Scores, attend, observed

WIDEST = 256
# A piece of 128 keys gives a single short text enough programs; a chunk of 1024 keeps partial sums under 1% of the
# bytes. There is no library's way among these: torch's attention takes no lengths that are on the GPU.
FEW_ROWS = ((4, 3, 64), (4, 2, 64), (4, 4, 64), (4, 2, 128), (8, 2, 128), (4, 4, 32), (8, 3, 64), (4, 3, 128))
MANY_ROWS = ((8, 3, 64), (8, 2, 64), (8, 2, 128), (4, 3, 64), (8, 4, 32), (4, 4, 32))
TILES = tuple(
    tile(warps, stages, BLOCK_N=keys, BLOCK_R=rows, PIECE=128, CHUNK=1024)
    for rows, kinds in ((16, FEW_ROWS), (32, FEW_ROWS), (64, MANY_ROWS))
    for warps, stages, keys in kinds
)


def decode_attention(
    q_BSHE: Tensor,
    k: Tensor,
    v: Tensor,
    lengths_B: Tensor,
    *,
    table_BN: Tensor | None = None,
    longest: int | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    """Causal attention of the newest S positions of each sequence over all that it has: [B, S, H, Ev], dtype of q.

    q is [B, S, H, E] in bf16, fp16 or fp32, E and Ev up to 256. The cache is contiguous, k [B, T, G, E] and v
    [B, T, G, Ev], or in pages, [P, page, G, E] and [P, page, G, Ev], of a power of two of positions each, with their
    numbers in table [B, N]. It has the dtype of q, or is float8_e4m3fn and stands for `k_scale * k` and `v_scale * v`.
    lengths [B] (int32, on the device) are the positions of each sequence, the new ones among them; no more than
    `longest`, by default all that there is room for. It decides how many programs are launched, so that a call can be
    captured in a CUDA graph: one near the lengths is fast. A length of 0 gives 0.

    Query s sees the positions up to lengths - S + s, with `window` only the last so many; H is a multiple of G; scale,
    softcap and sinks are those of `reference.attention`. What a row comes to depends on its own sequence alone, to the
    last bit: not on the batch, other lengths, `longest`, or whether the cache is in pages.

    Keys are read once for all heads of a group, split among programs (Flash-Decoding: pytorch.org/blog/flash-decoding).
    Raises KernelError for other dtypes, shapes, devices, and where a gradient is asked for.
    """
    return decode_attention_lse(
        q_BSHE, k, v, lengths_B, table_BN=table_BN, longest=longest, scale=scale, window=window, softcap=softcap,
        sinks_H=sinks_H, k_scale=k_scale, v_scale=v_scale,
    )[0]  # fmt: skip


def decode_attention_lse(
    q_BSHE: Tensor,
    k: Tensor,
    v: Tensor,
    lengths_B: Tensor,
    *,
    table_BN: Tensor | None = None,
    longest: int | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """`decode_attention`, and the natural logarithm of each softmax's denominator, sinks included: [B, S, H], float32.

    With it, attention over parts of a text can be joined. It is -inf where a query sees nothing.
    """
    if not kernels_in_use(q_BSHE.device):
        return paged.decode_attention(
            q_BSHE, k, v, lengths_B, table_BN=table_BN, scale=scale, window=window, softcap=softcap, sinks_H=sinks_H,
            k_scale=k_scale, v_scale=v_scale,
        )  # fmt: skip
    if longest is None:
        longest = k.shape[1] * (1 if table_BN is None else table_BN.shape[1])
    scale = q_BSHE.shape[-1] ** -0.5 if scale is None else scale
    given = (q_BSHE, k, v, lengths_B, table_BN, longest, scale, window, softcap, sinks_H, k_scale, v_scale)
    made: tuple[Tensor, Tensor] = _operation(*given) if observed(q_BSHE) else _run(*given)
    return made


def _run(
    q_BSHE: Tensor,
    k: Tensor,
    v: Tensor,
    lengths_B: Tensor,
    table_BN: Tensor | None,
    longest: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks_H: Tensor | None,
    k_scale: float,
    v_scale: float,
) -> tuple[Tensor, Tensor]:
    width, most = q_BSHE.shape[-1], max(q_BSHE.shape[-1], v.shape[-1])
    if most > WIDEST:
        raise KernelError(f"decode_attention: heads are {most} wide, and kernels take {WIDEST} at most")
    q_BSHE = q_BSHE if q_BSHE.stride(-1) == 1 else q_BSHE.contiguous()
    # A width between two powers of two is held in two parts: 192 as 128 and 64, not as 256.
    cut = 1 << (width.bit_length() - 1)
    first, second = Part(q_BSHE, k), None
    if 16 <= cut < width == k.shape[-1]:
        first = Part(q_BSHE[..., :cut], k[..., :cut])
        second = Part(q_BSHE[..., cut:], k[..., cut:])
    scores = Scores(scale, window, softcap, k_scale, v_scale)
    call = Attention("decode_attention", first, second, v, lengths_B, table_BN, longest, scores, sinks_H)

    def tiles() -> list[Tile]:
        rows = rows_of(q_BSHE.shape[1] * call.group)
        return [tile for tile in TILES if tile["BLOCK_R"] == rows]

    return attend(call, tiles)


def rows_of(asked: int) -> int:
    """Rows of a tile for so many queries of a key head."""
    return min(64, max(16, 1 << (asked - 1).bit_length()))


def _fake(q_BSHE: Tensor, k: Tensor, v: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    batch, queries, heads = q_BSHE.shape[:3]
    o = q_BSHE.new_empty(batch, queries, heads, v.shape[-1])
    return o, q_BSHE.new_empty(batch, queries, heads, dtype=torch.float32)


_operation = torch.library.custom_op(
    "dskc::decode_attention", _run, mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor lengths, Tensor? table, SymInt longest, float scale, SymInt? window, "
    "float? softcap, Tensor? sinks, float k_scale, float v_scale) -> (Tensor, Tensor)",
)  # fmt: skip
_operation.register_fake(_fake)
flops.register_flops("dskc::decode_attention", flops.decode_attention)
