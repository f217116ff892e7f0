"""Saving while training goes on: the state is copied to the host's memory, and a thread writes the copy.

The thread is our own around `dcp.save`, not `dcp.async_save`: that one calls itself experimental, and what makes a
checkpoint whole (checksums, its name, the removal of old ones) would have to wait for it in a thread anyway.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..problem import Problem
from .checkpoint import State, flatten, quieten, write_checkpoint
from .device import available_memory
from .kept import Position

ROOM = 0.8  # of the host's free memory, which the copy may take; beyond it training waits for the disk instead


@dataclass
class Save:
    """One checkpoint on its way. said: what to say of it. problem: why it could not be written."""

    said: str
    path: Path | None = None
    problem: Problem | None = None

    def __str__(self) -> str:
        if self.problem is not None:
            return f"{self.said}, not saved: {self.problem.message}; training goes on until the next save"
        return f"{self.said}, saved {self.path.name if self.path else ''}"


@dataclass
class Saver:
    """Writes the checkpoints of a run, at most one at a time.

    A save that fails is told by `finished`; the next one then has to succeed, and raises Problem if it does not, as the
    last does: `wait` for it. What nobody asked for is printed when the process ends.
    """

    folder: Path
    keep: int
    _thread: threading.Thread | None = None
    _saves: list[Save] = field(default_factory=list)  # the last, and those before it that were not told
    _host: dict[str, Tensor] = field(default_factory=dict)  # pinned memory, kept from one save to the next

    def __post_init__(self) -> None:
        weakref.finalize(self, _print_failures, self._saves)  # when the process ends, after its threads

    def start(self, position: Position, model: State, optimizer: State, held_out: float | None, said: str) -> None:
        """Save the state as it is now; it may change as soon as this returns. Waits for the save before.

        Raises Problem when the one before failed, and this one does, too.
        """
        self._join()
        failed = bool(self._saves and self._saves[-1].problem)
        save = Save(said)
        self._saves.append(save)
        copies = None if failed else self._copied({"model": model, "optimizer": optimizer})
        if copies is None:
            self._write(save, {"model": model, "optimizer": optimizer}, None, position, held_out)
            self.wait()
            return
        quieten()
        copied = None
        if self._host:
            copied = torch.cuda.Event()
            copied.record()
        self._thread = threading.Thread(
            target=self._write, args=(save, copies, copied, position, held_out), name=_name(self.folder)
        )
        self._thread.start()

    def finished(self) -> list[str]:
        """What is to be said of saves that ended since this was last asked."""
        if self._thread is not None and not self._thread.is_alive():
            self._join()
        ended = self._saves if self._thread is None else self._saves[:-1]
        said = [str(save) for save in ended if save.said]
        for save in ended:
            save.said = ""
        del self._saves[:-1]  # whether the last one failed is still of interest
        return said

    def wait(self) -> None:
        """Until all is written. Raises Problem when the last save failed."""
        self._join()
        if self._saves and (problem := self._saves[-1].problem) is not None:
            self._saves.clear()
            raise problem

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def _write(
        self, save: Save, state: Mapping[str, State], copied: torch.cuda.Event | None, position: Position,
        held_out: float | None,
    ) -> None:  # fmt: skip
        try:
            if copied is not None:
                copied.synchronize()
            save.path = write_checkpoint(
                self.folder, position.step, state["model"], state["optimizer"], position, self.keep, held_out  # type: ignore[arg-type]
            )  # fmt: skip
        except Problem as problem:
            save.problem = problem
        except BaseException as error:
            save.problem = Problem(f"the checkpoint of step {position.step:,} could not be written: {error!r}")
            save.problem.__cause__ = error

    def _copied(self, state: Mapping[str, State]) -> Mapping[str, State] | None:
        """A copy on the host, queued behind the device's work; None where it has no room for one.

        Only copies of what lies on a CUDA device are kept for the next time: pinning memory takes long.
        """
        found = dict(flatten(state))
        new = sum(tensor.nbytes for name, tensor in found.items() if name not in self._host)
        if new > ROOM * available_memory(torch.device("cpu")):
            return None
        try:
            return {name: self._copy(part, f"{name}.") for name, part in state.items()}  # type: ignore[misc]
        except (MemoryError, RuntimeError):  # the host pins no more
            self._host.clear()
            return None

    def _copy(self, value: Tensor | State, name: str) -> Tensor | State:
        if not isinstance(value, Tensor):
            return {key: self._copy(each, f"{name}{key}.") for key, each in value.items()}
        if not value.is_cuda:
            return value.detach().to("cpu", copy=True)
        key = name.removesuffix(".")
        if key not in self._host:
            self._host[key] = torch.empty_like(value, device="cpu", pin_memory=True)
        return self._host[key].copy_(value.detach(), non_blocking=True)


def settle(folder: Path) -> None:
    """Wait for what a run of this process, ended by an error, may still be writing into a folder of checkpoints."""
    for thread in threading.enumerate():
        if thread.name == _name(folder):
            thread.join()


def _name(folder: Path) -> str:
    return f"writes {folder.resolve()}"


def _print_failures(saves: list[Save]) -> None:
    for save in saves:
        if save.problem is not None and save.said:
            print(f"error: {save.problem.message}", file=sys.stderr)
