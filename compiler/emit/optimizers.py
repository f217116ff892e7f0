"""Of train.py: how parameters begin, how they are updated, how the rate goes."""

from __future__ import annotations

from fractions import Fraction

from ..ir import Graph
from ..passes.groups import head_paths, other_matrices
from ..recipe import Ramp, TrainRecipe
from ..signature import Record
from .text import WIDTH, number

BETAS = {"adamw": (0.9, 0.999), "lion": (0.9, 0.99)}
CLASSES = {"adamw": "AdamW", "lion": "Lion", "muon": "Muon"}
INDENT = " " * 4


def optimizer_call(graph: Graph, recipe: TrainRecipe) -> str:
    """`optim.AdamW(model, ...)`."""
    record = recipe.optimizer
    parts = ["model", f"lr={float_text(record['lr'])}"]
    parts += _muon(graph, record) if record.name == "muon" else _moments(record)
    if _groups(recipe):
        parts.append("groups=GROUPS")
    return _wrapped("optimizer = ", f"optim.{CLASSES[record.name]}", [*parts, "**run.states"])


def _moments(record: Record) -> list[str]:
    betas = record["betas"]
    spelled = floats_text(betas) if betas is not None else str(BETAS[record.name])
    eps = [f"eps={float_text(record['eps'])}"] if record.name == "adamw" else []
    return [f"betas={spelled}", *eps, f"decay={float_text(record['decay'])}"]


def _muon(graph: Graph, record: Record) -> list[str]:
    parts = [
        f"momentum={float_text(record['momentum'])}",
        f"decay={float_text(record['decay'])}",
        f'scale="{record["scale"]}"',
        f"adamw_for={_strings(other_matrices(graph))}",
    ]
    adamw = record["adamw"]
    if not isinstance(adamw, Record):
        return parts
    betas, *rest = _moments(adamw)
    told = {"eps": rest[0], "decay": f"adamw_{rest[1]}"}
    return [*parts, f"adamw_lr={float_text(adamw['lr'])}", told["decay"], betas, told["eps"]]


def init_call(recipe: TrainRecipe) -> str:
    """`optim.normal(...)`, as `run.build` takes it."""
    parts = _normal(recipe.init)
    if starts(recipe):
        parts.append("groups=STARTS")
    init = f"optim.normal({', '.join(parts)})"
    return f"{init}, fp8=FP8" if fp8_lines(recipe) else init


def _normal(record: Record) -> list[str]:
    width = record["width"]
    return [
        f"std={float_text(record['std'])}",
        *([f"width={number(int(width))}"] if isinstance(width, Fraction) else []),
    ]


def schedule_call(recipe: TrainRecipe) -> str:
    """`optim.cosine(...)`."""
    record, warmup = recipe.schedule, recipe.schedule["warmup"]
    assert isinstance(warmup, Fraction), warmup
    parts = [f"peak={float_text(recipe.optimizer['lr'])}", f"warmup={int(warmup)}", "steps=run.steps"]
    if record.name == "steps":
        parts += [f"at={floats_text(record['at'])}", f"factor={floats_text(record['factor'])}"]
    elif record.name == "cosine":
        parts.append(f"floor={float_text(record['floor'])}")
    else:
        parts.append(f"decay={float_text(record['decay'])}")
        parts += [f'shape="{record["shape"]}"'] if record["shape"] != "linear" else []
        parts += [f"floor={float_text(record['floor'])}"] if record["floor"] else []
    return _wrapped("schedule = ", f"optim.{record.name}", parts)


def group_lines(recipe: TrainRecipe) -> list[str]:
    """The entries of GROUPS: what has another rate or decay."""
    return [f"optim.Group({', '.join(parts)})" for parts in _groups(recipe)]


def _groups(recipe: TrainRecipe) -> list[list[str]]:
    found = []
    for group in recipe.groups:
        told = [f"rate={float_text(group.rate)}"] if group.rate != 1 else []
        told += [f"decay={float_text(group.decay)}"] if group.decay is not None else []
        if told:
            found += [[f'"{path}"', *told] for path in group.paths]
    return found


def starts(recipe: TrainRecipe) -> list[str]:
    """The entries of STARTS: what begins otherwise."""
    found = []
    for group in recipe.groups:
        if group.init is not None:
            parts = _normal(group.init) if group.init.name == "normal" else []
            found += [f'"{path}": optim.{group.init.name.capitalize()}({", ".join(parts)})' for path in group.paths]
    return found


def fp8_lines(recipe: TrainRecipe) -> list[str]:
    """The entries of FP8: which linear layers have 8-bit products."""
    return [f'"{path}": "{group.fp8}"' for group in recipe.groups if group.fp8 for path in group.paths]


def adapter_fields(graph: Graph, recipe: TrainRecipe) -> list[tuple[str, str]]:
    """What RECIPE says of adapters, and of what is frozen."""
    lora = [f'"{path}": {_lora(group.lora)}' for group in recipe.groups if group.lora for path in group.paths]
    frozen = [
        f'"{path}": {group.frozen}' for group in recipe.groups if group.frozen is not None for path in group.paths
    ]
    fields = [("lora", _dict(lora))] if lora else []
    fields += [("frozen", _dict(frozen))] if frozen else []
    return [*fields, *([("bare", _strings(head_paths(graph)))] if lora else [])]


def _lora(record: Record) -> str:
    rank = record["rank"]
    alpha = rank if record["alpha"] is None else record["alpha"]
    dropout = [f"dropout={float_text(record['dropout'])}"] if record["dropout"] else []
    assert isinstance(rank, Fraction), rank
    return f"Lora({', '.join([f'rank={int(rank)}', f'alpha={float_text(alpha)}', *dropout])})"


def _dict(entries: list[str]) -> str:
    return "\n        ".join(["{", *(f"{entry}," for entry in entries)]) + "\n    }"


def ramp_text(ramp: Ramp) -> str:
    return f"Ramp(start={number(ramp.start)}, by={number(ramp.by)}, over={float_text(ramp.over)})"


def float_text(value: object) -> str:
    assert value is None or isinstance(value, Fraction), value
    return "None" if value is None else number(float(value))


def floats_text(values: object) -> str:
    assert isinstance(values, tuple)
    inside = ", ".join(float_text(v) for v in values)
    return f"({inside},)" if len(values) == 1 else f"({inside})"


def _strings(values: tuple[str, ...]) -> str:
    inside = ", ".join(f'"{value}"' for value in values)
    return f"({inside},)" if len(values) == 1 else f"({inside})"


def _wrapped(before: str, function: str, parts: list[str]) -> str:
    """A call on one line, else its arguments on the next, else each on its own, as ruff formats it."""
    inside = ", ".join(parts)
    if len(f"{INDENT}{before}{function}({inside})") <= WIDTH:
        return f"{function}({inside})"
    inner = INDENT * 2
    if len(f"{inner}{inside}") <= WIDTH:
        return f"{function}(\n{inner}{inside}\n{INDENT})"
    lines = "".join(f"{inner}{part},\n" for part in parts)
    return f"{function}(\n{lines}{INDENT})"
