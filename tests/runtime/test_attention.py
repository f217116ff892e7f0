"""Attention and masks against a plain softmax, transformers' mask functions, and brute force."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.masking_utils import (
    causal_mask_function,
    packed_sequence_mask_function,
    sliding_window_causal_mask_function,
)
from transformers.models.llama.modeling_llama import eager_attention_forward

from dskc.runtime.reference import attention, causal, documents, everything, window
from dskc.runtime.reference.mask import Mask


def plain(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float | None = None) -> Tensor:
    """Attention written out, in the layout of ours."""
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    score = torch.einsum("bshe,bthe->bhst", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if allowed is not None:
        score = score.masked_fill(~(allowed if allowed.ndim == 2 else allowed[:, None]), -torch.inf)
    return torch.einsum("bhst,bthe->bshe", score.softmax(-1), v)


def inputs(queries: int, keys: int, heads: int, groups: int, width: int = 8, value: int = 8, dtype=torch.float64):
    shapes = ((2, queries, heads, width), (2, keys, groups, width), (2, keys, groups, value))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


IDS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [5, 5, 5, 5, 5, 5, 5, 3, 3]])
MASKS: dict[str, Mask | None] = {
    "none": None,
    "causal": causal,
    "window": causal & window(3),
    "all but one": causal & window(8),
    "wide window": causal & window(9),
    "both sides": window(3),
    "documents": causal & documents(IDS),
    "all": causal & window(4) & documents(IDS),
    "either": causal & (window(2) | documents(IDS)),
    "no documents": causal & documents(None),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("queries", [1, 4, 9])
@pytest.mark.parametrize(("heads", "groups", "value"), [(4, 4, 8), (4, 2, 8), (4, 1, 6)])
def test_attention_against_plain_softmax(mask: Mask | None, queries: int, heads: int, groups: int, value: int) -> None:
    q, k, v = inputs(queries, 9, heads, groups, value=value)
    allowed = None if mask is None else mask.allowed(queries, 9, torch.device("cpu"))
    ours, theirs = attention(q, k, v, mask), plain(q, k, v, allowed)
    with torch.no_grad():  # where few queries come, the heads of a group are taken as further ones
        torch.testing.assert_close(attention(q, k, v, mask), theirs, rtol=1e-12, atol=1e-12)
    assert ours.shape == (2, queries, heads, value)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, [q, k, v], direction), torch.autograd.grad(theirs, [q, k, v], direction), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_scale_is_applied() -> None:
    q, k, v = inputs(9, 9, 4, 2)
    torch.testing.assert_close(attention(q, k, v, scale=0.7), plain(q, k, v, None, scale=0.7))
    assert not torch.allclose(attention(q, k, v), attention(q, k, v, scale=0.7))


@pytest.mark.parametrize("size", [None, 4])
def test_against_transformers_eager_attention(size: int | None) -> None:
    q, k, v = inputs(9, 9, 4, 2, dtype=torch.float32)
    rule = causal_mask_function if size is None else sliding_window_causal_mask_function(size)
    bias = torch.zeros(9, 9).masked_fill(~_table(rule, 9), torch.finfo(torch.float32).min)
    module = SimpleNamespace(num_key_value_groups=2, training=False)
    theirs, _ = eager_attention_forward(module, *(x.transpose(1, 2) for x in (q, k, v)), bias, scaling=8**-0.5)
    ours = attention(q, k, v, causal if size is None else causal & window(size))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def written_out(q, k, v, allowed, scale, softcap, sinks, select) -> Tensor:
    """Attention one query at a time, over lists of the keys that it sees."""
    heads, groups, keys = q.shape[2], k.shape[2], k.shape[1]
    out = q.new_zeros(*q.shape[:3], v.shape[-1])
    for b, s, h in itertools.product(*map(range, q.shape[:3])):
        seen = [t for t in range(keys) if allowed is None or bool(allowed.expand(len(q), -1, -1)[b, s, t])]
        if select is not None:
            seen = [t for t in seen if t in select[b, s].tolist()]
        g = h // (heads // groups)
        score = k[b, seen, g] @ q[b, s, h] * scale
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        grown = score.exp()
        total = grown.sum() + (sinks[h].exp() if sinks is not None else 0.0)
        out[b, s, h] = (grown / total) @ v[b, seen, g]
    return out


@pytest.mark.parametrize("mask", ["none", "causal", "window", "all"])
@pytest.mark.parametrize(
    ("softcap", "sinks", "select"),
    [(0.5, False, False), (None, True, False), (None, False, True), (0.5, True, True)],
    ids=["softcap", "sinks", "select", "all three"],
)
@pytest.mark.parametrize(("queries", "heads", "groups"), [(9, 4, 2), (4, 2, 2), (1, 4, 1)])
def test_what_torch_has_no_kernel_for(
    mask: str, softcap: float | None, sinks: bool, select: bool, queries: int, heads: int, groups: int
) -> None:
    tensors = inputs(queries, 9, heads, groups, value=6)
    allowed = None if MASKS[mask] is None else MASKS[mask].allowed(queries, 9, torch.device("cpu"))
    sink_H = torch.randn(heads, dtype=torch.float64, requires_grad=True) if sinks else None
    select_BSK = None
    if select:  # three positions at random, perhaps twice, perhaps none; and the query's own, lest it sees nothing
        others = torch.randint(-1, 9, (2, queries, 3))
        select_BSK = torch.cat([others, torch.arange(9 - queries, 9).view(1, -1, 1).expand(2, -1, -1)], dim=-1)
    ours = attention(*tensors, MASKS[mask], scale=0.7, softcap=softcap, sinks=sink_H, select=select_BSK)
    plainly = written_out(*tensors, allowed, 0.7, softcap, sink_H, select_BSK)
    torch.testing.assert_close(ours, plainly, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(ours, attention(*tensors, MASKS[mask], scale=0.7)) or (select and queries == 1)
    learned = [*tensors, *([sink_H] if sinks else [])]
    direction = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, learned, direction), torch.autograd.grad(plainly, learned, direction), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_query_that_sees_no_key_leaves_all_to_its_sink() -> None:
    q, k, v = inputs(3, 3, 2, 2)
    none_BSK = torch.full((2, 3, 2), -1)
    assert not attention(q, k, v, causal, sinks=torch.zeros(2, dtype=torch.float64), select=none_BSK).any()


def test_scores_are_wide_whatever_the_inputs_are() -> None:
    """Probabilities of bf16 inputs are those of their exact numbers, rounded once."""
    q, k, v = (x.detach().bfloat16() for x in inputs(9, 9, 4, 2, dtype=torch.float32))
    exact = attention(q.double(), k.double(), v.double(), causal, softcap=50.0)
    assert torch.equal(attention(q, k, v, causal, softcap=50.0), exact.bfloat16())


def test_dropout_of_written_out_probabilities() -> None:
    q, k, _ = inputs(9, 9, 2, 2)
    v = torch.eye(9, dtype=torch.float64)[None, :, None].expand(2, 9, 2, 9)
    sinks = torch.zeros(2, dtype=torch.float64)
    exact = attention(q, k, v, None, sinks=sinks, dropout=0.5)
    torch.manual_seed(0)
    kept = attention(q, k, v, None, sinks=sinks, dropout=0.5, training=True)
    assert 0.3 < (kept == 0).double().mean().item() < 0.7
    torch.testing.assert_close(kept[kept != 0], 2 * exact[kept != 0])


def _table(rule, keys: int, batch: int = 0) -> Tensor:
    return torch.tensor(
        [[bool(rule(batch, 0, torch.tensor(i), torch.tensor(j))) for j in range(keys)] for i in range(keys)]
    )


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_window_means_what_transformers_means(size: int) -> None:
    cpu = torch.device("cpu")
    assert torch.equal((causal & window(size)).allowed(9, 9, cpu), _table(sliding_window_causal_mask_function(size), 9))


def test_documents_mean_what_transformers_means() -> None:
    ours = (causal & documents(IDS)).allowed(9, 9, torch.device("cpu"))
    for b in range(2):
        packed = _table(packed_sequence_mask_function(IDS), 9, b)
        assert torch.equal(ours[b], packed & _table(causal_mask_function, 9))


mask_trees = st.recursive(
    st.one_of(
        st.just((causal, lambda i, j, b: j <= i)),
        st.just((documents(IDS), lambda i, j, b: bool(IDS[b, i] == IDS[b, j]))),
        st.just((everything, lambda i, j, b: True)),
        st.integers(1, 10).map(lambda n: (window(n), lambda i, j, b: abs(i - j) < n)),
    ),
    lambda children: st.tuples(children, children, st.booleans()).map(
        lambda c: (
            (c[0][0] & c[1][0], lambda i, j, b: c[0][1](i, j, b) and c[1][1](i, j, b))
            if c[2]
            else (c[0][0] | c[1][0], lambda i, j, b: c[0][1](i, j, b) or c[1][1](i, j, b))
        )
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(mask_trees, st.integers(1, 9))
def test_masks_by_brute_force(tree, queries: int) -> None:
    mask, rule = tree
    expected = [[[rule(9 - queries + s, t, b) for t in range(9)] for s in range(queries)] for b in range(2)]
    for same in (mask, mask.simplified(9)):
        assert same.allowed(queries, 9, torch.device("cpu")).expand(2, queries, 9).tolist() == expected


def test_a_window_as_long_as_the_sequence_needs_no_mask_tensor() -> None:
    assert (causal & window(9) & documents(None)).simplified(9) is causal
    assert (window(9) | causal).simplified(9) is everything


def test_dropout_acts_on_probabilities_and_only_while_training() -> None:
    q, k, v = inputs(9, 9, 2, 2)
    torch.testing.assert_close(attention(q, k, v, causal, dropout=0.5), attention(q, k, v, causal))
    torch.manual_seed(0)
    v = torch.eye(9, dtype=torch.float64)[None, :, None].expand(2, 9, 2, 9)  # the output is the probabilities
    kept = attention(q, k, v, None, dropout=0.5, training=True)
    exact = attention(q, k, v, None)
    assert 0.3 < (kept == 0).double().mean().item() < 0.7
    torch.testing.assert_close(kept[kept != 0], 2 * exact[kept != 0])


@pytest.mark.parametrize("mask", [causal, causal & window(300)])
def test_decoding_does_not_repeat_the_keys_of_a_group(mask: Mask) -> None:
    """One key head for 16: a tensor as large as all their keys or values would be 16 times the larger of these."""
    q, k, v = (x.detach() for x in inputs(2, 400, 16, 1, width=64, value=48))
    with torch.no_grad(), torch.profiler.profile(profile_memory=True, record_shapes=True) as profile:
        attention(q, k, v, mask)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 4 * k.numel() * k.element_size()
    attention(q.requires_grad_(), k, v, mask)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(AssertionError, match="3 query heads"):
        attention(*inputs(4, 4, 3, 2), causal)


def test_one_compilation_serves_all_lengths() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k, v: attention(q, k, v, causal), fullgraph=True, backend="eager")
    for length in (5, 7, 12):  # from the second on, the length is a symbol
        q, k, v = inputs(length, length, 4, 2)
        torch.testing.assert_close(compiled(q, k, v), attention(q, k, v, causal))
