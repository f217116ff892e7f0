"""Attention forward by hand for Hopper, where Triton has Gluon: which tiles there are, and the launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..choice import interpreted
from ..tuning import Tile, tile
from .tensors import Described, by_part, copied_by_engine, listed, or_stand_in, parts, together
from .tiles import TileLists

TILES = {  # by the width of values; a width of queries over 128 takes more shared memory
    64: (tile(4, 3, BLOCK_M=128, BLOCK_N=128), tile(4, 4, BLOCK_M=256, BLOCK_N=64)),
    128: (tile(4, 2, BLOCK_M=128, BLOCK_N=128), tile(4, 3, BLOCK_M=128, BLOCK_N=64)),
    256: (tile(4, 2, BLOCK_M=128, BLOCK_N=64),),
}


def hopper_ways(q_BSHE: Tensor, k_BTGE: Tensor, v_BTGV: Tensor) -> list[Tile]:
    """The tiles for such tensors; none on other GPUs, for other widths, and where there is no Gluon.

    Widths are one or two powers of two: nothing of a tile stands empty.
    """
    width, value_width = q_BSHE.shape[-1], v_BTGV.shape[-1]
    if interpreted() or not q_BSHE.is_cuda or torch.cuda.get_device_capability(q_BSHE.device)[0] != 9:
        return []
    if width < 32 or sum(parts(width)) != width or value_width not in TILES or _kernels() is None:
        return []
    if k_BTGE.shape[1] == 0 or not copied_by_engine((q_BSHE, k_BTGE, v_BTGV)):
        return []
    return [replace(way, name=way.name.replace("triton", "hopper")) for way in TILES[value_width]]


def launch_hopper(
    way: Tile,
    tensors: tuple[Tensor, Tensor, Tensor],
    o_BSHV: Tensor,
    lse_BHS: Tensor,
    sinks_H: Tensor | None,
    documents_BT: Tensor | None,
    lists: TileLists | None,
    scale: float,
    softcap: float,
    allows: Callable[..., Any] | None,
    of_queries: Callable[..., Any] | None,
) -> None:
    """Writes o and log-sum-exp (fp32, in nats)."""
    q, k, v = tensors
    (batch, queries, heads, width), (keys, groups), value_width = q.shape, k.shape[1:3], v.shape[-1]
    m, n = way["BLOCK_M"], way["BLOCK_N"]
    e1, e2 = parts(width)
    kernels = _kernels()
    assert kernels is not None
    kernels.attention_forward_hopper[(-(-queries // m) * batch * heads,)](
        _described(q, m // 2, e1), _described(q, m // 2, e2 or e1), _described(k, n, e1), _described(k, n, e2 or e1),
        _described(v, n, value_width), o_BSHV, lse_BHS, or_stand_in(sinks_H, lse_BHS),
        or_stand_in(documents_BT, lse_BHS), *listed(lists, lse_BHS), *by_part(o_BSHV), queries, keys, scale,
        together(k, v) * (heads // groups),
        ALLOWS=_in_gluon(allows), BOUNDS=_in_gluon(of_queries), SOFTCAP=softcap, SINKS=sinks_H is not None,
        DOCUMENTS=documents_BT is not None, LISTED=lists is not None, HEADS=heads, GROUPS=groups, E1=e1, E2=e2,
        V=value_width, BLOCK_V=value_width, BLOCK_M=m, BLOCK_N=n, STAGES=way.stages, num_warps=way.warps,
    )  # fmt: skip


def _described(t_BSHE: Tensor, rows: int, columns: int) -> Any:
    key = (t_BSHE.shape, t_BSHE.stride(), t_BSHE.dtype, rows, columns)
    form = _forms.get(key)
    if form is None:
        if len(_forms) >= FORMS:
            _forms.clear()
        form = _forms[key] = Described(_descriptor(t_BSHE, rows, columns))
    return form.of(t_BSHE)


FORMS = 512
_forms: dict[object, Described] = {}


def _descriptor(t_BSHE: Tensor, rows: int, columns: int) -> Any:
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    batch, length, heads, width = t_BSHE.shape
    block = [1, 1, rows, columns]
    return TensorDescriptor(
        t_BSHE, [batch, heads, length, width], [*by_part(t_BSHE), 1], block, _layout(rows, columns, t_BSHE.dtype)
    )


@cache
def _layout(rows: int, columns: int, dtype: torch.dtype) -> Any:
    from triton.experimental.gluon import language as gl

    kind = gl.bfloat16 if dtype == torch.bfloat16 else gl.float16
    return gl.NVMMASharedLayout.get_default_for([1, 1, rows, columns], kind)


@cache
def _in_gluon(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """A mask's function for a kernel in Gluon, which says such things in the same words."""
    from triton.experimental import gluon

    return None if function is None else gluon.jit(getattr(function, "fn", function))


@cache
def _kernels() -> ModuleType | None:
    try:
        from . import hopper_kernel as attend_hopper
    except ImportError:
        return None
    return attend_hopper
