"""What a benchmark found, on a terminal: a row as lines when it is there, and all of them as a table."""

from __future__ import annotations

from rich.table import Table

from .report import Report, Row


def ceilings_line(report: Report) -> str:
    """`NVIDIA H100 80GB HBM3: copy 3,017 GB/s, bf16 673 TFLOP/s`."""
    rates = (f"{name} {rate:,.0f} {'GB/s' if name == 'copy' else 'TFLOP/s'}" for name, rate in report.ceilings.items())
    return f"{report.machine.gpu}: {', '.join(rates)}"


def lines(row: Row, report: Report) -> list[str]:
    """Of one row: a line for each who did it, and for each who could not."""
    found = [f"{row.kernel}  {row.shape}" + (f"   {row.ratio:.2f} x the best peer" if row.ratio else "")]
    for t in row.times:
        share = row.share(t, report.ceilings)
        part = f"{share:5.0%} of {row.ceiling}" if share is not None else ""
        spread = f"({t.low:.4f} to {t.high:.4f})"
        memory = f" +{t.gib:.2f} GiB" if t.gib >= 0.01 else ""
        line = f"    {t.name:28} {t.median:9.4f} ms {spread} {t.rate:9,.1f} {row.unit} {part}"
        found.append(line.rstrip() + memory)
    return [*found, *(f"    {name}: {reason}" for name, reason in row.missing.items())]


def table(report: Report) -> Table:
    """Every row in a line: ours with its spread, rate and share of the ceiling, and the best peer."""
    made = Table(title=ceilings_line(report), title_justify="left")
    for name in ("kernel", "shape"):
        made.add_column(name, overflow="fold")
    for name in ("dskc ms", "spread", "rate", "of ceiling", "ratio"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("best peer", overflow="fold")
    for row in report.rows:
        made.add_row(*_cells(row, report))
    return made


def _cells(row: Row, report: Report) -> tuple[str, ...]:
    peer = f"{row.best_peer.name}, {row.best_peer.median:.4f} ms" if row.best_peer else ""
    ours = row.ours
    if ours is None:
        why = next(iter(row.missing.values()), "not there")
        return (row.kernel, row.shape, "missing", "", "", "", "", peer or why)
    share = row.share(ours, report.ceilings)
    return (
        row.kernel,
        row.shape,
        f"{ours.median:.4f}",
        f"{(ours.high - ours.low) / ours.median:.1%}",
        f"{ours.rate:,.1f} {row.unit}",
        f"{share:.0%} {row.ceiling}" if share is not None else "",
        f"{row.ratio:.2f}" if row.ratio else "",
        peer,
    )
