"""train.py: the training loop of one recipe."""

from __future__ import annotations

import textwrap
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ..ir import DType, Graph, Value
from ..passes.memory import LossMemory, Memory, Saved
from ..recipe import PlanRecipe, Precision, Term, TrainRecipe, objective_text
from ..signature import Record
from .losses import LINEAR, Losses
from .optimizers import (
    adapter_fields,
    float_text,
    fp8_lines,
    group_lines,
    init_call,
    optimizer_call,
    ramp_text,
    schedule_call,
    starts,
)
from .text import WIDTH, number

NEXT_TOKEN = "next_token"


@cache
def _template() -> Template:
    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    return environment.get_template("train.py.j2")


def emit_train(
    graph: Graph,
    recipe: TrainRecipe,
    plans: list[PlanRecipe],
    ledger: Memory,
    losses: Losses,
    spec: str,
    spec_hash: str,
    file: str,
) -> str:
    """The text of train.py below its header."""
    imports = [
        "Batch",
        "Ledger",
        "LinearLoss",
        "Plan",
        "Precision",
        "Recipe",
        "Repeat",
        "Run",
        "Saved",
        "parse_options",
        "stop_on_problem",
    ]
    if not ledger.repeats:
        imports.remove("Repeat")
    if not ledger.losses:
        imports.remove("LinearLoss")
    if any(group.lora for group in recipe.groups):
        imports.insert(imports.index("Plan"), "Lora")
    if recipe.ramp is not None:
        imports.insert(imports.index("Recipe"), "Ramp")
    plain = is_plain(graph, recipe.objective)
    if not plain:
        imports += ["Input", *(["Task"] if any(t.loss in ("classify", "regress") for t in recipe.objective) else [])]
        imports.sort(key=lambda name: (name[0].islower(), name))
    called = losses.functions(recipe.objective)
    reference = [*sorted(called - {LINEAR}), *([] if plain else ["weighted"])]
    return _template().render(
        model=graph.name,
        head=_head(graph, recipe, file),
        recipe=recipe,
        objective=objective_text(recipe.objective),
        objective_lines=(losses.objective if plain else losses.of_tasks)(graph, recipe.objective),
        reference=reference,
        linear=LINEAR in called,
        imports=imports,
        recipe_fields=_recipe(graph, recipe, spec, spec_hash),
        plans=_plans(plans, recipe, ledger),
        ledger=_ledger(ledger),
        groups=group_lines(recipe),
        starts=starts(recipe),
        fp8=fp8_lines(recipe),
        init=init_call(recipe),
        optimizer=optimizer_call(graph, recipe),
        schedule=schedule_call(recipe),
        clip=float_text(recipe.optimizer["clip"]),
        balance=None if recipe.balance_speed is None else number(recipe.balance_speed),
    )


def _head(graph: Graph, recipe: TrainRecipe, file: str) -> str:
    """The docstring of the file: what it trains on what, and how it is run."""
    by = "its default recipe" if recipe.default else f"the recipe `{recipe.name}`"
    paragraphs = (
        f'"""Trains {graph.name} by {by}: {objective_text(recipe.objective)}.',
        f"Run it with `python generated/{graph.name}/{file} --data FOLDER --steps 300 --out runs/{graph.name}`.",
    )
    filled = (textwrap.fill(p, WIDTH, break_on_hyphens=False, break_long_words=False) for p in paragraphs)
    return "\n\n".join(filled) + '\n"""'


def _precision(precision: Precision) -> str:
    spelled = (f'{name}="{value}"' for name, value in precision.said().items())
    return f"Precision({', '.join(spelled)})"


def _recipe(graph: Graph, recipe: TrainRecipe, spec: str, spec_hash: str) -> list[tuple[str, str]]:
    fields = [
        ("name", f'"{recipe.name}"'),
        ("model", f'"{graph.name}"'),
        ("spec", f'"{spec}"'),
        ("spec_hash", f'"{spec_hash}"'),
        ("vocabulary", str(vocabulary(graph))),
        ("tokens", number(recipe.tokens)),
        ("sequences", number(recipe.sequences)),
        ("length", number(recipe.length)),
        ("precision", _precision(recipe.precision)),
        ("save_every", number(recipe.save_every)),
        ("save_keep", number(recipe.save_keep)),
        *([] if recipe.ramp is None else [("ramp", ramp_text(recipe.ramp))]),
        *adapter_fields(graph, recipe),
    ]
    fields += _beside_text(graph, recipe)
    if recipe.default:
        fields += [("default", "True"), ("text", '"""\\\n' + recipe_text(graph, recipe) + '"""')]
    return fields


def is_plain(graph: Graph, terms: tuple[Term, ...]) -> bool:
    """Whether a model is of text alone: it has its tokens in every batch, and its only targets are the next ones."""
    given = [name for name in graph.inputs if name != "documents"]
    return given == ["tokens"] and not graph.optional and all(t.result is None or t.loss == NEXT_TOKEN for t in terms)


def _beside_text(graph: Graph, recipe: TrainRecipe) -> list[tuple[str, str]]:
    """What a recipe says of other inputs than tokens, and of results that are compared with labels."""
    if is_plain(graph, recipe.objective):
        return []
    sizes = {**graph.sizes, **recipe.data}

    def shape(value: Value) -> str:
        found = [number(int(axis.size.evaluate(sizes))) for axis in value.type.axes[1:]]
        return f"({', '.join(found)}{',' if len(found) == 1 else ''})"

    def lines(entries: list[str]) -> str:
        return "\n        ".join(["{", *(f"{entry}," for entry in entries)]) + "\n    }"

    given = [(n, v) for n, v in zip(graph.inputs, graph.body.arguments, strict=True) if n != "documents"]
    results = dict(zip(graph.results, graph.body.results, strict=False))
    optional = {name: ", optional=True" if name in graph.optional else "" for name, _ in given}
    ids = {name: ", ids=True" if value.type.dtype is DType.INT64 else "" for name, value in given}
    inputs = [f'"{name}": Input({shape(value)}{optional[name]}{ids[name]})' for name, value in given]
    tasks = [t for t in recipe.objective if t.result is not None and t.loss != NEXT_TOKEN]
    spelled = [f'"{t.result}": Task("{t.loss}", {shape(results[t.result or ""])})' for t in tasks]
    fields = [("inputs", lines(inputs)), *([("tasks", lines(spelled))] if tasks else [])]
    predicts = any(term.loss == NEXT_TOKEN for term in recipe.objective)
    return fields if predicts else [*fields, ("next_token", "False")]


def vocabulary(graph: Graph) -> str:
    """The size that ids stay under: that of the first result's last axis."""
    return number(int(graph.body.results[0].type.axes[-1].size.evaluate(graph.sizes)))


def recipe_text(graph: Graph, recipe: TrainRecipe) -> str:
    """A recipe as it reads in the language."""
    p = recipe.precision
    lengths = ", ".join(f"{name} = {size}" for name, size in recipe.data.items())
    return "\n".join(
        [
            f"train {recipe.name} of {graph.name} {{",
            f"  objective {objective_text(recipe.objective)}",
            f"  tokens    = {recipe.tokens:_}",
            f"  batch     {{ sequences = {recipe.sequences}, {lengths} }}",
            f"  precision {{ params = {p.params}, compute = {p.compute}, reduce = {p.reduce} }}",
            f"  optimizer {_spelled(recipe.optimizer)}",
            f"  schedule  {_spelled(recipe.schedule)}",
            f"  init      {_spelled(recipe.init)}",
            *([] if recipe.balance_speed is None else [f"  balance   {{ speed = {recipe.balance_speed:g} }}"]),
            f"  save      {{ every = {recipe.save_every}, keep = {recipe.save_keep} }}",
            "}",
            "",
        ]
    )


def _spelled(record: Record) -> str:
    def one(value: object) -> str:
        if isinstance(value, tuple):
            return f"[{', '.join(one(v) for v in value)}]"
        if isinstance(value, Record):
            return _spelled(value)
        return f"{float(value):g}" if isinstance(value, Fraction) else str(value)

    return f"{record.name}({', '.join(f'{k}: {one(v)}' for k, v in record.arguments if v is not None)})"


def _plans(plans: list[PlanRecipe], recipe: TrainRecipe, ledger: Memory) -> list[tuple[str, list[tuple[str, str]]]]:
    """The plans by name; one called `default` carries what the recipe itself says of how to run."""
    found = [(plan.name, _plan(plan, recipe, ledger)) for plan in plans]
    if recipe.microbatch is not None and all(name != "default" for name, _ in found):
        found.insert(0, ("default", [("microbatch", number(recipe.microbatch))]))
    return found


def _plan(plan: PlanRecipe, recipe: TrainRecipe, ledger: Memory) -> list[tuple[str, str]]:
    layers = sum(repeat.count for repeat in ledger.repeats)
    recompute = {"auto": '"auto"', "none": "0", "full": str(layers)}[plan.recompute]
    fields = [("device", f'"{plan.device}"' if plan.device else "None"), ("devices", number(plan.devices))]
    microbatch = plan.microbatch if plan.microbatch is not None else recipe.microbatch
    if microbatch is not None:
        fields.append(("microbatch", number(microbatch)))
    merged = plan.precision.over(recipe.precision)
    if merged != recipe.precision:
        fields.append(("precision", _precision(merged)))
    if plan.memory_limit is not None:
        fields.append(("memory_limit", number(plan.memory_limit)))
    return [*fields, ("recompute", recompute)]


def _saved(saved: Saved) -> str:
    parts = [f"{n}={number(v)}" for n in ("compute", "fp32", "bytes") if (v := getattr(saved, n))]
    return f"Saved({', '.join(parts)})"


def _loss(loss: LossMemory) -> str:
    terms = f", terms={loss.terms}" if loss.terms != 1 else ""
    sizes = ", ".join(f"{name}={number(getattr(loss, name))}" for name in ("logits", "input", "weight"))
    return f"LinearLoss({sizes}{terms})"


def _ledger(ledger: Memory) -> SimpleNamespace:
    repeats = [
        SimpleNamespace(
            name=r.name,
            count=r.count,
            input=number(r.input),
            params=number(r.params),
            saved=_saved(r.saved),
            unfused=_saved(r.unfused),
        )
        for r in ledger.repeats
    ]
    return SimpleNamespace(
        params=number(ledger.params),
        frozen=number(ledger.frozen) if ledger.frozen else None,
        repeats=repeats,
        rest=_saved(ledger.rest),
        rest_unfused=_saved(ledger.rest_unfused),
        logits=number(ledger.logits),
        losses=[_loss(one) for one in ledger.losses],
        moments=ledger.moments,
        fewer=number(ledger.single_moment) if ledger.single_moment else None,
        flops=number(ledger.flops_per_token),
    )
