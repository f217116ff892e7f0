"""`///` documents the parameter that it stands above or right behind."""

from __future__ import annotations

import pytest

from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Diagnostics
from dskc.dsl.format import format_source
from dskc.dsl.parser import parse
from dskc.dsl.source import Source

LONG = " + ".join(["4 * D"] * 30)


def docs(text: str) -> dict[str, str | None]:
    tree = parse(Source("a.dsk", f"dsk 1\n\n{text}"), problems := Diagnostics())
    assert not problems.has_errors
    block = tree.items[1]
    assert isinstance(block, s.Block)
    return {param.name.text: param.doc for param in block.params}


@pytest.mark.parametrize(
    "head, expected",
    [
        ("x: [D], inner: F", {"x": None, "inner": None}),
        ("\n  x: [D],   /// the input\n  inner: F  /// its width\n", {"x": "the input", "inner": "its width"}),
        ("\n  /// the input\n  x: [D],\n  n = 2,  /// how many\n", {"x": "the input", "n": "how many"}),
        ("x: [D], n = 2,  /// how many\n  m = 3", {"x": None, "n": "how many", "m": None}),
        (f"\n  x: [D],\n  inner: F = {LONG},  /// a long one\n", {"x": None, "inner": "a long one"}),
    ],
)
def test_docs_belong_to_the_parameter_next_to_them_and_stay_there(head: str, expected: dict[str, str | None]) -> None:
    text = f"block f({head}) -> [D] {{  /// of the block's first statement\n  return x\n}}\n"
    assert docs(text) == expected
    formatted = format_source(Source("a.dsk", f"dsk 1\n\n{text}"))
    assert docs(formatted.removeprefix("dsk 1\n\n")) == expected
