"""The parts of docs/language.md that tables write, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import groupby

from dskc.dsl import numbers, parser, source
from dskc.dsl.numbers import UNITS, show_number
from dskc.dsl.parser import GRAMMAR
from dskc.dsl.source import Source, Span

from .. import (
    arguments,
    blocks,
    builder,
    checkpoint_map,
    devices,
    evaluate,
    masks,
    primitives,
    repeats,
    sections,
    types,
)
from ..ir import Graph, Region
from ..passes.recipes import DEFAULT_TOKENS, UNSAID_TOKENS, default_train
from ..signature import DTYPES, Parameter
from .calls import call_text, described, fenced, kind_text, linked, table, value_text
from .grammar import readable


def grammar() -> list[str]:
    return ["```", readable(GRAMMAR.read_text(encoding="utf-8")), "```", ""]


def units() -> list[str]:
    kinds = groupby(UNITS.items(), key=lambda unit: unit[1][0])
    rows = []
    for kind, found in kinds:
        shown = (f"`{name}` {show_number(scale)}" for name, (_, scale) in found)
        rows.append(({"time": "seconds"}.get(kind, kind), ", ".join(shown)))
    return table(("kind", "units"), rows)


def kinds() -> list[str]:
    rows = [(f"`{name}`", str(kind)) for name, kind in arguments.VALUE_KINDS.items()]
    rows += [(f"`{name}[...]`", "a tensor of integers") for name in types.ELEMENTS]
    return table(("written", "takes"), rows)


def words() -> list[str]:
    functions = ", ".join(f"`{name}`" for name in evaluate.FUNCTIONS)
    dtypes = ", ".join(f"`{name}`" for name in DTYPES)
    return [f"Functions of numbers and dims: {functions}. Dtypes: {dtypes}.", ""]


def mask_words() -> list[str]:
    return table(("mask", "a query sees"), ((f"`{m}`".replace("()", ""), m.doc) for m in masks.MASKS.values()))


def primitive_calls() -> list[str]:
    lines = []
    for family in primitives.FAMILIES:
        lines += [f"### {(family.__doc__ or '').partition(chr(10))[0].partition(':')[0].rstrip('.')}", ""]
        for primitive in family.PRIMITIVES:
            lines += described(primitive.signature)
    return lines


# --- sections


def train() -> list[str]:
    defaults = _train_defaults()
    rows = [(f"`{key}`", "", doc, defaults.get(key, "")) for key, doc in sections.OPEN_KEYS["train"].items()]
    rows += [(*row, defaults.get(key, "")) for key, row in _rows(sections.TRAIN_KEYS)]
    head = ("key", "takes", "meaning", "unless told")
    return [*table(head, rows), *_constructors(sections.TRAIN_KEYS.values()), *_terms()]


def _terms() -> list[str]:
    """What an objective may be made of."""
    return [line for term in (sections.NEXT_TOKEN, sections.CLASSIFY, sections.REGRESS) for line in described(term)]


def plan() -> list[str]:
    rows = [row for _, row in _rows(sections.PLAN_KEYS)]
    rows += [(f"`{key}`", "", doc) for key, doc in sections.OPEN_KEYS["plan"].items()]
    return [*table(("key", "takes", "meaning"), rows), *_constructors(sections.PLAN_KEYS.values())]


def serve() -> list[str]:
    rows = [row for _, row in _rows(sections.SERVE_KEYS)]
    return [*table(("key", "takes", "meaning"), rows), *_constructors(sections.SERVE_KEYS.values())]


def checkpoint() -> list[str]:
    rows = [("`path.of.weight = TENSOR`", "where a parameter comes from: a name in quotes, or a transform of one")]
    rows += [(f"`{key} ...`", doc) for key, doc in checkpoint_map.ENTRIES.items()]
    lines = table(("entry", "says"), rows)
    for transform in checkpoint_map.TRANSFORMS.values():
        lines += described(transform)
    return lines


def extern() -> list[str]:
    return table(("key", "meaning"), ((f"`{key}`", doc) for key, doc in sections.EXTERN_COSTS.items()))


def device_table() -> list[str]:
    rows = [
        (f"`{d.name}`", f"{d.memory / devices.GB:g} GB", f"{d.bf16 / 1e12:g} TFLOP/s", f"{d.bandwidth / 1e12:g} TB/s")
        for d in devices.DEVICES.values()
    ]
    return table(("device", "memory its driver reports", "dense bf16", "bandwidth"), rows)


def limits() -> list[str]:
    rows = [
        ("bytes of a file", source.MAX_BYTES),
        ("words and signs of a file, comments and line ends included", parser.MAX_TOKENS),
        ("brackets and braces within one another", parser.MAX_DEPTH),
        ("operators and `else if` within one another, brackets counted two or three times", parser.MAX_LEVELS),
        ("digits of a number, and its power of ten", numbers.MAX_DIGITS),
        ("blocks that use one another", blocks.MAX_BLOCKS),
        ("rounds of a repeat", repeats.MAX_REPEAT),
        ("operations of a model; a repeat counts once where nothing in it asks for its index", builder.MAX_OPERATIONS),
    ]
    assert numbers.MAX_DIGITS == numbers.MAX_EXPONENT
    return table(("what", "at most"), ((what, show_number(most)) for what, most in rows))


def _rows(keys: dict[str, Parameter]) -> list[tuple[str, tuple[str, str, str]]]:
    return [(key, (f"`{key}`", f"{_takes(key, parameter)}", linked(parameter.doc))) for key, parameter in keys.items()]


def _takes(key: str, parameter: Parameter) -> str:
    if key in sections.UNITS:
        return sections.UNITS[key]
    least = ", from 1" if key in sections.MINIMUM_ONE or key.startswith("mesh.") else ""
    return f"`{kind_text(parameter)}`{least}"


def _constructors(keys: Iterable[Parameter]) -> list[str]:
    lines = []
    for parameter in keys:
        for record in parameter.records:
            text = call_text(record) if record.parameters else record.name
            lines += [f"`{parameter.name}` may be `{record.name}`: {linked(record.doc)}", "", *fenced(text)]
    return lines


def _train_defaults() -> dict[str, str]:
    """What a recipe has that says nothing, by key."""
    nowhere = Span(Source("", ""), 0, 0)
    model = Graph("model", None, nowhere, (), Region((), (), ()), (), ("logits",), ("LOSS",))
    recipe = default_train(model, 1)
    values: dict[str, object] = {
        sections.DATA_DIM: recipe.length,
        "batch.sequences": recipe.sequences,
        "optimizer": recipe.optimizer,
        "schedule": recipe.schedule,
        "init": recipe.init,
        "save.every": recipe.save_every,
        "save.keep": recipe.save_keep,
        **{f"precision.{name}": value for name, value in recipe.precision.said().items()},
        "precision.rounding": sections.ROUNDINGS[0],
    }
    found = {key: f"`{value_text(value)}`" for key, value in values.items()}
    first, *losses = recipe.objective
    found[sections.OBJECTIVE] = f"`{first}` of the first result, and `{losses[0]}` for each loss".replace(
        "logits", "RESULT"
    )
    found["tokens"] = f"{show_number(Fraction(UNSAID_TOKENS))}; {DEFAULT_TOKENS} a parameter without any `train`"
    found["batch.microbatch"] = "as memory allows"
    return found


PARTS: dict[str, Callable[[], list[str]]] = {
    "units": units,
    "kinds": kinds,
    "words": words,
    "masks": mask_words,
    "primitives": primitive_calls,
    "train": train,
    "plan": plan,
    "serve": serve,
    "devices": device_table,
    "checkpoint": checkpoint,
    "extern": extern,
    "limits": limits,
    "grammar": grammar,
}
