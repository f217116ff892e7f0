"""The answer of `dskc breaking`, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from dskc.dsl.source import Span

from .compare import Report
from .fold import Change
from .tensors import Tensor

KINDS = ("renamed", "reshaped", "added", "removed")


def breaking_text(reports: Sequence[Report]) -> str:
    """For people: each change with its place, then what it means and the way out."""
    return "\n\n".join(_report(report) for report in reports)


def breaking_json(reports: Sequence[Report]) -> str:
    found = []
    for report in reports:
        changes = {kind: [_record(change) for change in report.changes.get(kind, [])] for kind in KINDS}
        meaning = [{"scope": m.scope, "change": m.text, "place": _place(m.span)} for m in report.meaning]
        facts = {"model": report.model, "was": report.was, "breaks": report.breaks, "loads": not report.moves}
        found.append({**facts, "gone": report.gone, **changes, "meaning": meaning})
    return json.dumps(found, indent=1, ensure_ascii=False)


def _report(report: Report) -> str:
    head = report.model if report.model == report.was else f"{report.model} (was {report.was})"
    if report.gone:
        return f"{head}: the model is gone, and with it what its checkpoints are of"
    rows = [(kind, *_cells(kind, change)) for kind in KINDS for change in report.changes.get(kind, [])]
    rows += [("results", m.scope or report.model, m.text, _place(m.span)) for m in report.meaning]
    if not rows:
        return f"{head}: existing checkpoints load, and give what they gave"
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)) for row in rows]
    return "\n".join([f"{head}: {_verdict(report)}", *(f"  {line}".rstrip() for line in lines), *_ways_out(report)])


def _verdict(report: Report) -> str:
    if not report.moves:
        return "existing checkpoints load, but give other results"
    counts = {kind: sum(len(c.indices) * c.tensors for c in report.changes.get(kind, [])) for kind in KINDS}
    return f"existing checkpoints break: {', '.join(f'{n} {kind}' for kind, n in counts.items() if n)}"


def _ways_out(report: Report) -> list[str]:
    found = []
    if report.changes.get("renamed"):
        found.append("help: `as NAME` behind a call keeps the old name of its weights")
    if any(report.changes.get(kind) for kind in ("reshaped", "added", "removed")):
        found.append("help: give the changed model another name, and keep this one for its checkpoints")
    elif report.meaning:
        found.append("help: put the old values back for these checkpoints, or train anew with the new ones")
    return found


def _cells(kind: str, change: Change) -> tuple[str, str, str]:
    name = f"{change.was} -> {change.name}" if change.was else change.name
    place = _place(change.either.span)
    if change.tensors > 1:
        return name, f"{change.tensors} tensors each", place
    if kind == "reshaped" and change.old and change.new:
        return name, f"{_shape(change.old)} -> {_shape(change.new)}", place
    return name, _shape(change.either), place


def _record(change: Change) -> dict[str, object]:
    record: dict[str, object] = {"name": change.name, "copies": len(change.indices), "tensors": change.tensors}
    if change.was:
        record["was"] = change.was
    if change.tensors == 1:
        for key, tensor in (("old_shape", change.old), ("new_shape", change.new)):
            if tensor is not None:
                record[key] = list(tensor.shape)
    return {**record, "place": _place(change.either.span)}


def _shape(tensor: Tensor) -> str:
    return f"[{', '.join(f'{size:_}' for size in tensor.shape)}]"


def _place(span: Span) -> str:
    return f"{span.source.path}:{span.line}"
