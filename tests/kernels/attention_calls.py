"""Calls of attention with random tensors, and what the reference makes of them in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, Phase
from torch import Tensor

from dskc.compiler.values import Mask
from dskc.runtime import reference
from dskc.runtime.kernels.attention import kernel as attention
from dskc.runtime.kernels.attention import ways as attention_ways
from dskc.runtime.kernels.attention.kernel import AttentionKernel

from .drawn_masks import (
    dense,
    written,
)

# Interpreted, shrinking an example takes minutes.
QUIET = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.explicit, Phase.generate),
}
TOLERANCE = {torch.float32: 2e-5, torch.float16: 6e-3, torch.bfloat16: 2e-2}
device = "cuda" if torch.cuda.is_available() else "cpu"
WIDE = torch.float16 if torch.cuda.is_available() else torch.float32  # kernels on a GPU take no float32


@dataclass(frozen=True)
class Shape:
    queries: int = 33
    keys: int = 40
    batch: int = 1
    heads: int = 2
    groups: int = 1
    width: int = 16
    value_width: int = 16


@dataclass(frozen=True)
class Given:
    """Random tensors of a call, and what flows back into its result."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad_o: Tensor
    documents: Tensor | None = None
    sinks: Tensor | None = None

    def of_row(self, b: int) -> Given:
        ids = None if self.documents is None else self.documents[b : b + 1]
        return Given(*(t[b : b + 1] for t in (self.q, self.k, self.v, self.grad_o)), ids, self.sinks)


@dataclass(frozen=True)
class Results:
    """What comes of a call. `lse` is [B, H, S]; `sinks` is a gradient."""

    o: Tensor
    lse: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    sinks: Tensor | None

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: t for name, t in vars(self).items() if t is not None}


def drawn(
    shape: Shape, dtype: torch.dtype = WIDE, documents: str = "", sinks: bool = False, size: float = 1.0, seed: int = 0
) -> Given:
    """documents: "" for none, "packed" for one after another, "mixed" for ids in any order."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*lengths: int) -> Tensor:
        return (torch.randn(lengths, generator=generator) * size).to(dtype).to(device)

    q = normal(shape.batch, shape.queries, shape.heads, shape.width)
    k = normal(shape.batch, shape.keys, shape.groups, shape.width)
    v = normal(shape.batch, shape.keys, shape.groups, shape.value_width)
    grad_o = normal(shape.batch, shape.queries, shape.heads, shape.value_width)
    ids = None
    if documents:
        ids = torch.randint(0, 3, (shape.batch, shape.keys), generator=generator).to(device)
        ids = (torch.where(ids == 0, 1, 0).cumsum(1) // 5 if documents == "packed" else ids) - 1
    sink = torch.randn(shape.heads, generator=generator).to(device) if sinks else None  # which models hold in fp32
    return Given(q, k, v, grad_o, ids, sink)


def run(kernel: AttentionKernel, given: Given, training: bool = False) -> Results:
    """The kernel's results. What it allocates and does not write is not a number."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        q, k, v = (t.detach().requires_grad_() for t in (given.q, given.k, given.v))
        sinks = None if given.sinks is None else given.sinks.detach().requires_grad_()
        o, lse = kernel.with_log_sum_exp(q, k, v, given.documents, sinks, training)
        wanted = [q, k, v, *([] if sinks is None else [sinks])]
        dq, dk, dv, *rest = torch.autograd.grad(o, wanted, given.grad_o)
    finally:
        torch.use_deterministic_algorithms(False)
    return Results(o.detach(), lse, dq, dk, dv, rest[0] if rest else None)


def scores(given: Given, allowed: Tensor, scale: float | None, softcap: float | None) -> Tensor:
    """[B, H, S, T] in float64, minus infinity where nothing is seen."""
    repeated = given.q.shape[2] // given.k.shape[2]
    q, k = given.q.double(), given.k.double().repeat_interleave(repeated, 2)
    s = torch.einsum("bshe,bthe->bhst", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    s = s if softcap is None else softcap * torch.tanh(s / softcap)
    return s.masked_fill(~allowed[:, None], -torch.inf)


def expected(
    mask: Mask, given: Given, scale: float | None = None, softcap: float | None = None, at: str = device
) -> Results:
    """The reference's results in float64, and log-sum-exp by its definition."""
    q, k, v = (t.detach().double().requires_grad_() for t in (given.q, given.k, given.v))
    sinks = None if given.sinks is None else given.sinks.detach().double().requires_grad_()
    o = reference.attention(
        q, k, v, mask=written(mask).mask(given.documents), scale=scale, softcap=softcap, sinks=sinks
    )
    wanted = [q, k, v, *([] if sinks is None else [sinks])]
    dq, dk, dv, *rest = torch.autograd.grad(o, wanted, given.grad_o.double())
    s = scores(given, dense(mask, q.shape[1], k.shape[1], given.documents, at), scale, softcap)
    if sinks is not None:
        s = torch.cat((s, sinks.detach()[None, :, None, None].expand(*s.shape[:3], 1)), -1)
    return Results(o.detach(), s.logsumexp(-1), dq, dk, dv, rest[0] if rest else None)


def compare(made: Results, wanted: Results, dtype: torch.dtype, least: float = 1.0) -> None:
    """least: what errors are measured by where everything is smaller, as gradients that cancel."""
    assert made.tensors.keys() == wanted.tensors.keys()
    for name, tensor in made.tensors.items():
        good = wanted.tensors[name]
        assert tensor.shape == good.shape, name
        assert tensor.dtype == (torch.float32 if name in ("lse", "sinks") else dtype), name
        assert torch.isfinite(tensor).all(), name
        error = (tensor.double() - good).abs().max().item() if good.numel() else 0.0
        most = good.abs().max().item() if good.numel() else 0.0
        assert error <= TOLERANCE[dtype] * max(most, least), f"{name}: {error} of {most}"


def one_way(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Gradients by the ways whose names start so, though algorithms are deterministic where memory is poisoned."""
    ways = [way for way in attention_ways.backward_ways() if way.name.startswith(name)]
    assert ways
    monkeypatch.setattr(attention, "backward_ways", lambda: ways)
    monkeypatch.setattr(attention.torch, "are_deterministic_algorithms_enabled", lambda: False)
