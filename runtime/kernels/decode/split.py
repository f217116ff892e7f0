"""Attention over keys that are split between programs: which rows, keys and scores, and the two launches it takes.

What a row comes to depends on its own sequence and on the tile, never on the batch: pieces of keys are cut at fixed
positions and added up in a fixed order (see `split_kernels`), and the tile is chosen for an operation's widths and
heads alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from torch import Tensor

from ..choice import interpreted
from ..gpu import require_gpu
from ..row_kernel import KernelError
from ..tuning import Key, Tile, run_best

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FP8 = torch.float8_e4m3fn
COMBINED = 64  # value columns of a program that adds up
LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Part:
    """Queries [B, S, H, E] and keys of the same width: [B, T, G, E], or with a table [pages, page, G, E]."""

    q: Tensor
    k: Tensor


@dataclass(frozen=True)
class Scores:
    """How products become logits: scale, bound, how far back a query sees; and what fp8 caches are multiplied by."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    k_scale: float = 1.0
    v_scale: float = 1.0

    @property
    def numbers(self) -> tuple[float, float]:
        """What a product is multiplied by, and the bound behind it; logits are in base 2."""
        scale = self.scale * self.k_scale
        if self.softcap is None:
            return scale * LOG2_E, 0.0
        return 2.0 * scale * LOG2_E / self.softcap, self.softcap * LOG2_E


@dataclass(frozen=True)
class Attention:
    """One call. The key is one part or two side by side; without values, the first part is the value too.

    lengths [B] (int32): positions of each sequence, new ones included. table [B, N] (int32): the page of each run of
    positions, None for a contiguous cache. longest: what no length exceeds. sinks [H].
    """

    operation: str
    first: Part
    second: Part | None
    v: Tensor | None
    lengths: Tensor
    table: Tensor | None
    longest: int
    scores: Scores
    sinks: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        parts = (self.first.q, self.first.k, *(() if self.second is None else (self.second.q, self.second.k)))
        return [t for t in (*parts, self.v, self.lengths, self.table, self.sinks) if t is not None]

    @property
    def layout(self) -> object:
        """All but what lies in the tensors."""
        has = (self.second is None, self.v is None, self.table is None, self.sinks is None)
        lie = [(t.shape, t.stride(), t.dtype, t.device) for t in self.tensors]
        return (self.operation, self.longest, self.scores, has, *lie)

    @property
    def value(self) -> Tensor:
        return self.first.k if self.v is None else self.v

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return self.first.q.shape[2] // self.first.k.shape[2]

    @property
    def second_width(self) -> int:
        return 0 if self.second is None else self.second.k.shape[3]

    def spread(self, tile: Tile, processors: int) -> tuple[int, int]:
        """Keys of a program, a piece or a chunk, whichever should take less time; and how many such units there are.

        A program's time is taken to be that of its bytes, partial sums written and read among them.
        """
        batch, queries = self.first.q.shape[:2]
        rows = min(queries * self.group, tile["BLOCK_R"])
        blocks = batch * self.first.k.shape[2] * -(-queries * self.group // tile["BLOCK_R"])
        width = self.first.k.shape[3] + self.second_width + (0 if self.v is None else self.v.shape[3])
        key_bytes, partial_bytes = width * self.first.k.element_size(), 8 * rows * self.value.shape[3]

        def cost(unit: int) -> int:
            units = max(1, self.units(unit))
            return -(-blocks * units // processors) * (self._seen * key_bytes // units + partial_bytes)

        unit = min((tile["CHUNK"], tile["PIECE"]), key=cost)
        return unit, self.units(unit)

    def units(self, unit: int) -> int:
        """In how many units of so many keys there is something that a sequence's queries see, at most."""
        units = -(-self.longest // unit)
        return units if self.scores.window is None else min(units, (self._seen + unit - 2) // unit + 1)

    @property
    def _seen(self) -> int:
        """Keys that one of a sequence's queries sees, at most."""
        window = self.scores.window
        return self.longest if window is None else min(self.longest, window + self.first.q.shape[1] - 1)


@dataclass(frozen=True)
class Steps:
    """Both launches of a call by one tile, but for its tensors."""

    units: int
    grid: tuple[int, int, int]
    numbers: tuple[float | int, ...]  # behind the pointers of the first kernel
    constants: dict[str, int]
    rows_grid: tuple[int, int]
    rows_constants: dict[str, int]


@dataclass(frozen=True)
class Prepared:
    """What follows from the shapes of a call: which tiles there are, how each is launched, which choice it is."""

    key: Key
    tiles: Sequence[Tile]
    shape: tuple[int, int, int, int]  # of the result
    steps: dict[Tile, Steps] = field(default_factory=dict)


PLANS = 512
_prepared: dict[object, Prepared] = {}


def forget_plans() -> None:
    """Works everything out again from here on."""
    _prepared.clear()


def attend(call: Attention, tiles: Callable[[], Sequence[Tile]]) -> tuple[Tensor, Tensor]:
    """o [B, S, H, V] in the dtype of the queries, and the logarithm of each row's denominator, [B, S, H] in float32.

    tiles: asked for once for each layout of tensors. Raises KernelError for what kernels cannot take.
    """
    layout = call.layout
    prepared = _prepared.get(layout)
    if prepared is None or (torch.is_grad_enabled() and any(t.requires_grad for t in call.tensors)):
        _check(call)
        if len(_prepared) >= PLANS:
            _prepared.clear()
        prepared = _prepared[layout] = _prepare(call, tiles())
    q, shape = call.first.q, prepared.shape
    o = torch.empty(shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(shape[:3], dtype=torch.float32, device=q.device)
    if 0 not in shape[:3]:
        run_best(f"{call.operation}.forward", prepared.key, prepared.tiles, partial(_launch, call, prepared, o, lse))
    return o, lse


def _prepare(call: Attention, tiles: Sequence[Tile]) -> Prepared:
    q, k, scores = call.first.q, call.first.k, call.scores
    batch, queries, heads = q.shape[:3]
    # Neither batch nor lengths nor pages: whatever the choice depends on, the last bits of results do.
    key = (
        _name(q.dtype), _name(k.dtype), k.shape[3], call.second_width, call.value.shape[3], call.v is None,
        queries, call.group, scores.window is not None, scores.softcap is not None,
    )  # fmt: skip
    return Prepared(key, tuple(tiles), (batch, queries, heads, call.value.shape[3]))


def _steps(call: Attention, tile: Tile) -> Steps:
    from .split_kernels import CHUNKS

    (first, second, v), window = (call.first, call.second or call.first, call.value), call.scores.window or 0
    (batch, queries, heads), value = first.q.shape[:3], v.shape[3]
    unit, units = call.spread(tile, _processors(first.q.device))
    rows = -(-queries * call.group // tile["BLOCK_R"])
    table, page = (call.lengths, 0) if call.table is None else (call.table, first.k.shape[1])
    block = min(COMBINED, 1 << (value - 1).bit_length())
    constants = {
        "K_ROW": first.k.stride(1), "K2_ROW": second.k.stride(1), "V_ROW": v.stride(1), "QUERIES": queries,
        "GROUP": call.group, "E": first.k.shape[3], "F": call.second_width, "V": value,
        "BLOCK_E": _block(first.k.shape[3]), "BLOCK_F": _block(call.second_width), "BLOCK_V": _block(value),
        "SHARED": call.v is None, "PAGE": page, "WINDOW": window, "CAPPED": call.scores.softcap is not None,
        **tile.options,
    }  # fmt: skip
    return Steps(
        units,
        (first.k.shape[2] * rows, units, batch),
        (
            *call.scores.numbers, unit, *first.q.stride()[:3], *second.q.stride()[:3],
            *first.k.stride()[:3:2], *second.k.stride()[:3:2], *v.stride()[:3:2], table.stride(0),
        ),
        constants,
        (batch * queries * heads, -(-value // block)),
        {
            "QUERIES": queries, "HEADS": heads, "V": value, "BLOCK_V": block, "WINDOW": window,
            "SINKS": call.sinks is not None, "CHUNK": tile["CHUNK"], "PIECES": tile["CHUNK"] // unit,
            "CHUNKS": CHUNKS, "num_warps": 4,
        },
    )  # fmt: skip


def _launch(call: Attention, prepared: Prepared, o: Tensor, lse: Tensor, tile: Tile) -> None:
    from .split_kernels import combine_kernel, split_kernel

    steps = prepared.steps.get(tile)
    if steps is None:
        steps = prepared.steps[tile] = _steps(call, tile)
    (first, second), lengths, (batch, queries, heads, value) = (
        (call.first, call.second or call.first),
        call.lengths,
        o.shape,
    )
    acc = torch.empty((batch, steps.units, queries, heads, value), dtype=torch.float32, device=o.device)
    top, total = (torch.empty((batch, steps.units, queries, heads), dtype=torch.float32, device=o.device) for _ in "12")
    table = lengths if call.table is None else call.table
    if steps.units:
        split_kernel[steps.grid](
            first.q, second.q, first.k, second.k, call.value, table, lengths, acc, top, total, *steps.numbers,
            **steps.constants,
        )  # fmt: skip
    combine_kernel[steps.rows_grid](
        acc, top, total, lse if call.sinks is None else call.sinks, lengths, o, lse, call.scores.v_scale, steps.units,
        **steps.rows_constants,
    )  # fmt: skip


def observed(tensor: Tensor) -> bool:
    """Whether a compiler or a mode looks on, which must be told what runs; if not, a call can do without torch's
    dispatcher, which takes longer than the kernels."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return True
    return type(tensor) is not Tensor or tensor.device.type == "meta"


def _block(width: int) -> int:
    """The power of two that a width is held in; products want 16 at least."""
    return max(16, 1 << (width - 1).bit_length()) if width else 0


def _processors(device: torch.device) -> int:
    return _multiprocessors(device.index or 0) if device.type == "cuda" else 4


@cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def _check(call: Attention) -> None:
    q, k, v = call.first.q, call.first.k, call.value
    require_gpu(call.operation, q.device)
    parts = [call.first] if call.second is None else [call.first, call.second]

    def require(fits: bool, message: str) -> None:
        if not fits:
            raise KernelError(f"{call.operation}: {message}")

    require(q.ndim == 4 and k.ndim == 4 and v.ndim == 4, f"queries are {list(q.shape)}, keys {list(k.shape)}")
    require(q.dtype in DTYPES, f"queries are {_name(q.dtype)}, and kernels take {', '.join(map(_name, DTYPES))}")
    for part in parts:
        require(part.q.dtype == q.dtype, f"queries are {_name(q.dtype)} and {_name(part.q.dtype)}")
        require(part.q.shape[:3] == q.shape[:3], f"queries are {list(q.shape)} and {list(part.q.shape)}")
        require(part.k.shape[:3] == k.shape[:3], f"keys are {list(k.shape)} and {list(part.k.shape)}")
        require(part.q.shape[3] == part.k.shape[3] > 0, f"queries are {part.q.shape[3]} wide, keys {part.k.shape[3]}")
        require(part.k.dtype == v.dtype, f"keys are {_name(part.k.dtype)}, values {_name(v.dtype)}")
        require(part.q.stride(3) == 1 and part.k.stride(3) == 1, "the last axis must lie in one run of memory")
    require(v.dtype in (q.dtype, FP8), f"a cache for {_name(q.dtype)} queries is not {_name(v.dtype)}")
    require(v.dtype != FP8 or has_fp8(q.device), "this GPU has no float8_e4m3fn")
    require(v.shape[:3] == k.shape[:3] and v.shape[3] > 0, f"keys are {list(k.shape)}, values {list(v.shape)}")
    require(v.stride(3) == 1, "the last axis must lie in one run of memory")
    require(k.shape[2] > 0 and q.shape[2] % k.shape[2] == 0, f"{q.shape[2]} heads do not divide over {k.shape[2]}")
    for tensor in call.tensors:
        require(tensor.device == q.device, f"queries are on {q.device}, and others on {tensor.device}")
        require(not (torch.is_grad_enabled() and tensor.requires_grad), "it has no gradient: call it under no_grad")
    check_places(call.operation, q.shape[0], k, call.lengths, call.table)
    room = k.shape[1] if call.table is None else k.shape[1] * call.table.shape[1]
    require(0 <= call.longest <= room, f"the longest is {call.longest}, and a sequence has room for {room}")
    if call.sinks is not None:
        require(call.sinks.shape == q.shape[2:3], f"sinks are {list(call.sinks.shape)} for {q.shape[2]} heads")
        require(call.sinks.is_contiguous() and call.sinks.dtype in DTYPES, f"sinks are {_name(call.sinks.dtype)}")
    window = call.scores.window
    require(window is None or window > 0, f"a window of {window} sees no key")


def check_places(operation: str, batch: int, cache: Tensor, lengths_B: Tensor, table_BN: Tensor | None) -> None:
    """KernelError unless these say where `batch` sequences lie in a cache [B, T, ...] or [P, page, ...]."""

    def require(fits: bool, message: str) -> None:
        if not fits:
            raise KernelError(f"{operation}: {message}")

    whole = (torch.int32, torch.int64)
    require(lengths_B.shape == (batch,), f"lengths are {list(lengths_B.shape)} for a batch of {batch}")
    require(lengths_B.dtype == torch.int32, f"lengths are int32, not {_name(lengths_B.dtype)}")
    require(lengths_B.is_contiguous(), "lengths must lie in one run of memory")
    if table_BN is None:
        require(cache.shape[0] == batch, f"a cache of {cache.shape[0]} sequences for a batch of {batch}")
        return
    require(table_BN.ndim == 2 and len(table_BN) == batch, f"pages are {list(table_BN.shape)} for a batch of {batch}")
    require(table_BN.dtype in whole, f"numbers of pages are int32 or int64, not {_name(table_BN.dtype)}")
    require(table_BN.stride(1) == 1 or table_BN.shape[1] == 1, "the pages of a sequence must lie in one run of memory")
    page = cache.shape[1]
    require(page > 0 and page & (page - 1) == 0, f"a page holds a power of two of positions, not {page}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def has_fp8(device: torch.device) -> bool:
    return interpreted() if device.type == "cpu" else torch.cuda.get_device_capability(device) >= (8, 9)
