"""Attention of training: plain, in windows, packed, block-sparse, capped, with sinks, and of two widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..kernels.attention.kernel import AttentionKernel
from ..kernels.attention.masks import draw, hashed
from ..kernels.language import tl, triton
from .case import OURS, Case, Run

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


def cases() -> Iterator[Case]:
    for shape in SHAPES:
        yield Case("attention forward", str(shape), shape.flops, shape.bytes, partial(_build, shape, False))
        yield Case("attention backward", str(shape), 2.5 * shape.flops, 2 * shape.bytes, partial(_build, shape, True))


def _build(shape: Shape, backward: bool) -> Mapping[str, Run]:
    def random(heads: int, width: int) -> Tensor:
        made = torch.randn(shape.batch, shape.length, heads, width, device="cuda", dtype=torch.bfloat16)
        return made.requires_grad_(backward)

    q, k = random(shape.heads, shape.width), random(shape.groups, shape.width)
    v, grad = random(shape.groups, shape.value_width), random(shape.heads, shape.value_width).detach()
    ids = None
    if shape.documents:
        ids = torch.arange(shape.length, device="cuda").div(DOCUMENT, rounding_mode="floor")
        ids = ids.expand(shape.batch, -1).contiguous()
    sinks = torch.randn(shape.heads, device="cuda") if shape.sinks else None
    kernel = shape.kernel()
    forward: dict[str, Run] = {OURS: lambda: kernel(q, k, v, ids, sinks)}
    mirrored = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    if isinstance(kernel.mask(ids), type(reference.causal)) and shape.softcap is None and sinks is None:
        forward["torch cudnn"] = partial(_sdpa, "CUDNN_ATTENTION", *mirrored)
        forward["torch flash"] = partial(_sdpa, "FLASH_ATTENTION", *mirrored)
    forward["torch flex"] = _flex(shape, mirrored, ids, sinks)
    if not backward:
        return forward
    return {name: _gradients(run, (q, k, v), grad, name == OURS) for name, run in forward.items()}


def _gradients(run: Run, into: tuple[Tensor, ...], grad_BSHV: Tensor, ours: bool) -> Run:
    """Backward alone; forward runs when first asked, so that one that cannot is missed alone."""
    made: list[Tensor] = []

    def backward() -> object:
        if not made:
            o = run()
            assert isinstance(o, Tensor)
            made.append(o)
        grad = grad_BSHV if ours else grad_BSHV.transpose(1, 2)
        return torch.autograd.grad(made[0], into, grad, retain_graph=True)

    return backward


def _sdpa(backend: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(getattr(SDPBackend, backend)):
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
        )


def _flex(shape: Shape, tensors: tuple[Tensor, Tensor, Tensor], ids: Tensor | None, sinks: Tensor | None) -> Run:
    q, k, v = tensors
    import torch._functorch.config
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._functorch.config.donated_buffer = False  # backward runs many times
    dense = None
    if "blocks" in shape.name:
        rule = reference.blocks(size=BLOCK, window=3, global_=1, random=3, seed=0)
        count = shape.length // BLOCK
        dense = type(rule)(1, 3, 1, 3, 0).allowed(count, count, q.device)  # type: ignore[call-arg]

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Any:
        seen = i >= j
        if "window" in shape.name:
            seen = seen & (i - j < WINDOW)
        if ids is not None:
            seen = seen & (ids[b, i] == ids[b, j])
        if dense is not None:
            seen = seen & dense[i // BLOCK, j // BLOCK]
        return seen

    def capped(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert shape.softcap is not None
        return shape.softcap * torch.tanh(score / shape.softcap)

    batches = shape.batch if ids is not None else None
    mask = create_block_mask(sees, batches, None, shape.length, shape.length, device="cuda", _compile=True)
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)
    options: dict[str, Any] = {"block_mask": mask, "enable_gqa": shape.heads != shape.groups}
    options |= {"score_mod": capped} if shape.softcap is not None else {}
    if sinks is None:
        return lambda: compiled(q, k, v, **options)

    def scaled() -> Tensor:
        """What transformers does for gpt-oss: by how much the sinks take of the sum."""
        o, lse = compiled(q, k, v, return_lse=True, **options)
        return o * torch.sigmoid(lse - sinks[None, :, None]).unsqueeze(-1).to(o.dtype)

    return scaled
