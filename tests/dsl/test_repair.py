"""One wrong token, one problem: what it was most likely meant to be, and the rest read as if it had been."""

from __future__ import annotations

import pytest

from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Diagnostics
from dskc.dsl.parser import parse
from dskc.dsl.render import render
from dskc.dsl.source import Source

SPEC = """\
dsk 1

use std { swiglu }

model m(tokens: ids[B, S]) -> logits: [B, S, V] {
  dims {
    V = 64
    D = 16
  }
  x = embed(tokens, V -> D)
  repeat 2 layers {
    x += swiglu(x, inner: D)
  }
  logits = linear(x, D -> V)
}

train t of m {
  batch { sequences = 2, S = 8 }
  tokens = 2M
}
"""

# What is replaced, by what, the line, what is underlined, what the label says, and how many statements are given up.
CHANGES = {
    "keyword": ("repeat", "repaet", 11, "repaet", "did you mean `repeat`?", 0),
    "item": ("train", "tain", 17, "tain", "did you mean `train`?", 0),
    "edition": ("dsk", "dks", 1, "dks", "did you mean `dsk`?", 0),
    "word of a head": (" of m", " m", 17, "m", "expected `{`, `from` or `of`", 0),
    "use": ("use std", "std", 3, "std", "a `use` is missing before this", 0),
    "brace that opens": ("layers {", "layers", 11, "\n", "a `{` is missing before this", 0),
    "brace that closes": ("S = 8 }", "S = 8", 18, "{", "its `}` is missing", 0),
    "brace too many": ("16\n  }", "16\n  } }", 9, "}", "what follows stands outside everything", 0),
    "equals sign": ("x = embed", "x embed", 10, "embed", "a `=` is missing before this", 0),
    "doubled": ("x = embed", "x x = embed", 10, "x", "it stands here twice", 0),
    "swapped": ("x = embed", "= x embed", 10, "=", "did you mean `x =`?", 1),
    "comma": ("tokens, V", "tokens V", 10, "V", "expected `(`, `)`, `,`, `:`, `->`, `.` or an operator", 1),
    "value": ("x, D -> V", "x, D ->", 14, ")", "expected a value or `(`", 1),
    "too many": ("linear(x,", "linear(x ?,", 14, "?", "expected `(`, `)`, `,`, `:`, `->`, `.` or an operator", 1),
    "capital": ("linear", "Linear", 14, "Linear", "names start with a small letter: `linear`", 1),
}


def parsed(text: str) -> tuple[s.File, Diagnostics]:
    problems = Diagnostics()
    return parse(Source("a.dsk", text), problems), problems


def bad(node: s.Node) -> int:
    """How many statements and entries in a node are given up."""
    count = int(isinstance(node, s.Bad))
    for field in node.fields:
        value = getattr(node, field)
        children = value if isinstance(value, tuple) else (value,)
        count += sum(bad(child) for child in children if isinstance(child, s.Node))
    return count


def test_the_spec_is_right() -> None:
    file, problems = parsed(SPEC)
    assert file.complete and not len(problems)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_one_wrong_token(change: tuple[str, str, int, str, str, int]) -> None:
    right, wrong, line, underlined, label, lost = change
    assert right in SPEC
    file, problems = parsed(SPEC.replace(right, wrong, 1))
    (problem,) = problems
    assert (problem.span.line, problem.span.text, problem.label) == (line, underlined, label), render(problems)
    assert not file.complete
    assert [type(item) for item in file.items] == [type(item) for item in parsed(SPEC)[0].items]
    assert sum(bad(item) for item in file.items) == lost


def test_mistakes_in_several_items_are_put_right_apart() -> None:
    text = SPEC.replace("repeat", "repaet").replace("batch {", "batch").replace("use", "sue")
    file, problems = parsed(text)
    assert [(p.span.line, p.label) for p in problems] == [
        (3, "did you mean `use`?"),
        (11, "did you mean `repeat`?"),
        (18, "a `{` is missing before this"),
    ]
    assert sum(bad(item) for item in file.items) == 0


def test_two_mistakes_in_one_item() -> None:
    _, problems = parsed(SPEC.replace("repeat", "repaet").replace("dims", "dmis"))
    assert [(p.span.line, p.label) for p in problems] == [(6, "did you mean `dims`?"), (11, "did you mean `repeat`?")]


def test_what_is_guessed_gives_up_its_statement_but_not_its_name() -> None:
    file, _ = parsed(SPEC.replace("tokens, V", "tokens V"))
    model = file.items[2]
    assert isinstance(model, s.Model)
    assert [statement.names for statement in model.body.statements if isinstance(statement, s.Bad)] == [("x",)]


def test_a_head_that_is_guessed_gives_up_its_item() -> None:
    file, problems = parsed(SPEC.replace("model m(", "model ("))
    assert len(problems) == 1
    assert isinstance(file.items[2], s.Bad) and isinstance(file.items[3], s.Train)


def test_an_import_that_is_guessed_leaves_its_names_open() -> None:
    assert parsed(SPEC.replace("{ swiglu }", "{ swiglu, , moe }"))[0].unsure
    assert not parsed(SPEC.replace("x = embed", "x x = embed"))[0].unsure


def test_what_no_change_explains_costs_a_statement_each() -> None:
    file, problems = parsed(SPEC.replace("D = 16", "D = ) ) )").replace("logits = linear", "logits = = ( ( linear"))
    assert {p.span.line for p in problems} <= {8, 14} and len(problems) <= 3, render(problems)
    assert isinstance(file.items[-1], s.Train)


def test_the_rest_of_an_item_without_a_head_is_one_mistake() -> None:
    _, problems = parsed(SPEC.replace("model m(tokens: ids[B, S]) -> logits: [B, S, V] {", "$ $ $"))
    assert len(problems) == 1, render(problems)
