"""Times kernels and their peers: medians, spread, rates, and shares of what this GPU reaches at most.

    python -m dskc.runtime.bench.run [--only TEXT] [--out FOLDER] [--warm N] [--model FOLDER | --rows FOLDER]

A peer that cannot do a case, or is not installed, is left out of its row and named with the reason.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console

from ..problem import Problem
from .case import Case, Source, wanted
from .isolate import TIMEOUT, Isolated, warm
from .plot import plot
from .report import Report, Row, joined, read_reports, write_reports
from .show import ceilings_line, lines, table
from .workload import Workload, workload

MODULES = ("attention", "decode", "experts", "linear_loss", "products", "optimizer_steps")
ROWS_BATCH, ROWS_LENGTH = 4, 4096  # of the published row programs
FILE, PICTURE = "kernels.json", "roofline.png"


def sources(model: Path | None, rows: Path | None, batch: int | None, length: int | None) -> list[Source]:
    """Of a model's generated code everything it calls, at its shapes; else the published shapes, with the row programs
    of the code in `rows`."""
    if model is not None:
        asked = workload(model, batch, length)
        return [_source("rows", asked), *(_source(name, asked) for name in MODULES)]
    published = [_source(name) for name in MODULES]
    if rows is not None:
        published.insert(0, _source("rows", workload(rows, batch or ROWS_BATCH, length or ROWS_LENGTH)))
    return published


def _source(name: str, asked: Workload | None = None) -> Source:
    return Source(f"{__package__}.{name}", () if asked is None else (asked,))


def chosen_cases(found: Sequence[Source], only: Sequence[str]) -> list[tuple[Source, Case]]:
    """The cases that have one of `only` in their kernel or shape. Raises Problem where there are none."""
    asked = [(source, case) for source in found for case in source.cases()]
    kept = [(source, case) for source, case in asked if wanted(case, only)]
    if not kept:
        kernels = ", ".join(dict.fromkeys(case.kernel for _, case in asked))
        raise Problem(f"no case has {' or '.join(repr(text) for text in only)} in it", f"kernels are {kernels}")
    return kept


def measure(
    asked: Sequence[tuple[Source, Case]], out: Path | None, console: Console, seconds: float = TIMEOUT
) -> Report:
    """Every case, told on the console as it is there and kept in `out`, where this run stands behind those before."""
    before = read_reports(out / FILE) if out is not None else []
    with Isolated(seconds) as isolated:
        machine, ceilings = isolated.about()
        report = Report(datetime.now(UTC).isoformat(timespec="seconds"), machine, ceilings)
        console.print(ceilings_line(report), highlight=False)
        for source, case in asked:
            row = isolated.measure(source, case)
            report = _with(report, row)
            console.print("\n".join(lines(row, report)), highlight=False, markup=False, soft_wrap=True)
            if out is not None:  # after each, so that nothing is lost where the machine goes
                write_reports(out / FILE, [*before, report])
    return report


def _with(report: Report, row: Row) -> Report:
    return replace(report, rows=joined([row], report.rows))


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if not torch.cuda.is_available():
        raise Problem(
            "kernels are timed on a GPU, and there is none here",
            "run the same command where a GPU is; what was measured before is in docs/performance.md",
        )
    console = Console()
    asked = chosen_cases(sources(options.model, options.rows, options.batch, options.length), options.only)
    if options.out is not None:
        read_reports(options.out / FILE)  # what it cannot stand behind is said before all the work
    if options.warm:
        _warm(asked, options.warm, console)
        if options.warm_only:
            return
    report = measure(asked, options.out, console, options.timeout)
    console.print(table(report))
    if options.out is not None:
        plot(report, options.out / PICTURE)
        console.print(f"{options.out / FILE} and {PICTURE} written", highlight=False)


def _warm(asked: Sequence[tuple[Source, Case]], processes: int, console: Console) -> None:
    with console.status("compiling") as status:
        for i, case in enumerate(warm(asked, processes), start=1):
            status.update(f"compiled {i} of {len(asked)}: {case.title}")
            if not console.is_terminal:
                console.print(f"compiled {i} of {len(asked)}: {case.title}", highlight=False, soft_wrap=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dskc bench kernels", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT", help="cases with this in them; again for others"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"for {FILE} and {PICTURE}; runs stand side by side")
    parser.add_argument("--warm", type=int, default=0, metavar="N", help="compile in N processes first")
    parser.add_argument("--warm-only", action="store_true", help="and measure nothing")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, metavar="SECONDS", help="for one who does a case")
    code = parser.add_mutually_exclusive_group()
    code.add_argument("--model", type=Path, metavar="FOLDER", help="generated code whose kernels and shapes are timed")
    code.add_argument("--rows", type=Path, metavar="FOLDER", help="generated code whose row programs join the others")
    parser.add_argument("--batch", type=int, metavar="B", help="sequences, instead of the plan's")
    parser.add_argument("--length", type=int, metavar="S", help="tokens of each, instead of the recipe's")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        print(f"error: {problem.message}\nhelp: {problem.help}", file=sys.stderr)
        sys.exit(1)
