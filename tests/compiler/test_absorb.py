"""The absorbed form of attention over what is kept: where it is derived, that it is the same, and what it saves."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dskc.compiler.ir import walk
from dskc.compiler.ops.heads import Choose
from dskc.compiler.passes.absorb import absorb
from dskc.compiler.pipeline import check, lower
from dskc.compiler.print_ir import print_graph
from dskc.compiler.verify import verify
from dskc.runtime.serve.cache import Cache

from .small_models import Small, compiled, decoded

SIZES = "V = 32, D = 16, H = 3, G = 1, Rq = 10, Rc = 12, En = 6, Er = 4, Ev = 5"
LATENT = "heads: H, kv_rank: Rc, nope: En, rotary: Er, value: Ev, rope: rope(pairs: interleaved)"
WINDOW = "mask: causal & window(5)"
# A block of a user's own: keys and values mapped by layers of their own, nothing that heads share, and no rope.
OWN = """
block own(x: [B, S, D], heads: H, width: E, rank: R, mask: mask = causal, bias = false, groups: G = H) -> [B, S, D] {
  c = linear(x, D -> R) as down
  keep c
  k = linear(c, R -> [G, E], bias: bias) as k_up
  v = linear(c, R -> [G, E]) as v_up
  o = attend(linear(x, D -> [H, E]) as q, k, v, mask: mask)
  return linear(o, [H, E] -> D) as out
}
"""
# The query in one piece, so that it must be cut; two latents, one for a part of the keys, the other for the values.
CUT = """
block cut(x: [B, S, D], heads: H, width: E, rank: R, shared: Er) -> [B, S, D] {
  a = linear(x, D -> R) as a_down
  b = linear(x, D -> R + 1) as b_down
  s = linear(x, D -> Er) as shared
  keep s, a, b
  k = linear(a, R -> [H, E]) as k_up
  v = linear(b, R + 1 -> [H, E]) as v_up
  o = attend(linear(x, D -> [H, Er + E]) as q, [s, k], v, mask: causal)
  return linear(o, [H, E] -> D) as out
}
"""
OWN_CALL = "own(rms_norm(x), heads: H, width: En, rank: Rc)"
CALLS = {
    "mla": f"mla(rms_norm(x), {LATENT}, q_rank: Rq)",
    "mla without a rank of queries": f"mla(rms_norm(x), {LATENT})",
    "mla with a window": f"mla(rms_norm(x), {LATENT}, q_rank: Rq, magnitude: 1.2, {WINDOW})",
    "mla with biases": f"mla(rms_norm(x), {LATENT}, q_rank: Rq, bias: true)",
    "mla that is sparse": (
        f"mla(rms_norm(x), {LATENT}, q_rank: Rq, index: lightning_indexer(heads: 2, width: Er, top: 4, rope: rope()))"
    ),
    "a block of one's own": OWN_CALL,
    "one's own with a window": f"own(rms_norm(x), heads: H, width: En, rank: Rc, {WINDOW})",
    "queries that are cut": "cut(rms_norm(x), heads: H, width: En, rank: Rc, shared: Er)",
}


def spec(call: str, blocks: str = OWN + CUT, dims: str = SIZES, layers: int = 2) -> str:
    return f"""dsk 1

use std {{ lightning_indexer, mla }}
{blocks}
model small(tokens: ids[B, S]) -> logits: [B, S, V] {{
  dims {{ {dims} }}
  x = embed(tokens, V -> D)
  repeat {layers} layers {{
    x += {call}
  }}
  logits = linear(rms_norm(x) as norm, D -> V)
}}
"""


def choices(text: str, folder: Path) -> list[Choose]:
    """The choices that the serving graph of a spec has; the graph holds."""
    (folder / "small.dsk").write_text(text, encoding="utf-8")
    found = check(folder / "small.dsk")
    assert not len(found.problems)
    graph = absorb(lower(found.graphs["small"]))
    verify(graph)
    return [op.attributes for op, _ in walk(graph.body) if isinstance(op.attributes, Choose)]


def serving(small: Small, form: str) -> ModuleType:
    """serve.py with one form for any number of positions: `absorbed`, or `plain`."""
    lines = (small.folder / "serve.py").read_text(encoding="utf-8").splitlines()
    chosen = [line for line in lines if line.lstrip().startswith("if new")]
    assert len(chosen) == 1, "there is one class of layers"
    text = "\n".join(lines).replace(chosen[0].strip().partition(":")[0], f"if {form == 'absorbed'}")
    (small.folder / f"serve_{form}.py").write_text(text, encoding="utf-8")
    importlib.invalidate_caches()
    return importlib.import_module(f"{small.package.__name__}.serve_{form}")


@pytest.mark.parametrize("name", CALLS)
def test_both_forms_are_the_model(name: str, tmp_path: Path) -> None:
    small = compiled(spec(CALLS[name]), tmp_path)
    model = small.model(torch.float64).double()
    tokens_BS = torch.randint(32, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(tokens_BS)
    assert expected.std() > 0.1
    for form in ("absorbed", "plain", "as generated"):
        served = small if form == "as generated" else replace(small, serve=serving(small, form))
        for size in range(1, 13):
            chunks = [size] * (12 // size) + [12 % size] * (12 % size > 0)
            found = decoded(served, model, tokens_BS, chunks)
            ends = torch.tensor(chunks).cumsum(0) - 1
            assert (found - expected[:, ends]).abs().max() < 1e-12, (form, size)


def test_the_maps_of_a_layer_stay_apart(tmp_path: Path) -> None:
    """Keys with the map of values would be of the same shape here."""
    small = compiled(spec(OWN_CALL), tmp_path)
    text = (small.folder / "serve.py").read_text(encoding="utf-8")
    assert text.count("k_map_HEnRc") == text.count("v_map_HEnRc") == 2
    assert text.count("k_map_HEnRc.mT") == 1 and "v_map_HEnRc.mT" not in text


USUAL = """
block usual(x: [B, S, D], heads: H, width: E) -> [B, S, D] {
  k = linear(x, D -> [H, E]) as k
  v = linear(x, D -> [H, E]) as v
  keep k, v
  return linear(attend(linear(x, D -> [H, E]) as q, k, v, mask: causal), [H, E] -> D) as out
}
"""
REFUSED = {
    "usual attention": ("usual(rms_norm(x), heads: H, width: En)", USUAL),
    "a bias": (OWN_CALL.replace("rank: Rc", "rank: Rc, bias: true"), OWN),
    "fewer heads of keys than of queries": (OWN_CALL.replace("rank: Rc", "rank: Rc, groups: G"), OWN),
    "keys that are turned by position": (OWN_CALL, OWN.replace("  o = attend", "  k = rope(k)\n  o = attend")),
    "keys that something else reads": (OWN_CALL, OWN.replace("  o = attend", "  v = v + k\n  o = attend")),
    "values that something else reads": (OWN_CALL, OWN.replace("linear(o, [H", "linear(o + v, [H")),
    "keys and values kept, not the latent": (
        OWN_CALL,
        OWN.replace("  keep c\n", "").replace("  o = attend", "  keep k, v\n  o = attend"),
    ),
    "a latent changed behind what is kept": (OWN_CALL, OWN.replace("keep c\n", "keep c\n  c = silu(c)\n")),
    "a map in another dtype": (OWN_CALL, OWN.replace("bias: bias) as k_up", "compute: fp32) as k_up")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_the_pattern_is_not_there_all_stays(name: str, tmp_path: Path) -> None:
    call, block = REFUSED[name]
    assert choices(spec(call, block), tmp_path) == []
    assert len(choices(spec(OWN_CALL, OWN), tmp_path)) == 1


def test_the_choice_is_by_the_multiplications_of_both_forms(tmp_path: Path) -> None:
    """DeepSeek-V3's widths: pairs of 512 + 512 instead of 128 + 128, and 512 * 256 for each position mapped."""
    dims = "V = 32, D = 16, H = 2, Rq = 8, Rc = 512, En = 128, Er = 64, Ev = 128"
    (choice,) = choices(spec(CALLS["mla"], dims=dims), tmp_path)
    assert (choice.pair, choice.position, choice.layers) == (768, 131_072, "kv_up")
    assert choice.condition("S", "T") == "S * T * 768 < (T - S) * 131_072"
    # Latents as wide as a head's keys and values are never more work: but with none kept before there is no saving.
    (choice,) = choices(spec(CALLS["mla"], dims=dims.replace("Rc = 512", "Rc = 128")), tmp_path)
    assert choice.pair == 0 and choice.condition("S", "T") == "S < T"


def test_the_graph_with_both_forms(tmp_path: Path, golden: Callable[[Path, str], None]) -> None:
    (tmp_path / "small.dsk").write_text(spec(CALLS["mla with a window"]), encoding="utf-8")
    graph = lower(check(tmp_path / "small.dsk").graphs["small"], "absorb")
    golden(Path(__file__).parent / "golden" / "latent.absorb.txt", print_graph(graph))


# --- what it saves

V3 = "V = 32, D = 16, H = 2, Rq = 8, Rc = 512, En = 128, Er = 64, Ev = 128"


def served_flops(small: Small, past: int, new: int) -> int:
    model = small.model()
    cache = Cache(1, past + new)
    tokens_BS = torch.arange(past + new)[None] % 32
    with torch.no_grad():
        small.serve.forward(model, tokens_BS[:, :past], cache)
        with FlopCounterMode(display=False) as counter:
            small.serve.forward(model, tokens_BS[:, past:], cache)
    return counter.get_total_flops()


def test_a_decoding_step_at_the_widths_of_v3(tmp_path: Path) -> None:
    small = compiled(spec(CALLS["mla"], dims=V3), tmp_path)
    layers, heads, rank, nope, rotary, value, hidden, queries, vocabulary = 2, 2, 512, 128, 64, 128, 16, 8, 32
    cache = Cache(1, 100)
    with torch.no_grad():
        small.serve.forward(small.model(), torch.arange(70)[None] % 32, cache)
    kept = {path: buffer.shape[2:] for path, buffer in cache._store.buffers.items()}
    assert sum(shape.numel() for shape in kept.values()) == layers * (rank + rotary) == layers * 576

    def step(past: int) -> int:
        """What one new token needs: nothing that is mapped is of the positions before."""
        row = hidden * (queries + rank + rotary) + queries * heads * (nope + rotary) + heads * value * hidden
        maps = heads * (nope * rank + rank * value)
        attend = heads * (past + 1) * (2 * rank + rotary)
        return 2 * (layers * (row + maps + attend) + hidden * vocabulary)

    for past in (70, 71, 300):
        assert served_flops(small, past, 1) == step(past)
    plain = replace(small, serve=serving(small, "plain"))
    per_position = 2 * layers * heads * (rank * (nope + value) + nope + rotary + value)
    assert served_flops(plain, 71, 1) - served_flops(plain, 70, 1) == per_position
    assert step(71) - step(70) == 2 * layers * heads * (2 * rank + rotary) < per_position / 100


def test_each_form_is_taken_where_it_needs_fewer(tmp_path: Path) -> None:
    """As counted by torch, for prompts, chunks and single tokens."""
    small = compiled(spec(CALLS["mla"], dims=V3, layers=1), tmp_path)
    forms = {form: replace(small, serve=serving(small, form)) for form in ("absorbed", "plain")}
    taken = []
    for past, new in ((0, 200), (40, 200), (200, 90), (200, 130), (400, 1), (1, 1)):
        counts = {form: served_flops(one, past, new) if past else _prompt(one, new) for form, one in forms.items()}
        found = served_flops(small, past, new) if past else _prompt(small, new)
        assert found == min(counts.values()), (past, new)
        taken.append(min(counts, key=lambda form: counts[form]))
    assert taken == ["plain", "plain", "absorbed", "plain", "absorbed", "absorbed"]


def _prompt(small: Small, length: int) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        small.serve.forward(small.model(), torch.arange(length)[None] % 32, Cache(1, length))
    return counter.get_total_flops()
