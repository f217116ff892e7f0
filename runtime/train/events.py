"""The log of a run for TensorBoard."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..problem import Problem
from .log import Line


def require_tensorboard() -> None:
    """Raises Problem where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise Problem("--tensorboard: TensorBoard is not installed", "pip install 'dskc[tensorboard]'")


class Events:
    """Writes each number of the log's lines as a scalar of its name, into event files in `folder`.

    after: steps that are done. What an earlier process wrote of later ones is not shown any more.
    """

    def __init__(self, folder: Path, after: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=after + 1 if after else None, flush_secs=30)  # type: ignore[no-untyped-call]

    def write(self, line: Line) -> None:
        for name, value in line.items():
            if name != "step" and isinstance(value, float | int):
                self._writer.add_scalar(name, value, line["step"])  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._writer.close()  # type: ignore[no-untyped-call]
