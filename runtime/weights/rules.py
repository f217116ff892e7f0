"""The map between a model's parameters and the tensors of a checkpoint, as `plan.json` holds it.

A map is a list of rules:

- `{"parameter": "layers.*.attention.q.weight", "value": EXPR}`: the parameters of this name are made of what EXPR says.
- `{"ignore": "*.rotary_emb.inv_freq"}`: tensors of the checkpoint that carry nothing (`*` and `?` as in file names).
- `{"same": "lm_head.weight", "as": "model.embed_tokens.weight"}`: a tensor that may be there a second time.

In a parameter's name `*` stands for the index of a repeat; those in EXPR stand for the same indices, in the same order.
EXPR is one of

- `{"op": "tensor", "name": NAME}`: a tensor of the checkpoint.
- `{"op": "stack", "of": EXPR}`: the EXPR of each expert, whose index is `#` in its names, along a new first axis.
- `{"op": "transpose", "of": EXPR}`: the last two axes exchanged.
- `{"op": "rows", "of": EXPR, "from": a, "to": b}`: the rows a to b (not included) of a tensor that several share.
- `{"op": "interleave", "of": EXPR, "parts": n, "part": i, "block": b}`: of rows dealt out to n parts in turn, b at a
  time (1 when left out), those of part i.
- `{"op": "permute_rope", "of": EXPR, "heads": n, "rotary": r}`: in each of n heads the rows 0, 1, 2, 3, ... of
  interleaved pairs put in the order 0, 2, ..., 1, 3, ... of half-split ones; only the first r of each when r is given.

Rows are the first axis of a tensor of one or two axes, and the last but one of a larger.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..problem import Problem


@dataclass(frozen=True, slots=True)
class TensorNamed:
    name: str


@dataclass(frozen=True, slots=True)
class Stack:
    of: Expr


@dataclass(frozen=True, slots=True)
class Stacked:
    """A Stack whose number of experts is known."""

    parts: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Transpose:
    of: Expr


@dataclass(frozen=True, slots=True)
class Rows:
    of: Expr
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Interleave:
    of: Expr
    parts: int
    part: int
    block: int = 1


@dataclass(frozen=True, slots=True)
class PermuteRope:
    of: Expr
    heads: int
    rotary: int | None = None


Expr = TensorNamed | Stack | Stacked | Transpose | Rows | Interleave | PermuteRope


@dataclass(frozen=True, slots=True)
class ParameterRule:
    parameter: str
    value: Expr

    def matches(self, parameter: str) -> tuple[str, ...] | None:
        """The indices that `*` stands for in this parameter's name, or None where the rule is for others."""
        pattern = r"(\d+)".join(map(re.escape, self.parameter.split("*")))
        found = re.fullmatch(pattern, parameter)
        return found.groups() if found else None


@dataclass(frozen=True, slots=True)
class SameRule:
    name: str
    original: str


@dataclass(frozen=True, slots=True)
class Rules:
    parameters: tuple[ParameterRule, ...]
    ignored: tuple[str, ...] = ()
    same: tuple[SameRule, ...] = ()


def read_rules(rules: Sequence[Mapping[str, object]]) -> Rules:
    """The rules of a map in JSON form. Problem for one that does not mean anything."""
    parameters, ignored, same = [], [], []
    for rule in rules:
        match rule:
            case {"parameter": str(parameter), "value": dict(value)}:
                expr = read_expr(value)
                for name in names(expr):
                    if name.count("*") != parameter.count("*"):
                        raise Problem(f"the map's `{parameter}` and `{name}` do not have equally many `*`")
                parameters.append(ParameterRule(parameter, expr))
            case {"ignore": str(pattern)}:
                ignored.append(pattern)
            case {"same": str(name), "as": str(original)}:
                same.append(SameRule(name, original))
            case _:
                raise Problem(f"the map of weights has a rule that means nothing: {rule}")
    return Rules(tuple(parameters), tuple(ignored), tuple(same))


def read_expr(value: Mapping[str, object]) -> Expr:
    match value:
        case {"op": "tensor", "name": str(name)}:
            return TensorNamed(name)
        case {"op": "stack", "of": dict(of)}:
            return Stack(read_expr(of))
        case {"op": "transpose", "of": dict(of)}:
            return Transpose(read_expr(of))
        case {"op": "rows", "of": dict(of), "from": int(start), "to": int(stop)} if 0 <= start < stop:
            return Rows(_selectable(read_expr(of)), start, stop)
        case {"op": "interleave", "of": dict(of), "parts": int(parts), "part": int(part)} if 0 <= part < parts:
            block = value.get("block", 1)
            if isinstance(block, int) and block >= 1:
                return Interleave(_selectable(read_expr(of)), parts, part, block)
        case {"op": "permute_rope", "of": dict(of), "heads": int(heads)} if heads >= 1:
            rotary = value.get("rotary")
            if rotary is None or (isinstance(rotary, int) and rotary >= 2 and rotary % 2 == 0):
                return PermuteRope(read_expr(of), heads, rotary)
    raise Problem(f"the map of weights has a value that means nothing: {dict(value)}")


def _selectable(expr: Expr) -> Expr:
    """Rows can be taken of a tensor as it is stored, so that what remains of it is known."""
    inner = expr
    while isinstance(inner, Transpose | Rows | Interleave):
        inner = inner.of
    if not isinstance(inner, TensorNamed):
        raise Problem("the map of weights takes rows of something computed", help="take the rows first, then compute")
    return expr


def names(expr: Expr) -> list[str]:
    """The tensors that an expression reads, in order."""
    match expr:
        case TensorNamed(name):
            return [name]
        case Stacked(parts):
            return [name for part in parts for name in names(part)]
        case _:
            return names(expr.of)


def bind(expr: Expr, indices: Sequence[str], experts: int) -> Expr:
    """The expression with `*` replaced by these indices in turn, and each Stack written out for so many experts."""
    match expr:
        case TensorNamed(name):
            parts = name.split("*")
            assert len(parts) == len(indices) + 1
            return TensorNamed("".join(f"{part}{index}" for part, index in zip(parts, [*indices, ""], strict=True)))
        case Stack(of):
            one = bind(of, indices, experts)
            numbered = ({name: name.replace("#", str(i)) for name in names(one)} for i in range(experts))
            return Stacked(tuple(rename(one, own) for own in numbered))
        case Stacked():
            return expr
        case _:
            return replace(expr, of=bind(expr.of, indices, experts))


def rename(expr: Expr, own: Mapping[str, str]) -> Expr:
    """The expression with other names for its tensors."""
    match expr:
        case TensorNamed(name):
            return TensorNamed(own[name])
        case Stacked(parts):
            return Stacked(tuple(rename(part, own) for part in parts))
        case _:
            return replace(expr, of=rename(expr.of, own))
