"""Repeats whose body speaks of its index: which iterations are alike, and how often the body is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from dskc.compiler.ir import Graph, walk
from dskc.compiler.ops.structure import Repeat
from dskc.compiler.pipeline import check
from dskc.dsl.render import render

from .test_language import model


def graphs(tmp_path: Path, text: str) -> dict[str, Graph]:
    spec = tmp_path / "spec.dsk"
    spec.write_text(text, encoding="utf-8")
    found = check(spec)
    assert not len(found.problems), render(found.problems)
    return found.graphs


def variants(graph: Graph) -> list[tuple[int, ...]]:
    return [op.attributes.variants for op, _ in walk(graph.body) if isinstance(op.attributes, Repeat)]


WAYS = {  # bodies of a repeat of 7, and which iterations are alike
    "a period": ("x += if i % 3 == 2 then mlp(x, inner: F) as f else swiglu(x, inner: F) as f", (0, 0, 1, 0, 0, 1, 0)),
    "more than one condition": ("x += mlp(x, inner: if i == 4 or i < 2 then F else if i % 2 == 1 then 2 * F else F)",
                                (0, 0, 0, 1, 0, 1, 0)),
    "the index itself": ("x += mlp(x, inner: F * (i + 1)) as f", tuple(range(7))),
    "a name that the body binds": ("n = if i < 3 then 1 else i\nx += mlp(x, inner: if i + n > 5 then F else 2 * F)",
                                   (0, 0, 0, 1, 1, 1, 1)),
    "an index within": ("repeat 2 inner[j] { x += mlp(x, inner: if i + j == 3 then F else 2 * F) as f }",
                        (0, 0, 1, 2, 0, 0, 0)),
    "a name of the model": ("x += mlp(x, inner: if i < k then F else 2 * F) as f", (0, 0, 0, 0, 1, 1, 1)),
}  # fmt: skip


@pytest.mark.parametrize(("body", "alike"), WAYS.values(), ids=WAYS)
def test_iterations_that_are_alike_are_one(tmp_path: Path, body: str, alike: tuple[int, ...]) -> None:
    text = f"k = 4\nx = embed(tokens, V -> D)\nrepeat 7 layers[i] {{\n{body}\n}}\nlogits = linear(x, D -> V)"
    assert alike in variants(graphs(tmp_path, model(text))["m"])


def test_a_body_is_read_once_for_each_way_that_its_index_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dskc.compiler.builder.MAX_OPERATIONS", 200)
    body = "x += swiglu(x, inner: if i % 6 == 5 then F else 2 * F) as f"
    text = f"x = embed(tokens, V -> D)\nrepeat 5000 layers[i] {{\n{body}\n}}\nlogits = linear(x, D -> V)"
    (found,) = variants(graphs(tmp_path, model(text))["m"])
    assert found == tuple(int(i % 6 == 5) for i in range(5000))


def test_an_index_in_what_a_derived_model_says(tmp_path: Path) -> None:
    text = model(
        "x = embed(tokens, V -> D)\nrepeat 4 layers[i] { x += swiglu(x, inner: F) as f }\nlogits = linear(x, D -> V)"
    )
    text += "model k from m { layers.f(inner: if i == 2 then F else 2 * F) }"
    assert variants(graphs(tmp_path, text)["k"]) == [(0, 0, 1, 0)]
