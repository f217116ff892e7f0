"""Trees of the standard library that are kept between runs are those that reading the files gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dskc.dsl import kept, parser
from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Diagnostics
from dskc.dsl.source import Source, read_source

LIBRARY = Path(parser.__file__).parent / "std"


def library(path: Path) -> Source:
    return replace(read_source(path, f"std/{path.name}"), library=True)


def told(value: object) -> object:
    """A value with all that tells it apart, places and types too."""
    if isinstance(value, s.Node):
        fields = [told(getattr(value, name)) for name in value.fields[1:]]
        return (type(value), value.span.source.path, value.span.start, value.span.end, fields)
    return [told(item) for item in value] if isinstance(value, tuple) else (type(value), value)


@pytest.mark.parametrize("path", sorted(LIBRARY.glob("*.dsk")), ids=lambda path: path.stem)
def test_a_kept_tree_is_the_one_that_was_read(path: Path, tmp_path: Path) -> None:
    source = library(path)
    read = parser._read(source, Diagnostics())
    assert kept.kept_tree(source, tmp_path) is None
    kept.keep_tree(read, tmp_path)
    again = kept.kept_tree(source, tmp_path)
    assert again is not None and again.complete and again.source is source
    assert told(again.items) == told(read.items)


def test_a_tree_is_kept_of_library_files_alone_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSKC_CACHE", str(tmp_path))
    source = library(LIBRARY / "attention.dsk")
    first = parser.parse(source, Diagnostics())
    assert [path.name.split("-")[0] for path in tmp_path.glob("*.tree")] == ["attention"]
    parser.parse(replace(source, library=False), Diagnostics())
    assert len(list(tmp_path.glob("*.tree"))) == 1
    monkeypatch.setattr(parser, "_read", None)
    assert parser.parse(source, Diagnostics()) == first


def test_another_text_has_another_tree(tmp_path: Path) -> None:
    source = library(LIBRARY / "attention.dsk")
    kept.keep_tree(parser._read(source, Diagnostics()), tmp_path)
    assert kept.kept_tree(replace(source, text=source.text + "\n"), tmp_path) is None


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\xe9", b"N", b"[\x01\x00\x00\x00N"])
def test_a_spoilt_tree_is_read_again(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSKC_CACHE", str(tmp_path))
    source = library(LIBRARY / "attention.dsk")
    first = parser.parse(source, Diagnostics())
    (file,) = tmp_path.glob("*.tree")
    file.write_bytes(data)
    assert parser.parse(source, Diagnostics()) == first
    assert file.read_bytes() != data  # and kept anew


def test_a_tree_with_problems_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSKC_CACHE", str(tmp_path))
    problems = Diagnostics()
    parser.parse(Source("std/broken.dsk", "dsk 1\nblock {\n", library=True), problems)
    assert problems.has_errors and not list(tmp_path.glob("*.tree"))
