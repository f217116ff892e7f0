"""What a cache of decoding gets: the new positions at their places, and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dskc.runtime.kernels import KernelError, use_kernels
from dskc.runtime.kernels.decode import attention as decode
from dskc.runtime.kernels.decode import write_cache
from dskc.runtime.reference import paged

from .conftest import examples
from .test_decode import DEVICE, ON_GPU, QUIET, only, text


@settings(max_examples=examples(10), **QUIET)
@given(data=st.data())
def test_what_is_written(data: st.DataObject) -> None:
    queries, groups = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 3]))
    width, value = data.draw(st.sampled_from([16, 20, 48])), data.draw(st.sampled_from([8, 16]))
    lengths = data.draw(st.lists(st.one_of(st.integers(0, 4), st.integers(0, 40)), min_size=1, max_size=4))
    dtype, page = data.draw(st.sampled_from([torch.float32, torch.float16])), data.draw(st.sampled_from([0, 8, 16]))
    eighth = data.draw(st.booleans())
    new = text([queries] * len(lengths), 1, 1, groups, width, value, dtype=dtype)
    given = text(lengths, 1, 1, groups, width, value, room=48, dtype=dtype, seed=1)
    table = None
    if page:
        given, _ = given.in_pages(page, 1)
        table = (
            torch.randperm(given.k.shape[0], device=DEVICE)[: len(lengths) * (48 // page)].view(len(lengths), -1).int()
        )
    target = torch.float8_e4m3fn if eighth else dtype
    k_scale, v_scale = (2.0**-4, 2.0**-12) if eighth else (1.0, 1.0)  # beyond fp8's largest, too
    if eighth and DEVICE == "cpu":  # Triton's interpreter does not round to fp8 as a GPU does: no number is rounded
        new = new.to(torch.float8_e4m3fn).to(dtype)
    ours, theirs = ([x.nan_to_num(5.0).to(target) for x in (given.k, given.v)] for _ in range(2))
    at = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    with use_kernels("triton"):
        write_cache.write_cache(new.k, new.v, *ours, at, table_BN=table, k_scale=k_scale, v_scale=v_scale)
    for x, scale, one, other in zip((new.k, new.v), (k_scale, v_scale), ours, theirs, strict=True):
        paged.write_cache(x, other, at, table, scale)
        assert torch.equal(one.float(), other.float())


def test_latents_written_into_one_tensor() -> None:
    cache = torch.zeros(2, 8, 24, device=DEVICE)
    c, rope = torch.ones(2, 1, 16, device=DEVICE), 2 * torch.ones(2, 1, 8, device=DEVICE)
    lengths = torch.tensor([3, 0], dtype=torch.int32, device=DEVICE)
    with use_kernels("triton"):
        write_cache.write_latents(c, rope, cache[..., :16], cache[..., 16:], lengths)
    expected = torch.zeros_like(cache)
    expected[0, 2, :16], expected[0, 2, 16:] = 1, 2
    assert torch.equal(cache, expected)


def test_what_is_refused_and_what_torch_is_told() -> None:
    good = text([20, 8], 1, 2, 1, 16, 16)
    k, new = good.k.nan_to_num(0.0), good.k[:, :1].nan_to_num(0.0)
    for cache, message in {k[..., :3]: "does not go into", k.half(): "does not go into", k[:1]: "for a batch"}.items():
        with use_kernels("triton"), pytest.raises(KernelError, match=f"write_cache: .*{message}"):
            write_cache.write_cache(new, new, cache, cache, good.lengths)
    torch.library.opcheck(torch.ops.dskc.write_cache, (new, new, k.clone(), k.clone(), good.lengths, None, 1.0, 1.0))


@pytest.mark.gpu
@ON_GPU
def test_a_graph_goes_on_as_lengths_grow() -> None:
    given, page = text([100, 40, 0], 1, 8, 2, 128, 128, room=256, dtype=torch.bfloat16), 16
    given, table = given.in_pages(page, 1)
    table = torch.arange(table.numel(), device=DEVICE, dtype=torch.int32).view_as(table)
    k, v = (torch.randn(given.k.shape, device=DEVICE).to(torch.bfloat16) for _ in range(2))
    new = torch.randn(3, 1, 2, 128, device=DEVICE).to(torch.bfloat16)
    lengths = given.lengths.clone()

    def step() -> Tensor:
        write_cache.write_cache(new, new, k, v, lengths, table_BN=table)
        return decode.decode_attention(given.q, k, v, lengths, table_BN=table, longest=256)

    with torch.no_grad(), only():
        step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            o = step()
        for grown in ([101, 41, 0], [200, 129, 1]):
            lengths.copy_(torch.tensor(grown, device=DEVICE))
            new.normal_()
            graph.replay()
            found = o.clone()
            assert torch.equal(found, step())
            for b, length in enumerate(grown):
                if length:
                    at = int(table[b, (length - 1) // page]), (length - 1) % page
                    assert torch.equal(k[at], new[b, 0])
