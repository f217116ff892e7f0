"""Attention's bits, what torch is told of it, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from dskc.compiler.values import Mask
from dskc.runtime import reference
from dskc.runtime.kernels import KernelError, use_kernels
from dskc.runtime.kernels.attention import kernel as attention
from dskc.runtime.kernels.attention import ways as attention_ways
from dskc.runtime.kernels.tuning import Way, forget

from .attention_calls import (
    WIDE,
    Shape,
    compare,
    device,
    drawn,
    expected,
    one_way,
    run,
)
from .drawn_masks import (
    CAUSAL,
    DOCUMENTS,
    blocks,
    both,
    window,
    written,
)


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    forget()
    with use_kernels("triton"):
        yield


# --- the same bits


MASKS = {
    "causal": CAUSAL,
    "window": both(CAUSAL, window(9)),
    "documents": both(CAUSAL, DOCUMENTS),
    "blocks": both(CAUSAL, blocks(3, 1, 1, 2)),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_the_same_bits_again_and_for_each_sequence_alone(mask: Mask) -> None:
    tensors = drawn(Shape(20, 37, batch=3, width=24), documents="packed" if "documents" in mask.names else "")
    kernel = written(mask).kernel()
    torch.use_deterministic_algorithms(True)
    try:
        assert all(way.name.startswith("apart") for way in attention_ways.backward_ways()[:1]) or device == "cuda"
        made, again = run(kernel, tensors), run(kernel, tensors)
        alone = [run(kernel, tensors.of_row(b)) for b in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    for name, tensor in made.tensors.items():
        assert torch.equal(tensor, again.tensors[name]), name
        for b in range(3):
            assert torch.equal(tensor[b : b + 1], alone[b].tensors[name]), name


def test_what_is_not_seen_changes_no_bit() -> None:
    tensors = drawn(Shape(40, 40))
    later = replace(tensors, k=tensors.k.clone(), v=tensors.v.clone())
    later.k[:, 23:] *= 100
    later.v[:, 23:] = 7
    kernel = written(CAUSAL).kernel()
    made, other = run(kernel, tensors), run(kernel, later)
    assert torch.equal(made.o[:, :23], other.o[:, :23]) and torch.equal(made.lse[..., :23], other.lse[..., :23])
    assert torch.equal(made.q[:, :23], other.q[:, :23]) and not torch.equal(made.o[:, 23:], other.o[:, 23:])


def test_deterministic_algorithms_add_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def run_first(operation: str, key: object, ways: list[Way], run: object) -> object:
        taken.extend(way.name for way in ways if operation == "attention.backward")
        return run(ways[0])  # type: ignore[operator]

    monkeypatch.setattr(attention, "run_best", run_first)
    run(written(CAUSAL).kernel(), drawn(Shape(5, 5)))  # asks for deterministic algorithms
    assert taken and all(name.startswith("apart") for name in taken)


@pytest.mark.parametrize("together", [1, 3, 100])
def test_programs_are_ordered_by_what_the_cache_holds(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "together", lambda *_: together)
    tensors = drawn(Shape(20, 33, batch=2, heads=4, groups=2))
    compare(run(written(CAUSAL).kernel(), tensors), expected(CAUSAL, tensors), WIDE)


def test_checkpoints_draw_the_same_again() -> None:
    kernel, tensors = written(CAUSAL).kernel(dropout=0.5), drawn(Shape(20, 20))
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        q, k, v = (t.clone().requires_grad_() for t in (tensors.q, tensors.k, tensors.v))
        if checkpointed:
            o = torch.utils.checkpoint.checkpoint(kernel, q, k, v, training=True, use_reentrant=False)
        else:
            o = kernel(q, k, v, training=True)
        found.append(torch.autograd.grad(o, (q, k, v), tensors.grad_o))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) or device == "cuda"


def test_documents_that_are_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, tensors = written(both(CAUSAL, DOCUMENTS)).kernel(), drawn(Shape(batch=2), documents="packed")
    assert tensors.documents is not None
    with torch.inference_mode():
        inside = kernel(tensors.q, tensors.k, tensors.v, tensors.documents.clone())
    before = kernel(tensors.q, tensors.k, tensors.v, tensors.documents)
    assert torch.equal(inside, before)
    tensors.documents.zero_()
    after = kernel(tensors.q, tensors.k, tensors.v, tensors.documents)
    assert not torch.equal(before, after) and torch.equal(
        after, written(CAUSAL).kernel()(tensors.q, tensors.k, tensors.v)
    )


# --- what is chosen and refused


def test_where_kernels_are_not_in_use_it_is_the_reference() -> None:
    kernel, tensors = written(CAUSAL).kernel(softcap=3.0), drawn(Shape(), torch.float64)
    wanted = reference.attention(tensors.q, tensors.k, tensors.v, mask=reference.causal, softcap=3.0)
    assert torch.equal(kernel(tensors.q, tensors.k, tensors.v), wanted)
    with use_kernels("reference"):
        narrow = drawn(Shape(), torch.float16)
        made = kernel(narrow.q, narrow.k, narrow.v)
        assert torch.equal(made, reference.attention(narrow.q, narrow.k, narrow.v, mask=reference.causal, softcap=3.0))


def test_shapes_without_numbers() -> None:
    kernel, tensors = (
        written(both(CAUSAL, DOCUMENTS)).kernel(),
        drawn(Shape(value_width=24), documents="mixed", sinks=True),
    )
    given = [t.to("meta") for t in (tensors.q, tensors.k, tensors.v)]
    assert tensors.documents is not None and tensors.sinks is not None
    q = given[0].requires_grad_()
    o, lse = kernel._operation(q, *given[1:], tensors.documents.to("meta"), tensors.sinks.to("meta"), None)
    assert o.shape == (1, 33, 2, 24) and o.dtype == WIDE and lse.shape == (1, 2, 33) and lse.dtype == torch.float32
    (grad_q,) = torch.autograd.grad(o, q, torch.empty_like(o))
    assert grad_q.shape == q.shape
    real = (tensors.q, tensors.k, tensors.v, tensors.documents, tensors.sinks, None)
    torch.library.opcheck(kernel._operation, real, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("way", ["apart", "together"])
def test_what_torch_is_told_of_backward(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one_way(monkeypatch, way)
    kernel, tensors = written(CAUSAL).kernel(), drawn(Shape(20, 20), sinks=True)
    o, lse = kernel._operation(tensors.q, tensors.k, tensors.v, None, tensors.sinks, None)
    real = (tensors.grad_o, tensors.q, tensors.k, tensors.v, o, lse, None, tensors.sinks, None)
    torch.library.opcheck(kernel._backward, real, test_utils=("test_schema", "test_faketensor"))


def test_what_a_kernel_cannot_take_is_said_with_its_line() -> None:
    kernel, tensors = written(both(CAUSAL, DOCUMENTS)).kernel(), drawn(Shape(), documents="mixed", sinks=True)
    good = (tensors.q, tensors.k, tensors.v, tensors.documents, tensors.sinks)
    wide = drawn(Shape(3, 3, width=264))
    q, k, v, documents, sinks = good
    assert documents is not None and sinks is not None
    for tensors_given, what in (
        ((q, k.double(), v, documents, sinks), "`k` is torch.float64, and `q` is"),
        ((q, k, v.to("meta"), documents, sinks), "`v` is on meta"),
        ((q, k, v, documents.to("meta"), sinks), "`documents` is on meta"),
        ((q, k[0], v, documents, sinks), r"takes q \[B, S, H, E\]"),
        ((q, k, v[:, :-1], documents, sinks), r"takes q \[B, S, H, E\]"),
        ((q[..., :-1], k, v, documents, sinks), "do not go with keys"),
        ((q, k[:, :3], v[:, :3], documents, sinks), "do not go with keys"),
        ((wide.q, wide.k, wide.v, None, None), "heads are to 256 wide, not 264"),
        ((q, k, v, documents[:, :-1], sinks), "documents are"),
        ((q, k, v, documents, sinks[:-1]), "a sink for each of 2 heads"),
    ):
        with pytest.raises(KernelError, match=what) as caught:
            kernel(*tensors_given)
        assert str(caught.value).startswith("attention_") and "(drawn.dsk:7): " in str(caught.value)


def test_what_is_kept_of_a_call_holds_nothing_of_its_documents() -> None:
    """One kernel for tensors that lie alike, with other documents each time."""
    mask = both(CAUSAL, DOCUMENTS)
    kernel = written(mask).kernel()
    with use_kernels("triton"):
        for kind, seed in (("packed", 0), ("mixed", 1), ("packed", 2)):
            given = drawn(Shape(20, 20), documents=kind, seed=seed)
            compare(run(kernel, given), expected(mask, given), given.q.dtype)
