"""The canonical style: what it does to a file, and what it never does."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dskc.dsl.diagnostics import DiagnosticError, Diagnostics
from dskc.dsl.format import format_source
from dskc.dsl.parser import parse, tokenize
from dskc.dsl.source import Source

ROOT = Path(__file__).parents[2]
SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.dsk"))
SHIPPED = sorted([*ROOT.glob("specs/*.dsk"), *ROOT.glob("dsl/std/*.dsk")])
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in (*SAMPLES, *SHIPPED)}
CANONICAL = {name: format_source(Source(name, text)) for name, text in TEXTS.items()}


def fmt(text: str) -> str:
    """The formatted text, which must come out the same when formatted again, and say the same."""
    formatted = format_source(Source("a.dsk", text))
    assert format_source(Source("a.dsk", formatted)) == formatted
    before, after = Diagnostics(), Diagnostics()
    assert parse(Source("a.dsk", text), before).items == parse(Source("a.dsk", formatted), after).items
    assert not before.has_errors and not after.has_errors
    return formatted


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_the_samples_of_the_design_are_canonical(path: Path) -> None:
    assert fmt(path.read_text(encoding="utf-8")) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_specs_are_canonical(path: Path) -> None:
    assert fmt(path.read_text(encoding="utf-8")) == path.read_text(encoding="utf-8")


# --- by example


def test_spaces() -> None:
    assert fmt("dsk   1") == "dsk 1\n"
    messy = "model m( tokens:ids [B,S] ,k :int=- 1,r:Rq ? )->logits:[ ..,V ]{\n"
    messy += "x=f( a,g (b ) ,[1,2],D->[H,E] , .. -> D )\n}\n"
    assert fmt(messy) == (
        "model m(tokens: ids[B, S], k: int = -1, r: Rq?) -> logits: [.., V] {\n"
        "  x = f(a, g(b), [1, 2], D -> [H, E], .. -> D)\n}\n"
    )
    operators = (
        "block b(x:[D])->[D]{\ny=-(a+b)*-c/2%3-d&e|f\nz=if not(a) and (b)or c==1 then -x else(x)\nreturn(y)\n}\n"
    )
    assert fmt(operators) == (
        "block b(x: [D]) -> [D] {\n"
        "  y = -(a + b) * -c / 2 % 3 - d & e | f\n"
        "  z = if not (a) and (b) or c == 1 then -x else (x)\n"
        "  return (y)\n}\n"
    )
    sections = 'train t of m{\nbetas[0.9,0.95]\noptimizer (lr:1)\nat.*.x="a"\nH->tp\ninit normal(std:1)\n}\n'
    assert fmt(sections) == (
        "train t of m {\n"
        "  betas  [0.9, 0.95]\n  optimizer(lr: 1)\n"
        '  at.*.x = "a"\n  H      -> tp\n  init   normal(std: 1)\n}\n'
    )
    assert fmt("model m from n{repeat layers 4}") == "model m from n { repeat layers 4 }\n"
    assert fmt('use std{a,b,}\nuse"x.dsk"{c}') == 'use std { a, b }\nuse "x.dsk" { c }\n'


def test_repeat_index_types_and_bare_lists() -> None:
    text = "block b(x: ids[B]?) -> [B], mask[B] {\n  repeat 2 * N layers[i] {\n    x += f(x)\n  }\n  return x, x\n}\n"
    assert fmt(text) == text


def test_blocks_on_one_line_stay_so_and_wide_ones_are_laid_out() -> None:
    assert fmt("train t{ a=1,b{c=2,d=3},}") == "train t { a = 1, b { c = 2, d = 3 } }\n"
    assert fmt("train t { a = 1,\n b = 2, c = 3,\n}") == "train t {\n  a = 1\n  b = 2, c = 3\n}\n"
    assert fmt("train t { a = 1, b { c = 2\n d = 3 }, e = 4 }") == (
        "train t {\n  a = 1\n  b {\n    c = 2\n    d = 3\n  }\n  e = 4\n}\n"
    )
    assert fmt("model m from n {\n}\n\ntrain t {}") == "model m from n {}\n\ntrain t {}\n"
    branches = "block b(x: [D]) -> [D] { if a { x = f(x) } else if b { x = g(x)\n } else {\n x = h(x) }\n return x }"
    assert fmt(branches) == (
        "block b(x: [D]) -> [D] {\n  if a { x = f(x) } else if b {\n    x = g(x)\n  } else {\n    x = h(x)\n  }\n"
        "  return x\n}\n"
    )


def test_empty_lines() -> None:
    text = "\n\ndsk 1\nuse std { a }\nuse std { b }\n\n\n\nuse std { c }\n"
    text += "model m from n {\n\n  x = a\n\n\n  y = b\n\n}\ntrain t {}\n\n\n"
    assert fmt(text) == (
        "dsk 1\n\nuse std { a }\nuse std { b }\n\nuse std { c }\n\n"
        "model m from n {\n  x = a\n\n  y = b\n}\n\ntrain t {}\n"
    )
    assert fmt("") == ""
    assert fmt("\n\n") == ""
    assert fmt("# only this") == "# only this\n"


def test_comments_stay_where_they_are() -> None:
    text = """\
# top
dsk 1   #edition
#about m
///  a doc

model m from n {   # opens
      # first
  x = f(a,     # why a
   #between
      b)
  # last
}   # closes
# end
"""
    assert (
        fmt(text)
        == """\
# top
dsk 1                                # edition

# about m
///  a doc
model m from n {                     # opens
  # first
  x = f(a,                           # why a
        # between
        b)
  # last
}                                    # closes
# end
"""
    )


def test_comments_of_split_lines() -> None:
    assert fmt("train t { a = 1 # one\n b = 2 } # two\n") == (
        "train t {\n  a = 1                              # one\n  b = 2                              # two\n}\n"
    )
    assert fmt("train t { a { b = 1\n c = 2 }, d = 3 /// both\n}") == (
        "train t {\n  a {\n    b = 1\n    c = 2     /// both\n  }\n  d = 3     /// both\n}\n"
    )


def test_signs_are_aligned_in_runs() -> None:
    text = """\
block b(x: [D]) -> [D] {
  a = f(x)
  long, er = g(x)
  keep a
  c = h(x)

  d = f(x)
  loss l = d
  ee = f(x)
  if a {
    y = x
  }
  fff = x
  return fff
}
"""
    assert (
        fmt(text)
        == """\
block b(x: [D]) -> [D] {
  a        = f(x)
  long, er = g(x)
  keep a
  c        = h(x)

  d = f(x)
  loss l = d
  ee = f(x)
  if a {
    y = x
  }
  fff = x
  return fff
}
"""
    )


def test_only_signs_are_aligned_beside_long_paths() -> None:
    text = 'checkpoint c {\n  a = "x"\n  ignore "y"\n  layers.*.attention.q = "z"\n}\n'
    assert fmt(text) == (
        'checkpoint c {\n  a                    = "x"\n  ignore "y"\n  layers.*.attention.q = "z"\n}\n'
    )


def test_trailing_comments_of_neighbours_share_a_column() -> None:
    long = "optimizer adamw(lr: 4.2e-4, betas: [0.9, 0.95], decay: 0.1, clip: 1.0)"
    text = f"train t {{\na = 1 # a\nb = 22\nc = 333 # c\n{long} # o\n}}\n"
    text += "model m from n {\ndims {\nV = 1 /// v\nDD = 22 /// d\n}\n}\n"
    assert fmt(text) == (
        "train t {\n"
        "  a         = 1                      # a\n"
        "  b         = 22\n"
        "  c         = 333                    # c\n"
        f"  {long}     # o\n"
        "}\n\n"
        "model m from n {\n"
        "  dims {\n"
        "    V  = 1      /// v\n"
        "    DD = 22     /// d\n"
        "  }\n"
        "}\n"
    )


def test_continued_lines() -> None:
    text = """\
block b(x: [D],
y: [D]) -> [D] {
  x = f(a,
  b, g(
  c,
  d
  ),
  e)
  s = a +
  b *
  c
  t =
  a
  return x +
  y
}
"""
    assert (
        fmt(text)
        == """\
block b(x: [D],
        y: [D]) -> [D] {
  x = f(a,
        b, g(
            c,
            d
        ),
        e)
  s = a +
      b *
      c
  t =
      a
  return x +
         y
}
"""
    )


def test_lines_that_are_too_long_are_broken() -> None:
    arguments = ", ".join(f"argument_{i}: value_{i}" for i in range(8))
    text = f"block b(x: [D]) -> [D] {{\n  x = f({arguments})\n"
    text += f"  y = if x then f(x) else some_long_name_of_a_function({arguments})\n}}\n"
    assert (
        fmt(text)
        == """\
block b(x: [D]) -> [D] {
  x = f(argument_0: value_0, argument_1: value_1, argument_2: value_2, argument_3: value_3, argument_4: value_4,
        argument_5: value_5, argument_6: value_6, argument_7: value_7)
  y = if x then f(x) else some_long_name_of_a_function(argument_0: value_0, argument_1: value_1, argument_2: value_2,
          argument_3: value_3, argument_4: value_4, argument_5: value_5, argument_6: value_6, argument_7: value_7)
}
"""
    )


def test_lines_are_broken_at_the_outermost_comma_that_fits() -> None:
    inner = ", ".join(f"inner_argument_{i}" for i in range(5))
    assert (
        fmt(f"train t {{\n  objective = f(the_very_first_argument_x, g({inner}), last_one)\n}}\n")
        == """\
train t {
  objective = f(the_very_first_argument_x,
                g(inner_argument_0, inner_argument_1, inner_argument_2, inner_argument_3, inner_argument_4), last_one)
}
"""
    )


def test_long_sums_are_broken_after_operators() -> None:
    total = " + ".join(f"a_rather_long_name_{i}" for i in range(8))
    assert (
        fmt(f"train t {{\n  objective = {total}\n}}\n")
        == """\
train t {
  objective = a_rather_long_name_0 + a_rather_long_name_1 + a_rather_long_name_2 + a_rather_long_name_3 +
              a_rather_long_name_4 + a_rather_long_name_5 + a_rather_long_name_6 + a_rather_long_name_7
}
"""
    )


def test_long_one_line_blocks_are_opened() -> None:
    entries = ", ".join(f"a_rather_long_name_{i} = {i}" for i in range(8))
    lines = "\n".join(f"    a_rather_long_name_{i} = {i}" for i in range(8))
    assert fmt(f"train t {{\n  batch {{ {entries} }} # why\n  s = 1\n}}\n") == (
        f"train t {{\n  batch {{                            # why\n{lines}\n  }}\n  s = 1\n}}\n"
    )
    kept = f"train t {{\n  batch {{ {entries} }}     /// doc\n}}\n"
    assert fmt(kept) == kept


def test_types_need_not_be_right() -> None:
    assert fmt("model m from nowhere { x = unknown(1 + true, h: wrong) }") == (
        "model m from nowhere { x = unknown(1 + true, h: wrong) }\n"
    )


@pytest.mark.parametrize("text", ["model", "model m from n { x = }", "train t { a = 5parsec }", "train t {", "}"])
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(DiagnosticError):
        format_source(Source("a.dsk", text))


def test_very_long_lines_take_no_longer_than_others() -> None:
    numbers = [str(i) for i in range(14_000)]
    start = time.perf_counter()
    formatted = format_source(Source("a.dsk", f"train t {{ a = [{', '.join(numbers)}] }}"))
    assert time.perf_counter() - start < 15
    assert max(map(len, formatted.split("\n"))) <= 140


# --- always


def respaced(draw: st.DrawFn, text: str) -> str:
    """The same tokens with other spaces between them; lines stay."""
    space = st.sampled_from([" ", "  ", "\t", "      "])
    some = st.one_of(st.just(""), space)
    result, previous, end = "", "\n", 0
    for token in tokenize(text):
        word = previous[-1].isalnum() or previous[-1] in '_."'
        needed = token.start_pos > end and word and (token[0].isalnum() or token[0] in '_."')
        result += draw(space if needed else some)
        end = token.end_pos
        if token.type == "NEWLINE":
            blank = previous == "\n" and result
            result += draw(st.sampled_from(["\n", "\r\n"])) * (draw(st.integers(1, 3)) if blank else 1)
        else:
            result += str(token)
        previous = str(token)
    return result


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(sorted(TEXTS)))
def test_spaces_do_not_matter(data: st.DataObject, name: str) -> None:
    text = data.draw(st.composite(lambda draw: respaced(draw, CANONICAL[name]))())
    assert format_source(Source(name, text)) == CANONICAL[name]


def relined(draw: st.DrawFn, text: str) -> str:
    """The same statements with lines broken and joined in other places, and comments strewn in."""
    result: list[str] = []
    brackets = 0
    tokens = [token for token in tokenize(text) if token.type not in ("COMMENT", "DOC")]
    for index, token in enumerate(tokens):
        kind = token.type
        brackets += (kind in ("LPAR", "LSQB")) - (kind in ("RPAR", "RSQB"))
        if kind == "NEWLINE":
            result.append(draw(st.sampled_from(["\n", "\n", "\n\n", " # c\n", " /// d\n", "\n# c\n", "\n/// d\n"])))
            continue
        following = tokens[index + 1].type if index + 1 < len(tokens) else ""
        result.append(f"{token} " if following != "LPAR" else str(token))
        free = brackets or kind in ("COMMA", "PLUS", "STAR", "EQUAL", "LBRACE", "RARROW") or following == "RBRACE"
        if free and following not in ("", "NEWLINE") and draw(st.integers(0, 7)) == 0:
            result.append(draw(st.sampled_from(["\n  ", "\n  ", "# c\n  ", "/// d\n  ", "\n\n  "])))
    return "".join(result)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(sorted(TEXTS)))
def test_lines_and_comments_survive(data: st.DataObject, name: str) -> None:
    text = data.draw(st.composite(lambda draw: relined(draw, CANONICAL[name]))())
    formatted = fmt(text)
    assert re.findall(r"# c\n", text) == re.findall(r"# c\n", formatted)
    assert all(line == line.rstrip() for line in formatted.split("\n"))
    assert "\n\n\n" not in formatted and formatted.endswith("\n") and not formatted.startswith("\n")
