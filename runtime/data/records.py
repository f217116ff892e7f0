"""Files of records: a safetensors file whose tensors are inputs of the model and labels, [N, ..] each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from ..problem import Problem
from ..tensor_file import open_tensor_file
from .batch import IGNORED
from .fields import Fields, axes
from .order import shuffled

SUFFIX = ".safetensors"
TOKENS, TARGETS, HELD_OUT = "tokens", "targets", "held_out"
SHARE = 0.1  # of the records, held out where the file does not say which
SPLIT_SEED = 0  # the same for all runs, so that their figures compare


@dataclass(frozen=True)
class Records:
    """N records. name: the file's, without its suffix. inputs: float32, or int64 tokens. labels: int64 classes or
    float32, by the result they are compared with. targets: int64, of tokens. train, held: which records are which.
    """

    name: str
    sha256: str
    inputs: dict[str, Tensor]
    labels: dict[str, Tensor]
    targets: Tensor | None
    train: NDArray[np.int64]
    held: NDArray[np.int64]

    @property
    def count(self) -> int:
        return len(self.train) + len(self.held)

    @property
    def positions(self) -> int:
        """The positions that a record takes in the model's sequence: those of its inputs' second axes."""
        return sum(x.shape[1] if x.dim() > 1 else 1 for x in self.inputs.values())

    def summary(self) -> str:
        """`digits: 1,797 records of image (180 held out) with label`."""
        labels = [*self.labels, *([TARGETS] if self.targets is not None else [])]
        return (
            f"{self.name}: {self.count:,} records of {', '.join(self.inputs)} with {', '.join(labels)}, "
            f"{len(self.held):,} held out"
        )


def read_records(path: Path, fields: Fields) -> Records:
    """The records in a file, every tensor checked against what the model takes.

    A tensor `held_out` [N] of booleans says which records are held out; without one, a tenth is drawn, the same in
    every run. Raises Problem, naming file and tensor, when the file is missing, cut off or empty, when a tensor is not
    known, missing, of another shape or dtype, not finite or out of range, and when their lengths differ.
    """
    tensors = _read(path)
    _require_known(path, set(tensors), fields)
    inputs = {name: _input(path, name, tensors[name], fields) for name in fields.inputs if name in tensors}
    labels = {name: _label(path, name, tensors[name], fields) for name in fields.tasks if name in tensors}
    targets = tensors.get(TARGETS)
    if targets is not None:
        if TOKENS not in tensors:
            raise Problem(f"{path}: `{TARGETS}` without `{TOKENS}`, of which each is the next", f"add `{TOKENS}`")
        _require_shape(path, TARGETS, targets, fields.inputs[TOKENS].shape)
        targets = _ids(path, TARGETS, targets, fields.vocabulary, f"the vocabulary of {fields.vocabulary:,}", IGNORED)
    train, held = _split(path, tensors.get(HELD_OUT), _length(path, tensors))
    return Records(path.stem, _hash(path), inputs, labels, targets, train, held)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise Problem(f"--data {path}: there is no such file")
    handle = open_tensor_file(path)
    try:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  a handle is no mapping
    except (SafetensorError, OSError) as error:
        raise Problem(f"--data {path}: it cannot be read: {error}") from error
    if not tensors:
        raise Problem(f"--data {path}: it holds no tensor")
    return tensors


def _require_known(path: Path, names: set[str], fields: Fields) -> None:
    """Raises Problem unless these are inputs and labels of the model, enough of them."""
    takes = f"the model takes {fields.describe()}; and `{HELD_OUT}` [N] may say which records are held out"
    known = {*fields.inputs, *fields.tasks, HELD_OUT}
    if TOKENS in fields.inputs and fields.next_token:
        known.add(TARGETS)
    if unknown := sorted(names - known):
        raise Problem(f"--data {path}: the model has no `{'`, `'.join(unknown)}`", takes)
    if not names & set(fields.inputs):
        raise Problem(f"--data {path}: none of its tensors is an input of the model", takes)
    missing = [name for name, one in fields.inputs.items() if not one.optional and name not in names]
    if missing:
        raise Problem(f"--data {path}: it lacks `{'`, `'.join(missing)}`, which the model does not do without", takes)
    if not names & {*fields.tasks, TARGETS}:
        raise Problem(f"--data {path}: it has no labels, so there is nothing to learn from it", takes)


def _length(path: Path, tensors: dict[str, Tensor]) -> int:
    """N, the same for all tensors."""
    lengths = {name: len(tensor) if tensor.dim() else -1 for name, tensor in tensors.items()}
    (first, count), *others = lengths.items()
    for name, length in others:
        if length != count:
            raise Problem(f"--data {path}: `{first}` has {count:,} records, and `{name}` has {length:,}")
    if count < 2:
        raise Problem(f"--data {path}: {count} records are too few to train on some and hold others out")
    return count


def _input(path: Path, name: str, tensor: Tensor, fields: Fields) -> Tensor:
    _require_shape(path, name, tensor, fields.inputs[name].shape)
    if fields.inputs[name].ids:
        return _ids(path, name, tensor, fields.vocabulary, f"the vocabulary of {fields.vocabulary:,}")
    return _numbers(path, name, tensor)


def _label(path: Path, name: str, tensor: Tensor, fields: Fields) -> Tensor:
    task = fields.tasks[name]
    if task.loss == "classify":
        _require_shape(path, name, tensor, task.shape[:-1])
        return _ids(path, name, tensor, task.shape[-1], f"{task.shape[-1]} classes")
    _require_shape(path, name, tensor, task.shape)
    return _numbers(path, name, tensor)


def _require_shape(path: Path, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.dim() == 0 or tuple(tensor.shape[1:]) != shape:
        raise Problem(
            f"--data {path}: `{name}` is {list(tensor.shape)}, and the model takes {axes(shape)}",
            "make the file anew with these sizes, or change them in the spec: in `dims`, or in the recipe's `batch`",
        )


def _numbers(path: Path, name: str, tensor: Tensor) -> Tensor:
    """Finite, as float32."""
    if not tensor.is_floating_point():
        raise Problem(f"--data {path}: `{name}` is {_dtype(tensor)}, and should be float32 (or another float)")
    wrong = _records_where(~tensor.isfinite())
    if len(wrong):
        raise Problem(
            f"--data {path}: `{name}` is not finite in {len(wrong):,} of {len(tensor):,} records, first in {wrong[0]}"
        )
    return tensor.to(torch.float32)


def _ids(path: Path, name: str, tensor: Tensor, under: int, what: str, ignored: int | None = None) -> Tensor:
    """From 0 to under `under`, as int64."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise Problem(f"--data {path}: `{name}` is {_dtype(tensor)}, and should be int64 (or another integer)")
    ids = tensor.to(torch.int64)
    outside = (ids < 0) | (ids >= under)
    wrong = _records_where(outside & (ids != ignored) if ignored is not None else outside)
    if len(wrong):
        value = int(ids[wrong[0]][outside[wrong[0]]].flatten()[0])
        raise Problem(
            f"--data {path}: `{name}` has {value} in record {wrong[0]}, and {what} go from 0 to {under - 1:,}"
            + (f" ({len(wrong):,} records are so)" if len(wrong) > 1 else "")
        )
    return ids


def _records_where(wrong: Tensor) -> list[int]:
    found: list[int] = wrong.reshape(len(wrong), -1).any(1).nonzero().flatten().tolist() if wrong.numel() else []
    return found


def _split(path: Path, mark: Tensor | None, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(records to train on, records held out), both in the file's order."""
    if mark is None:
        chosen = np.zeros(count, bool)
        chosen[shuffled(count, SPLIT_SEED, 0)[: max(1, round(SHARE * count))]] = True
    else:
        if mark.dim() != 1 or not bool(((mark == 0) | (mark == 1)).all()):
            raise Problem(f"--data {path}: `{HELD_OUT}` should be [N] of true and false (or 1 and 0)")
        chosen = mark.to(torch.bool).numpy()
        if chosen.all() or not chosen.any():
            which = "all records" if chosen.all() else "no record"
            raise Problem(
                f"--data {path}: `{HELD_OUT}` holds out {which}", f"leave it out to hold out {SHARE:.0%} of them"
            )
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
