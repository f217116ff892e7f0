"""New keys and values, or latents, written to their places in a cache."""

from __future__ import annotations

import torch
from torch import Tensor

from ...reference import paged
from ..choice import kernels_in_use
from ..gpu import require_gpu
from ..row_kernel import KernelError
from .split import DTYPES, FP8, check_places, has_fp8, observed

ELEMENTS = 2048  # of a program


def write_cache(
    k_BSGE: Tensor,
    v_BSGE: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths_B: Tensor,
    *,
    table_BN: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Writes the newest S positions of each sequence, k [B, S, G, E] and v [B, S, G, Ev], into a cache, in place.

    The cache is contiguous, [B, T, G, E] and [B, T, G, Ev], or in pages, [P, page, G, E] and [P, page, G, Ev], with
    table [B, N]. lengths [B] (int32) count the new ones too: new position s goes to lengths - S + s, and nowhere where
    that is negative, so that unused rows of a batch have length 0. There must be room for them, and no place may be
    written twice. The cache has the dtype of what is written, or is float8_e4m3fn: then it gets `k / k_scale` and
    `v / v_scale`, cut at 448.

    Nothing is read back, so that a CUDA graph can hold it. Raises KernelError for other dtypes, shapes and devices.
    """
    if not kernels_in_use(k_BSGE.device):
        paged.write_cache(k_BSGE, k_cache, lengths_B, table_BN, k_scale)
        paged.write_cache(v_BSGE, v_cache, lengths_B, table_BN, v_scale)
        return
    given = (k_BSGE, v_BSGE, k_cache, v_cache, lengths_B, table_BN, k_scale, v_scale)
    if observed(k_BSGE):
        _operation(*given)
    else:
        _run(*given)


def write_latents(
    c_BSC: Tensor, k_rope_BSR: Tensor, c_cache: Tensor, rope_cache: Tensor, lengths_B: Tensor, *,
    table_BN: Tensor | None = None,
) -> None:  # fmt: skip
    """`write_cache` of latents [B, S, C] and turned keys [B, S, R]: [B, T, C] or [P, page, C], and alike with R.

    Both caches may be views of one tensor, [..., C + R].
    """
    new, caches = (c_BSC.unsqueeze(2), k_rope_BSR.unsqueeze(2)), (c_cache.unsqueeze(2), rope_cache.unsqueeze(2))
    write_cache(*new, *caches, lengths_B, table_BN=table_BN)


def _run(
    k_BSGE: Tensor,
    v_BSGE: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths_B: Tensor,
    table_BN: Tensor | None,
    k_scale: float,
    v_scale: float,
) -> None:
    _check(k_BSGE, v_BSGE, k_cache, v_cache, lengths_B, table_BN)
    import triton

    from .cache_kernels import write_kernel

    k_BSGE, v_BSGE = (x if x.stride(-1) == 1 else x.contiguous() for x in (k_BSGE, v_BSGE))
    batch, queries, groups = k_BSGE.shape[:3]
    block_e, block_v = (triton.next_power_of_2(x.shape[-1]) for x in (k_BSGE, v_BSGE))
    block_g = max(1, min(triton.next_power_of_2(groups), ELEMENTS // max(block_e, block_v)))
    if batch * queries * groups == 0:
        return
    table, page = (lengths_B, 0) if table_BN is None else (table_BN, k_cache.shape[1])
    most = torch.finfo(FP8).max if k_cache.dtype == FP8 else 0.0
    write_kernel[(batch * queries, triton.cdiv(groups, block_g))](
        k_BSGE, v_BSGE, k_cache, v_cache, table, lengths_B, k_scale, v_scale,
        *k_BSGE.stride()[:3], *v_BSGE.stride()[:3], *k_cache.stride()[:3], *v_cache.stride()[:3], table.stride(0),
        QUERIES=queries, GROUPS=groups, E=k_BSGE.shape[3], V=v_BSGE.shape[3], PAGE=page,
        SCALED=k_cache.dtype == FP8, MOST=most, BLOCK_G=block_g, BLOCK_E=block_e, BLOCK_V=block_v, num_warps=4,
    )  # fmt: skip


def _check(
    k_BSGE: Tensor, v_BSGE: Tensor, k_cache: Tensor, v_cache: Tensor, lengths_B: Tensor, table_BN: Tensor | None
) -> None:
    require_gpu("write_cache", k_BSGE.device)
    for new, cache in ((k_BSGE, k_cache), (v_BSGE, v_cache)):
        if new.ndim != 4 or cache.ndim != 4 or new.shape[:3] != k_BSGE.shape[:3] or new.shape[2:] != cache.shape[2:]:
            raise KernelError(f"write_cache: {list(new.shape)} does not go into a cache of {list(cache.shape)}")
        if new.dtype not in DTYPES or cache.dtype not in (new.dtype, FP8) or cache.dtype != k_cache.dtype:
            raise KernelError(f"write_cache: {new.dtype} does not go into a cache of {cache.dtype}")
        if cache.dtype == FP8 and not has_fp8(cache.device):
            raise KernelError("write_cache: this GPU has no float8_e4m3fn")
        if cache.shape[:2] != k_cache.shape[:2] or cache.stride(3) != 1:
            raise KernelError(f"write_cache: caches are {list(k_cache.shape)} and {list(cache.shape)}, last axis dense")
    for tensor in (v_BSGE, k_cache, v_cache, lengths_B, *(() if table_BN is None else (table_BN,))):
        if tensor.device != k_BSGE.device:
            raise KernelError(f"write_cache: keys are on {k_BSGE.device}, and others on {tensor.device}")
    check_places("write_cache", k_BSGE.shape[0], k_cache, lengths_B, table_BN)


_operation = torch.library.custom_op(
    "dskc::write_cache", _run, mutates_args=("k_cache", "v_cache"),
    schema="(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor lengths, Tensor? table, float k_scale, "
    "float v_scale) -> ()",
)  # fmt: skip
_operation.register_fake(lambda *given: None)
