"""What is seen while a run goes on."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from .ledger import size
from .stop import Stop, hush

EVERY = 10.0  # seconds between lines when the output is not a terminal


@dataclass
class Progress:
    """One line that is drawn over on a terminal; a line now and then elsewhere.

    When the reader of the output goes away, the run is asked to stop (as by a signal), which saves a checkpoint.
    """

    steps: int
    stop: Stop
    terminal: bool = field(default_factory=lambda: sys.stdout.isatty())
    _drawn: bool = False
    _last: float = float("-inf")
    _rate: float = 0.0

    def update(self, step: int, loss: float, tokens_per_s: float, seconds: float, memory: int) -> None:
        """Show the state after `step` steps; `seconds` is what the last took."""
        self._rate = seconds if not self._rate else 0.9 * self._rate + 0.1 * seconds
        now = time.monotonic()
        if not self.terminal and now - self._last < EVERY and step not in (1, self.steps):
            return
        self._last = now
        width = len(f"{self.steps:,}")
        line = (
            f"step {step:>{width},}/{self.steps:,}  loss {loss:.4f}  {tokens_per_s:,.0f} tok/s  "
            f"{duration(self._rate * (self.steps - step))} left  {size(memory)}"
        )
        self._print(("\r\x1b[K" if self.terminal else "") + line, end="" if self.terminal else "\n")
        self._drawn = self.terminal

    def say(self, text: str) -> None:
        """A line that stays."""
        self._print(("\n" if self._drawn else "") + text, end="\n")
        self._drawn = False

    def _print(self, text: str, end: str) -> None:
        try:
            print(text, end=end, flush=True)
        except BrokenPipeError:
            hush()
            self.stop.ask(13)  # SIGPIPE


def duration(seconds: float) -> str:
    """`42 s`, `3:05 min`, `2:07 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
