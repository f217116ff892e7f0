"""train.py: the training loop of one recipe."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ..ir import Graph
from ..passes.memory import Memory, Saved
from ..recipe import PlanRecipe, Precision, Term, TrainRecipe, objective_text
from ..signature import Record
from .model import output_fields
from .text import WIDTH, number

BETAS = {"adamw": (0.9, 0.999), "lion": (0.9, 0.99)}
CLASSES = {"adamw": "AdamW", "lion": "Lion"}


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
    losses: Mapping[tuple[object, ...], str],
    spec: str,
    spec_hash: str,
    file: str,
) -> str:
    """The text of train.py below its header."""
    imports = [
        "Batch",
        "Ledger",
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
    return _template().render(
        model=graph.name,
        title="\n".join(textwrap.wrap(_title(graph, recipe), WIDTH - 3)),
        file=file,
        recipe=recipe,
        objective=objective_text(recipe.objective),
        objective_lines=_objective(graph, recipe.objective, losses),
        imports=imports,
        recipe_fields=_recipe(graph, recipe, spec, spec_hash),
        plans=_plans(plans, recipe, ledger),
        ledger=_ledger(ledger),
        init=f"optim.{recipe.init.name}(std={_float(recipe.init['std'])})",
        optimizer=_optimizer(recipe.optimizer),
        schedule=_schedule(recipe.schedule, recipe.optimizer),
        clip=_float(recipe.optimizer["clip"]),
        balance=None if recipe.balance_speed is None else number(recipe.balance_speed),
    )


def _title(graph: Graph, recipe: TrainRecipe) -> str:
    by = "its default recipe" if recipe.default else f"the recipe `{recipe.name}`"
    return f"Trains {graph.name} by {by}: {objective_text(recipe.objective)}."


def _float(value: object) -> str:
    assert value is None or isinstance(value, Fraction), value
    return "None" if value is None else number(float(value))


def _floats(values: object) -> str:
    assert isinstance(values, tuple)
    inside = ", ".join(_float(v) for v in values)
    return f"({inside},)" if len(values) == 1 else f"({inside})"


def _precision(precision: Precision) -> str:
    fields = ("params", "compute", "reduce", "optimizer")
    spelled = (f'{name}="{getattr(precision, name)}"' for name in fields)
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
    ]
    if recipe.default:
        fields += [("default", "True"), ("text", '"""\\\n' + recipe_text(graph, recipe) + '"""')]
    return fields


def vocabulary(graph: Graph) -> str:
    """The size that ids stay under: that of the first result's last axis."""
    return number(int(graph.body.results[0].type.axes[-1].size.evaluate(graph.sizes)))


def recipe_text(graph: Graph, recipe: TrainRecipe) -> str:
    """A recipe as it reads in the language."""
    p = recipe.precision
    return "\n".join(
        [
            f"train {recipe.name} of {graph.name} {{",
            f"  objective {objective_text(recipe.objective)}",
            f"  tokens    = {recipe.tokens:_}",
            f"  batch     {{ sequences = {recipe.sequences}, S = {recipe.length} }}",
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
    merged = Precision(
        *(
            getattr(plan.precision, f) or getattr(recipe.precision, f)
            for f in ("params", "compute", "reduce", "optimizer")
        )
    )
    if merged != recipe.precision:
        fields.append(("precision", _precision(merged)))
    if plan.memory_limit is not None:
        fields.append(("memory_limit", number(plan.memory_limit)))
    return [*fields, ("recompute", recompute)]


def _saved(saved: Saved) -> str:
    parts = [f"{n}={number(v)}" for n in ("compute", "fp32", "bytes") if (v := getattr(saved, n))]
    return f"Saved({', '.join(parts)})"


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
        repeats=repeats,
        rest=_saved(ledger.rest),
        rest_unfused=_saved(ledger.rest_unfused),
        logits=number(ledger.logits),
        moments=ledger.moments,
        flops=number(ledger.flops_per_token),
    )


def _optimizer(record: Record) -> str:
    betas = record["betas"]
    spelled = _floats(betas) if betas is not None else str(BETAS[record.name])
    parts = [f"lr={_float(record['lr'])}", f"betas={spelled}"]
    if record.name == "adamw":
        parts.append(f"eps={_float(record['eps'])}")
    parts += [f"decay={_float(record['decay'])}", "state_dtype=run.state_dtype"]
    return f"optim.{CLASSES[record.name]}(model, {', '.join(parts)})"


def _schedule(record: Record, optimizer: Record) -> str:
    warmup = record["warmup"]
    assert isinstance(warmup, Fraction), warmup
    parts = [f"peak={_float(optimizer['lr'])}", f"warmup={int(warmup)}", "steps=run.steps"]
    if record.name == "steps":
        parts += [f"at={_floats(record['at'])}", f"factor={_floats(record['factor'])}"]
    elif record.name == "cosine":
        parts.append(f"floor={_float(record['floor'])}")
    else:
        parts.append(f"decay={_float(record['decay'])}")
    return f"optim.{record.name}({', '.join(parts)})"


def _objective(graph: Graph, terms: tuple[Term, ...], losses: Mapping[tuple[object, ...], str]) -> list[str]:
    fields = output_fields(graph)
    inputs = ", ".join("batch.documents" if name == "documents" else f"batch.{name}" for name in graph.inputs)
    single = not fields
    lines = [f"{'logits' if single else 'out'} = model({inputs})"]
    spelled, named = [], []
    many = sum(1 for t in terms if t.loss == "next_token") > 1
    for term in terms:
        if term.loss == "next_token":
            name = f"next_token_{term.result}" if many else "token"
            source = "logits" if single else f"out.{term.result}"
            ahead = f", ahead={term.ahead}" if term.ahead != 1 else ""
            by = f", rows=kernels.{losses[term.kernel]}"
            lines.append(f"{name} = next_token({source}, batch.targets{ahead}{by})")
            plain = term.result == graph.results[0] and term.ahead == 1  # what held-out text is measured by
            key = "next_token" if plain or not many else f"next_token_{term.result}"
            named.append((key, name))
        else:
            name = f"out.{term.loss}"
            named.append((term.loss, name))
        spelled.append(name if term.weight == 1 else f"{float(term.weight):g} * {name}")
    total = " + ".join(spelled)
    if len(terms) == 1 and terms[0].weight == 1:
        loss = lines[1].split(" = ", 1)[1]
        return [lines[0], f'return {{"loss": {loss}}}']
    pairs = [f'"{key}": {name}' for key, name in (("loss", total), *named)]
    whole = f"return {{{', '.join(pairs)}}}"
    if len(whole) + 4 <= WIDTH:
        return [*lines, whole]
    return [*lines, "return {", *(f"    {pair}," for pair in pairs), "}"]
