"""A model's attention as an operation of torch: kernels with the mask that the compiler wrote, and cuDNN's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ... import reference
from ...reference.mask import Causal, Everything, Mask
from ..choice import interpreted, kernels_in_use
from ..row_kernel import KernelError, _plain
from ..tuning import Key, Tile, Way, run_best
from . import backward as attend_backward
from . import cudnn as attention_cudnn
from . import forward as attend_forward
from .cudnn import CUDNN
from .hopper import hopper_ways, launch_hopper
from .operations import Direct, register
from .tensors import (
    Launch,
    Reads,
    by_part,
    columns_together,
    layout_of,
    listed,
    or_stand_in,
    padded,
    parts,
    together,
)
from .tiles import Grid, TileLists, has_blocks, tile_lists
from .ways import Backward, backward_ways, forward_ways

MOST_WIDTH = 256
PLANS = 256


@dataclass(frozen=True)
class _Call:
    """What of a call follows from its tensors' shapes."""

    batch: int
    queries: int
    keys: int
    heads: int
    groups: int
    width: int
    value_width: int
    mask: Mask
    listed: bool

    @property
    def is_empty(self) -> bool:
        return not (self.batch and self.queries and self.heads)

    def results(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The result and log-sum-exp, not written yet."""
        o = torch.empty(self.batch, self.queries, self.heads, self.value_width, dtype=q.dtype, device=q.device)
        return o, torch.empty(self.batch, self.heads, self.queries, dtype=torch.float32, device=q.device)


@dataclass(frozen=True)
class _Prepared:
    """What follows from how a call's tensors lie, worked out once. Of a call with documents, all but its mask."""

    call: _Call
    key: Key
    ways: Sequence[Way]
    launches: dict[str, Launch] = field(default_factory=dict)


@dataclass(eq=False)
class AttentionKernel:
    """Attention of a model. Called with tensors, it runs kernels where they are in use, else `reference.attention`.

    name: `model::operation`. mask: which keys a query sees, given the documents of positions (None: one document).
    allows, of_queries, of_keys: the same in Triton: of places, of the keys for a range of queries, and of the queries
    for a range of keys; without ranges, lists of tiles are made of `mask`. scale: of scores,
    `width ** -0.5` unless told.
    """

    name: str
    spec: str
    mask: Callable[[Tensor | None], Mask]
    allows: Callable[..., Any] | None = None
    of_queries: Callable[..., Any] | None = None
    of_keys: Callable[..., Any] | None = None
    scale: float | None = None
    softcap: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self._operation, self._backward = register(self)
        self._prepared: dict[object, _Prepared] = {}

    def __call__(
        self,
        q_BSHE: Tensor,
        k_BTGE: Tensor,
        v_BTGV: Tensor,
        documents_BT: Tensor | None = None,
        sinks_H: Tensor | None = None,
        training: bool = False,
    ) -> Tensor:
        """[B, S, H, V], in the dtype of q; see `reference.attention`. Rows that see no key are zero.

        Kernels take bf16 and fp16 and scales above 0; of others it is the reference's. Raises KernelError, as of heads
        over 256 wide.
        """
        if not self._in_use(q_BSHE):
            return reference.attention(
                q_BSHE, k_BTGE, v_BTGV, mask=self.mask(documents_BT), scale=self.scale, dropout=self.dropout,
                training=training, softcap=self.softcap, sinks=sinks_H,
            )  # fmt: skip
        return self.with_log_sum_exp(q_BSHE, k_BTGE, v_BTGV, documents_BT, sinks_H, training)[0]

    def with_log_sum_exp(
        self,
        q_BSHE: Tensor,
        k_BTGE: Tensor,
        v_BTGV: Tensor,
        documents_BT: Tensor | None = None,
        sinks_H: Tensor | None = None,
        training: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The result, and the log-sum-exp of each query's scores [B, H, S] in nats (fp32), sinks among them.

        It is infinite where no key is seen, and has no gradient.
        """
        seed = None
        if self.dropout and training:  # drawn from torch's generator: recomputation draws the same again
            seed = torch.randint(1 << 31, (1,), device=q_BSHE.device)
        given = (q_BSHE, k_BTGE, v_BTGV, documents_BT, sinks_H)
        if _plain([t for t in given if t is not None]):
            if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
                o, lse = Direct.apply(self, *given, seed)
            else:
                o, lse = self._forward(*given, seed)
        else:
            self._check(*given)
            o, lse = self._operation(*given, seed)
        return o, lse

    def _in_use(self, q: Tensor) -> bool:
        # Triton's interpreter multiplies matrices of bf16 wrongly.
        taken = (torch.float16, torch.float32) if interpreted() else (torch.float16, torch.bfloat16)
        # The greatest score is found before scores are scaled.
        scaled = self.scale is None or self.scale > 0
        return kernels_in_use(q.device) and q.dtype in taken and scaled

    # --- forward

    def _forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        documents: Tensor | None,
        sinks: Tensor | None,
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        q, k, v = columns_together(q), columns_together(k), columns_together(v)
        documents, sinks = (t if t is None else t.contiguous() for t in (documents, sinks))
        prepared = self._prepare_forward(q, k, v, documents, sinks, seed)
        call = prepared.call if documents is None else self._call(q, k, v, documents)

        def run(way: Way) -> tuple[Tensor, Tensor]:
            if way is CUDNN:
                return attention_cudnn.forward(q, k, v, isinstance(call.mask, Causal), self._scale(call))
            assert isinstance(way, Tile)
            o, lse = call.results(q)
            if way.name.startswith("hopper"):
                lists = _lists(call, way["BLOCK_M"], way["BLOCK_N"], q.device, of_keys=False)
                of_queries = None if call.listed else self.of_queries
                launch_hopper(
                    way, (q, k, v), o, lse, sinks, documents, lists, self._scale(call), self.softcap or 0.0,
                    self.allows, of_queries,
                )  # fmt: skip
            else:
                self._launch_forward(prepared, call, way, q, k, v, o, lse, documents, sinks, seed)
            return o, lse

        if call.is_empty:
            return call.results(q)
        return run_best("attention.forward", prepared.key, prepared.ways, run)

    def _prepare_forward(
        self, q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, sinks: Tensor | None, seed: Tensor | None
    ) -> _Prepared:
        layout = ("forward", seed is None, layout_of(q, k, v, documents, sinks))
        prepared = self._prepared.get(layout)
        if prepared is not None:
            return prepared
        self._check(q, k, v, documents, sinks)
        call = self._call(q, k, v, documents)
        hopper = [] if seed is not None or has_blocks(call.mask) else hopper_ways(q, k, v)
        ways: list[Way] = [*hopper, *forward_ways()]
        if self._plain(call, sinks, seed):
            ways.insert(0, CUDNN)
        key = self._key(call, q, sinks, seed)
        if documents is not None:  # which the mask holds, and what is kept must not
            call = replace(call, mask=Everything())
        return self._keep(layout, _Prepared(call, key, ways))

    def _keep(self, layout: object, prepared: _Prepared) -> _Prepared:
        if len(self._prepared) >= PLANS:
            self._prepared.clear()
        self._prepared[layout] = prepared
        return prepared

    def _launch_forward(
        self,
        prepared: _Prepared,
        call: _Call,
        way: Tile,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        o: Tensor,
        lse: Tensor,
        documents: Tensor | None,
        sinks: Tensor | None,
        seed: Tensor | None,
    ) -> None:
        m, n = way["BLOCK_M"], way["BLOCK_N"]
        lists = _lists(call, m, n, q.device, of_keys=False)
        launch = prepared.launches.get(way.name)
        if launch is None:
            e1, e2 = parts(call.width)
            reads = Reads.of((q, m, e1, e2), (k, n, e1, e2), (v, n, padded(call.value_width), 0))
            numbers = (*by_part(o), call.queries, call.keys, self._scale(call))
            constants = {
                **self._constants(call, documents, seed), "SINKS": sinks is not None, **_of_tile(way, reads.tma),
                "BOUNDS": None if call.listed else self.of_queries,
            }  # fmt: skip
            launch = Launch(
                (-(-call.queries // m) * call.batch * call.heads,), reads,
                (*numbers, together(k, v) * (call.heads // call.groups)), constants,
            )  # fmt: skip
            prepared.launches[way.name] = launch
        attend_forward.attention_forward[launch.grid](  # type: ignore[index]
            *launch.reads.given(q, k, v), o, lse, or_stand_in(sinks, lse), or_stand_in(documents, lse),
            or_stand_in(seed, lse), *listed(lists, lse), *launch.reads.strides, *launch.numbers, **launch.constants,
        )  # fmt: skip

    def _constants(self, call: _Call, documents: Tensor | None, seed: Tensor | None) -> dict[str, Any]:
        """Of every kernel but that of `_delta`."""
        e1, e2 = parts(call.width)
        return {
            "ALLOWS": self.allows, "SOFTCAP": self.softcap or 0.0, "DROPOUT": self.dropout if seed is not None else 0.0,
            "DOCUMENTS": documents is not None, "LISTED": call.listed, "HEADS": call.heads, "GROUPS": call.groups,
            "E": call.width, "E1": e1, "E2": e2, "V": call.value_width, "BLOCK_V": padded(call.value_width),
        }  # fmt: skip

    # --- backward

    def _gradients(
        self,
        grad_o: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        o: Tensor,
        lse: Tensor,
        documents: Tensor | None,
        sinks: Tensor | None,
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of q, k, v and sinks (empty where there are none)."""
        grad_o, q, k, v = (columns_together(t) for t in (grad_o, q, k, v))
        documents, sinks = (t if t is None else t.contiguous() for t in (documents, sinks))
        prepared = self._prepare_backward(grad_o, q, k, v, o, documents, sinks, seed)
        call = prepared.call if documents is None else self._call(q, k, v, documents)
        if call.is_empty:
            dq, dk, dv = (t.new_zeros(t.shape) for t in (q, k, v))
            return dq, dk, dv, lse.new_empty(0) if sinks is None else sinks.new_zeros(sinks.shape)

        def run(way: Way) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            if way is CUDNN:
                causal, scale = isinstance(call.mask, Causal), self._scale(call)
                return *attention_cudnn.backward(grad_o, q, k, v, o, lse, causal, scale), lse.new_empty(0)
            assert isinstance(way, Backward)
            return self._run_backward(prepared, call, way, grad_o, q, k, v, o, lse, documents, sinks, seed)

        return run_best("attention.backward", prepared.key, prepared.ways, run)

    def _prepare_backward(
        self,
        grad_o: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        o: Tensor,
        documents: Tensor | None,
        sinks: Tensor | None,
        seed: Tensor | None,
    ) -> _Prepared:
        deterministic = torch.are_deterministic_algorithms_enabled()
        layout = ("backward", deterministic, seed is None, layout_of(grad_o, q, k, v, o, documents, sinks))
        prepared = self._prepared.get(layout)
        if prepared is not None:
            return prepared
        call = self._call(q, k, v, documents)
        ways: list[Way] = list(backward_ways())
        if deterministic:
            ways = [way for way in ways if way.name.startswith("apart")]
        elif self._plain(call, sinks, seed):
            ways.insert(0, CUDNN)
        key = self._key(call, q, sinks, seed)
        if documents is not None:  # which the mask holds, and what is kept must not
            call = replace(call, mask=Everything())
        return self._keep(layout, _Prepared(call, key, ways))

    def _run_backward(
        self,
        prepared: _Prepared,
        call: _Call,
        way: Backward,
        grad_o: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        o: Tensor,
        lse: Tensor,
        documents: Tensor | None,
        sinks: Tensor | None,
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        delta, grad_sinks = self._delta(call, grad_o, o, lse, sinks)
        dk, dv = k.new_empty(k.shape), v.new_empty(v.shape)
        alone = way.queries is None
        dq = q.new_zeros(q.shape, dtype=torch.float32) if alone else q.new_empty(q.shape)
        rest = (or_stand_in(documents, lse), or_stand_in(seed, lse))

        def prepare(of_keys: bool, way: Tile) -> Launch:
            m, n = way["BLOCK_M"], way["BLOCK_N"]
            (e1, e2), e_v = parts(call.width), padded(call.value_width)
            reads = Reads.of((q, m, e1, e2), (k, n, e1, e2), (v, n, e_v, 0), (grad_o, m, e_v, 0))
            sizes, constants = (call.queries, call.keys, self._scale(call)), self._constants(call, documents, seed)
            constants |= {"BOUNDS": None if call.listed else self.of_keys if of_keys else self.of_queries}
            constants |= _of_tile(way, reads.tma)
            shared = call.heads // call.groups
            if of_keys:
                grid = -(-call.keys // n) * call.batch * call.groups
                numbers = (*by_part(dk), *by_part(dv), *sizes, max(1, together(q, grad_o) // shared))
                return Launch((grid,), reads, numbers, {**constants, "WITH_DQ": alone})
            grid = -(-call.queries // m) * call.batch * call.heads
            return Launch((grid,), reads, (*by_part(dq), *sizes, together(k, v) * shared), constants)

        def launch(of_keys: bool, way: Tile, name: str) -> tuple[Launch, TileLists | None]:
            known = prepared.launches.get(f"{name} {of_keys}")
            if known is None:
                known = prepared.launches[f"{name} {of_keys}"] = prepare(of_keys, way)
            return known, _lists(call, way["BLOCK_M"], way["BLOCK_N"], q.device, of_keys)

        one, lists = launch(True, way.keys, way.name)
        attend_backward.attention_backward_keys[one.grid](  # type: ignore[index]
            *one.reads.given(q, k, v, grad_o), dq, dk, dv, lse, delta, *rest, *listed(lists, lse), *one.reads.strides,
            *one.numbers, **one.constants,
        )  # fmt: skip
        if way.queries is None:
            return dq.to(q.dtype), dk, dv, grad_sinks
        one, lists = launch(False, way.queries, way.name)
        attend_backward.attention_backward_queries[one.grid](  # type: ignore[index]
            *one.reads.given(q, k, v, grad_o), dq, lse, delta, *rest, *listed(lists, lse), *one.reads.strides,
            *one.numbers, **one.constants,
        )  # fmt: skip
        return dq, dk, dv, grad_sinks

    def _delta(
        self, call: _Call, grad_o: Tensor, o: Tensor, lse: Tensor, sinks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What backward subtracts of each row, and the gradient of sinks."""
        block = 16 if interpreted() else 64
        tiles = -(-call.queries // block)
        delta = torch.empty_like(lse)
        of_tiles = torch.empty(call.batch, call.heads, tiles if sinks is not None else 0, device=o.device)
        attend_backward.attention_delta[(tiles * call.batch * call.heads,)](  # type: ignore[index]
            o, grad_o, delta, lse, or_stand_in(sinks, lse), of_tiles, *by_part(o), *by_part(grad_o), call.queries,
            SINKS=sinks is not None, HEADS=call.heads, V=call.value_width, BLOCK_V=padded(call.value_width),
            BLOCK_M=block,
        )  # fmt: skip
        return delta, of_tiles.sum((0, 2)).to(sinks.dtype) if sinks is not None else of_tiles.flatten()

    # --- what is called

    def _call(self, q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> _Call:
        batch, queries, heads, width = q.shape
        keys, groups = k.shape[1:3]
        mask = self.mask(documents).simplified(keys)
        listed = documents is not None or (self.allows is not None and self.of_queries is None)
        return _Call(batch, queries, keys, heads, groups, width, v.shape[-1], mask, listed)

    def _scale(self, call: _Call) -> float:
        return call.width**-0.5 if self.scale is None else self.scale

    def _plain(self, call: _Call, sinks: Tensor | None, seed: Tensor | None) -> bool:
        """Whether cuDNN can say it."""
        if interpreted() or sinks is not None or seed is not None or self.softcap is not None:
            return False
        fits = call.width % 8 == call.value_width % 8 == 0 and call.queries > 1
        causal = isinstance(call.mask, Causal) and call.queries == call.keys
        return fits and (causal or isinstance(call.mask, Everything)) and torch.cuda.get_device_capability() >= (8, 0)

    def _key(self, call: _Call, q: Tensor, sinks: Tensor | None, seed: Tensor | None) -> Key:
        """What the choice may depend on: lengths by powers of two."""
        mask = type(call.mask).__name__ if not call.listed else "listed"
        kind = str(q.dtype).removeprefix("torch.")
        sizes = (call.batch * call.heads, call.heads // call.groups, _bucket(call.queries), _bucket(call.keys))
        options = (self.softcap is not None, sinks is not None, seed is not None)
        return (kind, mask, *sizes, call.width, call.value_width, *options)

    def _check(self, q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, sinks: Tensor | None) -> None:
        for name, tensor in (("k", k), ("v", v), ("documents", documents), ("sinks", sinks)):
            if tensor is not None and tensor.device != q.device:
                raise self.error(f"`{name}` is on {tensor.device}, and `q` is on {q.device}")
        for name, tensor in (("k", k), ("v", v)):
            if tensor.dtype != q.dtype:
                raise self.error(f"`{name}` is {tensor.dtype}, and `q` is {q.dtype}")
        if not (q.ndim == k.ndim == v.ndim == 4 and q.shape[0] == k.shape[0] and k.shape[:3] == v.shape[:3]):
            shapes = ", ".join(str(list(t.shape)) for t in (q, k, v))
            raise self.error(f"takes q [B, S, H, E], k [B, T, G, E] and v [B, T, G, V], not {shapes}")
        if q.shape[-1] != k.shape[-1] or q.shape[2] % max(1, k.shape[2]) or q.shape[1] > k.shape[1]:
            raise self.error(f"queries {list(q.shape)} do not go with keys {list(k.shape)}")
        if max(q.shape[-1], v.shape[-1]) > MOST_WIDTH:
            raise self.error(f"heads are to {MOST_WIDTH} wide, not {max(q.shape[-1], v.shape[-1])}")
        if documents is not None and documents.shape != k.shape[:2]:
            raise self.error(f"documents are {list(documents.shape)}, one for each of positions {list(k.shape[:2])}")
        if sinks is not None and sinks.shape != (q.shape[2],):
            raise self.error(f"there is a sink for each of {q.shape[2]} heads, not {list(sinks.shape)}")

    def error(self, message: str) -> KernelError:
        return KernelError(f"{self.name.split('::')[1]} ({self.spec}): {message}")


def _of_tile(way: Tile, tma: bool) -> dict[str, Any]:
    return {
        "BLOCK_M": way["BLOCK_M"], "BLOCK_N": way["BLOCK_N"], "STAGES": way.stages, "TMA": tma, "num_warps": way.warps,
        "num_stages": way.stages,
    }  # fmt: skip


def _lists(call: _Call, m: int, n: int, device: torch.device, of_keys: bool) -> TileLists | None:
    if not call.listed:
        return None
    return tile_lists(call.mask, Grid(call.queries, call.keys, m, n, device), of_keys)


def _bucket(length: int) -> int:
    return 1 << max(0, math.ceil(math.log2(max(1, length))))
