"""The pages that tables write are those that are committed, and say all that the tables hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lark import Lark
from lark.exceptions import UnexpectedInput
from lark.lexer import Lexer
from lark.lexer import Token as LarkToken

from dskc.compiler import checkpoint_map, masks, primitives, sections
from dskc.compiler.manual import __main__ as command
from dskc.compiler.manual.calls import call_text, number_text
from dskc.compiler.manual.grammar import readable
from dskc.compiler.manual.pages import MarkerError, filled, pages
from dskc.compiler.manual.reference import PARTS
from dskc.compiler.passes.resolve import LIBRARY
from dskc.compiler.pipeline import check
from dskc.compiler.primitive import Primitive
from dskc.compiler.signature import Kind, Parameter, Signature
from dskc.dsl import numbers
from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Diagnostics
from dskc.dsl.layout import Layout
from dskc.dsl.parser import GRAMMAR, parse, tokenize
from dskc.dsl.source import Source, read_source

from .wrong_specs import model

ROOT = Path(__file__).resolve().parent.parent.parent
LANGUAGE = (ROOT / "docs" / "language.md").read_text(encoding="utf-8")
TABLES = {"train": sections.TRAIN_KEYS, "plan": sections.PLAN_KEYS, "serve": sections.SERVE_KEYS}


@pytest.mark.parametrize("path", pages(ROOT), ids=lambda path: path.name)
def test_what_is_committed_is_what_would_be_written(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == pages(ROOT)[path], "stale: make generate"


def test_the_command_writes_what_is_stale_or_only_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stale, fresh = tmp_path / "stale.md", tmp_path / "fresh.md"
    stale.write_text("old")
    fresh.write_text("new")
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "pages", lambda root: {stale: "new", fresh: "new"})

    def run(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr("sys.argv", ["manual", *arguments])
        with pytest.raises(SystemExit) as ended:
            command.main()
        return ended.value.code, capsys.readouterr().out

    assert run("--check") == (1, "stale.md is stale: make generate\n")
    assert stale.read_text() == "old"
    assert run() == (0, "stale.md written\n")
    assert stale.read_text() == "new"
    assert run("--check") == (0, "")


def test_the_page_changes_with_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    build = primitives.PRIMITIVES["silu"].build
    zap = Primitive(
        Signature("zap", (Parameter("x", Kind.TENSOR, doc="a zapped one"),), "Zaps (arXiv:1234.56789)."), build
    )
    monkeypatch.setattr(primitives.FAMILIES[0], "PRIMITIVES", (*primitives.FAMILIES[0].PRIMITIVES, zap))
    monkeypatch.setitem(sections.TRAIN_KEYS, "vigour", Parameter("vigour", Kind.INT, doc="how much"))
    monkeypatch.setitem(masks.MASKS, "beyond", Signature("beyond", (), "What is beyond."))
    monkeypatch.setitem(numbers.UNITS, "Zi", numbers.UNITS["d"])
    monkeypatch.setitem(checkpoint_map.TRANSFORMS, "fold", Signature("fold", (), "Folded."))
    page = filled(LANGUAGE)
    assert "#### `zap`\n\nZaps ([arXiv:1234.56789](https://arxiv.org/abs/1234.56789))." in page
    assert "x: tensor,     /// a zapped one" in page
    assert "| `vigour` | `int` | how much |  |" in page
    assert "| `beyond` | What is beyond. |" in page
    assert "`Zi` 86_400" in page
    assert "#### `fold`\n\nFolded." in page


def test_markers_that_name_no_part_are_refused() -> None:
    with pytest.raises(MarkerError, match="gone"):
        filled(LANGUAGE + "<!-- generated: gone -->\n<!-- end of gone -->\n")
    with pytest.raises(MarkerError, match="masks"):
        filled(LANGUAGE.replace("<!-- generated: masks -->", ""))


def test_everything_in_the_tables_says_what_it_is_for() -> None:
    for table in TABLES.values():
        for key in table.values():
            assert key.doc, key.name
            for record in key.records:
                assert record.doc, record.name
                assert all(p.doc for p in record.parameters), record.name
    for primitive in primitives.PRIMITIVES.values():
        assert primitive.signature.doc, primitive.name


def test_every_primitive_belongs_to_a_family_on_the_page() -> None:
    part = "\n".join(PARTS["primitives"]())
    assert re.findall(r"^#### `(\w+)`", part, re.MULTILINE) == list(primitives.PRIMITIVES)


def codes(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "a.dsk"
    path.write_text(text, encoding="utf-8")
    return [found.code for found in check(path).problems]


@pytest.mark.parametrize("mask", masks.MASKS.values(), ids=lambda mask: mask.name)
def test_masks_are_called_as_the_page_says(mask: Signature, tmp_path: Path) -> None:
    arguments = ", ".join(f"{p.name}: 3" for p in mask.parameters)
    written = f"{mask.name}({arguments})" if arguments else mask.name
    assert codes(tmp_path, model(f"x = attention(x, heads: H, width: E, mask: {written})")) == []


def test_blocks_written_elsewhere_state_what_the_page_says(tmp_path: Path) -> None:
    costs = ", ".join(f"{key} = B * S * D" for key in sections.EXTERN_COSTS)
    block = 'block e(x: [B, S, D]) -> [B, S, D] = extern "a:B"'
    assert codes(tmp_path, model("x = e(x)", f"{block} {{ {costs} }}")) == []
    assert codes(tmp_path, model("x = e(x)", f"{block} {{ {costs}, more = 1 }}")) == ["DSK0160"]


@pytest.mark.parametrize(
    "value, text", [(1e-6, "1e-6"), (4.2e-4, "4.2e-4"), (0.1, "0.1"), (10_000.0, "10_000"), (8.0, "8"), (0, "0")]
)
def test_numbers_are_as_specs_write_them(value: float, text: str) -> None:
    assert number_text(value) == text
    assert float(numbers.parse_number(text).value) == value


def test_signatures_are_as_blocks_declare_theirs() -> None:
    """Their parameters parse, but for what blocks have no kinds for: choices, and calls of a few names."""
    for primitive in primitives.PRIMITIVES.values():
        text = call_text(primitive.signature)
        if "|" in text or "[" in text:
            continue
        text = re.sub(r"\btensors?\b", "[D]", re.sub(r": dim\b", ": D", text))
        parse(Source("a.dsk", f"dsk 1\nblock {text} -> [D] {{\n  return x\n}}\n"), problems := Diagnostics())
        assert not problems.has_errors, text


# --- the grammar


def shown_grammar() -> Lark:
    """The grammar on the page as Lark reads it, over terminals instead of characters."""
    text = readable(GRAMMAR.read_text(encoding="utf-8")).replace("# ", "// ")
    text = re.sub(r"\n +\"", ' "', text)  # the lines of `keyword`
    text = re.sub(
        r"^(name|dim|number|string): /.*/$", lambda rule: f"{rule[1]}: {rule[1].upper()}", text, flags=re.MULTILINE
    )
    text = re.sub(r"\bnewline\b", "NEWLINE", text)
    names = re.findall(r'^([A-Z_]+): ("[^"]*")$', GRAMMAR.read_text(encoding="utf-8"), re.MULTILINE)
    for terminal, literal in names:
        text = text.replace(f" {literal}", f" {terminal}").replace(f"({literal}", f"({terminal}")
        text = text.replace(f"[{literal}", f"[{terminal}")
    declared = " ".join([*(name for name, _ in names), "NAME", "DIM", "NUMBER", "STRING", "NEWLINE"])
    return Lark(f"{text}\n%declare {declared}\n", parser="earley", lexer=_Tokens)


class _Tokens(Lexer):
    def __init__(self, conf: object) -> None: ...

    def lex(self, data: object) -> object:  # type: ignore[override]
        for token in Layout().process(tokenize(str(data))):
            yield LarkToken(token.type, str(token))


@pytest.mark.parametrize("spec", sorted(ROOT.glob("tests/dsl/samples/*.dsk")), ids=lambda path: path.stem)
def test_the_grammar_on_the_page_reads_specs(spec: Path) -> None:
    grammar = shown_grammar()
    text = spec.read_text(encoding="utf-8")
    grammar.parse(text)
    with pytest.raises(UnexpectedInput):
        grammar.parse(text.replace(" {", " (", 1))


# --- the library


def library() -> list[s.Item]:
    items: list[s.Item] = []
    for path in sorted(LIBRARY.glob("*.dsk")):
        items += parse(read_source(path), Diagnostics()).items
    return [item for item in items if not isinstance(item, s.Edition | s.Use)]


@pytest.mark.parametrize("item", library(), ids=lambda item: item.name.text)
def test_the_library_documents_itself(item: s.Item) -> None:
    assert isinstance(item, s.Block | s.Checkpoint)
    assert item.doc
    if isinstance(item, s.Checkpoint):
        return
    about, *formulas = item.doc.split("\n\n")
    assert "arXiv:" in about
    assert formulas, "a formula, in a paragraph of its own"
    for param in item.params:
        assert param.doc or isinstance(param.kind, s.Type), param.name.text
