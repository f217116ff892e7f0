"""legality: whether a plan's mesh has its ranks, and whether what it shards divides over them."""

from __future__ import annotations

from math import prod

from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Diagnostic, Diagnostics, Mark
from dskc.dsl.numbers import show_number
from dskc.dsl.source import Span
from dskc.dsl.suggest import did_you_mean

from ..devices import DEVICES
from ..ir import DimInfo, Graph
from ..program import SectionSource
from ..recipe import PlanRecipe, TrainRecipe
from ..sections import MESH_AXES, SHARDABLE


def plan_device(section: SectionSource, problems: Diagnostics) -> tuple[str | None, int]:
    """The device that a section names and how many of it: `512 * h100_80gb`. A number that was reported is 0."""
    node = section.device
    if node is None:
        return None, 1
    count, name = 1, node
    if isinstance(node, s.Binary) and node.operator == "*" and isinstance(node.left, s.Number):
        value = node.left.value
        if value.denominator != 1 or value < 1:
            problems.add(Diagnostic("DSK0131", "a number of devices is whole and at least 1", node.left.span))
            return None, 0
        count, name = int(value), node.right
    if not isinstance(name, s.Path) or name.text not in DEVICES:
        text = name.span.text
        near = did_you_mean(text, DEVICES)
        label = f"did you mean `{near}`?" if near else f"known are {', '.join(DEVICES)}"
        problems.add(Diagnostic("DSK0211", f"no device is called `{text}`", name.span, label))
        return None, count
    return name.text, count


def check_plan(
    section: SectionSource, plan: PlanRecipe, graph: Graph | None, train: TrainRecipe | None, problems: Diagnostics
) -> None:
    """Reports what cannot run: ranks that do not make the devices, dims that do not divide."""
    mesh = dict(plan.mesh)
    if plan.devices:
        _check_ranks(section, plan, mesh, problems)
    if graph is not None:
        _check_shards(section, plan, mesh, graph, problems)
    if train is not None:
        _check_batch(section, plan, mesh, train, problems)


def _check_ranks(section: SectionSource, plan: PlanRecipe, mesh: dict[str, int], problems: Diagnostics) -> None:
    # ep is folded over dp, cp and tp: it has no ranks of its own
    sizes = [(axis, n) for axis, n in mesh.items() if axis != "ep"]
    ranks = prod(n for _, n in sizes)
    if not mesh or ranks == plan.devices or section.unread & {"", "mesh"}:
        return
    spelled = " × ".join(str(n) for _, n in sizes)
    span = section.sections.get("mesh") or section.item.name.span
    title = "the mesh does not have as many ranks as the plan has devices"
    label = f"{spelled} is {ranks} and not {plan.devices}" if len(sizes) > 1 else f"{ranks} and not {plan.devices}"
    marks: tuple[Mark, ...] = ()
    if section.device is not None and section.device.span.source is span.source:
        marks = (Mark(section.device.span, f"{plan.devices} device{'s' * (plan.devices != 1)}"),)
    problems.add(Diagnostic("DSK0210", title, span, label, marks))


def _check_shards(
    section: SectionSource, plan: PlanRecipe, mesh: dict[str, int], graph: Graph, problems: Diagnostics
) -> None:
    dims = {dim.name: dim for dim in graph.dims}
    data = {str(axis.size) for value in graph.body.arguments for axis in value.type.axes}
    uneven: dict[str, list[tuple[s.Placement, DimInfo]]] = {}
    absent: set[str] = set()
    for placement, _ in section.placements:
        what, axis = placement.key.text, placement.target.span.text.strip()
        if axis not in MESH_AXES:
            near = did_you_mean(axis, MESH_AXES)
            label = f"did you mean `{near}`?" if near else f"mesh axes are {', '.join(MESH_AXES)}"
            problems.add(Diagnostic("DSK0212", f"no mesh axis is called `{axis}`", placement.target.span, label))
            continue
        if axis not in mesh:
            if axis in absent or section.unread & {"", "mesh"}:
                continue
            absent.add(axis)
            help_ = (("help", f"give `mesh` a size for it: `mesh {{ {axis} = ... }}`"),)
            title = f"the mesh of this plan has no `{axis}`"
            problems.add(Diagnostic("DSK0212", title, placement.target.span, notes=help_))
            continue
        if what in SHARDABLE or what in data:
            continue
        if what not in dims:
            near = did_you_mean(what, [*dims, *data, *SHARDABLE])
            label = f"did you mean `{near}`?" if near else ""
            title = f"`{graph.name}` has no dim `{what}`"
            problems.add(Diagnostic("DSK0212", title, placement.key.span, label))
            continue
        dim = dims[what]
        if dim.value is not None and dim.value % mesh[axis]:
            uneven.setdefault(axis, []).append((placement, dim))
    for axis, found in uneven.items():
        _report_uneven(section, plan, mesh, axis, found, dims, problems)


def _report_uneven(
    section: SectionSource,
    plan: PlanRecipe,
    mesh: dict[str, int],
    axis: str,
    found: list[tuple[s.Placement, DimInfo]],
    dims: dict[str, DimInfo],
    problems: Diagnostics,
) -> None:
    (placement, dim), *others = found
    n = mesh[axis]
    what = dim.doc or f"`{dim.name}`"
    verb = "do" if dim.doc and dim.doc.endswith("s") else "does"
    title = f"{what} {verb} not divide over the {MESH_AXES[axis]} axis"
    label = f"{dim.name} = {show_number(dim.value or 0)} leaves {(dim.value or 0) % n} over"
    marks = [Mark(placement.span, label, "primary")]
    said = section.settings.get(f"mesh.{axis}")
    if said is not None and said.key.span.source is placement.span.source:
        whole = said.key.span.to(said.value.span)
        marks.append(Mark(whole, f"{n} ranks"))
    notes: list[tuple[str, str]] = []
    if others:
        shown = (f"{d.name} = {show_number(d.value or 0)} leaves {(d.value or 0) % n}" for _, d in others)
        notes.append(("also", ", ".join(shown)))
    sharded = [dims[p.key.text] for p, _ in section.placements if p.target.span.text == axis and p.key.text in dims]
    notes.append(("help", _alternatives(plan, mesh, axis, [d.value for d in sharded if d.value])))
    problems.add(Diagnostic("DSK0204", title, placement.span, marks=tuple(marks), notes=tuple(notes)))


def _alternatives(plan: PlanRecipe, mesh: dict[str, int], axis: str, values: list[int]) -> str:
    """Sizes of the axis that divide everything sharded over it, and which of them make the devices."""
    smallest = min(values)
    legal = [n for n in range(1, smallest + 1) if all(v % n == 0 for v in values)]
    if len(legal) > 9:
        legal = [n for n in legal if n <= plan.devices]
    spelled = f"{', '.join(map(str, legal[:-1]))} or {legal[-1]}" if len(legal) > 1 else str(legal[0])
    others = {a: n for a, n in mesh.items() if a not in (axis, "ep")}
    fitting = [n for n in legal if n * prod(others.values()) == plan.devices]
    text = f"{axis} can be {spelled}"
    if plan.devices > 1 and others and fitting:
        given = " and ".join(f"{a} = {n}" for a, n in others.items())
        text += f"; with {given} only {fitting[0]} gives {plan.devices}"
    return text


def _check_batch(
    section: SectionSource, plan: PlanRecipe, mesh: dict[str, int], train: TrainRecipe, problems: Diagnostics
) -> None:
    each = (plan.microbatch or 1) * mesh.get("dp", 1)
    if train.sequences % each == 0:
        return
    key = next((k for k in ("batch.microbatch", "pipeline.microbatch", "mesh.dp") if k in section.settings), None)
    span: Span = section.settings[key].value.span if key else section.item.name.span
    title = "the batch does not divide into microbatches"
    label = f"{show_number(train.sequences)} sequences over {mesh.get('dp', 1)} × {plan.microbatch or 1}"
    notes = (("help", "this plan cannot run this batch; others may"),)
    problems.add(Diagnostic("DSK0213", title, span, label, notes=notes, severity="warning"))
