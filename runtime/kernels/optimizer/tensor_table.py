"""Many tensors as one: a table of addresses on the device, and a grid over pieces of equal size of all of them.

A kernel that takes a table is launched once for hundreds of tensors. Sizes and pieces are sent to the device once, and
addresses whenever they are others than before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..language import tl, triton

PIECE = 32768  # elements of one program; what is drawn at random counts in it
ALIGNED = 16  # bytes of addresses, and elements of sizes, for which 16 bytes are read and written at a time
TABLES = 16  # kept


@dataclass(frozen=True)
class Table:
    """T tensors of each of K kinds, those of a kind in one dtype.

    addresses_KT: int64. sizes_T: int64, elements. pieces_P2: int32, for each program its tensor and which piece of
    that. members: which of all tensors given each is. aligned: as ALIGNED says.
    """

    addresses_KT: Tensor
    sizes_T: Tensor
    pieces_P2: Tensor
    members: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    aligned: bool
    elements: int

    @property
    def programs(self) -> int:
        return len(self.pieces_P2)


def tables(kinds: Sequence[Sequence[Tensor]]) -> list[Table]:
    """Tables of tensors of several kinds, [K][T], which agree in shape and are contiguous: one for each set of dtypes.

    Tensors without elements are in none. The tables hold addresses only: the tensors must live while they are used.
    """
    every = list(zip(*kinds, strict=True))
    device = kinds[0][0].device if every else torch.device("cpu")
    key = (device, stream_of(device), *(t.data_ptr() for kind in kinds for t in kind),
           *(t.numel() for t in kinds[0]), *(t.dtype for kind in kinds for t in kind))  # fmt: skip
    if key in _tables:
        _tables.move_to_end(key)
        return _tables[key]
    groups: dict[tuple[tuple[torch.dtype, ...], bool], list[int]] = {}
    for i, tensors in enumerate(every):
        if tensors[0].numel():
            even = tensors[0].numel() % ALIGNED == 0 and all(t.data_ptr() % ALIGNED == 0 for t in tensors)
            groups.setdefault((tuple(t.dtype for t in tensors), even), []).append(i)
    made = [_table(kinds, tuple(members), dtypes, even) for (dtypes, even), members in groups.items()]
    _tables[key] = made
    while len(_tables) > TABLES:
        _tables.popitem(last=False)
    return made


_tables: OrderedDict[object, list[Table]] = OrderedDict()


def _table(
    kinds: Sequence[Sequence[Tensor]], members: tuple[int, ...], dtypes: tuple[torch.dtype, ...], even: bool
) -> Table:
    device = kinds[0][members[0]].device
    addresses = torch.tensor([[kind[i].data_ptr() for i in members] for kind in kinds], dtype=torch.int64)
    sizes = tuple(kinds[0][i].numel() for i in members)
    sizes_T, pieces_P2 = _pieces(sizes, device, stream_of(device))
    return Table(_sent(addresses, device), sizes_T, pieces_P2, members, dtypes, even, sum(sizes))


@lru_cache(TABLES)
def _pieces(sizes: tuple[int, ...], device: torch.device, stream: int) -> tuple[Tensor, Tensor]:
    sizes_T = torch.tensor(sizes, dtype=torch.int64)
    count_T = (sizes_T + PIECE - 1) // PIECE
    tensor_P = torch.arange(len(sizes)).repeat_interleave(count_T)
    piece_P = torch.arange(len(tensor_P)) - (count_T.cumsum(0) - count_T).repeat_interleave(count_T)
    pieces_P2 = torch.stack([tensor_P, piece_P], 1).int()
    return _sent(sizes_T, device), _sent(pieces_P2, device)


@lru_cache(64)
def kept(values: tuple[float, ...], dtype: torch.dtype, device: torch.device, stream: int) -> Tensor:
    """These numbers on the device, sent once. stream: as `stream_of` has it."""
    return _sent(torch.tensor(values, dtype=dtype), device)


def stream_of(device: torch.device) -> int:
    """The stream that kernels of this device are launched on: what one has sent, another may not have yet."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def offsets(found: Sequence[Table]) -> Iterator[tuple[int, Table]]:
    """Each table with how many programs those before it have."""
    before = 0
    for table in found:
        yield before, table
        before += table.programs


def triton_dtypes(dtypes: Sequence[torch.dtype]) -> tuple[object, ...]:
    """As kernels are told them."""
    names = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    return tuple(names[dtype] for dtype in dtypes)


@triton.jit
def piece_of(sizes_ptr, pieces_ptr, PIECE: tl.constexpr, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """A program's tensor, its piece of it, where that starts in it, and how many elements it has."""
    tensor = tl.load(pieces_ptr + 2 * tl.program_id(0))
    piece = tl.load(pieces_ptr + 2 * tl.program_id(0) + 1)
    start = piece.to(tl.int64) * PIECE
    count = tl.minimum(tl.load(sizes_ptr + tensor) - start, PIECE).to(tl.int32)
    if ALIGNED:
        count = tl.multiple_of(count, 16)
    return tensor, piece, start, count


@triton.jit
def pointer_to(addresses_ptr, KIND: tl.constexpr, T, tensor, start, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where a piece of a tensor of some kind starts, in its dtype."""
    pointer = tl.load(addresses_ptr + KIND * T + tensor).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + start
