"""The gated delta rule (Gated DeltaNet, arXiv:2412.06464, section 3): linear attention whose memory is a matrix a head.

    M[s] = exp(gate[s]) M[s - 1] + k[s] (beta[s] (v[s] - k[s]ᵀ exp(gate[s]) M[s - 1]))ᵀ
    y[s] = scale * q[s]ᵀ M[s]

Chunks of the sequence are worked on at once, as arXiv:2406.06484, section 3.2 has it: within a chunk what each position
writes follows from a triangular system, and only the memory goes from chunk to chunk in turn.

Axes besides the usual ones: F width of a value, N chunks, C positions of a chunk, R value heads of a key head.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .context import Context
from .precision import wide
from .state import State


def gated_delta(
    q_BSGE: Tensor,
    k_BSGE: Tensor,
    v_BSHF: Tensor,
    gate_BSH: Tensor,
    beta_BSH: Tensor,
    documents_BS: Tensor | None = None,
    *,
    scale: float | None = None,
    chunk: int = 64,
    state: State | None = None,
) -> Tensor:
    """Every position's reading of the memory, [B, S, H, F], in the dtype of q.

    gate (0 or less) is the logarithm of what the memory keeps, beta how far it moves towards a new value; both are [B,
    S, H]. H is a multiple of G, and value head h belongs to key head `h // (H / G)`. `scale` defaults to `E ** -0.5`.
    Keys longer than 1 make the rule unstable (beta under 1 given); they are not normalised here. All is computed in
    float32 at least, and `chunk` settles the work, not the result. With documents (integers, equal ones in a row) the
    memory begins anew with each. `state` holds the memory [B, H, E, F] behind the pass before.

    Backward computes the chunks again: what they would save is many times what they are made from.
    """
    groups, heads = k_BSGE.shape[2], v_BSHF.shape[2]
    assert heads % groups == 0, f"{heads} value heads do not divide over {groups} key heads"
    scale = k_BSGE.shape[3] ** -0.5 if scale is None else scale
    before = state.read() if state is not None else None
    if state is not None and q_BSGE.shape[1] == 1:
        y_BSHF, memory_BHEF = _one(q_BSGE, k_BSGE, v_BSHF, gate_BSH, beta_BSH, before, scale)
    else:
        rest = (documents_BS, before, scale, chunk)
        y_BSHF, memory_BHEF = _Recomputed.apply(q_BSGE, k_BSGE, v_BSHF, gate_BSH, beta_BSH, *rest)
    if state is not None:
        state.write(memory_BHEF)
    return y_BSHF


def _one(
    q_BSGE: Tensor,
    k_BSGE: Tensor,
    v_BSHF: Tensor,
    gate_BSH: Tensor,
    beta_BSH: Tensor,
    before_BHEF: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The rule as it stands, for a single position."""
    repeats = v_BSHF.shape[2] // k_BSGE.shape[2]
    q_BHE, k_BHE = (wide(x[:, 0]).repeat_interleave(repeats, dim=1) for x in (q_BSGE, k_BSGE))
    v_BHF, gate_BH, beta_BH = (wide(x[:, 0]) for x in (v_BSHF, gate_BSH, beta_BSH))
    if before_BHEF is None:
        before_BHEF = v_BHF.new_zeros(*k_BHE.shape, v_BHF.shape[-1])
    kept_BHEF = before_BHEF * gate_BH.exp()[..., None, None]
    known_BHF = (k_BHE.unsqueeze(-1) * kept_BHEF).sum(-2)
    change_BHF = beta_BH.unsqueeze(-1) * (v_BHF - known_BHF)
    memory_BHEF = kept_BHEF + k_BHE.unsqueeze(-1) * change_BHF.unsqueeze(-2)
    y_BHF = scale * (q_BHE.unsqueeze(-1) * memory_BHEF).sum(-2)
    return y_BHF.unsqueeze(1).to(q_BSGE.dtype), memory_BHEF


def _chunked(
    q_BSGE: Tensor,
    k_BSGE: Tensor,
    v_BSHF: Tensor,
    gate_BSH: Tensor,
    beta_BSH: Tensor,
    documents_BS: Tensor | None,
    before_BHEF: Tensor | None,
    scale: float,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """The same, a chunk at a time. A last chunk that is not full is filled with positions that change nothing."""
    length, groups, heads = k_BSGE.shape[1], k_BSGE.shape[2], v_BSHF.shape[2]
    q, k = (_in_chunks(x, chunk, groups) for x in (q_BSGE, k_BSGE))  # [B, G, 1, N, C, E]
    v = _in_chunks(v_BSHF, chunk, groups)  # [B, G, R, N, C, F]
    gate, beta = (_in_chunks(x.unsqueeze(-1), chunk, groups) for x in (gate_BSH, beta_BSH))  # [B, G, R, N, C, 1]

    # Logarithms of what is kept: from the beginning of the chunk to each position, between positions, and to its end.
    # In float64, for a gate that closes makes sums so large that in float32 their differences would be 1e-3 off.
    kept = gate.double().cumsum(-2)
    between = (kept - kept.transpose(-2, -1)).to(v.dtype)
    ahead_CC = torch.ones(chunk, chunk, dtype=torch.bool, device=k.device).triu(1)
    end = kept[..., -1:, :]
    into, onwards, across = (logarithm.to(v.dtype).exp() for logarithm in (kept, end - kept, end))
    apart = ahead_CC
    if documents_BS is not None:
        filled_BS = F.pad(documents_BS, (0, -length % chunk), value=-1)
        ids = filled_BS.unflatten(1, (-1, chunk))[:, None, None, :, :, None]  # [B, 1, 1, N, C, 1]
        last = ids[..., -1:, :]
        carried = torch.cat([ids[:, :, :, :1, :1], last[:, :, :, :-1]], dim=3)  # whose memory enters each chunk
        apart = ahead_CC | (ids != ids.transpose(-2, -1))
        into, onwards, across = into * (ids == carried), onwards * (ids == last), across * (last == carried)
    between = between.masked_fill(apart, float("-inf")).exp()

    # What each position writes: its value, less what it reads of those before it in the chunk, and of the memory.
    seen = (k @ k.transpose(-2, -1)) * between * beta
    sides = torch.cat([v * beta, k * (beta * into)], dim=-1)
    solved = torch.linalg.solve_triangular(seen, sides, upper=False, unitriangular=True)
    written, read = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    weight = (scale * q @ k.transpose(-2, -1)) * between
    q, k = scale * q * into, k * onwards

    shape = (q.shape[0], groups, heads // groups, k.shape[-1], v.shape[-1])
    memory = v.new_zeros(shape) if before_BHEF is None else before_BHEF.to(v.dtype).view(shape)
    found = []
    for n in range(v.shape[3]):
        own = written[:, :, :, n] - read[:, :, :, n] @ memory
        found.append(q[:, :, :, n] @ memory + weight[:, :, :, n] @ own)
        memory = memory * across[:, :, :, n] + k[:, :, :, n].transpose(-2, -1) @ own
    y_BHSF = torch.stack(found, dim=3).flatten(3, 4).flatten(1, 2)[:, :, :length]
    return y_BHSF.transpose(1, 2).to(q_BSGE.dtype), memory.flatten(1, 2)


def _in_chunks(x_BSHE: Tensor, chunk: int, groups: int) -> Tensor:
    """[B, G, H / G, N, C, E], in float32 at least, zeros behind the end."""
    x_BHSE = F.pad(wide(x_BSHE).transpose(1, 2), (0, 0, 0, -x_BSHE.shape[1] % chunk))
    return x_BHSE.unflatten(2, (-1, chunk)).unflatten(1, (groups, -1))


class _DeltaContext(Context, Protocol):
    options: tuple[float, int]

    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


class _Recomputed(torch.autograd.Function):
    """`_chunked`, of which backward has the operands only. No gradient flows through the memory: passes do not train
    those before them."""

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gate: Tensor,
        beta: Tensor,
        documents: Tensor | None,
        before: Tensor | None,
        scale: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        return _chunked(q, k, v, gate, beta, documents, before, scale, chunk)

    @staticmethod
    def setup_context(ctx: _DeltaContext, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[:7])
        ctx.options = inputs[7:]

    @staticmethod
    def backward(ctx: _DeltaContext, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        wanted, (*saved, documents, before) = ctx.needs_input_grad[:5], ctx.saved_tensors
        scale, chunk = ctx.options
        with torch.enable_grad():
            operands = [x.detach().requires_grad_(w) for x, w in zip(saved, wanted, strict=True)]
            q, k, v, gate, beta = operands
            y, _memory = _chunked(q, k, v, gate, beta, documents, before, scale, chunk)
        found = iter(torch.autograd.grad(y, [x for x in operands if x.requires_grad], gradient))
        return (*(next(found) if w else None for w in wanted), None, None, None, None)
