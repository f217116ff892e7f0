"""Tensors into a model's parameters by a plan, and parameters into a checkpoint's tensors by the same rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..problem import Problem
from .coverage import ImportPlan, misuse
from .layout import Region, apply, assemble, invert, stored_shapes
from .rules import Expr, bind, read_rules
from .source import Source


def read_weights(plan: ImportPlan, source: Source, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """Each parameter's name and value, one after another, in `dtype` (as stored when None), contiguous, on the CPU.

    Only one parameter's tensors are held at a time. Problem for a tensor that cannot be read, or whose numbers are not
    floating-point, or not finite.
    """
    for parameter, expr in plan.assignments.items():
        value = apply(expr, lambda name: _floats(name, source))
        yield parameter, value.to(dtype or value.dtype).contiguous()


def import_weights(plan: ImportPlan, source: Source, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The state dict of `read_weights`: all parameters in `dtype`."""
    return dict(read_weights(plan, source, dtype))


def export_weights(rules: Sequence[Mapping[str, object]], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors from a model's parameters, by the inverse of the map. Problem where it has no rule for
    one.
    """
    read = read_rules(rules)
    exprs: dict[str, Expr] = {}
    for parameter, value in state.items():
        found = [(rule, at) for rule in read.parameters if (at := rule.matches(parameter)) is not None]
        if len(found) != 1:
            raise Problem(f"{len(found)} rules of the map speak of `{parameter}`, and there should be one")
        exprs[parameter] = bind(found[0][0].value, found[0][1], experts=value.shape[0] if value.ndim else 0)
    shapes: dict[str, tuple[int, ...]] = {}
    for parameter, expr in exprs.items():
        for name, shape in stored_shapes(expr, tuple(state[parameter].shape)):
            shapes[name] = tuple(map(max, shape, shapes.get(name, shape)))
    pieces = [piece for name, expr in exprs.items() for piece in invert(expr, state[name], shapes.__getitem__)]
    parts: dict[str, list[Region]] = {}
    for region, _ in pieces:
        parts.setdefault(region.name, []).append(region)
    if faults := [fault for name, used in parts.items() if (fault := misuse(name, used, shapes[name]))]:
        raise Problem("the map cannot be inverted: " + "; ".join(faults))
    return {name: value.contiguous() for name, value in assemble(pieces, shapes.__getitem__).items()}


def _floats(name: str, source: Source) -> Tensor:
    value = source.read(name)
    if not value.is_floating_point():
        raise Problem(
            f"`{name}` of {source.path} holds {str(value.dtype).removeprefix('torch.')}, not floating-point numbers",
            help="quantised checkpoints can be read as GGUF; otherwise use the unquantised one",
        )
    if not bool(value.isfinite().all()):
        count = value.numel() - int(value.isfinite().sum())
        first = (~value.isfinite()).nonzero()[0].tolist()
        raise Problem(
            f"`{name}` of {source.path} holds {count:,} of {value.numel():,} numbers that are not finite: "
            f"{float(value[tuple(first)])} at {first}",
            help="the checkpoint was saved after training diverged, or was damaged: take another one",
        )
    return value
