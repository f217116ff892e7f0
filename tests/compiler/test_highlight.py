"""Pygments and TextMate grammars colour the same words the same way, and take the words from the language's tables."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pygments.lexer import RegexLexer
from pygments.token import Error, Whitespace

from dskc.compiler import checkpoint_map, devices, masks, primitives, sections
from dskc.compiler.highlight import textmate
from dskc.compiler.highlight.lexer import TOKENS, DskLexer, states
from dskc.compiler.highlight.words import words
from dskc.compiler.ops import elementwise
from dskc.compiler.primitive import Primitive
from dskc.compiler.signature import Kind, Parameter, Signature
from dskc.dsl import numbers
from dskc.dsl.parser import tokenize

from .textmate import ILLEGAL, TextMate

ROOT = Path(__file__).resolve().parent.parent.parent
SPECS = sorted([*ROOT.glob("specs/*.dsk"), *ROOT.glob("dsl/std/*.dsk"), *ROOT.glob("tests/dsl/samples/*.dsk")])
SCOPES = {TOKENS[kind]: f"{scope}.dsk" for kind, scope in textmate.SCOPES.items()} | {Error: ILLEGAL, Whitespace: None}
LEXER = DskLexer()
EDITOR = TextMate(textmate.grammar(words()))


def by_pygments(text: str, lexer: RegexLexer = LEXER) -> list[str | None]:
    """The TextMate scope of every character, by what Pygments makes of it."""
    found: list[str | None] = []
    for _, kind, value in lexer.get_tokens_unprocessed(text):
        found += [SCOPES[kind]] * len(value)
    return found


def visible(text: str, scopes: list[str | None]) -> list[tuple[str, str | None]]:
    """Characters that can be seen, with their scopes: no two grammars need agree on the colour of a space."""
    return [(c, scope) for c, scope in zip(text, scopes, strict=True) if not c.isspace()]


def scope_of(word: str, text: str) -> str | None:
    """What both make of the first `word` in a text."""
    place = text.index(word)
    (scope,) = set(by_pygments(text)[place : place + len(word)])
    assert {scope} == set(EDITOR.scopes(text)[place : place + len(word)])
    return scope


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_shipped_specs_have_no_errors_and_both_agree(spec: Path) -> None:
    text = spec.read_text(encoding="utf-8")
    scopes = by_pygments(text)
    assert ILLEGAL not in scopes
    assert all(scope for _, scope in visible(text, scopes))
    assert visible(text, EDITOR.scopes(text)) == visible(text, scopes)


PIECES = [
    "model m(x: [B, S]?) -> y: [B] {", "block b(mask: mask = causal, top: int,", ") -> [.., D] {",
    "train t of m {", "plan p for t on 8 * h100_80gb {", "serve s from q {", 'checkpoint c for "A" {', "}",
    "{", "\n", "\n\n", "  ", " ", "x = f(a, from: 3)", "x += rms_norm(x) as norm",
    "batch { S = 4, sequences = 2K }", "shard { H -> tp }", "(", ")", "[", 'layers.*.attention.q = "w"',
    'ignore "x"', 'tied ["a", "b"]', 'stack("w")', "# comment", "/// doc", '"open', "1_000.5e-3GiB", "12k",
    "4Kx", "tokens", "weights", "dims", "from", "and", "true", "bf16", "$", "é", "interleaved", "at:",
    "optimizer adamw(lr: 1e-3)", "if i % 2 == 0 then a else b", "mask: causal & window(4)", "pairs: half",
    "..", "->", ".",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=25))
def test_both_agree_on_any_text(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert visible(text, EDITOR.scopes(text)) == visible(text, by_pygments(text))


@given(st.lists(st.sampled_from(PIECES), max_size=25))
def test_what_the_language_can_cut_into_tokens_is_no_error_and_the_rest_is(pieces: list[str]) -> None:
    text = " ".join(pieces)
    wrong = set()
    for token in tokenize(text):
        unit = token.lstrip("0123456789_.") if token.type == "NUMBER" else ""
        if token.type in ("UNREADABLE", "UNTERMINATED") or unit.lstrip("eE+-0123456789") not in ("", *numbers.UNITS):
            wrong |= set(range(token.start_pos, token.end_pos))
    illegal = {i for i, scope in enumerate(by_pygments(text)) if scope == ILLEGAL}
    assert illegal <= wrong
    assert bool(illegal) == bool(wrong)


@pytest.mark.parametrize(
    "word, text, kind",
    [
        ("tokens", "train t {\n  tokens = 2T\n}\n", "key"),
        ("tokens", "model m() {\n  x = embed(tokens, V -> D)\n}\n", "name"),
        ("2", "train t {\n  tokens = 2T\n}\n", "number"),
        ("T", "train t {\n  tokens = 2T\n}\n", "unit"),
        ("from", "x = yarn(factor: 40, from: 4096)\n", "label"),
        ("from", "model a from b {\n}\n", "keyword"),
        ("weights", "serve s of m {\n  precision { weights = int8 }\n}\n", "key"),
        ("int8", "serve s of m {\n  precision { weights = int8 }\n}\n", "value"),
        ("interleaved", "x = rope(x, pairs: interleaved)\n", "value"),
        ("rope", "x = rope(x, pairs: interleaved)\n", "function"),
        ("rope", "x = swiglu(rope)\n", "name"),
        ("swiglu", "x = swiglu(rope)\n", "call"),
        ("int", "block b(top: int) -> [D] {\n", "type"),
        ("block", "block b(rope: block?) -> [D] {\n", "declaration"),
        ("bias", "block b(bias = false) -> [D] {\n", "label"),
        ("b", "xx\nblock b(bias = false) -> [D] {\n", "declaration"),
        ("tp", "plan p for t {\n  shard { H -> tp }\n}\n", "value"),
        ("h100_80gb", "plan p for t on 8 * h100_80gb {\n}\n", "value"),
        ("layers.*.q", 'checkpoint c {\n  layers.*.q = "w"\n}\n', "path"),
        ("ignore", 'checkpoint c {\n  ignore "w"\n}\n', "key"),
        ("stack", 'checkpoint c {\n  x = stack("w")\n}\n', "function"),
        ("D", "x = linear(x, D -> F)\n", "dim"),
        ("and", "x = if a and b then c else d\n", "word_operator"),
        ("/// d", "/// d\nx = y\n", "doc"),
    ],
)
def test_words_are_what_they_are_where_they_stand(word: str, text: str, kind: str) -> None:
    assert scope_of(word, text) == f"{textmate.SCOPES[kind]}.dsk"


def test_words_come_from_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "x = zap(x, mode: sharply, mask: beyond)\n"
        "train t of m {\n  vigour = 3Zi\n}\nplan p for t on tpu_9 {\n  memory { vigour2 = 1 }\n}\n"
        'checkpoint c {\n  x = fold("w")\n}\n'
    )
    new = {"zap": "function", "sharply": "value", "beyond": "value", "vigour": "key", "Zi": "unit", "tpu_9": "value"}
    new |= {"vigour2": "key", "fold": "function"}

    def scopes() -> dict[str, set[str | None]]:
        class Fresh(DskLexer):
            tokens = states(words())

        found = by_pygments(text, Fresh())
        assert visible(text, found) == visible(text, TextMate(textmate.grammar(words())).scopes(text))
        return {word: set(found[text.index(word) : text.index(word) + len(word)]) for word in new}

    before = scopes()
    build = elementwise.PRIMITIVES[0].build
    mode = Parameter("mode", Kind.SYMBOL, choices=("sharply",))
    monkeypatch.setitem(primitives.PRIMITIVES, "zap", Primitive(Signature("zap", (mode,)), build))
    monkeypatch.setitem(masks.MASKS, "beyond", Signature("beyond"))
    monkeypatch.setitem(sections.TRAIN_KEYS, "vigour", Parameter("vigour", Kind.INT))
    monkeypatch.setitem(sections.PLAN_KEYS, "memory.vigour2", Parameter("memory.vigour2", Kind.INT))
    monkeypatch.setitem(numbers.UNITS, "Zi", numbers.UNITS["KiB"])
    monkeypatch.setitem(devices.DEVICES, "tpu_9", devices.DEVICES["h100_80gb"])
    monkeypatch.setitem(checkpoint_map.TRANSFORMS, "fold", Signature("fold"))
    after = scopes()
    for word, kind in new.items():
        assert after[word] == {f"{textmate.SCOPES[kind]}.dsk"}
        assert before[word] != after[word]


FINDING = """
from pygments.cmdline import main
from pygments.lexers import get_lexer_by_name
from rich.syntax import Syntax
print(get_lexer_by_name("dsk").name)
print(Syntax.from_path("specs/deepseek_7b.dsk").lexer.name)
main(["pygmentize", "-f", "terminal256", "specs/deepseek_7b.dsk"])
"""


def test_the_entry_point_leads_pygments_to_the_lexer(tmp_path: Path) -> None:
    """As an installed package would: from a folder of metadata with the entry points of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entry = project["entry-points"]["pygments.lexers"]
    module, _, name = entry["dsk"].partition(":")
    assert getattr(import_module(module), name) is DskLexer
    info = tmp_path / "dskc_entry_points-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dskc-entry-points\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[pygments.lexers]\ndsk = {entry['dsk']}\n")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, *{sys.path!r}]\n" + FINDING
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["dsk", "dsk"]
    assert "\x1b[" in done.stdout
    colour = re.compile(r"\x1b\[[0-9;]*m")
    assert colour.sub("", done.stdout).endswith((ROOT / "specs" / "deepseek_7b.dsk").read_text(encoding="utf-8"))


def test_the_committed_grammar_is_the_one_that_is_made() -> None:
    path = ROOT / "editors" / "vscode" / "syntaxes" / "dsk.tmLanguage.json"
    assert path.read_text(encoding="utf-8") == textmate.text(), "stale: make generate"
    package = json.loads((ROOT / "editors" / "vscode" / "package.json").read_text(encoding="utf-8"))
    (named,) = package["contributes"]["grammars"]
    assert (ROOT / "editors" / "vscode" / named["path"]).samefile(path)
    assert named["scopeName"] == textmate.grammar(words())["scopeName"]
