"""The words of the language by what they are, gathered from the tables that give them their meaning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dskc.dsl import layout, numbers
from dskc.dsl.parser import GRAMMAR, cache_folder
from dskc.dsl.tables import load_tables

from .. import arguments, checkpoint_map, devices, evaluate, masks, primitives, sections, signature, types

CONSTANTS = ("TRUE", "FALSE")
OPERATORS = ("AND", "OR", "NOT")


@dataclass(frozen=True, slots=True)
class Words:
    """Every word that means something by itself. `keys` and `values` are those of each kind of section."""

    declarations: tuple[str, ...]
    keywords: tuple[str, ...]
    operators: tuple[str, ...]
    constants: tuple[str, ...]
    types: tuple[str, ...]
    functions: tuple[str, ...]
    values: tuple[str, ...]
    choices: tuple[str, ...]
    transforms: tuple[str, ...]
    devices: tuple[str, ...]
    mesh_axes: tuple[str, ...]
    units: tuple[str, ...]
    keys: dict[str, tuple[str, ...]]
    section_values: dict[str, tuple[str, ...]]


def words() -> Words:
    """The words as the tables have them now."""
    keywords = load_tables(GRAMMAR, cache_folder()).keywords
    special = (*CONSTANTS, *OPERATORS, *layout.ITEM_KEYWORDS)
    tables = {"train": sections.TRAIN_KEYS, "plan": sections.PLAN_KEYS, "serve": sections.SERVE_KEYS}
    signatures = [*(p.signature for p in primitives.PRIMITIVES.values()), *masks.MASKS.values()]
    parameters = [p for called in signatures for p in called.parameters]
    records = [r for p in parameters for r in p.records]
    called = [s.name for s in signatures if s.parameters] + [r.name for r in records]
    return Words(
        declarations=_sorted(word for word, kind in keywords.items() if kind in layout.ITEM_KEYWORDS),
        keywords=_sorted(word for word, kind in keywords.items() if kind not in special),
        operators=_sorted(word for word, kind in keywords.items() if kind in OPERATORS),
        constants=_sorted(word for word, kind in keywords.items() if kind in CONSTANTS),
        types=_sorted((*arguments.VALUE_KINDS, *types.ELEMENTS)),
        functions=_sorted(
            (*called, *evaluate.FUNCTIONS, sections.NEXT_TOKEN.name, sections.CLASSIFY.name, sections.REGRESS.name)
        ),
        values=_sorted((*(s.name for s in masks.MASKS.values() if not s.parameters), *signature.DTYPES)),
        choices=_sorted(choice for p in parameters for choice in p.choices),
        transforms=_sorted(checkpoint_map.TRANSFORMS),
        devices=_sorted(devices.DEVICES),
        mesh_axes=_sorted(sections.MESH_AXES),
        units=_sorted(numbers.UNITS),
        keys={
            **{kind: _keys((*table, *sections.OPEN_KEYS[kind])) for kind, table in tables.items()},
            "checkpoint": _sorted(checkpoint_map.ENTRIES),
        },
        section_values={kind: _sorted(_values(table.values())) for kind, table in tables.items()},
    )


def _sorted(found: Iterable[str]) -> tuple[str, ...]:
    """Each once, and long ones first: an alternative of a pattern must not hide one that goes on."""
    return tuple(sorted(set(found), key=lambda word: (-len(word), word)))


def _keys(names: Iterable[str]) -> tuple[str, ...]:
    parts = (part for name in names for part in name.split(" ")[0].split("."))
    return _sorted(part for part in parts if part[0].islower())


def _values(table: Iterable[signature.Parameter]) -> Iterable[str]:
    for parameter in table:
        yield from (record.name for record in parameter.records)
        yield from parameter.choices
