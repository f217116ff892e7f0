"""The user's module: the generated classes, made with their sizes instead of reading them from the model's file."""

from __future__ import annotations

import io
import json
import textwrap
import tokenize

from dskc.dsl.source import Span

from ..emit.names import Names
from ..emit.text import number
from .host import Host, Option, Use


def module_text(host: Host, use: Use, names: Names, was: Span, spec: str) -> str:
    """A whole file. `was`: the block in the language."""
    dims = [name for name, _ in use.dims]
    classes = _with_sizes(host, dims, use)
    used = {token for lines in classes for token in _words("\n".join(lines))}
    imports = {module: found & used for module, found in host.imports.items() if found & used}
    torch = {"torch": imports.pop("torch", set()) | {"nn"}}
    lines = [
        f'"""`{was.text.split("(")[0].removeprefix("block ")}` of {spec}, in code of your own: change it as you like.',
        "",
        "Its weights keep their names. The spec states what it costs: keep `flops` and `saved` there true.",
        '"""',
        "",
        "# It was:",
        "#",
        *(f"#     {line}".rstrip() for line in was.text.splitlines()),
        "",
        "from __future__ import annotations",
        "",
        *(["import torch"] if "torch" in used else []),
        *Names(names.graph, torch).import_lines(),
        "",
        *Names(names.graph, imports).import_lines(),
    ]
    if not imports:
        lines.pop()
    for made in classes:
        lines += ["", "", *made]
    return "\n".join(lines).rstrip("\n") + "\n"


def _with_sizes(host: Host, dims: list[str], use: Use) -> list[list[str]]:
    """The classes with parameters for the sizes that they, or those within, need; the block's own takes all."""
    needs: dict[str, list[str]] = {}
    found = []
    for lines in host.classes:
        name = lines[0].split("(")[0].removeprefix("class ")
        words = set(_words("\n".join(lines)))
        mine = [d for d in dims if d in words or any(d in needs[inner] for inner in needs if inner in words)]
        needs[name] = mine
        last = lines is host.classes[-1]
        found.append(_class(lines, needs, dims if last else mine, set(dims), use.options if last else ()))
    return found


def _class(
    lines: tuple[str, ...],
    needs: dict[str, list[str]],
    mine: list[str],
    dims: set[str],
    options: tuple[tuple[str, Option], ...],
) -> list[str]:
    at = next(i for i, line in enumerate(lines) if line.startswith("    def forward"))
    start = next(i for i, line in enumerate(lines) if line.startswith("    def __init__"))
    forward = _renamed("\n".join(lines[at:]), dims)
    stored = [d for d in mine if f"self.{d}" in forward]
    parameters = [*(f"{d}: int" for d in mine), *(f"{n}: {_kind(v)}" for n, v in options)]
    head = [lines[0].split("  #")[0], *lines[1:start]]
    made = [f"    def __init__({', '.join(['self', *parameters])}) -> None:", lines[start + 1]]
    for name, value in options:
        made.append(f"        if {name} != {_literal(value)}:")
        message = f"this class was written for {name} = {_literal(value)}, not {{{name}}}"
        made.append(f"            raise ValueError(f{json.dumps(message)})")
    if stored:
        made.append(f"        {', '.join(f'self.{d}' for d in stored)} = {', '.join(stored)}")
    body = []
    for line in lines[start + 2 : at]:
        for inner, needed in needs.items():
            line = line.replace(f"= {inner}()", f"= {inner}({', '.join(needed)})")
        body.append(line)
    return [*head, *made, *body, *forward.split("\n")]


def _kind(value: Option) -> str:
    if isinstance(value, bool | str):
        return type(value).__name__
    return "int" if value.denominator == 1 else "float"


def _literal(value: Option) -> str:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value)
    return number(int(value)) if value.denominator == 1 else number(float(value))


def _words(text: str) -> list[str]:
    """The names in a piece of Python, without attributes."""
    return [token.string for token, before in _tokens(text) if token.type == tokenize.NAME and before != "."]


def _tokens(text: str) -> list[tuple[tokenize.TokenInfo, str]]:
    tokens = list(tokenize.generate_tokens(io.StringIO(textwrap.dedent(text)).readline))
    return [(token, tokens[i - 1].string if i else "") for i, token in enumerate(tokens)]


def _renamed(text: str, dims: set[str]) -> str:
    """`self.H` for every dim."""
    lines = text.split("\n")
    for token, before in reversed(_tokens(text)):
        if token.type == tokenize.NAME and token.string in dims and before != ".":
            row, column = token.start[0] - 1, token.start[1] + 4  # which the text is indented by
            line = lines[row]
            lines[row] = f"{line[:column]}self.{line[column:]}"
    return "\n".join(lines)
