"""Checkpoints in GGUF, llama.cpp's format: dequantised, with the names and row order of Hugging Face's.

llama.cpp's converter (github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py, `LlamaModel.permute`) stores the rows of
llama's query and key weights in the order of interleaved rotary pairs; that is undone here. Experts are stored as one
tensor a layer, and appear here as one for each: `blk.0.ffn_up_exps.weight[3]`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..problem import Problem
from .layout import half_from_interleaved

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor, TensorNameMap

PERMUTED = {"llama"}  # architectures whose query and key rows the converter reorders
PLAIN = {"qwen2", "qwen2moe", "qwen3", "qwen3moe"}
DERIVED = {"rope_freqs.weight"}  # follows from the architecture's rope scaling
EXPERTS = re.compile(r"\.experts\.(\d+)\.")


class GgufSource:
    """The tensors of one GGUF file, in float32 (float16 and bfloat16 where stored so)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reader = open_reader(path)
        self.architecture = str(self.field("general.architecture"))
        if self.architecture not in PERMUTED | PLAIN:
            raise Problem(
                f"{path} holds a model of GGUF's architecture `{self.architecture}`",
                help=f"those that can be read are {', '.join(sorted(PERMUTED | PLAIN))}",
            )
        self._tensors = {tensor.name: tensor for tensor in self.reader.tensors if tensor.name not in DERIVED}
        self._own = [own for name in self._tensors for own in self._split(name)]
        self._known = set(self._own)
        self._last: tuple[str, Tensor] | None = None

    def field(self, name: str, default: object = None) -> object:
        """A value of the file's metadata."""
        field = self.reader.get_field(name)
        return default if field is None else field.contents()

    def names(self) -> Sequence[str]:
        return self._own

    def find(self, name: str) -> str | None:
        if name in self._known:
            return name
        expert = EXPERTS.search(name)
        own = self._map.get_name(EXPERTS.sub(".experts.", name), try_suffixes=(".weight", ".bias"))
        if own is not None and expert:
            own = f"{own}[{expert[1]}]"
        return own if own in self._known else None

    def shape(self, name: str) -> tuple[int, ...]:
        tensor, expert = self._parts(name)
        shape = tuple(int(size) for size in reversed(tensor.shape))
        return shape if expert is None else shape[1:]

    def read(self, name: str) -> Tensor:
        tensor, expert = self._parts(name)
        if expert is not None:
            if self._last is None or self._last[0] != tensor.name:  # the experts of a layer are asked for in turn
                self._last = (tensor.name, self._dequantised(tensor))
            return self._last[1][expert]
        value = self._dequantised(tensor)
        if self.architecture in PERMUTED and (heads := self._heads(name)):
            value = half_from_interleaved(value, heads)
        return value

    def _split(self, name: str) -> list[str]:
        """The names under which a stored tensor appears: one for each expert, where it stacks them."""
        if "_exps." not in name:
            return [name]
        return [f"{name}[{i}]" for i in range(int(self._tensors[name].shape[-1]))]

    def _parts(self, name: str) -> tuple[ReaderTensor, int | None]:
        stored, _, expert = name.removesuffix("]").partition("[")
        return self._tensors[stored], int(expert) if expert else None

    def _heads(self, name: str) -> int | None:
        """How many heads the rows of this tensor are, when they are those of queries or keys."""
        found = re.fullmatch(r"blk\.(\d+)\.attn_([qk])\.(weight|bias)", name)
        if not found:
            return None
        key = f"{self.architecture}.attention.head_count"
        heads = self.field(key)
        if found[2] == "k":
            heads = self.field(f"{key}_kv", heads)
        if isinstance(heads, list):
            heads = heads[int(found[1])]
        if not isinstance(heads, int):
            raise Problem(f"{self.path} does not say how many heads its attention has (`{key}`)")
        return heads

    def _dequantised(self, tensor: ReaderTensor) -> Tensor:
        from gguf import GGMLQuantizationType as Kind
        from gguf.quants import dequantize

        shape = tuple(int(size) for size in reversed(tensor.shape))
        if tensor.tensor_type in (Kind.F32, Kind.F16, Kind.F64):
            return torch.from_numpy(tensor.data.copy()).view(shape)
        try:
            return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)).view(shape)
        except NotImplementedError as error:
            raise Problem(
                f"`{tensor.name}` of {self.path} is quantised as {tensor.tensor_type.name}: {error}"
            ) from error

    @cached_property
    def _map(self) -> TensorNameMap:
        import gguf

        architecture = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[self.architecture]
        return gguf.get_tensor_name_map(architecture, int(str(self.field(f"{self.architecture}.block_count", 0))))


def open_reader(path: Path) -> GGUFReader:
    """A reader of this file, the same one as long as the file is the same: opening takes seconds.

    Problem when the package is missing, or the file is no whole GGUF file.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise Problem(f"cannot read {path}: {error}") from error
    return _open(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1)
def _open(path: Path, size: int, changed: int) -> GGUFReader:
    try:
        import gguf
    except ImportError as error:
        raise Problem("GGUF files are read by the package `gguf`", help='pip install "dskc[gguf]"') from error
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, OSError, KeyError, UnicodeDecodeError) as error:
        raise Problem(
            f"{path} is not a whole GGUF file: {error}",
            help="it was probably cut off while it was copied or downloaded: fetch it again",
        ) from error
