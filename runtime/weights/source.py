"""Checkpoints of others, read one tensor at a time: safetensors, in one file or many."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from torch import Tensor

from ..problem import Problem
from ..tensor_file import open_tensor_file

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Source(Protocol):
    """A checkpoint: tensors by the names it gives them, which a map may know under another."""

    @property
    def path(self) -> Path: ...

    def names(self) -> Sequence[str]:
        """Every tensor, by its own name."""
        ...

    def find(self, name: str) -> str | None:
        """The tensor's own name for the one a map speaks of, or None."""
        ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str) -> Tensor:
        """The tensor of this (own) name, on the CPU. Problem when the file does not hold it any more."""
        ...


def open_source(path: str | Path) -> Source:
    """The checkpoint in a folder or file: safetensors (sharded or not), or GGUF.

    Problem when there is none, or a file of it is missing, truncated or of another kind.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix == ".gguf":
            return _open_gguf(path)
        if path.suffix == ".safetensors":
            return SafetensorsSource(path, [path])
        raise Problem(f"{path} is neither a .safetensors nor a .gguf file", help="give the checkpoint's folder or file")
    if not path.is_dir():
        raise Problem(f"there is no checkpoint at {path}")
    if (path / INDEX).is_file():
        return SafetensorsSource(path, *_read_index(path))
    if (path / SINGLE).is_file():
        return SafetensorsSource(path, [path / SINGLE])
    files = sorted(path.glob("*.safetensors"))
    if files:
        return SafetensorsSource(path, files)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return _open_gguf(ggufs[0])
    if ggufs:
        raise Problem(f"{path} holds {len(ggufs)} .gguf files", help="give the path of one of them")
    others = sorted([*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")])
    raise Problem(
        f"{path} holds no .safetensors and no .gguf file",
        help=f"{others[0].name} is a pickle: save the model as safetensors" if others else None,
    )


def _open_gguf(path: Path) -> Source:
    from .gguf_source import GgufSource  # needs the optional package `gguf`

    return GgufSource(path)


def _read_index(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The files that the index of a sharded checkpoint names, and which of them holds each tensor."""
    try:
        holder = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = sorted({str(Path(file)) for file in holder.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Problem(
            f"{folder / INDEX} is not the index of a checkpoint: {type(error).__name__}: {error}",
            help="fetch it again, or remove it: the files beside it are then read as they are",
        ) from error
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise Problem(
            f"{folder} lacks {len(missing)} of its {len(files)} files: {', '.join(missing[:8])}"
            + (", ..." if len(missing) > 8 else ""),
            help="download the checkpoint again, or finish the download",
        )
    return [folder / file for file in files], holder


class SafetensorsSource:
    """Tensors in safetensors files, which stay open; nothing is read before it is asked for."""

    def __init__(self, path: Path, files: Sequence[Path], index: dict[str, str] | None = None) -> None:
        self.path = path
        self._handles = {file: open_tensor_file(file) for file in files}
        self._file: dict[str, Path] = {}
        for file, handle in self._handles.items():
            for name in handle.keys():  # noqa: SIM118  a handle is no mapping
                if name in self._file:
                    raise Problem(f"{path} holds `{name}` twice, in {self._file[name].name} and {file.name}")
                self._file[name] = file
        for name, file_name in (index or {}).items():
            if self._file.get(name) != path / file_name:
                raise Problem(
                    f"{path / INDEX} says that {file_name} holds `{name}`, and it does not",
                    help="the files are of different checkpoints, or the download is incomplete",
                )

    def names(self) -> Sequence[str]:
        return list(self._file)

    def find(self, name: str) -> str | None:
        return name if name in self._file else None

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._handles[self._file[name]].get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        file = self._file[name]
        try:
            return self._handles[file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise Problem(f"cannot read `{name}` from {file}: {error}") from error
