"""docs/standard-library.md: every item of `dsl/std/` by its `///` comments."""

from __future__ import annotations

from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Diagnostics
from dskc.dsl.parser import parse
from dskc.dsl.source import read_source

from ..passes.resolve import LIBRARY
from .calls import fenced, linked

HEAD = """\
# The standard library

<!-- Written by `make generate` from the `///` comments of dsl/std/. -->

Blocks and checkpoint maps that `use std { ... }` brings in. They are written in the language, over its
[primitives](language.md#primitives), in [`dsl/std/`](../dsl/std): what they can do, a block of your own can do
([a tutorial](tutorial-blocks.md)). In formulas a name such as `gate` applied to something is the block's weight of that
name.
"""


def library_page() -> str:
    """The whole page."""
    lines = [HEAD]
    for path in sorted(LIBRARY.glob("*.dsk")):
        tree = parse(read_source(path, f"std/{path.name}"), problems := Diagnostics())
        assert tree.complete and not problems.has_errors, path
        lines += [f"## {path.stem.replace('_', ' ').capitalize()}", ""]
        for item in tree.items:
            if isinstance(item, s.Block):
                lines += _block(item)
            elif isinstance(item, s.Checkpoint):
                lines += _checkpoint(item)
    return "\n".join(lines).rstrip() + "\n"


def _block(block: s.Block) -> list[str]:
    head = block.span.source.text[block.span.start : block.body.span.start].rstrip()
    return [f"### `{block.name.text}`", "", *_documented(block.doc), *fenced(head)]


def _documented(doc: str | None) -> list[str]:
    """The first paragraph is prose; those after it are formulas."""
    about, *formulas = (doc or "").split("\n\n")
    lines = [linked(about), ""]
    for formula in formulas:
        lines += ["```text", formula, "```", ""]
    return lines


def _checkpoint(item: s.Checkpoint) -> list[str]:
    inherited = f" What it does not say is as in `{item.base.text}`." if item.base else ""
    names = f"Maps the weights of `{item.architecture.value}`.{inherited}" if item.architecture else inherited.strip()
    return [f"### `{item.name.text}`", "", linked(item.doc or ""), "", names, "", *fenced(item.span.text)]
