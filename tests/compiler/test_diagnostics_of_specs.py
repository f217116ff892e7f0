"""Every diagnostic of the compiler, from a spec that is wrong in just that way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dskc.compiler.report import read_all
from dskc.dsl.codes import CODES
from dskc.dsl.render import render

from .wrong_specs import WRONG, Wrong, model

ELSEWHERE = {
    "DSK0011", "DSK0012", "DSK0013",  # tests/dsl/test_source.py
    "DSK0105", "DSK0191",  # below: they take several files, and a large one
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=[f"{wrong.code}-{wrong.says}" for wrong in WRONG])
def test_a_wrong_spec(wrong: Wrong, tmp_path: Path) -> None:
    spec = tmp_path / "wrong.dsk"
    spec.write_text(wrong.text, encoding="utf-8")
    found = list(read_all(spec))
    drawn = render(found)
    assert Counter(d.code for d in found) == Counter((wrong.code, *wrong.also)), drawn
    diagnostic = next(d for d in found if d.code == wrong.code)
    assert diagnostic.span.text.split("\n")[0] == wrong.underlined, drawn
    assert wrong.says in render([diagnostic]), drawn


def test_every_code_is_hit() -> None:
    assert set(CODES) == {wrong.code for wrong in WRONG} | ELSEWHERE


def codes(spec: Path) -> list[str]:
    return [diagnostic.code for diagnostic in read_all(spec)]


def test_files_that_import_each_other(tmp_path: Path) -> None:
    (tmp_path / "a.dsk").write_text('dsk 1\nuse "b.dsk" { b }\n')
    (tmp_path / "b.dsk").write_text('dsk 1\nuse "a.dsk" { a }\n')
    found = list(read_all(tmp_path / "a.dsk"))
    assert found[0].code == "DSK0105"
    assert "a.dsk -> b.dsk -> a.dsk" in render(found)


def test_a_file_that_cannot_be_imported_is_reported_where_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "bytes.dsk").write_bytes(b"dsk 1\n\xff\n")
    (tmp_path / "a.dsk").write_text('dsk 1\nuse "bytes.dsk" { b }\n')
    (found,) = read_all(tmp_path / "a.dsk")
    assert (found.code, found.span.source.path, found.span.line) == ("DSK0012", str(tmp_path / "a.dsk"), 2)


def test_a_model_of_too_many_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dskc.compiler.builder.MAX_OPERATIONS", 200)
    spec = tmp_path / "large.dsk"
    body = "repeat 90 a[i] {\n  x += attention(x * (i + 1), heads: H, width: E)\n  }"
    spec.write_text(model(body))
    assert codes(spec) == ["DSK0191"]


def test_every_problem_of_a_file_is_reported_in_one_run(tmp_path: Path) -> None:
    spec = tmp_path / "many.dsk"
    spec.write_text(
        """dsk 2

use std { attention, swigloo }

model m(tokens: ids[B, S]) -> logits: [B, S, V] {
  dims { V = 32, D = V / 3, H = 4 }
  x = embed(tokens, V -> D
  x = = x
  x += attention(rms_norm(x), heads: H, width: 4, maks: causal)
  repeat 2 layers {
    x += swigluu(rms_norm(x))
    x += mlp(x, inner: Q)
  }
  logits = linear(x, D -> V)
  weights llama
}

train t of m {
  tokns = 5M
  precision { compute = fp8 }
}

plan p for t on 4 * h100 {
  mesh { dp = 2 }
}
"""
    )
    found = Counter((d.span.line, d.code) for d in read_all(spec))
    assert set(found) >= {
        (1, "DSK0002"), (3, "DSK0104"), (6, "DSK0208"), (7, "DSK0003"), (8, "DSK0001"), (9, "DSK0124"), (11, "DSK0101"),
        (12, "DSK0101"), (19, "DSK0170"), (20, "DSK0132"), (23, "DSK0211"), (24, "DSK0210"),
    }  # fmt: skip
