"""Checkpoints: torch.distributed.checkpoint folders, written whole or not at all, and read into place."""

from __future__ import annotations

import os
import shutil
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ..problem import Problem
from .kept import FACTS, Position, Stored, checkpoint_path, damaged, remove_old

State = Mapping[str, "Tensor | State"]  # nested by name


def write_checkpoint(
    folder: Path,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: State | None = None,
    position: Position | None = None,
    keep: int | None = None,
    held_out: float | None = None,
) -> Path:
    """Write `folder/step-NNNNNNNN`, under another name until it is whole, then remove all but the last `keep` and the
    best.

    model: a state dict; optimizer: its states, nested by name; held_out: the loss by which checkpoints compare. Raises
    Problem when the disk does not take it: nothing of it is left then, and no other one is removed.
    """
    assert position is None or position.step == step, f"{position} is not at step {step}"
    target = checkpoint_path(folder, step)
    partial = folder / f".{target.name}.partial"
    state: dict[str, State] = {"model": model} | ({"optimizer": optimizer} if optimizer is not None else {})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".step-*.partial"):  # of a run that was killed while it wrote
            shutil.rmtree(left)
        with quiet():
            # No copying ahead, which has a stream of each GPU made where there is none to copy from.
            writer = dcp.FileSystemWriter(partial, per_thread_copy_ahead=0)
            dcp.save(state, storage_writer=writer, no_dist=True)
        Stored.of(partial, position or Position(step), held_out).write(partial)
        _sync(partial / FACTS)
        _sync(partial)
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
        _sync(folder)
        if keep is not None:
            remove_old(folder, keep)
    except (OSError, RuntimeError, dcp.CheckpointException) as error:  # torch raises its own when zipping fails
        shutil.rmtree(partial, ignore_errors=True)
        raise Problem(
            f"the checkpoint {target} could not be written: {_reason(error)}",
            "make room on the disk; what was saved before is still there",
        ) from error
    return target


def read_checkpoint(path: Path, state: dict[str, State]) -> None:
    """Copy the checkpoint's tensors into those of `state` (`{"model": ..., "optimizer": ...}`), in their dtype and
    place.

    Raises Problem when names or shapes differ, naming them, and when the checkpoint is damaged.
    """
    try:
        with quiet():
            reader = dcp.FileSystemReader(path)
            stored = reader.read_metadata().state_dict_metadata
            _compare(
                path,
                {name: tuple(entry.size) for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)},
                state,
            )
            dcp.load(state, storage_reader=reader, no_dist=True)
    except Problem:
        raise
    except (Exception, dcp.CheckpointException) as error:  # torch raises what unpickling, unzipping and reading raise
        raise damaged(path, _reason(error)) from error


def stored_dtype(path: Path) -> torch.dtype:
    """The dtype of most elements of the model that a checkpoint holds."""
    with quiet():
        stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    counts: dict[torch.dtype, int] = {}
    for name, entry in stored.items():
        if name.startswith("model.") and isinstance(entry, TensorStorageMetadata):
            dtype = entry.properties.dtype
            counts[dtype] = counts.get(dtype, 0) + entry.size.numel() * dtype.is_floating_point
    return max(counts, key=lambda dtype: counts[dtype]) if counts else torch.float32


def flatten(state: State, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) of a nested state, paths joined by dots as torch.distributed.checkpoint does."""
    for name, value in state.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        else:
            yield from flatten(value, f"{prefix}{name}.")


def _compare(path: Path, stored: dict[str, tuple[int, ...]], state: State) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in flatten(state)}
    parts = {name.partition(".")[0] for name in wanted}
    stored = {name: shape for name, shape in stored.items() if name.partition(".")[0] in parts}
    lines = [f"  {name}: only in the checkpoint" for name in sorted(stored.keys() - wanted.keys())]
    lines += [f"  {name}: not in the checkpoint" for name in sorted(wanted.keys() - stored.keys())]
    lines += [
        f"  {name}: {list(stored[name])} in the checkpoint, {list(wanted[name])} here"
        for name in sorted(wanted.keys() & stored.keys())
        if stored[name] != wanted[name]
    ]
    if lines:
        shown = lines[:20] + ([f"  and {len(lines) - 20} more"] if len(lines) > 20 else [])
        raise Problem(f"{path} does not match the model or its optimizer:\n" + "\n".join(shown))


def _reason(error: BaseException) -> str:
    """What began it, in a line. torch wraps the errors of each rank in a CheckpointException, which is no Exception."""
    if isinstance(error, dcp.CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    while error.__context__ is not None and isinstance(error.__context__, OSError):
        error = error.__context__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warning that there is no process group, which is what `no_dist` asks for.

    Python's filters of warnings are not each thread's own: only the main one changes them, see `quieten`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        quieten()
        yield


def quieten() -> None:
    """The same from here on, for threads that this one starts."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
