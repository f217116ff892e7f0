"""plan.json: the resolved spec in numbers, for people, tools and the runtime; pydantic checks what leaves."""

from __future__ import annotations

from dataclasses import asdict
from fractions import Fraction

from pydantic import BaseModel, ConfigDict, JsonValue

from ..ir import Graph
from ..parameters import parameters, total_parameters
from ..passes.memory import Memory, flops, positions
from ..passes.recipes import Recipes
from ..recipe import Group, PlanRecipe, ServeRecipe, TrainRecipe, objective_text
from ..signature import Record


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DimPart(_Part):
    name: str
    value: int | None
    equation: str | None
    meaning: str | None


class ParameterPart(_Part):
    """A parameter's name with `*` for repeat indices, its shape, and the dims of each of its axes, outer first."""

    name: str
    shape: list[int]
    axes: list[list[str]]
    copies: int


class FlopsPart(_Part):
    """Forward, a token, at `length`: matrix products, attention in full and counted causally."""

    length: int
    full: int
    causal: int


class SavedPart(_Part):
    compute: int
    fp32: int
    bytes: int


class RepeatPart(_Part):
    name: str
    count: int
    params: int
    input: int
    saved: SavedPart


class LossPart(_Part):
    """Of a result whose loss is computed with its last linear map, so that its logits are not held."""

    logits: int
    input: int
    weight: int
    terms: int


class LedgerPart(_Part):
    """Elements for one sequence of the recipe's length; see `runtime/train/ledger.py` for bytes."""

    params: int
    frozen: int
    logits: int
    losses: list[LossPart]
    moments: int
    single_moment: int
    rest: SavedPart
    repeats: list[RepeatPart]


class TrainPart(_Part):
    name: str
    default: bool
    objective: str
    tokens: int
    sequences: int
    ramp: dict[str, JsonValue] | None
    length: int
    precision: dict[str, str | None]
    optimizer: dict[str, JsonValue]
    schedule: dict[str, JsonValue]
    init: dict[str, JsonValue]
    groups: dict[str, dict[str, JsonValue]]
    ledger: LedgerPart
    flops: FlopsPart


class PlanPart(_Part):
    name: str
    train: str
    device: str | None
    devices: int
    mesh: dict[str, int]
    shards: list[tuple[str, str]]
    microbatch: int | None
    memory_limit: int | None
    recompute: str
    precision: dict[str, str | None]


class ServePart(_Part):
    name: str
    device: str | None
    weights: str
    compute: str
    cache: dict[str, JsonValue] | None
    batch: int


class PlanFile(_Part):
    """The whole of plan.json."""

    model: str
    spec: str
    spec_hash: str
    parameters: int
    dims: list[DimPart]
    inputs: list[str]
    results: list[str]
    losses: list[str]
    vocabulary: int
    weights: list[ParameterPart]
    checkpoint: list[dict[str, JsonValue]]
    train: list[TrainPart]
    plans: list[PlanPart]
    serve: list[ServePart]
    serving_differs: list[str]


def emit_plan(
    graph: Graph, trains: list[tuple[TrainRecipe, Memory]], recipes: Recipes, rules: list, spec: str, spec_hash: str
) -> str:
    """The text of plan.json."""
    names = {train.name for train, _ in trains}
    plan = PlanFile(
        model=graph.name,
        spec=spec,
        spec_hash=spec_hash,
        parameters=total_parameters(graph),
        dims=[
            DimPart(name=d.name, value=d.value, equation=str(d.equation) if d.equation else None, meaning=d.doc)
            for d in graph.dims
        ],
        inputs=list(graph.inputs),
        results=list(graph.results),
        losses=list(graph.losses),
        vocabulary=int(graph.body.results[0].type.axes[-1].size.evaluate(graph.sizes)),
        weights=_weights(graph),
        checkpoint=rules,
        train=[_train(graph, train, ledger) for train, ledger in trains],
        plans=[_plan(p) for p in recipes.plans.values() if p.train in names],
        serve=[_serve(r) for r in recipes.serves.values() if r.model == graph.name],
        serving_differs=_differences(graph),
    )
    return plan.model_dump_json(indent=1) + "\n"


def _weights(graph: Graph) -> list[ParameterPart]:
    found: dict[str, ParameterPart] = {}
    copies: dict[str, int] = {}
    for info in parameters(graph):
        copies[info.pattern] = copies.get(info.pattern, 0) + 1
        axes = [[axis.name for axis in group] for group in info.weight.groups]
        found.setdefault(info.pattern, ParameterPart(name=info.pattern, shape=list(info.shape), axes=axes, copies=1))
    return [part.model_copy(update={"copies": copies[name]}) for name, part in found.items()]


def _train(graph: Graph, train: TrainRecipe, ledger: Memory) -> TrainPart:
    full, causal = flops(graph, train.length, lengths=train.lengths)
    count = positions(graph, train)
    return TrainPart(
        name=train.name,
        default=train.default,
        objective=objective_text(train.objective),
        tokens=train.tokens,
        sequences=train.sequences,
        ramp={key: _plain(value) for key, value in asdict(train.ramp).items()} if train.ramp else None,
        length=train.length,
        precision=train.precision.said(),
        optimizer=_record(train.optimizer),
        schedule=_record(train.schedule),
        init=_record(train.init),
        groups={path: _group(group) for group in train.groups for path in group.paths},
        ledger=LedgerPart(
            params=ledger.params,
            frozen=ledger.frozen,
            logits=ledger.logits,
            losses=[LossPart(**asdict(one)) for one in ledger.losses],
            moments=ledger.moments,
            single_moment=ledger.single_moment,
            rest=_saved(ledger.rest),
            repeats=[
                RepeatPart(name=r.name, count=r.count, params=r.params, input=r.input, saved=_saved(r.saved))
                for r in ledger.repeats
            ],
        ),
        flops=FlopsPart(length=train.length, full=full // count, causal=causal // count),
    )


def _saved(saved: object) -> SavedPart:
    return SavedPart(**{f: getattr(saved, f) for f in ("compute", "fp32", "bytes")})


def _plan(plan: PlanRecipe) -> PlanPart:
    return PlanPart(
        name=plan.name,
        train=plan.train,
        device=plan.device,
        devices=plan.devices,
        mesh=dict(plan.mesh),
        shards=list(plan.shards),
        microbatch=plan.microbatch,
        memory_limit=plan.memory_limit,
        recompute=plan.recompute,
        precision=plan.precision.said(),
    )


def _serve(serve: ServeRecipe) -> ServePart:
    return ServePart(
        name=serve.name,
        device=serve.device,
        weights=serve.weights,
        compute=serve.compute,
        cache=_record(serve.cache) if serve.cache else None,
        batch=serve.batch,
    )


def _record(record: Record) -> dict[str, JsonValue]:
    return {"name": record.name, **{key: _plain(value) for key, value in record.arguments}}


def _group(group: Group) -> dict[str, JsonValue]:
    records = {key: _record(value) if value else None for key, value in (("init", group.init), ("lora", group.lora))}
    numbers = {"rate": _plain(group.rate), "decay": _plain(group.decay)}
    return {**numbers, **records, "frozen": group.frozen, "fp8": group.fp8}


def _plain(value: object) -> JsonValue:
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else float(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Record):
        return _record(value)
    return value if value is None or isinstance(value, bool | str) else str(value)


def _differences(graph: Graph) -> list[str]:
    """How serving is meant to differ from training."""
    found = ["logits are computed for the newest position only"]
    if "documents" in graph.inputs:
        found.append("a cache holds one document a row, so the `documents` mask is left out")
    if graph.losses:
        found.append(f"auxiliary losses ({', '.join(graph.losses)}) are not used")
    return found
