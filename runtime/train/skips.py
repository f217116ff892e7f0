"""Steps that were not taken, because something in them was not a finite number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..optim.clip import WAY_OUT, NotFinite
from ..problem import Problem
from .kept import list_checkpoints

MOST = 10  # in a row: what comes once may be one bad batch, but this does not end by itself


@dataclass
class Skips:
    """How many steps in a row were skipped, and why the last one was."""

    row: int = 0
    what: str = ""

    def count(self, skipped: NotFinite | None, losses: Mapping[str, float]) -> str | None:
        """Count a step, which the optimizer took when `skipped` is None. Returns what was not finite in it: the first
        term of the loss (the whole loss standing last), else what the optimizer names.
        """
        if skipped is None:
            self.row = 0
            return None
        self.row += 1
        term = next((name for name, loss in losses.items() if not math.isfinite(loss)), None)
        if term is None:
            self.what = skipped.what
            return skipped.name
        self.what = f"the loss is {losses[term]}" if term == "loss" else f"the term {term} is {losses[term]}"
        return term

    def require_progress(self, checkpoints: Path) -> None:
        """Raises Problem once there are `MOST` in a row."""
        if self.row < MOST:
            return
        there = list_checkpoints(checkpoints)
        saved = f"; {there[-1]} was saved before" if there else ""
        raise Problem(f"{self.row} steps in a row were skipped; of the last, {self.what}", WAY_OUT + saved)
