"""Attention of training: plain, in windows, packed, block-sparse, capped, with sinks, and of two widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..kernels.attention.kernel import AttentionKernel
from ..kernels.attention.masks import draw, hashed
from ..kernels.language import tl, triton
from ..reference.mask import Causal, Everything
from .case import OURS, Case, Run, gradients, later
from .flex import flex
from .model import Trained
from .workload import Workload

WINDOW = 1024
DOCUMENT = 1024  # positions of each document
BLOCK = 64


@triton.jit
def causal(query, key, query_document, key_document):  # type: ignore[no-untyped-def]
    return key <= query


@triton.jit
def causal_of_queries(first, last):  # type: ignore[no-untyped-def]
    return 0, last + 1, 0, first + 1


@triton.jit
def causal_of_keys(first, last):  # type: ignore[no-untyped-def]
    return first, 1 << 30, last, 1 << 30


@triton.jit
def causal_window(query, key, query_document, key_document):  # type: ignore[no-untyped-def]
    return (key <= query) & (key > query - 1024)


@triton.jit
def causal_window_of_queries(first, last):  # type: ignore[no-untyped-def]
    return first - 1023, last + 1, last - 1023, first + 1


@triton.jit
def causal_window_of_keys(first, last):  # type: ignore[no-untyped-def]
    return first, last + 1024, last, first + 1024


@triton.jit
def causal_documents(query, key, query_document, key_document):  # type: ignore[no-untyped-def]
    return (key <= query) & (query_document == key_document)


@triton.jit
def causal_blocks(query, key, query_document, key_document):  # type: ignore[no-untyped-def]
    query_block, key_block = query // 64, key // 64
    seen = (key_block >= query_block - 1) & (key_block <= query_block + 1)
    seen = seen | (key_block < 1) | (query_block < 1)
    start = hashed(query_block.to(tl.uint32) + hashed(query_block * 0 + 0))
    drawn0, _last = draw(start, query_block - 2, 0, 1, 3)
    drawn1, last = draw(start, query_block - 2, 1, 1, 3)
    drawn1 = tl.where(drawn1 == drawn0, last, drawn1)
    drawn2, last = draw(start, query_block - 2, 2, 1, 3)
    drawn2 = tl.where((drawn2 == drawn0) | (drawn2 == drawn1), last, drawn2)
    return (key <= query) & (seen | (key_block == drawn0) | (key_block == drawn1) | (key_block == drawn2))


Mask = Callable[[Tensor | None], reference.Mask]


@dataclass(frozen=True)
class Shape:
    """One attention. `seen`: keys that a query sees on average."""

    name: str
    batch: int
    length: int
    heads: int
    groups: int
    width: int
    value_width: int
    seen: float
    kernel: Callable[[], AttentionKernel]
    documents: bool = False
    sinks: bool = False
    softcap: float | None = None

    @property
    def flops(self) -> float:
        return 2.0 * self.batch * self.heads * self.length * self.seen * (self.width + self.value_width)

    @property
    def bytes(self) -> float:
        """Of forward: q, k, v and o once each, in 16 bits."""
        per_query = self.heads * (self.width + self.value_width)
        return 2.0 * self.batch * self.length * (per_query + self.groups * (self.width + self.value_width))

    def __str__(self) -> str:
        width = f"E{self.width}" if self.width == self.value_width else f"E{self.width}/{self.value_width}"
        return f"{self.name} B{self.batch} S{self.length} H{self.heads}/{self.groups} {width}"


def _kernel(mask: Mask, *functions: Any, softcap: float | None = None) -> AttentionKernel:
    allows, of_queries, of_keys = (*functions, None, None)[:3]
    return AttentionKernel("bench::attention", "bench", mask, allows, of_queries, of_keys, softcap=softcap)


def _causal(softcap: float | None = None) -> AttentionKernel:
    return _kernel(lambda _: reference.causal, causal, causal_of_queries, causal_of_keys, softcap=softcap)


def _window() -> AttentionKernel:
    mask = reference.causal & reference.window(WINDOW)
    return _kernel(lambda _: mask, causal_window, causal_window_of_queries, causal_window_of_keys)


def _documents() -> AttentionKernel:
    return _kernel(
        lambda ids: reference.causal & reference.documents(ids), causal_documents, causal_of_queries, causal_of_keys
    )


def _blocks() -> AttentionKernel:
    mask = reference.causal & reference.blocks(size=BLOCK, window=3, global_=1, random=3, seed=0)
    return _kernel(lambda _: mask, causal_blocks)


SHAPES = (
    Shape("causal", 2, 4096, 32, 32, 128, 128, 2048, _causal),
    Shape("causal", 1, 16384, 32, 8, 128, 128, 8192, _causal),
    Shape("latent", 1, 4096, 16, 16, 192, 128, 2048, _causal),
    Shape("latent", 2, 4096, 128, 128, 192, 128, 2048, _causal),
    Shape("window 1024", 1, 16384, 32, 8, 128, 128, WINDOW, _window),
    Shape("documents of 1024", 1, 16384, 32, 8, 128, 128, DOCUMENT / 2, _documents, documents=True),
    Shape("blocks of 64", 1, 16384, 16, 16, 128, 128, 6 * BLOCK, _blocks),
    Shape("softcap 50", 2, 4096, 32, 32, 128, 128, 2048, partial(_causal, 50.0), softcap=50.0),
    Shape("sinks, window 1024", 1, 16384, 64, 8, 64, 64, WINDOW, _window, sinks=True),
)


def cases(asked: Workload | None = None) -> Iterator[Case]:
    """Forward and backward of the published shapes, or of a model's own attention."""
    for shape in SHAPES if asked is None else _shapes_of(asked):
        yield Case("attention forward", str(shape), shape.flops, shape.bytes, partial(_build, shape, False))
        yield Case("attention backward", str(shape), 2.5 * shape.flops, 2 * shape.bytes, partial(_build, shape, True))


def _shapes_of(asked: Workload) -> Iterator[Shape]:
    kernels = Trained.load(Path(asked.folder)).kernels
    for call in asked.calls:
        if not call.is_attention or len(call.tensors[0].shape) != 4:
            continue
        kernel: AttentionKernel = getattr(kernels, call.kernel)
        q, k, v = (tensor.shape for tensor in call.tensors[:3])
        documents = "documents_BT" in call.named
        yield Shape(
            call.kernel, q[0], q[1], q[2], k[2], q[3], v[3], _seen(kernel, q[1], documents), partial(_self, kernel),
            documents=documents, sinks="sinks_H" in call.named, softcap=kernel.softcap,
        )  # fmt: skip


def _self(kernel: AttentionKernel) -> AttentionKernel:
    return kernel


def _seen(kernel: AttentionKernel, length: int, documents: bool) -> float:
    """Keys that a query sees on average: of every query, or of some where there are too many to look at."""
    ids = _documents_of(1, length, torch.device("cpu")) if documents else None
    mask = kernel.mask(ids)
    if length <= 4096 or documents:
        return float(mask.allowed(length, length, torch.device("cpu")).float().mean() * length)
    last = mask.allowed(1, length, torch.device("cpu")).sum()
    behind = [mask.allowed(1, length * i // 32, torch.device("cpu")).sum() for i in range(1, 33)]
    return float(last if type(mask) is Everything else sum(behind) / len(behind))


def _documents_of(batch: int, length: int, device: torch.device) -> Tensor:
    ids = torch.arange(length, device=device).div(DOCUMENT, rounding_mode="floor")
    return ids.expand(batch, -1).contiguous()


def _build(shape: Shape, backward: bool) -> Mapping[str, Run]:
    def random(heads: int, width: int) -> Tensor:
        made = torch.randn(shape.batch, shape.length, heads, width, device="cuda", dtype=torch.bfloat16)
        return made.requires_grad_(backward)

    q, k = random(shape.heads, shape.width), random(shape.groups, shape.width)
    v, grad = random(shape.groups, shape.value_width), random(shape.heads, shape.value_width).detach()
    ids = _documents_of(shape.batch, shape.length, q.device) if shape.documents else None
    sinks = torch.randn(shape.heads, device="cuda") if shape.sinks else None
    kernel = shape.kernel()
    mask = kernel.mask(ids).simplified(shape.length)
    forward: dict[str, Run] = {OURS: lambda: kernel(q, k, v, ids, sinks)}
    mirrored = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    if isinstance(mask, Causal | Everything) and shape.softcap is None and sinks is None:
        forward["torch cudnn"] = partial(_sdpa, "CUDNN_ATTENTION", isinstance(mask, Causal), *mirrored)
        forward["torch flash"] = partial(_sdpa, "FLASH_ATTENTION", isinstance(mask, Causal), *mirrored)
    forward["torch flex"] = later(lambda: flex(*mirrored, mask, shape.softcap, sinks))
    if not backward:
        return forward
    turned = grad.transpose(1, 2)
    return {name: gradients(run, (q, k, v), grad if name == OURS else turned) for name, run in forward.items()}


def _sdpa(backend: str, causal: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(getattr(SDPBackend, backend)):
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
        )
