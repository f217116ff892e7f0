"""What is seen of a run besides its log: the terminal, TensorBoard, a profile."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .device import device_name, used_memory
from .events import Events, require_tensorboard
from .expert_load import ExpertLoad
from .folder import Facts, RunFolder
from .ledger import Ledger
from .log import Line
from .mfu import convention, peak_flops, utilisation
from .options import Options
from .profiled import Window
from .progress import Moment, Progress

PROFILE, TENSORBOARD = "profile", "tensorboard"  # folders of a run


@dataclass
class Watch:
    """peak: FLOP/s of the device in the dtype of activations, where that is known. flops: of a token's forward pass."""

    folder: RunFolder
    progress: Progress
    device: torch.device
    peak: float | None
    flops: int
    tensorboard: bool = False
    window: Window | None = None
    skipped: int = 0
    _load: ExpertLoad | None = None
    _events: Events | None = None

    @classmethod
    def of(cls, folder: RunFolder, progress: Progress, facts: Facts, ledger: Ledger, device: torch.device) -> Watch:
        return cls(
            folder, progress, device, peak_flops(device_name(device), facts.precision.compute), ledger.flops_per_token
        )

    def ask(self, options: Options, done: int, steps: int) -> None:
        """What was asked for on the command line. Raises Problem when it cannot be had."""
        if options.tensorboard:
            require_tensorboard()
            self.tensorboard = True
        if options.profile is not None:
            self.window = Window(*options.profile, self.folder.path / PROFILE, self.device)
            self.window.require(done, steps)

    def look_at(self, model: nn.Module) -> None:
        """Count what its experts are given."""
        self._load = ExpertLoad(model)

    def start(self, done: int, compute: str) -> None:
        """Once the run's folder is there."""
        if self.tensorboard:
            self._events = Events(self.folder.path / TENSORBOARD, done)
        if self.peak is not None:
            self.progress.say(f"MFU: {convention(self.peak, compute)}")

    def begin(self, step: int) -> None:
        """Before a step, counted from 1."""
        if self.window is not None:
            self.window.begin(step)

    def measure(self, line: Line, tokens_per_s: float, seconds: float) -> None:
        """After a step: add to its line what is measured here, and show it."""
        if self.window is not None and (said := self.window.end(line["step"])):
            self.progress.say(said)
        mfu = self.mfu(tokens_per_s)
        load = self._load.take() if self._load is not None else None
        line |= {name: value for name, value in (("mfu", mfu), ("expert_load", load)) if value is not None}
        self.skipped += "skipped" in line
        moment = Moment(
            line["step"], line["loss"], tokens_per_s, seconds, used_memory(self.device), line["rate"],
            line.get("norm"), mfu, load, self.skipped,
        )  # fmt: skip
        self.progress.update(moment)

    def mfu(self, tokens_per_s: float) -> float | None:
        """Where the device's peak and the model's FLOPs are known."""
        return utilisation(self.flops, tokens_per_s, self.peak) if self.flops else None

    def end(self, line: Line) -> None:
        """After a step, with its whole line."""
        if self._events is not None:
            self._events.write(line)
        if "held_out" in line:
            self.progress.held_out = (line["step"], line["held_out"])

    def close(self) -> None:
        """When no more steps come."""
        if self.window is not None and (said := self.window.close()):
            self.progress.say(said)
        if self._events is not None:
            self._events.close()
        self.progress.close()
