"""Drawn models: `shapes` counts as the memory pass does, and `breaking` says what running both models shows."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dskc.compiler.breaking.compare import Report, compare
from dskc.compiler.breaking.show import breaking_json, breaking_text
from dskc.compiler.pipeline import check
from dskc.dsl.source import Source

from ..drawn_models import Drawn, models
from ..small_models import Small, compiled, first
from .test_shapes import agrees

few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
many = settings(few, max_examples=400)

# What a change may be: a pattern, and what its first match becomes.
CHANGES = (
    (r"D = (\d+)", r"D = 30"),
    (r"H = (\d+)", r"H = 6"),
    (r"V = (\d+)", r"V = 41"),
    (r"repeat \d+ layers", "repeat 5 layers"),
    (r"\blayers\[i\]", "blocks[i]"),
    (r"theta: \d+_?\d*", "theta: 77"),
    (r"pairs: half", "pairs: interleaved"),
    (r"eps: 1e-5", "eps: 1e-2"),
    (r"rms_norm\(x\)", "rms_norm(x, eps: 1e-2)"),
    (r"rms_norm\(x\)", "rms_norm(x, offset: 0.5)"),
    (r"layer_norm\(x\)", "layer_norm(x, eps: 0.3)"),
    (r"mask: causal\b", "mask: causal & window(1)"),
    (r"window\((\d)\)", "window(1)"),
    (r"scale: 0\.3", "scale: 0.9"),
    (r"softcap\(", "1.5 * softcap("),
    (r"0\.5 \* x0", "0.25 * x0"),
    (r" as norm", " as final"),
    (r" as head", " as last"),
    (r"swiglu\(", "geglu("),
    (r"geglu\(", "swiglu("),
    (r", bias: true", ""),
    (r", qk_norm: true", ""),
    (r", renormalize: false", ""),
    (r"top: 1", "top: 2"),
    (r"i < 1", "i < 2"),
    (r"x \+= (\w+)", r"x += 2 * \1"),
    (r"dropout: 0\.25", "dropout: 0.5"),
    (r"model drawn", "/// Another word.\nmodel drawn"),
    (r"\bF\b", "Ff"),
)


def both(check: Callable[..., None], *drawn: st.SearchStrategy) -> tuple[Callable[..., None], Callable[..., None]]:
    return pytest.mark.slow(few(given(*drawn)(check))), pytest.mark.exhaustive(many(given(*drawn)(check)))


def counts_agree(drawn: Drawn) -> None:
    found = check(Path("drawn.dsk"), source=Source("drawn.dsk", drawn.text))
    agrees(found.graphs["drawn"])


def says_what_running_shows(drawn: Drawn, change: tuple[str, str]) -> None:
    pattern, after = change
    text = re.sub(pattern, after, drawn.text) if pattern == r"\bF\b" else re.sub(pattern, after, drawn.text, count=1)
    assume(text != drawn.text)
    assume(not check(Path("new.dsk"), source=Source("new.dsk", text)).problems.has_errors)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        old, new = compiled(drawn.text, Path(one)), compiled(text, Path(other))
        (report,) = compare(old.compiled.graphs, new.compiled.graphs)
        assert breaking_text([report]) and breaking_json([report])
        holds(old, new, report)


def holds(old: Small, new: Small, report: Report) -> None:
    a, b = old.model(seed=1), new.model(seed=2)
    before, after = ({name: tuple(t.shape) for name, t in m.state_dict().items()} for m in (a, b))
    assert report.moves == (before != after)
    if report.moves:
        return
    b.load_state_dict(a.state_dict())
    vocabulary = old.graph.sizes["V"]
    torch.manual_seed(3)
    tokens_BS = torch.randint(0, vocabulary, (2, 9))
    documents = [torch.arange(9).expand(2, -1) // 3]
    with torch.no_grad():
        x, y = (first(m(tokens_BS, *documents[: "documents" in s.graph.inputs])) for m, s in ((a, old), (b, new)))
    if not report.meaning:
        assert torch.allclose(x, y, atol=1e-5)


test_counts_agree, test_counts_agree_of_many = both(counts_agree, models())
test_breaking, test_breaking_of_many = both(says_what_running_shows, models(), st.sampled_from(CHANGES))
