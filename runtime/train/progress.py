"""What is seen while a run goes on."""

from __future__ import annotations

import sys
import time
import weakref
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .ledger import size
from .stop import Stop, hush

EVERY = 10.0  # seconds between lines when the output is not a terminal
REDRAW = 0.1  # seconds between drawings on a terminal: more often is only noise
BAR = 28  # columns


@dataclass(frozen=True)
class Moment:
    """Where a run stands after `step` steps, the last of which took `seconds`. expert_load: what the busiest expert of
    a layer is given, as a multiple of an even share. skipped: steps so far. memory: bytes.
    """

    step: int
    loss: float
    tokens_per_s: float
    seconds: float
    memory: int
    rate: float
    norm: float | None = None
    mfu: float | None = None
    expert_load: float | None = None
    skipped: int = 0


@dataclass
class Progress:
    """A few lines that are drawn over on a terminal; a line now and then elsewhere.

    When the reader of the output goes away, the run is asked to stop (as by a signal), which saves a checkpoint.
    """

    steps: int
    stop: Stop
    terminal: bool = field(default_factory=lambda: sys.stdout.isatty())
    held_out: tuple[int, float] | None = None  # the step after which it was last measured, and the loss
    _live: Live | None = None
    _last: float = float("-inf")
    _moment: Moment | None = None
    _seconds: float = 0.0  # that a step takes, averaged

    def update(self, moment: Moment) -> None:
        """Show where the run stands."""
        self._moment = moment
        self._seconds = moment.seconds if not self._seconds else 0.9 * self._seconds + 0.1 * moment.seconds
        now = time.monotonic()
        if now - self._last < (REDRAW if self.terminal else EVERY) and moment.step not in (1, self.steps):
            return
        self._last = now
        if self.terminal:
            self._draw(moment)
        else:
            self._print(line(moment, self.steps, self._left(moment)))

    def say(self, text: str) -> None:
        """A line that stays, above what is drawn."""
        self._print(text)

    def close(self) -> None:
        """Leave what is drawn as it is by now; a line that is said later stands below it."""
        live, self._live = self._live, None
        if live is not None:
            try:
                if self._moment is not None:
                    live.update(self._picture(self._moment))
                live.stop()
            except OSError:  # the terminal has gone
                self._end()

    def _left(self, moment: Moment) -> str:
        return duration(self._seconds * (self.steps - moment.step))

    def _draw(self, moment: Moment) -> None:
        try:
            if self._live is None:
                console = Console(file=sys.stdout, highlight=False)
                self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
                self._live.start()
                weakref.finalize(self, self._live.stop)  # whatever ends the process, the cursor comes back
            self._live.update(self._picture(moment), refresh=True)
        except OSError:
            self._end()

    def _picture(self, moment: Moment) -> Group:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text(f"step {moment.step:,} of {self.steps:,}"),
            ProgressBar(total=self.steps, completed=moment.step, width=BAR),
            Text(f"{self._left(moment)} left"),
        )
        return Group(bar, *(Text(text, no_wrap=True, overflow="ellipsis") for text in details(moment, self.held_out)))

    def _print(self, text: str) -> None:
        try:
            if self._live is not None:
                self._live.console.print(Text(text), soft_wrap=True)
            else:
                print(text, flush=True)
        except OSError:
            self._end()

    def _end(self) -> None:
        self._live = None
        hush()
        self.stop.ask(13)  # SIGPIPE


def line(moment: Moment, steps: int, left: str) -> str:
    """All in a line, where lines cannot be drawn over."""
    parts = [f"step {moment.step:>{len(f'{steps:,}')},}/{steps:,}", f"loss {moment.loss:.4f}"]
    parts.append(f"{moment.tokens_per_s:,.0f} tok/s")
    if moment.mfu is not None:
        parts.append(f"MFU {moment.mfu:.1%}")
    return "  ".join([*parts, f"{left} left", size(moment.memory)])


def details(moment: Moment, held_out: tuple[int, float] | None) -> list[str]:
    """What stands below the bar: what is learned, and at what cost."""
    learned = [f"loss {moment.loss:.4f}"]
    if held_out is not None:
        learned.append(f"held out {held_out[1]:.4f} (step {held_out[0]:,})")
    if moment.norm is not None:
        learned.append(f"gradient norm {moment.norm:.3g}")
    learned.append(f"rate {moment.rate:.3g}")
    cost = [f"{moment.tokens_per_s:,.0f} tokens/s"]
    if moment.mfu is not None:
        cost.append(f"MFU {moment.mfu:.1%}")
    cost.append(size(moment.memory))
    if moment.expert_load is not None:
        cost.append(f"busiest expert {moment.expert_load:.2f} x even")
    if moment.skipped:
        cost.append(f"{moment.skipped:,} step{'s' * (moment.skipped != 1)} skipped")
    return ["  ".join(learned), "  ".join(cost)]


def duration(seconds: float) -> str:
    """`42 s`, `3:05 min`, `2:07 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
