"""Reading files and finding places in them."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dskc.dsl.diagnostics import Diagnostic, DiagnosticError
from dskc.dsl.source import MAX_BYTES, Source, read_source


def test_span_places() -> None:
    source = Source("a.dsk", "one\n\ttwo 模型 x\nthree")
    span = source.span(source.text.index("模型"), source.text.index("模型") + 2)
    assert (span.line, span.column, span.end_line, span.end_column, span.text) == (2, 6, 2, 8, "模型")
    assert source.line_count == 3 and source.line_text(2) == "\ttwo 模型 x"
    both = span.to(source.span(0, 3))
    assert (both.start, both.line, both.column, both.end_line, both.end_column) == (0, 1, 1, 2, 8)
    assert both == source.span(0, 3).to(span)


def test_a_span_that_ends_with_its_line_does_not_reach_the_next() -> None:
    source = Source("a.dsk", "one\ntwo\n")
    span = source.span(0, 4)
    assert (span.end_line, span.end_column) == (1, 5)
    empty = source.span(8, 8)
    assert (empty.line, empty.column, empty.end_line, empty.end_column) == (3, 1, 3, 1)


def test_crlf() -> None:
    source = Source("a.dsk", "one\r\ntwo\r\n")
    assert [source.line_text(line) for line in (1, 2, 3)] == ["one", "two", ""]
    assert (source.span(5, 8).line, source.span(5, 8).column) == (2, 1)


def test_spans_are_values() -> None:
    source = Source("a.dsk", "one")
    assert source.span(0, 1) == Source("a.dsk", "one").span(0, 1) != source.span(0, 2)
    assert len({source.span(0, 1), source.span(0, 1)}) == 1
    with pytest.raises(AssertionError):
        source.span(0, 1).to(Source("b.dsk", "one").span(0, 1))


@given(st.text("ab\n\r\t模", max_size=40), st.data())
def test_places_are_those_found_by_counting(text: str, data: st.DataObject) -> None:
    source = Source("a.dsk", text)
    at = data.draw(st.integers(0, len(text)))
    line, column = 1, 1
    for char in text[:at]:
        line, column = (line + 1, 1) if char == "\n" else (line, column + 1)
    span = source.span(at, at)
    assert (span.line, span.column) == (line, column)
    assert source.line_count == text.count("\n") + 1
    lines = [source.line_text(number) for number in range(1, source.line_count + 1)]
    assert lines == [part.removesuffix("\r") for part in text.split("\n")[:-1]] + [
        text.split("\n")[-1].removesuffix("\r")
    ]


def failure(path: Path | str) -> Diagnostic:
    with pytest.raises(DiagnosticError) as error:
        read_source(path)
    (diagnostic,) = error.value.diagnostics
    assert str(error.value)
    return diagnostic


def test_read(tmp_path: Path) -> None:
    path = tmp_path / "a.dsk"
    path.write_bytes("dsk 1\r\n# 模型\r\n".encode())
    source = read_source(path)
    assert source == Source(str(path), "dsk 1\r\n# 模型\r\n")
    assert read_source(path, shown="a.dsk").path == "a.dsk"
    path.write_bytes(b"\xef\xbb\xbfdsk 1\n")
    assert read_source(path).text == "dsk 1\n"
    path.write_bytes(b"")
    assert read_source(path).text == ""


def test_a_missing_file_suggests_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "deepseek_7b.dsk").write_text("")
    near = tmp_path / "deepseek_7b.dsk"
    for wrong in ("deepsek_7b.dsk", "deepseek_7b"):
        diagnostic = failure(tmp_path / wrong)
        assert diagnostic.code == "DSK0010"
        assert diagnostic.notes == (("help", f"did you mean `{near}`?"),)
    assert failure(tmp_path / "other.dsk").notes == (("help", "the specs there are deepseek_7b.dsk"),)
    assert failure(tmp_path / "nowhere" / "a.dsk").notes == (
        ("note", f"there is no folder `{tmp_path}/nowhere` either"),
    )
    assert failure(near / "a.dsk").code == "DSK0010"


def test_a_missing_file_beside_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.dsk").write_text("")
    monkeypatch.chdir(tmp_path)
    assert failure("tny.dsk").notes == (("help", "did you mean `tiny.dsk`?"),)


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "tiny.dsk").write_text("")
    diagnostic = failure(tmp_path)
    assert diagnostic.code == "DSK0011" and "folder" in diagnostic.title
    assert diagnostic.notes == (("help", "name one of the files in it: tiny.dsk"),)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "a.dsk"
    path.write_text("dsk 1\n")
    path.chmod(0)
    assert failure(path).code == "DSK0011"


def test_a_path_that_cannot_be_one() -> None:
    assert failure("a\0b").code == "DSK0011"
    assert failure("a" * 5000).code == "DSK0011"


def test_not_utf8_says_where(tmp_path: Path) -> None:
    path = tmp_path / "a.dsk"
    path.write_bytes("dsk 1\n# 模 caf".encode() + b"\xe9 au lait\n")
    diagnostic = failure(path)
    assert diagnostic.code == "DSK0012"
    assert diagnostic.title == "this file is not UTF-8: byte 15 (line 2) is 0xE9"
    assert (diagnostic.span.line, diagnostic.span.column, diagnostic.span.text) == (2, 8, "\ufffd")
    assert diagnostic.notes == (("help", "save it as UTF-8"),)


def test_other_encodings_and_binary_data(tmp_path: Path) -> None:
    path = tmp_path / "a.dsk"
    path.write_bytes("dsk 1\n".encode("utf-16"))
    assert failure(path).notes == (("help", "it looks like UTF-16: save it as UTF-8"),)
    path.write_bytes(bytes(range(256)))
    assert "binary" in failure(path).notes[0][1]


def test_over_a_megabyte(tmp_path: Path) -> None:
    path = tmp_path / "a.dsk"
    path.write_bytes(b"#" * MAX_BYTES)
    assert len(read_source(path).text) == MAX_BYTES
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    assert failure(path).code == "DSK0013"
