"""Diagnostics: collected, ordered, and drawn to the character."""

import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dskc.dsl.diagnostics import Diagnostic, DiagnosticError, Diagnostics, Mark
from dskc.dsl.render import MAX_WIDTH, render, to_github, to_json
from dskc.dsl.source import Source, Span

SPEC = (Path(__file__).parent / "samples" / "dense.dsk").read_text(encoding="utf-8")
TP12 = Source("specs/deepseek_7b.dsk", SPEC.replace("tp = 8 }", "tp = 12 }"))
SWIGLOO = Source("specs/deepseek_7b.dsk", SPEC.replace("x += swiglu(", "x += swigloo("))
SPEC_SOURCE = Source("specs/deepseek_7b.dsk", SPEC)


def find(source: Source, text: str, after: str = "") -> Span:
    start = source.text.index(text, source.text.index(after))
    return source.span(start, start + len(text))


def drawn(expected: str) -> str:
    return expected.strip("\n")


def test_first_sample_of_the_design() -> None:
    diagnostic = Diagnostic(
        "DSK0204",
        "attention heads do not divide over the tensor-parallel axis",
        find(TP12, "H -> tp"),
        "H = 32 leaves 8 over",
        marks=(Mark(find(TP12, "tp = 12"), "12 ranks"),),
        notes=(
            ("also", "F = 11_008 leaves 4, V = 102_400 leaves 4"),
            ("help", "tp can be 1, 2, 4, 8, 16 or 32; with dp = 16 and pp = 4 only 8 gives 512"),
        ),
    )
    assert render([diagnostic]) == drawn("""
error[DSK0204]: attention heads do not divide over the tensor-parallel axis
  --> specs/deepseek_7b.dsk:40:14
   |
39 |   mesh     { dp = 16, pp = 4, tp = 12 }
   |                               ------- 12 ranks
40 |   shard    { H -> tp, F -> tp, V -> tp, optimizer -> dp }
   |              ^^^^^^^ H = 32 leaves 8 over
   |
   = also: F = 11_008 leaves 4, V = 102_400 leaves 4
   = help: tp can be 1, 2, 4, 8, 16 or 32; with dp = 16 and pp = 4 only 8 gives 512
""")


def test_second_sample_of_the_design() -> None:
    label = "did you mean `swiglu`? It is in std, and already imported"
    diagnostic = Diagnostic("DSK0101", "no block is called `swigloo`", find(SWIGLOO, "swigloo"), label)
    assert render([diagnostic]) == drawn("""
error[DSK0101]: no block is called `swigloo`
  --> specs/deepseek_7b.dsk:18:10
   |
18 |     x += swigloo(rms_norm(x), inner: F)
   |          ^^^^^^^ did you mean `swiglu`? It is in std, and already imported
""")


def test_third_sample_of_the_design() -> None:
    span = find(SPEC_SOURCE, "params", "require")
    diagnostic = Diagnostic(
        "DSK0150",
        "this requirement does not hold",
        span,
        marks=(Mark(span, "is 6_707_982_336: 202_383_360 too few", "secondary"),),
        notes=(
            ("note", "embed 419_430_400 + layers 29 x 202_383_360 + norm 4_096 + logits 419_430_400"),
            ("help", "one more of `layers` (line 16) gives the number exactly"),
        ),
    )
    assert render([diagnostic]) == drawn("""
error[DSK0150]: this requirement does not hold
  --> specs/deepseek_7b.dsk:22:11
   |
22 |   require params == 6_910_365_696
   |           ------ is 6_707_982_336: 202_383_360 too few
   |
   = note: embed 419_430_400 + layers 29 x 202_383_360 + norm 4_096 + logits 419_430_400
   = help: one more of `layers` (line 16) gives the number exactly
""")


def test_several_marks_on_one_line_hang_below_each_other() -> None:
    source = Source("a.dsk", "x = linear(x, D -> F)\n")
    diagnostic = Diagnostic(
        "DSK0101",
        "axes do not match",
        find(source, "D"),
        "this is 4096",
        marks=(Mark(find(source, "linear"), "called here"), Mark(find(source, "F"), "and this 11_008")),
    )
    assert render([diagnostic]) == drawn("""
error[DSK0101]: axes do not match
 --> a.dsk:1:15
  |
1 | x = linear(x, D -> F)
  |     ------    ^    - and this 11_008
  |     |         |
  |     |         this is 4096
  |     called here
""")


def test_a_mark_inside_another() -> None:
    source = Source("a.dsk", "x = linear(x, D -> F)\n")
    diagnostic = Diagnostic(
        "DSK0101", "odd", find(source, "D"), "inner", marks=(Mark(find(source, "linear(x, D -> F)"), "outer"),)
    )
    assert render([diagnostic]) == drawn("""
error[DSK0101]: odd
 --> a.dsk:1:15
  |
1 | x = linear(x, D -> F)
  |     ----------^------
  |     |         |
  |     |         inner
  |     outer
""")


def test_marks_far_apart_and_two_lines_apart() -> None:
    source = Source("a.dsk", "".join(f"line{i} = {i}\n" for i in range(1, 13)))
    diagnostic = Diagnostic(
        "DSK0101",
        "bound twice",
        find(source, "line12"),
        "here",
        marks=(Mark(find(source, "line1"), "first"), Mark(find(source, "line3"), "then")),
    )
    assert render([diagnostic]) == drawn("""
error[DSK0101]: bound twice
  --> a.dsk:12:1
   |
 1 | line1 = 1
   | ----- first
 2 | line2 = 2
 3 | line3 = 3
   | ----- then
...
12 | line12 = 12
   | ^^^^^^ here
""")


def test_a_mark_over_several_lines_shows_its_ends() -> None:
    diagnostic = Diagnostic(
        "DSK0101",
        "this repeat is odd",
        find(SPEC_SOURCE, SPEC[SPEC.index("repeat 30") : SPEC.index("  logits =")]),
        "odd",
    )
    assert render([diagnostic]) == drawn("""
error[DSK0101]: this repeat is odd
  --> specs/deepseek_7b.dsk:16:3
   |
16 |   repeat 30 layers {
   |   ^^^^^^^^^^^^^^^^^^
...
19 |   }
   |   ^ odd
""")


def test_marks_in_another_file() -> None:
    source, library = Source("a.dsk", "x = f(x)\n"), Source("std/f.dsk", "\nblock f(y: [D]) -> [D] {\n")
    diagnostic = Diagnostic(
        "DSK0101", "wrong", find(source, "f"), marks=(Mark(find(library, "y: [D]"), "declared here"),)
    )
    assert render([diagnostic]) == drawn("""
error[DSK0101]: wrong
 --> a.dsk:1:5
  |
1 | x = f(x)
  |     ^
 ::: std/f.dsk:2:9
  |
2 | block f(y: [D]) -> [D] {
  |         ------ declared here
""")


def test_wide_characters_and_tabs_stay_aligned() -> None:
    source = Source("a.dsk", '\tx = "模型" + e\u0301t\n')
    diagnostic = Diagnostic("DSK0101", "名前", find(source, "t"), "好", marks=(Mark(find(source, "模型"), "two"),))
    text = render([diagnostic])
    assert text == drawn("""
error[DSK0101]: 名前
 --> a.dsk:1:15
  |
1 |     x = "模型" + e\u0301t
  |          ----     ^ 好
  |          |
  |          two
""")
    code, marks = text.split("\n")[3:5]
    before = code[: code.rindex("t")]
    assert sum(0 if unicodedata.combining(c) else 2 if ord(c) > 0x2000 else 1 for c in before) == marks.index("^")


@pytest.mark.parametrize("text", ["model", "model\n"])
def test_zero_width_at_the_end_of_the_file(text: str) -> None:
    source = Source("a.dsk", text)
    drawing = render([Diagnostic("DSK0003", "ends too early", source.span(len(text), len(text)), "here")])
    assert drawing.endswith("1 | model\n  |      ^ here" if text == "model" else "2 |\n  | ^ here")


def test_a_file_without_text_shows_only_its_name() -> None:
    diagnostic = Diagnostic("DSK0010", "there is no file", Source("a.dsk", "").span(0, 0), notes=(("help", "look"),))
    assert render([diagnostic]) == "error[DSK0010]: there is no file\n --> a.dsk\n  = help: look"


def test_long_lines_are_cut_around_the_mark() -> None:
    text = "a" * 500 + " bad " + "b" * 500
    source = Source("a.dsk", text)
    line, marks = render([Diagnostic("DSK0101", "no", find(source, "bad"), "this")]).split("\n")[3:5]
    assert len(line) == MAX_WIDTH + 4
    assert line.startswith("1 | ...a") and line.endswith("b...")
    start = marks.index("^")
    assert line[start : start + 3] == "bad" and marks.endswith("^^^ this")


def test_a_mark_outside_the_window_of_a_long_line_points_at_its_edge() -> None:
    source = Source("a.dsk", "first" + "a" * 500 + " bad")
    diagnostic = Diagnostic("DSK0101", "no", find(source, "bad"), "this", marks=(Mark(find(source, "first"), "that"),))
    lines = render([diagnostic]).split("\n")
    assert lines[3].startswith("1 | ...a") and lines[3].endswith(" bad")
    assert lines[4].startswith("  | -") and lines[4].endswith("^^^ this")
    assert lines[6] == "  | that"


def test_several_notes_of_several_lines() -> None:
    source = Source("a.dsk", "x\n")
    diagnostic = Diagnostic("DSK0101", "no", source.span(0, 1), notes=(("help", "one\ntwo"), ("note", "three")))
    assert render([diagnostic]).split("\n")[-4:] == ["  |", "  = help: one", "          two", "  = note: three"]


def test_a_file_cannot_write_escapes_to_the_terminal() -> None:
    source = Source("a\x1b[2J.dsk", "x = \x1b[31mred\u202e\n")
    text = render([Diagnostic("DSK0101", "no \x07", source.span(0, 1), "\x1b[0m", notes=(("note", "\x1b"),))])
    assert not any(char in text for char in "\x1b\x07\u202e")


def test_colour_adds_only_escapes() -> None:
    diagnostic = Diagnostic(
        "DSK0101",
        "no",
        find(TP12, "H -> tp"),
        "label",
        marks=(Mark(find(TP12, "tp = 12"), "12"),),
        notes=(("help", "do"),),
        severity="warning",
    )
    plain, colored = render([diagnostic]), render([diagnostic], color=True)
    assert "\x1b[1;33mwarning[DSK0101]\x1b[0m" in colored
    assert "\x1b[1;33m^^^^^^^ label\x1b[0m" in colored

    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == plain


def test_an_unknown_code_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="DSK9999"):
        Diagnostic("DSK9999", "no", SPEC_SOURCE.span(0, 1))


def test_collected_in_order_one_of_a_code_at_a_place() -> None:
    other = Source("b.dsk", "xyz")
    found = Diagnostics()
    assert not found.has_errors and len(found) == 0
    late = Diagnostic("DSK0101", "late", SPEC_SOURCE.span(50, 60))
    early = Diagnostic("DSK0101", "early", SPEC_SOURCE.span(5, 6), severity="warning")
    elsewhere = Diagnostic("DSK0101", "elsewhere", other.span(0, 1))
    found.extend([late, early, elsewhere, Diagnostic("DSK0101", "again", SPEC_SOURCE.span(50, 60))])
    found.add(Diagnostic("DSK0150", "another code", SPEC_SOURCE.span(50, 60)))
    assert [d.title for d in found] == ["elsewhere", "early", "late", "another code"]
    assert found.has_errors
    assert not Diagnostics([early]).has_errors
    Diagnostics([early]).raise_errors()
    with pytest.raises(DiagnosticError) as error:
        found.raise_errors()
    assert error.value.diagnostics == tuple(found)
    assert str(error.value) == render(found)


def test_json() -> None:
    diagnostic = Diagnostic(
        "DSK0204",
        "模",
        find(TP12, "H -> tp"),
        "label",
        marks=(Mark(find(TP12, "tp = 12"), "12"),),
        notes=(("help", "do"),),
    )
    assert json.loads(to_json([diagnostic])) == [
        {
            "code": "DSK0204",
            "severity": "error",
            "message": "模",
            "file": "specs/deepseek_7b.dsk",
            "line": 40,
            "column": 14,
            "end_line": 40,
            "end_column": 21,
            "label": "label",
            "marks": [
                {
                    "file": "specs/deepseek_7b.dsk",
                    "line": 39,
                    "column": 31,
                    "end_line": 39,
                    "end_column": 38,
                    "label": "12",
                    "style": "secondary",
                }
            ],
            "notes": [{"kind": "help", "text": "do"}],
        }
    ]
    assert to_json([]) == "[]"


def test_github() -> None:
    source = Source("a,b:c.dsk", "x = 100%\ny\n")
    diagnostic = Diagnostic("DSK0101", "100% wrong", source.span(0, 5), "a, b: c", notes=(("help", "one\ntwo"),))
    assert to_github([diagnostic]) == (
        "::error file=a%2Cb%3Ac.dsk,line=1,endLine=1,col=1,endColumn=5,title=DSK0101"
        "::100%25 wrong%0Aa, b: c%0Ahelp: one%0Atwo\n"
    )
    spread = Diagnostic("DSK0101", "w", source.span(0, 10), severity="warning")
    assert to_github([spread]) == "::warning file=a%2Cb%3Ac.dsk,line=1,endLine=2,title=DSK0101::w\n"
    assert to_github([diagnostic, spread]).count("\n") == 2 and to_github([]) == ""


@st.composite
def marked(draw: st.DrawFn) -> Diagnostic:
    text = draw(st.text(alphabet="ab \t\n\r模\u0301\x1b{", max_size=60)) + "x" * draw(st.sampled_from([0, 200]))
    source = Source("a.dsk", text)

    def span() -> Span:
        start = draw(st.integers(0, len(text)))
        return source.span(start, draw(st.integers(start, len(text))))

    labels = st.sampled_from(["", "one", "模 two"])
    styles = st.sampled_from(["primary", "secondary"])
    marks = tuple(Mark(span(), draw(labels), draw(styles)) for _ in range(draw(st.integers(0, 4))))
    return Diagnostic("DSK0101", "title", span(), draw(labels), marks)


@settings(max_examples=300, deadline=None)
@given(marked())
def test_whatever_is_marked_is_drawn(diagnostic: Diagnostic) -> None:
    text = render([diagnostic])
    assert not any(unicodedata.category(char) == "Cc" for char in text.replace("\n", ""))
    assert all(line == line.rstrip() for line in text.split("\n"))
    if diagnostic.span.source.text:
        for mark in diagnostic.drawn_marks:
            assert mark.label in text
        assert "^" in text or all(mark.style == "secondary" for mark in diagnostic.drawn_marks)
    json.loads(to_json([diagnostic]))
    to_github([diagnostic])
