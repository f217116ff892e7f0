"""Checkpoints: torch.distributed.checkpoint folders, whole or absent, the last few kept.

checkpoints/step-00000100/   .metadata  __0_0.distcp  checkpoint.json
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ..problem import Problem

FACTS = "checkpoint.json"
NAME = re.compile(r"step-(\d{8,})")

State = Mapping[str, "Tensor | State"]  # nested by name


@dataclass(frozen=True)
class Position:
    """Where training stood. step: optimizer steps done; sequences: taken from the data so far."""

    step: int
    sequences: int = 0
    seed: int = 0
    spec_hash: str = ""
    text: str = ""  # hash of the documents trained on


def write_checkpoint(
    folder: Path,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: State | None = None,
    position: Position | None = None,
    keep: int | None = None,
) -> Path:
    """Write `folder/step-NNNNNNNN`, under another name until it is whole, then remove all but the last `keep`.

    model: a state dict; optimizer: its states, nested by name. Raises Problem when the disk does not take it.
    """
    assert position is None or position.step == step, f"{position} is not at step {step}"
    target = checkpoint_path(folder, step)
    partial = folder / f".{target.name}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".step-*.partial"):  # of a run that was killed while it wrote
        shutil.rmtree(left)
    state: dict[str, State] = {"model": model} | ({"optimizer": optimizer} if optimizer is not None else {})
    try:
        with _quiet():
            dcp.save(state, storage_writer=dcp.FileSystemWriter(partial), no_dist=True)
        sizes = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
        facts = {"position": asdict(position or Position(step)), "files": sizes}
        (partial / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        _sync(partial / FACTS)
        _sync(partial)
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
        _sync(folder)
    except (OSError, dcp.CheckpointException) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise Problem(f"the checkpoint {target} could not be written: {_reason(error)}") from error
    if keep is not None:
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if NAME.fullmatch(path.name)), key=_step)


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def find_checkpoint(folder: Path, step: int | None = None) -> tuple[Path, Position]:
    """The checkpoint of this step (the last one when None), seen to be whole.

    Raises Problem when there is none, and when it is damaged: then it says which earlier one is good.
    """
    there = list_checkpoints(folder)
    if not there:
        raise Problem(
            f"{folder} holds no checkpoint: the run ended before its first save",
            "remove the folder and start again, or name another --out",
        )
    path = there[-1] if step is None else checkpoint_path(folder, step)
    if path not in there:
        steps = ", ".join(str(_step(each)) for each in there)
        raise Problem(f"{folder} holds no checkpoint of step {step}", f"there are those of steps {steps}")
    position, reason = _inspect(path)
    if position is None:
        raise _damaged(path, reason)
    return path, position


def read_checkpoint(path: Path, state: dict[str, State]) -> None:
    """Copy the checkpoint's tensors into those of `state` (`{"model": ..., "optimizer": ...}`), in their dtype and
    place.

    Raises Problem when names or shapes differ, naming them, and when the checkpoint is damaged.
    """
    try:
        with _quiet():
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
        raise _damaged(path, _reason(error)) from error


def stored_dtype(path: Path) -> torch.dtype:
    """The dtype of most elements of the model that a checkpoint holds."""
    with _quiet():
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


def _inspect(path: Path) -> tuple[Position | None, str]:
    """The position of a checkpoint whose files are all there in full length; else None and what is wrong."""
    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
        position = Position(**facts["position"])
        sizes: dict[str, int] = facts["files"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        return None, f"{FACTS} cannot be read ({error})"
    for name, size in sizes.items():
        file = path / name
        found = file.stat().st_size if file.exists() else None
        if found != size:
            return None, f"{name} " + ("is missing" if found is None else f"has {found:,} bytes of {size:,}")
    return position, ""


def _damaged(path: Path, reason: str) -> Problem:
    others = [each for each in list_checkpoints(path.parent) if each != path and _inspect(each)[0] is not None]
    earlier = [each for each in others if _step(each) < _step(path)]
    if earlier:
        way = f"{earlier[-1].name} is whole: remove {path} to go on from there"
    else:
        way = "no earlier checkpoint of this run is whole: start again with another --out"
    return Problem(f"the checkpoint {path} is damaged: {reason}", way)


def _reason(error: BaseException) -> str:
    """What began it, in a line. torch wraps the errors of each rank in a CheckpointException, which is no Exception."""
    if isinstance(error, dcp.CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    while error.__context__ is not None and isinstance(error.__context__, OSError):
        error = error.__context__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _step(path: Path) -> int:
    match = NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that there is no process group, which is what `no_dist` asks for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield
