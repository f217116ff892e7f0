"""Measurements in the pages: what benchmarks/results/ holds, as a table."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

from .calls import table

WIDTH = 120


def check_time(path: Path) -> list[str]:
    """Where the time of `dskc check` goes, with the machine that it was measured on."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    whole = facts["sum_ms"]
    rows = [(step, f"{ms:.1f}", f"{100 * ms / whole:.0f}%") for step, ms in facts["steps_ms"].items()]
    rows.append(("**all**", f"{whole:.1f}", ""))
    machine, python = facts["machine"], facts["versions"]["python"]
    cores = f"{machine['cores']} {machine['processor']} cores"
    about = f"{facts['what']}, at commit {facts['commit']}, with Python {python} on {cores}."
    cold = f"Where no bytecode is kept, the best whole process took {facts['best_whole_without_bytecode_ms']:.0f} ms."
    return [
        *textwrap.wrap(f"{about[0].upper()}{about[1:]} {cold}", WIDTH, break_long_words=False),
        "",
        *table(("step", "ms", "share"), rows),
    ]
