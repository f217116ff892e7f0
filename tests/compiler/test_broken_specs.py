"""Whatever a spec says is answered with diagnostics, never with a traceback; and what checks becomes valid Python."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dskc.compiler.checkpoint_map import checkpoint_rules
from dskc.compiler.emit.files import emit
from dskc.compiler.pipeline import check
from dskc.dsl.diagnostics import Diagnostic
from dskc.dsl.parser import tokenize
from dskc.dsl.render import render
from dskc.dsl.source import Source

from .test_language_samples import ALTERNATING, BLOCKS, LARGE

ROOT = Path(__file__).resolve().parents[2]
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "specs").glob("*.dsk"))}
TEXTS = (
    *FILES.values(),
    BLOCKS
    + LARGE.replace("dsk 1\n", "").replace('use "blocks.dsk" { mla, deepseek_moe }\n', "").replace("PARAMS", "9"),
    ALTERNATING,
    (ROOT / "dsl" / "std" / "attention.dsk").read_text(encoding="utf-8")
    + FILES["moe_nano.dsk"].replace("dsk 1\n", "").replace("attention, ", ""),
)
ODD = {
    "NAME": ("x", "tokens", "rope", "causal", "documents", "self", "class", "forward", "i", "layers", "params"),
    "DIM": ("B", "S", "Q", "None", "Linear"),
    "NUMBER": ("0", "1", "3", "1e300", "0.5", "1e-9", "99999999999999999999", "3GiB", "2h"),
    "EXPRESSION": (
        "D / 3", "2 * D", "D - D", "D / 0", "-1", "true", '"x"', "[D, E]", "[]", "rms_norm(x)", "swiglu(inner: 8)",
        "causal & 3", "H % 3", "if D > 3 then x else 3", "floor(D / 3)", " * ".join(["1e300"] * 9), "min(D, S)",
        "concat(x, x)", "split(x, [D, E])", "-x", "x * D", "0 / x", "top_k(x, 2)", "attention", "B / S",
        "shift(tokens, 1)", "embed", "linear(x, .. -> D)", "linear(x, D -> S)", "linear(x, [S, D] -> D)", "window(2)",
    ),
    "SYMBOL": (*"=%,:(){}[]\n", "..", "->", "==", "if", "repeat 2 r", "as", "return"),
}  # fmt: skip


@cache
def tokens(text: str) -> list[tuple[int, int, str, str]]:
    kinds = ("NEWLINE", "COMMENT", "DOC")
    return [(t.start_pos, t.end_pos, str(t), t.type) for t in tokenize(text) if t.type not in kinds]


@st.composite
def broken(draw: st.DrawFn) -> str:
    """A spec with up to three tokens replaced by others, mostly of their kind."""
    text = draw(st.sampled_from(TEXTS))
    found = tokens(text)
    changes = {}
    for _ in range(draw(st.integers(1, 3))):
        start, end, _, kind = draw(st.sampled_from(found))
        if kind not in ODD:
            kind = "SYMBOL"
        kind = draw(st.sampled_from((kind, kind, kind, "NAME", "DIM", "NUMBER", "EXPRESSION", "SYMBOL")))
        same = [t[2] for t in found if t[3] == kind]
        word = draw(st.sampled_from((*ODD[kind], *dict.fromkeys(same), "")))
        changes[start] = (end, word)
    for start, (end, word) in sorted(changes.items(), reverse=True):
        text = text[:start] + word + text[end:]
    return text


def answers(text: str) -> None:
    found = check(ROOT / "specs" / "broken.dsk", (), Source("specs/broken.dsk", text))
    for name, graph in found.graphs.items():
        if name in found.program.models:
            checkpoint_rules(found.program.models[name], graph, found.problems)
    assert all(isinstance(problem, Diagnostic) for problem in found.problems)
    render(found.problems)
    if found.problems.has_errors:
        return
    for name in found.program.models:
        for file, content in emit(found, name).items():
            if file.endswith(".py"):
                ast.parse(content)


quick = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
test_broken_specs_are_answered = pytest.mark.slow(quick(given(broken())(answers)))
test_many_broken_specs_are_answered = pytest.mark.exhaustive(
    settings(quick, max_examples=5000)(given(broken())(answers))
)
