"""docs/performance.md, from the runs in benchmarks/results/.

    python -m dskc.runtime.bench.page [--check]

With --check nothing is written; the exit code is 1 when the page is stale.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..problem import Problem
from .case import OURS
from .report import Machine, Report, Row, Timed, read_reports
from .targets import BETWEEN, TARGETS, TRAINING, Target

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
WIDTH = 120

HEAD = """\
# Performance

`make generate` writes this page from the runs in [`benchmarks/results/`](../benchmarks/results). A ratio is the peer's
time by ours, both in one run: above 1 ours is faster. The floor is what nothing can be faster than on that GPU: the
bytes that must move at its measured rate of copying, or the FLOPs at the rate of torch's own large product in that
dtype (in int8 ours is faster than that). Where several runs hold a case the last two are shown, the older first, and a
target is met where both meet it, by the figures as printed.

How to measure: [`dskc bench kernels`](commands.md#kernels-beside-their-peers).
"""


@dataclass(frozen=True)
class Measured:
    """One case in one run."""

    report: Report
    row: Row


def page(results: Path = RESULTS, targets: Sequence[Target] = TARGETS, between: Mapping[str, str] = BETWEEN) -> str:
    """Its text. Raises Problem where a missed target has no word on what stands between, or a met one has."""
    reports = kernel_reports(results)
    found = {target.title: _last_two(reports, target) for target in targets}
    lines = [HEAD, *_runs(reports)]
    lines += ["## Kernels and their targets", "", *_target_table(found, targets), ""]
    lines += _between(found, targets, between)
    others = _others(reports, targets)
    if others:
        lines += ["## Other cases", "", *others, ""]
    lines += _training(results)
    return "\n".join(lines).rstrip("\n") + "\n"


def kernel_reports(results: Path) -> list[Report]:
    """The runs over kernels in a folder, oldest first."""
    found: list[Report] = []
    old = results / "row_kernels_h100.json"
    if old.exists():
        found.append(_of_row_kernels(json.loads(old.read_text(encoding="utf-8"))))
    for path in sorted(results.glob("kernels_*.json")):
        found += read_reports(path)
    return found


def _of_row_kernels(found: dict[str, Any]) -> Report:
    """A run of the script that timed row programs alone, before there was one for all kernels."""
    machine = found["machine"]
    shapes = {"swiglu": "16384x11008", "rope": "4x4096x32x128", "cross entropy": "8192x102400"}
    rows: list[Row] = []
    for what in dict.fromkeys(row["what"] for row in found["rows"]):
        name = {"add + rms_norm": "add_rms_norm", "cross entropy": "cross_entropy"}.get(what, what)
        same = [row for row in found["rows"] if row["what"] == what]
        for way in ("forward", "backward"):
            moved = same[0][f"{way}_gb_s"] * same[0][f"{way}_ms"] * 1e6
            times = tuple(
                Timed(_peer(r["who"]), r[f"{way}_ms"], r[f"{way}_ms"], r[f"{way}_ms"], r[f"{way}_gb_s"]) for r in same
            )
            shape = shapes.get(what, "16384x4096")
            rows.append(Row(f"{name} {way}", f"{shape} bf16", "GB/s", "copy", 0.0, moved, times))
    versions = {name: machine[name] for name in ("torch", "triton", "python")}
    about = Machine(machine["gpu"], versions, found["commit"])
    return Report("before these runs", about, {"copy": machine["copy_gb_s"]}, tuple(rows))


def _peer(name: str) -> str:
    return {"dskc": OURS, "compile": "torch.compile", "eager": "torch"}.get(name, name)


def _last_two(reports: Sequence[Report], target: Target) -> list[Measured]:
    found = [Measured(report, row) for report in reports for row in report.rows if target.fits(row)]
    return found[-2:]


def _runs(reports: Sequence[Report]) -> list[str]:
    """Which runs there are, with where they were."""
    rows = []
    for report in reports:
        versions = ", ".join(f"{name} {version}" for name, version in report.machine.versions.items())
        rates = ", ".join(
            f"{name} {rate:,.0f} {'GB/s' if name == 'copy' else 'TFLOP/s'}" for name, rate in report.ceilings.items()
        )
        rows.append((report.began, report.machine.gpu, versions, report.machine.commit or "?", rates))
    if not rows:
        return ["No run is kept yet.", ""]
    return [*_table(("run", "GPU", "versions", "commit", "ceilings"), rows), ""]


def _target_table(found: Mapping[str, Sequence[Measured]], targets: Sequence[Target]) -> list[str]:
    rows = []
    for target in targets:
        runs = found[target.title]
        if not runs:
            rows.append((target.title, "not measured yet", "", "", str(target), "", ""))
            continue
        last = runs[-1]
        peer = target.peer(last.row)
        state = "" if target.kind == "none" else "met" if _met(target, runs) else "**missed**"
        rows.append(
            (
                target.title,
                " / ".join(_ours(run.row) for run in runs),
                f"{peer.name}: {_ms(peer.median)}, {_rate(peer.rate)} {last.row.unit}" if peer else "none",
                " / ".join(_reached(target, run) for run in runs),
                str(target),
                _floor(last),
                state,
            )
        )
    return _table(("kernel", "dskc", "peer", "reached", "target", "floor", ""), rows)


def _met(target: Target, runs: Sequence[Measured]) -> bool:
    """In every run that is shown."""
    return all(target.met(run.row, run.report.ceilings) for run in runs)


def _ours(row: Row) -> str:
    if row.ours is None:
        return next(iter(row.missing.values()), "missing")
    memory = f", +{row.ours.gib:.2f} GiB" if row.ours.gib >= 0.01 and row.kernel.startswith("linear") else ""
    return f"{_ms(row.ours.median)}, {_rate(row.ours.rate)} {row.unit}{memory}"


def _reached(target: Target, run: Measured) -> str:
    ratio, share = run.row.ratio, None
    if target.peer(run.row) is not None and run.row.ours is not None:
        ratio = target.peer(run.row).median / run.row.ours.median  # type: ignore[union-attr]
    if run.row.ours is not None:
        share = run.row.share(run.row.ours, run.report.ceilings)
    parts = [f"{ratio:.2f} ×" if ratio else "", f"{share:.0%} of {run.row.ceiling}" if share is not None else ""]
    return ", ".join(part for part in parts if part)


def _floor(run: Measured) -> str:
    floor = run.row.floor(run.report.ceilings)
    work = []
    if run.row.flops and run.row.ceiling != "copy":
        work.append(f"{run.row.flops / 1e12:.3g} TFLOP")
    work.append(f"{run.row.bytes / 1e9:.3g} GB")
    return f"{_ms(floor)} ({', '.join(work)})" if floor else ""


def _between(
    found: Mapping[str, Sequence[Measured]], targets: Sequence[Target], between: Mapping[str, str]
) -> list[str]:
    """A line for each missed target."""
    missed = [t.title for t in targets if found[t.title] and not _met(t, found[t.title])]
    untold, stale = [t for t in missed if t not in between], [t for t in between if t not in missed]
    if untold or stale:
        raise Problem(
            f"what stands between is not said of missed targets ({', '.join(untold) or 'none'}), "
            f"or is said of others ({', '.join(stale) or 'none'})",
            "BETWEEN in runtime/bench/targets.py has a sentence for each target that is missed, and no other",
        )
    if not missed:
        return []
    lines = ["What stands between:", ""]
    for title in missed:
        lines += textwrap.wrap(f"- {title}: {between[title]}", WIDTH, subsequent_indent="  ", break_long_words=False)
    return [*lines, ""]


def _others(reports: Sequence[Report], targets: Sequence[Target]) -> list[str]:
    """The newest of each case that has no target."""
    newest: dict[tuple[str, str], Measured] = {}
    for report in reports:
        for row in report.rows:
            if not any(target.fits(row) for target in targets):
                newest[row.kernel, row.shape] = Measured(report, row)
    rows = []
    for run in newest.values():
        row, peer = run.row, run.row.best_peer
        share = row.share(row.ours, run.report.ceilings) if row.ours else None
        rows.append(
            (
                row.kernel,
                row.shape,
                _ours(row),
                f"{share:.0%} of {row.ceiling}" if share is not None else "",
                f"{peer.name}: {_ms(peer.median)}" if peer else "none",
                f"{row.ratio:.2f} ×" if row.ratio else "",
            )
        )
    return _table(("kernel", "shape", "dskc", "of the ceiling", "best peer", "ratio"), rows) if rows else []


def _training(results: Path) -> list[str]:
    """Steps of training beside their peers: of each shape the newest run that has both."""
    path = results / "train_step_h100.json"
    if not path.exists():
        return []
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    rows, about = [], []
    for name, target in TRAINING.items():
        run = _newest_training(runs, name)
        if run is None:
            rows.append((name, "not measured yet", "", "", "", f"≥ {target:.2f} ×"))
            continue
        machine = run["machine"]
        versions = ", ".join(f"{what} {machine[what]}" for what in ("torch", "triton", "transformers"))
        about.append(f"{machine['gpu']} ({versions}), commit {run['commit']}")
        found = [row for row in run["rows"] if row["row"] == name and "ms" in row]
        peer = next((row for row in found if not row["who"].startswith(OURS)), None)
        for row in found:
            ratio = f"{peer['ms'] / row['ms']:.2f} ×" if peer is not None and row is not peer else ""
            speed = (f"{row['tokens_per_s']:,}", f"{row['mfu']:.1%}", f"{row['peak_gib']} GiB")
            rows.append((name, row["who"], *speed, f"{ratio} of ≥ {target:.2f} ×" if ratio else ""))
    text = (
        "bf16 parameters and moments, AdamW, gradients clipped; only the peer of the 30 layers recomputes its layers. "
        "Compiled is by torch.compile, layer by layer. Kernels as they come, without tuning. "
        f"On one {'; '.join(dict.fromkeys(about))}."
    )
    table = _table(("model", "who", "tokens/s", "MFU", "peak memory", "ratio and target"), rows)
    return ["## Training steps", "", *textwrap.wrap(text, WIDTH, break_long_words=False), "", *table, ""]


def _newest_training(runs: Sequence[Any], name: str) -> Any:
    """The newest run with a peer of this row, else the newest with the row."""
    of_row = [run for run in runs if any(row["row"] == name and "ms" in row for row in run["rows"])]
    beside = [
        run
        for run in of_row
        if any(row["row"] == name and "ms" in row and not row["who"].startswith(OURS) for row in run["rows"])
    ]
    return (beside or of_row or [None])[-1]


def _ms(milliseconds: float | None) -> str:
    assert milliseconds is not None
    return f"{milliseconds:.4f} ms" if milliseconds < 1 else f"{milliseconds:.2f} ms"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dskc.runtime.bench.page", description="writes docs/performance.md")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the page is stale")
    options = parser.parse_args(arguments)
    text = page()
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return
    if options.check:
        raise Problem("docs/performance.md is stale", "make generate")
    PAGE.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        print(f"error: {problem.message}\nhelp: {problem.help}", file=sys.stderr)
        sys.exit(1)
