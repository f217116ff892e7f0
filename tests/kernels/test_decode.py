"""Attention of decoding: against float64, and to the bit where batches must not matter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dskc.runtime.kernels import KernelError, use_kernels
from dskc.runtime.kernels.decode import attention as decode
from dskc.runtime.kernels.decode import latent as latent_decode
from dskc.runtime.kernels.decode import split
from dskc.runtime.kernels.tuning import Tile, forget, tile
from dskc.runtime.reference import attention, causal, paged, window

from .conftest import examples

# What fails is not shrunk: it is small already, and with Triton's interpreter that takes minutes.
QUIET = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.explicit, Phase.generate),
}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = tile(4, 2, BLOCK_N=16, BLOCK_R=16, PIECE=32, CHUNK=64)  # so that short texts have pieces and chunks
NO_FOLD = tile(4, 2, BLOCK_N=16, BLOCK_R=16, PIECE=32, CHUNK=32)
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@contextmanager
def only(*tiles: Tile) -> Iterator[None]:
    """These tiles alone; none are those that there are."""
    forget()
    split.forget_plans()
    everywhere = [(decode, "TILES"), (latent_decode, "TILES"), (latent_decode, "FEW_TILES")]
    if not tiles:
        yield
        return
    patches = [mock.patch.object(module, name, tiles) for module, name in everywhere]
    # Blocks of rows are as many as a tile says, also where more would fit.
    patches.append(mock.patch.object(decode, "rows_of", lambda rows: tiles[0]["BLOCK_R"]))
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()
        split.forget_plans()


@contextmanager
def spread_by(unit: str) -> Iterator[None]:
    """Programs take a "PIECE" each, or a "CHUNK"."""

    def spread(call: split.Attention, tile: Tile, processors: int) -> tuple[int, int]:
        return tile[unit], call.units(tile[unit])

    split.forget_plans()
    try:
        with mock.patch.object(split.Attention, "spread", spread):
            yield
    finally:
        split.forget_plans()


@contextmanager
def poisoned() -> Iterator[None]:
    """What is allocated is NaN until it is written."""
    empty = torch.empty

    def poison(*shape, **options):  # type: ignore[no-untyped-def]
        made = empty(*shape, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    with mock.patch.object(torch, "empty", poison):
        yield


@dataclass(frozen=True)
class Text:
    """Queries, and a contiguous cache that is NaN beyond the lengths."""

    q: Tensor  # [B, S, H, E]
    k: Tensor  # [B, T, G, E]
    v: Tensor
    lengths: Tensor

    def to(self, dtype: torch.dtype) -> Text:
        return Text(self.q.to(dtype), self.k.to(dtype), self.v.to(dtype), self.lengths)

    def rows(self, *chosen: int) -> Text:
        index = torch.tensor(chosen, dtype=torch.int64, device=DEVICE)
        return Text(self.q[index], self.k[index], self.v[index], self.lengths[index])

    def in_pages(self, page: int, seed: int) -> tuple[Text, Tensor]:
        """The same with the cache in pages, in any order and between others, and the table."""
        batch, positions = self.k.shape[:2]
        count = -(-positions // page)
        order = torch.randperm(batch * count + 3, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        table = order[: batch * count].view(batch, count).int()

        def paged_as(cache: Tensor) -> Tensor:
            padded = torch.full((batch, count * page, *cache.shape[2:]), torch.nan, device=DEVICE)
            padded[:, :positions] = cache.float()
            pages = torch.full((len(order), page, *cache.shape[2:]), torch.nan, device=DEVICE)
            pages[table.long()] = padded.unflatten(1, (count, page))
            return pages.to(cache.dtype)

        text = Text(self.q, paged_as(self.k), paged_as(self.v), self.lengths)
        used = torch.arange(count, device=DEVICE) * page < self.lengths[:, None]
        return text, torch.where(used, table, 2**30)  # what is not used must not be read


def text(
    lengths: list[int], queries: int, heads: int, groups: int, width: int, value: int, *,
    room: int | None = None, dtype: torch.dtype = torch.float32, seed: int = 0, size: float = 1.0,
) -> Text:  # fmt: skip
    """Random tensors; `size` is that of queries and values."""
    generator = torch.Generator().manual_seed(seed)
    batch, positions = len(lengths), max(lengths) if room is None else room

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    q, k, v = (drawn(batch, queries, heads, width) * size, drawn(batch, positions, groups, width),
               drawn(batch, positions, groups, value) * size)  # fmt: skip
    for b, length in enumerate(lengths):
        k[b, length:] = torch.nan
        v[b, length:] = torch.nan
    q, k, v = (x.to(dtype).to(DEVICE) for x in (q, k, v))
    return Text(q, k, v, torch.tensor(lengths, dtype=torch.int32, device=DEVICE))


def close(made: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    """o within a dtype's precision of the largest value of its row, lse within 1e-5 or so of its size."""
    (o, lse), (o_exact, lse_exact) = made, exact
    assert o.shape == o_exact.shape and lse.shape == lse_exact.shape
    assert o.dtype == dtype and lse.dtype == torch.float32 and o.is_contiguous()
    assert o.isfinite().all(), "not every row was written, or something was read that is not there"
    error, scale = (o.double() - o_exact).norm(), o_exact.norm() + 1e-30
    assert error <= TOLERANCE[dtype] * scale, f"off by {error / scale:.2e}"
    assert torch.equal(lse == -torch.inf, lse_exact == -torch.inf)
    seen = lse_exact.isfinite()
    torch.testing.assert_close(lse[seen].double(), lse_exact[seen], rtol=1e-3 if dtype != torch.float32 else 1e-5,
                               atol=2e-3 if dtype != torch.float32 else 2e-5)  # fmt: skip


Options = dict[str, float | int | Tensor | None]


def run(given: Text, table: Tensor | None = None, longest: int | None = None, **options) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    with use_kernels("triton"), poisoned(), torch.no_grad():
        return decode.decode_attention_lse(
            given.q, given.k, given.v, given.lengths, table_BN=table, longest=longest, **options
        )


def exactly(given: Text, **options) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    return paged.decode_attention(*vars(given.to(torch.float64)).values(), **options)


@st.composite
def options_of(draw: st.DrawFn, heads: int) -> Options:
    drawn: Options = {
        "window": draw(st.sampled_from([None, 1, 7, 40, 1000])),
        "softcap": draw(st.sampled_from([None, 0.5, 30.0])),
        "scale": draw(st.sampled_from([None, 0.3])),
    }
    if draw(st.booleans()):
        drawn["sinks_H"] = torch.linspace(-2.0, 3.0, heads, device=DEVICE)
    return drawn


def drawn_text(data: st.DataObject, dtypes: tuple[torch.dtype, ...]) -> tuple[Text, torch.dtype, Options, int]:
    queries, groups = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2]))
    heads = groups * data.draw(st.sampled_from([1, 3, 8]))
    width, value = data.draw(st.sampled_from([16, 20, 24, 48, 80])), data.draw(st.sampled_from([16, 24, 80]))
    lengths = data.draw(st.lists(st.sampled_from([0, 1, 2, 16, 31, 32, 33, 64, 65, 100]), min_size=1, max_size=3))
    dtype, seed = data.draw(st.sampled_from(dtypes)), data.draw(st.integers(0, 99))
    size = data.draw(st.sampled_from([1.0, 1e-3, 20.0]))
    room = max(lengths) + data.draw(st.sampled_from([0, 5]))
    given = text(lengths, queries, heads, groups, width, value, room=room, dtype=dtype, seed=seed, size=size)
    return given, dtype, data.draw(options_of(heads)), data.draw(st.sampled_from([0, 8, 16, 32]))


def check_drawn(data: st.DataObject, dtypes: tuple[torch.dtype, ...], *tiles: Tile) -> None:
    given, dtype, options, page = drawn_text(data, dtypes)
    exact = exactly(given, **options)
    table = None
    if page and given.k.shape[1]:
        given, table = given.in_pages(page, 1)
    longest = data.draw(st.sampled_from([None, max(given.lengths.tolist())]))
    with only(*tiles), spread_by(data.draw(st.sampled_from(["PIECE", "CHUNK"]))):
        close(run(given, table, longest, **options), exact, dtype)


@settings(max_examples=examples(20), **QUIET)
@given(data=st.data())
def test_drawn_texts(data: st.DataObject) -> None:
    check_drawn(data, (torch.float32, torch.float16), data.draw(st.sampled_from([SMALL, NO_FOLD])))


@pytest.mark.gpu
@ON_GPU
@settings(max_examples=examples(60), **QUIET)
@given(data=st.data())
def test_drawn_texts_on_a_gpu(data: st.DataObject) -> None:
    check_drawn(data, (torch.bfloat16, torch.float16))


@pytest.mark.parametrize("given_window", [None, 9])
@pytest.mark.parametrize("bound", [None, 2.0])
def test_the_reference_is_attention_of_each_sequence(given_window: int | None, bound: float | None) -> None:
    given = text([40, 7, 23], 3, 4, 2, 16, 8).to(torch.float64)
    sinks = torch.linspace(-1.0, 1.0, 4, dtype=torch.float64, device=DEVICE)
    o, lse = paged.decode_attention(
        *vars(given).values(), window=given_window, softcap=bound, sinks_H=None if bound is None else sinks
    )
    mask = causal if given_window is None else causal & window(given_window)
    for b, length in enumerate(given.lengths.tolist()):
        k, v = given.k[b : b + 1, :length], given.v[b : b + 1, :length]
        alone = attention(given.q[b : b + 1], k, v, mask, softcap=bound, sinks=None if bound is None else sinks)
        torch.testing.assert_close(o[b : b + 1], alone, rtol=1e-10, atol=1e-12)
    assert lse.shape == o.shape[:3]


def same_bits(given: Text, page: int, **options) -> None:  # type: ignore[no-untyped-def]
    """The first sequence alone and in company, in pages and not, however work is spread."""
    alone = run(given.rows(0), **options)
    in_pages, table = given.in_pages(page, 2)
    for unit in ("PIECE", "CHUNK"):
        with spread_by(unit):
            made = [
                (run(given, **options), 0),
                (run(given.rows(1, 0, 2), longest=max(given.lengths.tolist()), **options), 1),
                (run(in_pages, table, **options), 0),
                (run(given.rows(0), longest=int(given.lengths[0]), **options), 0),
            ]
        for results, row in made:
            for one, other in zip(results, alone, strict=True):
                assert torch.equal(one[row], other[0])


@pytest.mark.parametrize("options", [{}, {"window": 70}])
def test_a_row_depends_on_its_own_sequence_alone(options: dict[str, int]) -> None:
    with only(SMALL):
        same_bits(text([100, 9, 110], 2, 4, 1, 24, 16, seed=3), 8, **options)


@pytest.mark.gpu
@ON_GPU
@pytest.mark.parametrize("page", [16, 64, 128])
@pytest.mark.parametrize("options", [{}, {"window": 700}])
@pytest.mark.parametrize("shape", [(1, 32, 32, 128, 128), (1, 32, 8, 128, 128), (4, 16, 16, 192, 128)])
def test_a_row_depends_on_its_own_sequence_alone_on_a_gpu(
    page: int, options: dict[str, int], shape: tuple[int, int, int, int, int]
) -> None:
    given = text([5000, 9, 3333], *shape, seed=3, dtype=torch.bfloat16)
    with only():
        same_bits(given, page, **options)


def test_a_tile_may_hold_several_blocks_of_rows() -> None:
    given = text([37], 5, 10, 2, 16, 16)  # 25 rows a group
    with only(SMALL):
        close(run(given), exactly(given), torch.float32)


def test_an_fp8_cache() -> None:
    given = text([37, 64], 1, 4, 2, 32, 16)
    k, v = (x.nan_to_num(0.0).div(s).to(torch.float8_e4m3fn) for x, s in ((given.k, 0.25), (given.v, 0.5)))
    stored = Text(given.q, k, v, given.lengths)
    exact = paged.decode_attention(given.q.double(), k, v, given.lengths, k_scale=0.25, v_scale=0.5)
    with only(SMALL):
        close(run(stored, k_scale=0.25, v_scale=0.5), exact, torch.float32)


def test_views_of_other_tensors_and_the_same_bits_twice() -> None:
    given = text([70, 33], 2, 4, 2, 24, 16)
    joined = torch.cat((given.k, given.v), dim=-1)
    views = Text(
        given.q.transpose(1, 2).contiguous().transpose(1, 2), joined[..., :24], joined[..., 24:], given.lengths
    )
    with only(SMALL):
        first, second, other = run(given), run(given), run(views)
    for a, b, c in zip(first, second, other, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


# --- latents


def latents(
    lengths: list[int], queries: int, heads: int, width: int, rope: int, dtype: torch.dtype
) -> tuple[Text, int]:
    """Queries and caches [B, T, 1, C + R], of which the first C are the value too."""
    given = text(lengths, queries, heads, 1, width + rope, 1, dtype=dtype)
    return given, width


def run_latent(given: Text, width: int, table: Tensor | None = None, **options) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    with use_kernels("triton"), poisoned(), torch.no_grad():
        cache = given.k.squeeze(2)
        return latent_decode.latent_decode_lse(
            given.q[..., :width], given.q[..., width:], cache[..., :width], cache[..., width:], given.lengths,
            scale=0.2, table_BN=table, **options,
        )  # fmt: skip


def exact_latent(given: Text, width: int, **options) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    wide = given.to(torch.float64)
    q, cache = wide.q, wide.k.squeeze(2)
    return paged.latent_decode(
        q[..., :width], q[..., width:], cache[..., :width], cache[..., width:], given.lengths, scale=0.2, **options
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("page", [0, 16])
@pytest.mark.parametrize("shape", [(1, 4, 32, 16), (2, 20, 48, 8)])
def test_latents(shape: tuple[int, int, int, int], page: int, dtype: torch.dtype) -> None:
    given, width = latents([90, 0, 33], *shape, dtype)
    exact = exact_latent(given, width)
    table = None
    if page:
        given, table = given.in_pages(page, 1)
    with only(SMALL):
        close(run_latent(given, width, table), exact, dtype)


def test_a_latent_row_depends_on_its_own_sequence_alone() -> None:
    given, width = latents([150, 40], 1, 4, 32, 16, torch.float32)
    in_pages, table = given.in_pages(8, 1)
    with only(SMALL):
        alone = run_latent(given.rows(0), width)
        for unit in ("PIECE", "CHUNK"):
            with spread_by(unit):
                for made in (run_latent(given, width), run_latent(in_pages, width, table)):
                    assert torch.equal(made[0][0], alone[0][0]) and torch.equal(made[1][0], alone[1][0])


@pytest.mark.gpu
@ON_GPU
@pytest.mark.parametrize("tile", [*latent_decode.FEW_TILES, *latent_decode.TILES], ids=lambda tile: tile.name)
@pytest.mark.parametrize("page", [0, 16, 64])
def test_every_tile_of_latents_on_a_gpu(tile: Tile, page: int) -> None:
    heads = 16 if tile in latent_decode.FEW_TILES else 128
    given, width = latents([4100, 1, 3000], 1, heads, 512, 64, torch.bfloat16)
    exact = exact_latent(given, width)
    table = None
    if page:
        given, table = given.in_pages(page, 1)
    with only(tile):
        for unit in ("PIECE", "CHUNK"):
            with spread_by(unit):
                close(run_latent(given, width, table), exact, torch.bfloat16)


@pytest.mark.gpu
@ON_GPU
@pytest.mark.parametrize("tile", decode.TILES, ids=lambda tile: tile.name)
@pytest.mark.parametrize("widths", [(64, 64), (96, 96), (128, 128), (192, 128), (256, 256)])
def test_every_tile_on_a_gpu(tile: Tile, widths: tuple[int, int]) -> None:
    group = tile["BLOCK_R"] // 2
    given = text([2500, 1, 1024], 2, 2 * group, 2, *widths, dtype=torch.bfloat16)
    exact = exactly(given)
    in_pages, table = given.in_pages(32, 1)
    try:
        with only(tile):
            close(run(given), exact, torch.bfloat16)
            close(run(in_pages, table), exact, torch.bfloat16)
    except Exception as error:
        if type(error).__name__ != "OutOfResources":  # it is passed over
            raise


# --- what is refused, and what torch is told


def test_what_kernels_cannot_take() -> None:
    good = text([20, 8], 1, 4, 2, 16, 16)
    wrong: dict[str, tuple[Text, Options]] = {
        "queries are float64": (good.to(torch.float64), {}),
        "do not divide": (Text(good.q[:, :, :3], good.k, good.v, good.lengths), {}),
        "a cache for float32 queries is not float16": (
            Text(good.q, good.k.half(), good.v.half(), good.lengths), {},
        ),
        "keys 8": (Text(good.q, good.k[..., :8], good.v, good.lengths), {}),
        "lengths are int32": (Text(good.q, good.k, good.v, good.lengths.long()), {}),
        "for a batch of 2": (Text(good.q, good.k[:1], good.v[:1], good.lengths), {}),
        "room for 20": (good, {"longest": 21}),
        "a window of 0": (good, {"window": 0}),
        "one run of memory": (Text(good.q, good.k.mT.contiguous().mT, good.v, good.lengths), {}),
        "sinks are": (good, {"sinks_H": torch.zeros(3, device=DEVICE)}),
        "256 at most": (text([4], 1, 1, 1, 300, 16), {}),
    }  # fmt: skip
    for message, (taken, options) in wrong.items():
        with pytest.raises(KernelError, match=message) as caught:
            run(taken, **options)
        assert str(caught.value).startswith("decode_attention: ")
    with use_kernels("triton"), pytest.raises(KernelError, match="no gradient"):
        decode.decode_attention(good.q.requires_grad_(), good.k, good.v, good.lengths)


def test_nothing_asked_nothing_made() -> None:
    given = text([5, 0], 1, 2, 1, 16, 8)
    assert run(given.rows())[0].shape == (0, 1, 2, 8)
    nobody = Text(given.q, given.k[:, :0], given.v[:, :0], torch.zeros_like(given.lengths))
    o, lse = run(nobody)
    assert torch.equal(o, torch.zeros_like(o)) and (lse == -torch.inf).all()


def test_torch_knows_the_operations() -> None:
    given, _ = latents([40, 9], 1, 4, 32, 16, torch.float32)
    cache = given.k.nan_to_num(0.0).squeeze(2)
    usual = (given.lengths, None, 40, 0.2, None, None, None)
    with only(SMALL):
        torch.library.opcheck(
            torch.ops.dskc.latent_decode,
            (given.q[..., :32], given.q[..., 32:], cache[..., :32], cache[..., 32:], *usual),
        )
        k = given.k.nan_to_num(0.0)
        torch.library.opcheck(torch.ops.dskc.decode_attention, (given.q, k, k[..., :8], *usual, 1.0, 1.0))


@pytest.mark.gpu
@ON_GPU
def test_torch_compile_sees_one_graph() -> None:
    given = text([300, 9], 1, 8, 2, 128, 128, dtype=torch.bfloat16)

    def step(q: Tensor) -> Tensor:
        return decode.decode_attention(q, given.k, given.v, given.lengths) * 2

    with torch.no_grad(), only():
        assert torch.equal(torch.compile(step, fullgraph=True)(given.q), step(given.q))
