"""recipes: what `train`, `plan` and `serve` say, checked key by key and against the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Diagnostic, Diagnostics, Mark
from dskc.dsl.dims import Dim
from dskc.dsl.numbers import show_number
from dskc.dsl.source import Span
from dskc.dsl.suggest import did_you_mean

from ..arguments import Binder
from ..builder import Builder
from ..evaluate import Evaluator
from ..frame import Frame, Shared
from ..ir import Axis, Graph, walk
from ..ops.routing import BalanceBias
from ..program import Program, Said, Scope, SectionSource
from ..ranges import check_ranges
from ..recipe import Group, PlanRecipe, Precision, Ramp, ServeRecipe, Term, TrainRecipe
from ..sections import (
    GROUP_KEYS,
    GROUPS,
    INITS,
    MINIMUM_ONE,
    OBJECTIVE,
    OPTIMIZERS,
    PLAN_KEYS,
    SCHEDULES,
    SERVE_KEYS,
    TRAIN_KEYS,
    UNITS,
)
from ..signature import Kind, Parameter, Record
from ..values import POISON, Expressed
from .groups import has_linear, places, places_beside
from .legality import check_plan, plan_device
from .objective import Objective

DEFAULT_TOKENS = 20  # a parameter (arXiv:2203.15556, table 3: compute-optimal training)
DEFAULT_SEQUENCES = 32
DEFAULT_LENGTH = 1024
SEQUENCE = "S"  # the dim of the data that a recipe always has a size of
STOCHASTIC = "stochastic"
BALANCE_SPEED = 1e-3  # arXiv:2412.19437, section 4.2
_GROUP_ORDER = ("rate", "decay", "init", "fp8", "lora", "frozen")
UNSAID_TOKENS = 100_000_000  # of a recipe that is written down, but says nothing of `tokens`


@dataclass(slots=True)
class Recipes:
    """All that a spec says besides its models."""

    trains: dict[str, TrainRecipe]
    plans: dict[str, PlanRecipe]
    serves: dict[str, ServeRecipe]


def recipes(program: Program, graphs: dict[str, Graph], problems: Diagnostics) -> Recipes:
    """Every section of a program. `graphs` are the models that could be expanded."""
    reader = _Reader(program, graphs, problems)
    trains = {name: train for name, section in program.trains.items() if (train := reader.train(section))}
    plans = {name: plan for name, section in program.plans.items() if (plan := reader.plan(section, trains))}
    serves = {name: serve for name, section in program.serves.items() if (serve := reader.serve(section))}
    return Recipes(trains, plans, serves)


def default_train(graph: Graph, parameters: int) -> TrainRecipe:
    """The recipe of a model without one: compute-optimal tokens, AdamW, a cosine."""
    record = {r.name: r for r in (*OPTIMIZERS, *SCHEDULES, *INITS)}

    def filled(name: str, **given: object) -> Record:
        values = {**record[name].defaults, **given}
        return Record(name, tuple((p.name, values[p.name]) for p in record[name].parameters))

    terms = [Term(Fraction(1), "next_token", graph.results[0])]
    terms += [Term(Fraction(1, 100), name) for name in graph.losses]
    return TrainRecipe(
        name="default",
        model=graph.name,
        objective=tuple(terms),
        tokens=DEFAULT_TOKENS * parameters,
        sequences=DEFAULT_SEQUENCES,
        length=DEFAULT_LENGTH,
        microbatch=None,
        precision=Precision("fp32", "bf16", "fp32", "fp32"),
        optimizer=filled(
            "adamw",
            lr=Fraction(3, 10_000),
            betas=(Fraction(9, 10), Fraction(95, 100)),
            decay=Fraction(1, 10),
            clip=Fraction(1),
        ),
        schedule=filled("cosine", warmup=Fraction(100)),
        init=filled("normal"),
        save_every=1000,
        save_keep=3,
        balance_speed=BALANCE_SPEED if has_balance_bias(graph) else None,
        default=True,
        lengths=tuple(
            (name, DEFAULT_LENGTH) for name in _data_dims(graph) if name not in _batch_dims(graph) | {SEQUENCE}
        ),
    )


def has_balance_bias(graph: Graph) -> bool:
    return any(isinstance(op.attributes, BalanceBias) for op, _ in walk(graph.body))


class _Reader:
    def __init__(self, program: Program, graphs: dict[str, Graph], problems: Diagnostics) -> None:
        self.program = program
        self.graphs = graphs
        self.problems = problems
        self.evaluator = Evaluator(self._call)
        self.binder = Binder(self.evaluator)
        self.unknown: set[tuple[str, str]] = set()  # names that were reported, with what they should have been

    def _call(self, node: s.Call, frame: Frame, hint: str | None, consumer: str | None) -> Expressed:
        frame.report("DSK0126", f"`{node.callee.text}(...)` does not go here", node.span)
        return POISON

    # --- sections

    def train(self, section: SectionSource) -> TrainRecipe | None:
        assert section.target is not None
        graph = self._graph(section)
        values = self._values(section, TRAIN_KEYS, graph, extra=(OBJECTIVE,))
        if graph is None:
            return None
        base = default_train(graph, 1)
        lengths = {**dict(base.lengths), **self._lengths(section, graph)}
        objective = self._objective(section, graph) if OBJECTIVE in section.settings else base.objective
        if objective is None:
            return None
        precision = _precision(values, base.precision)
        self._check_precision(section, precision)
        sequences = _first_int(values, "batch.sequences") or base.sequences
        return TrainRecipe(
            name=section.name,
            model=graph.name,
            objective=objective,
            tokens=_first_int(values, "tokens") or UNSAID_TOKENS,
            sequences=sequences,
            length=lengths.pop(SEQUENCE, base.length),
            lengths=tuple(lengths.items()),
            microbatch=_first_int(values, "batch.microbatch"),
            precision=precision,
            optimizer=_record(values, "optimizer") or base.optimizer,
            schedule=_record(values, "schedule") or base.schedule,
            init=_record(values, "init") or base.init,
            save_every=_first_int(values, "save.every") or base.save_every,
            save_keep=_first_int(values, "save.keep") or base.save_keep,
            balance_speed=self._balance_speed(section, values, graph),
            doc=section.item.doc,
            groups=self._groups(section, graph),
            ramp=self._ramp(section, values, sequences),
            hold=_record(values, "hold"),
        )

    def plan(self, section: SectionSource, trains: dict[str, TrainRecipe]) -> PlanRecipe | None:
        assert section.target is not None
        train = trains.get(section.target.text)
        if section.target.text not in self.program.trains and not section.scope.may_have(section.target.text):
            self._unknown(section.target, "train", list(self.program.trains))
        graph = self.graphs.get(train.model) if train else None
        values = self._values(section, PLAN_KEYS, graph)
        device, devices = plan_device(section, self.problems)
        mesh = tuple((k[5:], int(v)) for k, v in values.items() if k.startswith("mesh.") and isinstance(v, Fraction))
        shards = tuple((p.key.text, _target(p)) for p, _ in section.placements)
        plan = PlanRecipe(
            name=section.name,
            train=section.target.text,
            device=device,
            devices=devices,
            mesh=mesh,
            shards=shards,
            schedule=_record(values, "pipeline.schedule"),
            microbatch=_first_int(values, "batch.microbatch", "pipeline.microbatch"),
            memory_limit=_first_int(values, "memory.limit"),
            recompute=str(values.get("memory.recompute") or "auto"),
            precision=_precision(values, Precision()),
        )
        if train is not None and (plan.precision.rounding or plan.precision.master):
            self._check_precision(section, plan.precision.over(train.precision))
        check_plan(section, plan, graph, train, self.problems)
        return plan if train else None

    def serve(self, section: SectionSource) -> ServeRecipe | None:
        graph = self._graph(section)
        values = self._values(section, SERVE_KEYS, graph)
        device, _ = plan_device(section, self.problems)
        if graph is None:
            return None
        return ServeRecipe(
            name=section.name,
            model=graph.name,
            device=device,
            weights=str(values.get("precision.weights") or "bf16"),
            compute=str(values.get("precision.compute") or "bf16"),
            cache=_record(values, "cache"),
            batch=_first_int(values, "batch") or 1,
        )

    # --- settings

    def _graph(self, section: SectionSource) -> Graph | None:
        assert section.target is not None
        name = section.target.text
        found = section.scope.names.get(name)
        if not isinstance(found, s.Model | s.DerivedModel):
            names = [n for n, d in section.scope.names.items() if isinstance(d, s.Model | s.DerivedModel)]
            if not section.scope.may_have(name):
                self._unknown(section.target, "model", names)
            return None
        return self.graphs.get(name)

    def _unknown(self, name: s.Name, what: str, names: list[str]) -> None:
        near = did_you_mean(name.text, names)
        label = f"did you mean `{near}`?" if near else (f"there are {', '.join(names)}" if names else "")
        if (what, name.text) in self.unknown:
            return
        self.unknown.add((what, name.text))
        place = self.program.scope.spans.get(near or "")
        marks = (Mark(place, f"`{near}` is this"),) if place and place.source is name.span.source else ()
        self._report("DSK0101", f"no {what} is called `{name.text}`", name.span, label, marks)

    def _values(
        self, section: SectionSource, table: dict[str, Parameter], graph: Graph | None, extra: tuple[str, ...] = ()
    ) -> dict[str, Expressed]:
        values: dict[str, Expressed] = {}
        unknown: set[str] = set()
        for key, said in section.settings.items():
            if key in extra or (key.startswith("batch.") and key[6:7].isupper()):
                continue
            if key.startswith(f"{GROUPS}.") and table is TRAIN_KEYS:
                continue
            if key not in table:
                head = key.split(".")[0]
                known = any(name.split(".")[0] == head for name in (*table, *extra))
                if known or head not in unknown:  # a section that is not known is reported once
                    self._unknown_key(key, said, table, extra, section)
                unknown.add(head)
                continue
            value = self._value(table[key], key, said, graph)
            if value is not POISON:
                values[key] = value
        return values

    def _value(self, parameter: Parameter, key: str, said: Said, graph: Graph | None) -> Expressed:
        """What is said of a key, as what the key takes; POISON where it was reported that it is not."""
        value = self.binder.value(parameter, said.value, self._frame(said.scope, graph))
        if value is not POISON and said.patches:
            value = self._patched(parameter, value, said, graph)
        if isinstance(value, Fraction) and not self._fits(key, value, said):
            return POISON
        if isinstance(value, Record):
            check_ranges(value, said, self.problems)
        return value

    def _frame(self, scope: Scope, graph: Graph | None) -> Frame:
        """Where settings stand: the model's dims may be in them, by what they are worth."""
        sizes = graph.sizes if graph else {}
        dims: dict[str, Axis | None] = {name: Axis(name, Dim.of(size)) for name, size in sizes.items()}
        shared = Shared(self.problems, sizes, unread_dims=graph is None)
        return Frame(shared, scope, Builder(""), dims=dims)

    def _unknown_key(
        self, key: str, said: Said, table: dict[str, Parameter], extra: tuple[str, ...], section: SectionSource
    ) -> None:
        head = key.split(".")[0]
        heads = {k.split(".")[0] for k in table} | set(extra) | ({GROUPS} if table is TRAIN_KEYS else set())
        inside = [k.split(".", 1)[1] for k in table if k.startswith(f"{head}.")]
        word = type(section.item).__name__.lower()
        if head in heads and inside and "." in key:
            last = key.split(".", 1)[1]
            near = did_you_mean(last, inside)
            where, options = f"`{head}` of a {word}", inside
        else:
            last, near, where, options = head, did_you_mean(head, sorted(heads)), f"a {word}", sorted(heads)
        label = f"did you mean `{near}`?" if near else f"it has {', '.join(options)}"
        section.unread.add(near or "")  # which was most likely meant
        span = section.sections.get(head, said.key.span) if last == head else said.key.span
        self._report("DSK0170", f"{where} has no key `{last}`", span, label)

    def _patched(self, parameter: Parameter, value: Expressed, said: Said, graph: Graph | None) -> Expressed:
        if not isinstance(value, Record):
            self._report("DSK0141", f"`{parameter.name}` takes no arguments to change", said.patches[0][0].span)
            return value
        signature = next(r for r in parameter.records if r.name == value.name)
        arguments = dict(value.arguments)
        for argument, scope in said.patches:
            bound = self.binder.bind(signature, (argument,), self._frame(scope, graph), None)
            if bound:
                arguments.update(bound[0])
        return Record(value.name, tuple(arguments.items()))

    def _fits(self, key: str, value: Fraction, said: Said) -> bool:
        node = said.value
        if key in UNITS and isinstance(node, s.Number) and node.kind != UNITS[key]:
            self._report("DSK0172", f"`{key}` is bytes", node.span, "write its unit, as in `72GiB`")
            return False
        if (key in MINIMUM_ONE or key.startswith("mesh.")) and value < 1:
            self._report("DSK0131", f"`{key}` is at least 1", node.span, f"this is {show_number(value)}")
            return False
        if key in GROUP_KEYS and value < 0:
            self._report("DSK0131", f"`{key}` is 0 or more", node.span, f"this is {show_number(value)}")
            return False
        return True

    def _balance_speed(self, section: SectionSource, values: dict[str, Expressed], graph: Graph) -> float | None:
        value = values.get("balance.speed")
        if not isinstance(value, Fraction):
            return None
        said = section.settings["balance.speed"]
        if value < 0:
            self._report("DSK0131", "`balance.speed` is 0 or more", said.value.span, f"this is {show_number(value)}")
        if not has_balance_bias(graph):
            title = f"`{graph.name}` has no `balance_bias` to move"
            self._report("DSK0170", title, said.key.span, "it stands in routers: `top_k(.., bias: balance_bias(X))`")
        return float(value)

    def _check_precision(self, section: SectionSource, precision: Precision) -> None:
        rounding, master = (section.settings.get(f"precision.{key}") for key in ("rounding", "master"))
        if precision.rounding == STOCHASTIC and not precision.rounds and rounding is not None:
            title = "`stochastic` rounding has nothing to round: what the optimizer writes is in fp32"
            label = "it goes with `params = bf16` without a master, or `optimizer = bf16`, in the same `precision`"
            self._report("DSK0170", title, rounding.key.span, label)
        if precision.master and precision.params == precision.master and master is not None:
            title = f"`master = {precision.master}` copies parameters that are in {precision.params} already"
            self._report("DSK0170", title, master.key.span, "it goes with `params = bf16`, in the same `precision`")

    def _groups(self, section: SectionSource, graph: Graph) -> tuple[Group, ...]:
        """What a recipe trains otherwise, the shortest paths first."""
        found: dict[str, dict[str, Expressed]] = {}
        for key, said in section.settings.items():
            head, _, rest = key.partition(".")
            path, _, last = rest.rpartition(".")
            if head == GROUPS and last in GROUP_KEYS and path:
                found.setdefault(path, {})[last] = self._value(GROUP_KEYS[last], last, said, graph)
            elif head == GROUPS:
                near = did_you_mean(last, list(GROUP_KEYS))
                label = f"did you mean `{near}`?" if near else f"it has {', '.join(GROUP_KEYS)}, under a path"
                self._report("DSK0170", f"a group has no key `{last or key}`", said.key.span, label)
        made = [self._group(section, graph, path, values) for path, values in found.items()]
        return tuple(sorted((group for group in made if group), key=lambda group: group.paths[0].count(".")))

    def _group(self, section: SectionSource, graph: Graph, path: str, values: dict[str, Expressed]) -> Group | None:
        names = places(graph, path)
        if not names:
            near = did_you_mean(path, alike := places_beside(graph, path))
            label = f"did you mean `{near}`?" if near else f"it has {', '.join(alike[:8])}"
            said = next(said for key, said in section.settings.items() if key.startswith(f"{GROUPS}.{path}."))
            span = section.sections.get(f"{GROUPS}.{path}", said.key.span)
            self._report("DSK0170", f"`{graph.name}` has no parameters under `{path}`", span, label)
            return None
        rate, decay, init, fp8, lora, frozen = (values.get(key) for key in _GROUP_ORDER)
        for key, why in (
            ("fp8", "experts, embeddings and norms keep the compute dtype"),
            ("lora", "adapters stand beside linear layers; heads, experts and embeddings have none"),
        ):
            if values.get(key) is not None and not has_linear(graph, names, heads=key == "fp8"):
                said = section.settings[f"{GROUPS}.{path}.{key}"]
                self._report("DSK0170", f"`{path}` of `{graph.name}` has no linear layers for this", said.key.span, why)
        return Group(
            names,
            rate if isinstance(rate, Fraction) else Fraction(1),
            decay if isinstance(decay, Fraction) else None,
            init if isinstance(init, Record) else None,
            lora if isinstance(lora, Record) else None,
            frozen if isinstance(frozen, bool) else None,
            fp8 if isinstance(fp8, str) else None,
        )

    def _ramp(self, section: SectionSource, values: dict[str, Expressed], sequences: int) -> Ramp | None:
        record = _record(values, "batch.ramp")
        if record is None:
            return None
        start, over = record["start"], record["over"]
        by = start if record["by"] is None else record["by"]
        if not (isinstance(start, Fraction) and isinstance(by, Fraction) and isinstance(over, Fraction)):
            return None
        if start < 1 or by < 1 or not 0 < over < 1:
            return None  # reported
        if start >= sequences or (sequences - start) % by:
            title = f"a ramp from {start} by {by} does not reach {sequences} sequences"
            label = f"`sequences` less `start` must be a multiple of {by}"
            self._report("DSK0131", title, section.settings["batch.ramp"].value.span, label)
            return None
        return Ramp(int(start), int(by), over)

    def _lengths(self, section: SectionSource, graph: Graph) -> dict[str, int]:
        """The sizes that a recipe gives to dims of the data, by name."""
        data = _data_dims(graph)
        lengths = {}
        for key, said in section.settings.items():
            if not (key.startswith("batch.") and key[6:7].isupper()):
                continue
            name = key[6:]
            if name not in data:
                label = f"the data's dims are {', '.join(data)}" if data else ""
                self._report("DSK0170", f"`{graph.name}` has no data dim `{name}`", said.key.span, label)
                continue
            frame = self._frame(said.scope, graph)
            value = self.binder.value(Parameter(name, Kind.INT), said.value, frame)
            if isinstance(value, Fraction):
                if value < 1:
                    self._report("DSK0131", f"`{name}` is at least 1", said.value.span)
                else:
                    lengths[name] = int(value)
        return lengths

    def _objective(self, section: SectionSource, graph: Graph) -> tuple[Term, ...] | None:
        return Objective(graph, self.problems, self.unknown).read(section.settings[OBJECTIVE].value)

    def _report(self, code: str, title: str, span: Span, label: str = "", marks: tuple[Mark, ...] = ()) -> None:
        self.problems.add(Diagnostic(code, title, span, label, marks))


def _precision(values: dict[str, Expressed], base: Precision) -> Precision:
    said = {k.split(".")[1]: str(v) for k, v in values.items() if k.startswith("precision.") and v}
    return replace(base, **said)


def _first_int(values: dict[str, Expressed], *keys: str) -> int | None:
    return next((int(v) for key in keys if isinstance(v := values.get(key), Fraction)), None)


def _record(values: dict[str, Expressed], key: str) -> Record | None:
    value = values.get(key)
    return value if isinstance(value, Record) else None


def _target(placement: s.Placement) -> str:
    return " ".join(placement.target.span.text.split())


def _batch_dims(graph: Graph) -> set[str]:
    """The dim along which a batch has its rows, which is the first of every input."""
    return {name for value in graph.body.arguments if value.type.axes for name in value.type.axes[0].size.symbols()}


def _data_dims(graph: Graph) -> list[str]:
    found: dict[str, None] = {}
    for value in graph.body.arguments:
        for axis in value.type.axes:
            found.update((name, None) for name in axis.size.symbols() if name not in graph.sizes)
    return sorted(found)
