"""Some steps of a run under torch's profiler."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ..problem import Problem

ROWS = 50  # operations in the table


@dataclass
class Window:
    """Profiles the steps `first` to `last`, counted from 1, and writes into `folder`:

    trace.json, to be opened in chrome://tracing or ui.perfetto.dev, and operations.txt, those that took longest.
    """

    first: int
    last: int
    folder: Path
    device: torch.device
    _profile: profile | None = None

    def require(self, done: int, steps: int) -> None:
        """Raises Problem unless these steps are to come."""
        if not done < self.first <= self.last <= steps:
            raise Problem(
                f"--profile {self.first}:{self.last}: these are not steps to come",
                f"they are {done + 1:,} to {steps:,}" if done < steps else "the run is done: add --steps N",
            )

    def begin(self, step: int) -> None:
        """Before a step."""
        if step == self.first:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
            self._profile = profile(activities=activities, record_shapes=True, acc_events=True)
            self._profile.start()

    def end(self, step: int) -> str | None:
        """After a step: what is to be said of it."""
        return self.close() if step == self.last else None

    def close(self) -> str | None:
        """Write what there is, if the window is open."""
        found, self._profile = self._profile, None
        if found is None:
            return None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        found.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        found.export_chrome_trace(str(self.folder / "trace.json"))
        by = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = found.key_averages().table(sort_by=by, row_limit=ROWS)
        (self.folder / "operations.txt").write_text(f"steps {self.first} to {self.last}\n{table}\n", encoding="utf-8")
        return f"profile: {self.folder / 'trace.json'}, {self.folder / 'operations.txt'}"
