"""Which tensor of a checkpoint fills which parameter: every one once, or an error that names each that does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from ..problem import Problem
from .faults import Faults
from .layout import Region, Shape, regions, shape_of
from .rules import Expr, Rules, Stack, bind, names, read_rules, rename
from .source import Source

HEAD = "lm_head.weight"  # what a checkpoint calls its output head, and often holds although it is tied


@dataclass(frozen=True)
class ImportPlan:
    """What fills each parameter, in the tensors' own names; and what the user may want to know."""

    assignments: dict[str, Expr]
    notes: tuple[str, ...] = ()


def plan_import(
    rules: Sequence[Mapping[str, object]],
    shapes: Mapping[str, Shape],
    source: Source,
    places: Mapping[str, str] | None = None,
) -> ImportPlan:
    """What fills each of a model's parameters (their `shapes` by name) from this checkpoint by this map.

    Every parameter is filled once and every tensor used once, those that the map ignores apart. A tensor that no
    parameter asks for is accepted when it is `lm_head.weight`, or of a `same` rule, or what the map has for a parameter
    that this model lacks, and is an exact copy of another: models with a tied head are often saved so. Problem
    otherwise, naming every parameter and tensor that does not fit, with the lines of the spec that `places` has for
    parameters (by their names with `*` for indices).
    """
    read = read_rules(rules)
    faults = Faults(places=dict(places or {}))
    used: dict[str, list[Region]] = {}
    assignments: dict[str, Expr] = {}
    for parameter, shape in shapes.items():
        expr = _find(parameter, tuple(shape), read, source, faults)
        if expr is None:
            continue
        there = [name for name in names(expr) if source.find(name) is not None]
        used |= {name: [] for name in there if name not in used}
        if _fits(parameter, tuple(shape), expr, source, faults):
            assignments[parameter] = expr
            for region in regions(expr, source.shape):
                used[region.name].append(region)
    for name, parts in used.items():
        if parts and not faults.shapes and (fault := misuse(name, parts, source.shape(name))):
            faults.used.append(fault)
    notes = _left_over(used, read, shapes, source, faults)
    if faults:
        raise faults.problem(source.path)
    return ImportPlan(assignments, tuple(notes))


def misuse(name: str, parts: Sequence[Region], shape: Shape) -> str | None:
    """What is wrong with how these parts use a tensor, of which each row should be used once; None when nothing is."""
    if len(parts) == 1 and parts[0].index is None:
        return None
    if any(part.index is None for part in parts):
        return f"{name} is used {len(parts)} times"
    axes = {part.axis for part in parts}
    if len(axes) > 1:
        return f"{name} is cut along different axes"
    axis = axes.pop()
    count = torch.bincount(torch.cat([part.index for part in parts if part.index is not None]), minlength=shape[axis])
    if bool((count > 1).any()):
        return f"{name} is used twice from row {int((count > 1).int().argmax()):,} on"
    if bool((count == 0).any()):
        return f"{name} has {int((count == 0).sum()):,} of {shape[axis]:,} rows left over"
    return None


def _find(parameter: str, shape: Shape, rules: Rules, source: Source, faults: Faults) -> Expr | None:
    """The value of a parameter in the tensors' own names; None, and a fault, where there is not one."""
    found = [(rule, indices) for rule in rules.parameters if (indices := rule.matches(parameter)) is not None]
    if len(found) != 1:
        (faults.twice if found else faults.unmapped).append(parameter)
        return None
    rule, indices = found[0]
    wanted = bind(rule.value, indices, experts=shape[0] if shape else 0)
    own = {name: source.find(name) for name in names(wanted)}
    if absent := [name for name, there in own.items() if there is None]:
        faults.lack(parameter, absent)
        if len(absent) == len(own):
            return None
    return rename(wanted, {name: there or name for name, there in own.items()})


def _fits(parameter: str, shape: Shape, expr: Expr, source: Source, faults: Faults) -> bool:
    if any(source.find(name) is None for name in names(expr)):
        return False  # told as missing
    made_of = ", ".join(f"{name} {list(source.shape(name))}" for name in names(expr)[:2])
    try:
        got = shape_of(expr, source.shape)
    except Problem as problem:
        faults.shape(parameter, f"{list(shape)} cannot be made of {made_of}: {problem.message}")
        return False
    if got != shape:
        faults.shape(parameter, f"is {list(shape)} in the model, and {list(got)} by {made_of}")
    return got == shape


def _left_over(
    used: Mapping[str, object], rules: Rules, shapes: Mapping[str, Shape], source: Source, faults: Faults
) -> list[str]:
    """Notes on the tensors that no parameter asks for and that may be there; faults for the others."""
    original = {rule.name: rule.original for rule in rules.same}
    copies = {source.find(name): name for name in (HEAD, *_of_absent_parameters(rules, shapes), *original)}
    notes = []
    ignored = 0
    for name in source.names():
        if name in used:
            continue
        if any(fnmatchcase(name, pattern) for pattern in rules.ignored):
            ignored += 1
            continue
        only = source.find(original[copies[name]]) if copies.get(name) in original else None
        others = [only] if only is not None else list(used)
        others = [other for other in others if other in used and source.shape(other) == source.shape(name)]
        if name not in copies or not others:
            faults.extra.append(name)
        elif same := next((other for other in others if _equal(source, name, other)), None):
            notes.append(f"{name} is a copy of {same}, as it must be: the model has one weight for both")
        else:
            faults.differ.append(
                f"{name} is not equal to {' or '.join(others[:2])}, and the model has one weight for both"
            )
    if ignored:
        notes.append(f"{ignored} tensors are ignored, as the map says")
    return notes


def _of_absent_parameters(rules: Rules, shapes: Mapping[str, Shape]) -> Iterable[str]:
    """The tensors, one of a kind, that the map has for parameters that this model does not have."""
    for rule in rules.parameters:
        if "*" not in rule.parameter and rule.parameter not in shapes and not isinstance(rule.value, Stack):
            yield from names(rule.value)


def _equal(source: Source, a: str, b: str) -> bool:
    x, y = source.read(a), source.read(b)
    return x.dtype == y.dtype and torch.equal(x, y)
