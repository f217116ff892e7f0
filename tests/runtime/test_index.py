"""`index_keys` against its formula, key by key, and what attention makes of its choice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dskc.runtime import reference
from dskc.runtime.reference import attention, causal, documents, index, window
from dskc.runtime.reference.mask import Mask

BATCH, HEADS, WIDTH = 2, 3, 4


def drawn(seed: int, queries: int, keys: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and weight. `coarse`: of small integers, so that many scores are equal; `zeros`: all of them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((BATCH, queries, HEADS, WIDTH), (BATCH, keys, WIDTH), (BATCH, queries, HEADS))
    found = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return tuple(x.round() if kind == "coarse" else x * (kind != "zeros") for x in found)  # type: ignore[return-value]


def expected(q: Tensor, k: Tensor, weight: Tensor, top: int, mask: Mask | None) -> Tensor:
    """One query and one key after another; of equal scores the earlier key."""
    batch, queries, heads, _ = q.shape
    keys = k.shape[1]
    allowed = torch.ones(queries, keys, dtype=torch.bool) if mask is None else mask.allowed(queries, keys, q.device)
    chosen = torch.full((batch, queries, top), -1)
    for b in range(batch):
        for s in range(queries):
            scores = {}
            for t in range(keys):
                if allowed[b, s, t] if allowed.ndim == 3 else allowed[s, t]:
                    products = [max(0.0, float(q[b, s, h] @ k[b, t])) for h in range(heads)]
                    scores[t] = sum(float(weight[b, s, h]) * products[h] for h in range(heads))
            best = sorted(scores, key=lambda t: (-round(scores[t], 9), t))[:top]
            chosen[b, s, : len(best)] = torch.tensor(best, dtype=torch.int64)
    return chosen


MASKS = {
    "none": None,
    "causal": causal,
    "window": causal & window(3),
    "documents": causal & documents(torch.tensor([[0, 0, 1, 1, 1, 1, 2], [0, 0, 0, 0, 0, 1, 1]])),
}


@pytest.mark.parametrize("mask", MASKS)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000), queries=st.integers(1, 7), top=st.integers(1, 9),
    kind=st.sampled_from(("plain", "coarse", "zeros")), most=st.sampled_from((1, 90, 1 << 26)),
)  # fmt: skip
def test_the_best_keys_of_every_query(mask: str, seed: int, queries: int, top: int, kind: str, most: int) -> None:
    q, k, weight = drawn(seed, queries, 7, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "MOST_SCORES", most)  # so few at once that queries go in parts
        found = reference.index_keys(q, k, weight, top, MASKS[mask])
    assert found.dtype == torch.int64 and found.shape == (BATCH, queries, top)
    assert torch.equal(found, expected(q, k, weight, top, MASKS[mask]))


def test_a_choice_has_no_gradient_and_selects_what_attention_sees() -> None:
    q, k, weight = (x.requires_grad_() for x in drawn(0, 7, 7, "plain"))
    chosen = reference.index_keys(q, k, weight, 2, causal)
    assert not chosen.requires_grad
    values = torch.eye(7, dtype=torch.float64).expand(BATCH, 7, 7).unsqueeze(2)  # the result is the probabilities
    seen = attention(q, k.unsqueeze(2), values, causal, select=chosen)[:, :, 0] > 0
    for b in range(BATCH):
        for s in range(7):
            assert seen[b, s].nonzero().flatten().tolist() == sorted(t for t in chosen[b, s].tolist() if t >= 0)


def test_bf16_is_scored_in_float32() -> None:
    q, k, weight = (x.bfloat16() for x in drawn(3, 6, 40, "plain"))
    found = reference.index_keys(q, k, weight, 9)
    assert torch.equal(found, reference.index_keys(q.float(), k.float(), weight.float(), 9))


def test_its_operations_are_those_of_the_scores() -> None:
    q, k, weight = drawn(0, 5, 7, "plain")
    with FlopCounterMode(display=False) as counter:
        reference.index_keys(q, k, weight, 2)
    assert counter.get_total_flops() == 2 * BATCH * 5 * 7 * HEADS * (WIDTH + 1)
