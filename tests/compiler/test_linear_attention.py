"""Models that carry something along the sequence: what backward keeps, decoding in passes of any size, documents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dskc.compiler.passes.memory import flops
from dskc.runtime.serve.cache import Cache

from .small_models import Small, compiled, decoded, first
from .test_properties import inputs, kept_bytes, ledger_bytes

SPEC = """dsk 1

use std {{ attention, gated_delta_net, swiglu }}

model m(tokens: ids[B, S]) -> logits: [B, S, V] {{
  dims {{ V = 31, D = 64, F = 96, H = 4, E = 8 }}
  x = embed(tokens, V -> D)
  repeat 4 layers[i] {{
    if i % 4 == 3 {{
      x += attention(rms_norm(x), heads: H, width: E, rope: rope(), mask: causal{mask})
    }} else {{
      x += gated_delta_net(rms_norm(x), heads: H, key_heads: 2, width: E, value: 12, chunk: 8{documents})
    }}
    x += swiglu(rms_norm(x), inner: F)
  }}
  logits = linear(rms_norm(x) as norm, D -> V)
}}
"""
PLAIN = SPEC.format(mask="", documents="")
PACKED = SPEC.format(mask=" & documents", documents=", documents: true")


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return compiled(PLAIN, tmp_path_factory.mktemp("hybrid"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return compiled(PACKED, tmp_path_factory.mktemp("packed"))


@pytest.mark.parametrize("kind", ["hybrid", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [16, 29])
def test_the_ledger_has_what_backward_keeps(
    kind: str, dtype: torch.dtype, length: int, request: pytest.FixtureRequest
) -> None:
    small: Small = request.getfixturevalue(kind)
    model = small.model(compute=dtype).to(dtype).train()
    ratio = ledger_bytes(small.graph, length, 2, dtype.itemsize) / kept_bytes(model, inputs(small, length))
    assert 0.97 < ratio < 1.03, f"the ledger has {ratio:.3f} of what is kept"


def test_the_cost_of_linear_attention_grows_with_the_length(tmp_path: Path) -> None:
    text = PLAIN.replace("i % 4 == 3", "i == 9")
    graph = compiled(text, tmp_path).graph
    assert flops(graph, 160)[0] == 10 * flops(graph, 16)[0]
    assert flops(graph, 17)[0] < flops(graph, 24)[0] < flops(graph, 25)[0], "the last chunk is filled"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 21), min_size=1, max_size=5), st.integers(1, 3))
def test_decoding_in_passes_of_any_size(hybrid: Small, sizes: list[int], batch: int) -> None:
    model = hybrid.model(compute=torch.float64).double()
    tokens_BS = torch.randint(31, (batch, sum(sizes)), generator=torch.Generator().manual_seed(sum(sizes)))
    with torch.no_grad():
        whole_BSV = first(model(tokens_BS))
    ends = torch.tensor(sizes).cumsum(0) - 1
    found = decoded(hybrid, model, tokens_BS, sizes)
    torch.testing.assert_close(found, whole_BSV[:, ends], rtol=1e-6, atol=1e-6)


def test_a_pass_that_failed_runs_again_and_a_text_begins_anew(hybrid: Small) -> None:
    model = hybrid.model(compute=torch.float64).double()
    tokens_BS = torch.randint(31, (2, 12), generator=torch.Generator().manual_seed(0))
    cache = Cache(2, 12)

    def run(start: int, stop: int) -> torch.Tensor:
        with torch.no_grad():
            return hybrid.serve.forward(model, tokens_BS[:, start:stop], cache)

    expected = [run(0, 5), run(5, 6), run(6, 12)]
    cache.clear()
    found = []
    last = model.layers[-1].swiglu
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        model.layers[-1].swiglu = None  # what fails, behind all layers of linear attention
        with pytest.raises(TypeError):
            run(start, stop)
        model.layers[-1].swiglu = last
        found.append(run(start, stop))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_nothing_is_left_to_do_when_the_cache_advances(tmp_path: Path) -> None:
    """What keeps or carries something is not written into what is returned, which is computed behind that."""
    small = compiled(
        """dsk 1

use std { attention }

model m(tokens: ids[B, S]) -> logits: [B, S, V] {
  dims { V = 31, D = 8 }
  x = embed(tokens, V -> D)
  k = linear(x, D -> [2, D])
  keep k
  seen = attend(linear(x, D -> [2, D]) as q, k, k, mask: causal)
  x += linear(seen, [2, D] -> D) as out
  logits = linear(conv(attention(x, heads: 2, width: D), width: 3), D -> V)
}
""",
        tmp_path,
    )
    model = small.model(compute=torch.float64).double()
    tokens_BS = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(0))
    whole_BSV = first(model(tokens_BS)).detach()
    ends = torch.tensor([4, 5, 8])
    torch.testing.assert_close(decoded(small, model, tokens_BS, (5, 1, 3)), whole_BSV[:, ends], rtol=1e-6, atol=1e-6)


def test_documents_are_as_if_each_were_alone(hybrid: Small, packed: Small) -> None:
    model, plain = packed.model(compute=torch.float64).double(), hybrid.model(compute=torch.float64).double()
    plain.load_state_dict(model.state_dict())
    lengths = [3, 11, 1, 9]
    tokens_BS = torch.randint(31, (2, sum(lengths)), generator=torch.Generator().manual_seed(0))
    documents_BS = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)).expand(2, -1)
    with torch.no_grad():
        found = first(model(tokens_BS, documents_BS))
        parts = [first(plain(part)) for part in tokens_BS.split(lengths, dim=1)]
        # Positions of attention count from the beginning of the row; turned queries and keys only see differences.
        torch.testing.assert_close(found, torch.cat(parts, dim=1), rtol=1e-6, atol=1e-6)
        assert not torch.allclose(first(plain(tokens_BS)), found)


def test_documents_are_asked_for_by_word(hybrid: Small, packed: Small, tmp_path: Path) -> None:
    alone = compiled(SPEC.format(mask="", documents=", documents: true"), tmp_path)
    found = [small.graph.inputs for small in (hybrid, packed, alone)]
    assert found == [("tokens",), ("tokens", "documents"), ("tokens", "documents")]
