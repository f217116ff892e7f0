"""Linear and cross entropy at once against logits that are held, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dskc.runtime import reference
from dskc.runtime.kernels import KernelError, use_kernels
from dskc.runtime.kernels.loss import linear_loss
from dskc.runtime.kernels.loss import products as loss_products
from dskc.runtime.kernels.loss import rows as loss_rows
from dskc.runtime.kernels.tuning import choices, forget, tile, tuning

# Interpreted, shrinking an example takes minutes.
QUIET = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck), "phases": (Phase.generate,)}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
device = "cuda" if torch.cuda.is_available() else "cpu"
MEAN, ROWS = linear_loss.mean_linear_loss, linear_loss.linear_losses
IN_ITS_PLACE = loss_products.IN_ITS_PLACE.name
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels, interpreted with blocks so small that rows take several."""
    forget()
    if device == "cpu":
        monkeypatch.setattr(loss_products, "ROW_TILES", (tile(4, 1, BLOCK=16), tile(4, 2, BLOCK=32)))
        monkeypatch.setattr(loss_products, "BLOCK_TILES", (tile(4, 1, BLOCK=32), tile(4, 1, BLOCK=64)))
    with use_kernels("triton"):
        yield


@contextmanager
def most_bytes(most: int) -> Iterator[None]:
    """So that few logits are held at a time."""
    before = loss_products.LEAST_BYTES, loss_products.MOST_BYTES
    loss_products.LEAST_BYTES = loss_products.MOST_BYTES = most
    try:
        yield
    finally:
        loss_products.LEAST_BYTES, loss_products.MOST_BYTES = before


@contextmanager
def poisoned() -> Iterator[None]:
    """What is allocated and not written is not a number."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Given:
    """Random tensors. `tensors`: x, weight and bias or None."""

    tensors: tuple[Tensor, Tensor, Tensor | None]
    target_N: Tensor
    upstream_N: Tensor


def drawn(
    rows: int, vocabulary: int, width: int, dtype: torch.dtype, seed: int = 0, bias: bool = False, size: float = 1.0,
    ignored: float = 0.2,
) -> Given:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = (size * normal(rows, width), normal(vocabulary, width) / max(1, width) ** 0.5, normal(vocabulary))
    target_N = torch.randint(0, vocabulary, (rows,), generator=generator)
    target_N = target_N.where(torch.rand(rows, generator=generator) >= ignored, -100)
    x, weight, bias_V = (t.to(device, dtype) for t in tensors)
    return Given((x, weight, bias_V if bias else None), target_N.to(device), normal(rows).to(device))


Function = Callable[..., Tensor]


def run(function: Function, given: Given, by: float = 1.0, **options: object) -> tuple[Tensor, list[Tensor]]:
    """The loss, and the gradients of x, weight and bias for some factor from above."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in given.tensors]
    loss = function(*leaves[:2], given.target_N, bias_V=leaves[2], **options)
    loss.backward(given.upstream_N.to(loss.dtype) if loss.ndim else torch.full_like(loss, by))
    return loss.detach(), [t.grad for t in leaves if t is not None and t.grad is not None]


def exact(function: Function, given: Given, by: float = 1.0, **options: object) -> tuple[Tensor, list[Tensor]]:
    """The same of the reference, in float64."""
    wide = tuple(None if t is None else t.double() for t in given.tensors)
    with use_kernels("reference"):
        return run(function, Given(wide, given.target_N, given.upstream_N), by, **options)


def close(ours: tuple[Tensor, list[Tensor]], theirs: tuple[Tensor, list[Tensor]], tolerance: float) -> None:
    assert len(ours[1]) == len(theirs[1])
    for what, a, b in zip(("loss", "x", "weight", "bias"), (ours[0], *ours[1]), (theirs[0], *theirs[1]), strict=False):
        assert a.shape == b.shape and a.isfinite().all(), what
        error, size = float((a.double() - b).norm()), float(b.norm())
        assert error <= tolerance * (size + 1e-2 * b.numel() ** 0.5), f"{what}: {error:.2e} of {size:.2e}"


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "z": st.sampled_from([1e-2, 1e-4]),
        "smoothing": st.sampled_from([0.1, 1.0]),
        "softcap": st.sampled_from([2.0, 30.0]),
        "scale": st.sampled_from([0.25, 3.0]),
    },
)


@settings(max_examples=30, **QUIET)
@given(
    rows=st.sampled_from([0, 1, 2, 5, 9]), vocabulary=st.sampled_from([1, 2, 17, 48, 65]), width=st.integers(1, 20),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16]), seed=st.integers(0, 99), bias=st.booleans(),
    size=st.sampled_from([1e-3, 1.0, 20.0]), ignored=st.sampled_from([0.0, 0.3, 1.0]),
    most=st.sampled_from([1, 500, 4000, 1 << 20]), options=OPTIONS, function=st.sampled_from([MEAN, ROWS]),
)  # fmt: skip
def test_drawn(
    rows: int, vocabulary: int, width: int, dtype: torch.dtype, seed: int, bias: bool, size: float, ignored: float,
    most: int, options: dict[str, float], function: Function,
) -> None:  # fmt: skip
    case = drawn(rows, vocabulary, width, dtype, seed, bias, size, ignored)
    with most_bytes(most), poisoned():
        ours = run(function, case, **options)
    close(ours, exact(function, case, **options), TOLERANCE[dtype] * (3 if "scale" in options else 1))


@settings(max_examples=8, **QUIET)
@given(
    rows=st.sampled_from([5, 11, 19]), vocabulary=st.sampled_from([65, 96, 143]), width=st.sampled_from([16, 32]),
    dtype=st.sampled_from([torch.float64, torch.float32]), bias=st.booleans(), some=st.sampled_from([16, 33, 48]),
    options=OPTIONS,
)  # fmt: skip
def test_logits_in_the_memory_of_the_gradient(
    rows: int, vocabulary: int, width: int, dtype: torch.dtype, bias: bool, some: int, options: dict[str, float]
) -> None:
    case = drawn(rows, vocabulary, width, dtype, bias=bias)
    most = max(min(rows, width) * some, loss_rows.aligned(vocabulary)) * dtype.itemsize
    with most_bytes(most), poisoned():
        ours = run(MEAN, case, **options)
    if rows > most // dtype.itemsize // loss_rows.aligned(vocabulary):
        assert IN_ITS_PLACE in choices().values()
    close(ours, exact(MEAN, case, **options), TOLERANCE[dtype])


def test_bytes_at_a_time() -> None:
    least, most = loss_products.LEAST_BYTES, loss_products.MOST_BYTES
    at_a_time = loss_products.bytes_at_a_time
    assert [at_a_time(n) for n in (0, 7, least, least + 1, 8 * least)] == [0, 7, least, least, least]
    assert at_a_time(16 * least) == 2 * least and at_a_time(8 * most) == at_a_time(1 << 50) == most


def test_parts_never_lie_over_the_gradient_that_is_written_before_them() -> None:
    for vocabulary in (65, 96, 143, 1000, 50257):
        for rows, width in ((33, 32), (500, 64), (64, 64), (700, 768)):
            for some in (16, 40, 160, 5000):
                with most_bytes(2 * max(min(rows, width) * some, loss_rows.aligned(vocabulary))):
                    weight = torch.empty(vocabulary, width, dtype=torch.bfloat16, device="meta")
                    widths = loss_products._widths_within((rows, width), weight)
                if widths is None:
                    continue
                held = min(rows, width)
                assert sum(widths) == vocabulary and min(widths) > 0
                start = vocabulary * width - held * sum(map(loss_rows.aligned, widths[:-1]))
                written = 0
                for part in widths[:-1]:
                    written += part * width
                    assert written <= start and start % 8 == 0
                    start += held * loss_rows.aligned(part)


@pytest.mark.parametrize("function", [MEAN, ROWS])
@pytest.mark.parametrize("most", [2 * 64 * 4, 1 << 20])
def test_the_same_call_gives_the_same_bits(function: Function, most: int) -> None:
    case = drawn(11, 50, 16, torch.float32, bias=True)
    with most_bytes(most):
        first, again = run(function, case), run(function, case)
    assert torch.equal(first[0], again[0]) and all(map(torch.equal, first[1], again[1]))


def test_a_row_has_the_loss_of_its_logits_whatever_rows_are_beside_it() -> None:
    options, way = loss_rows.LossOptions(1e-3, 0.1, 5.0), loss_rows.ROW_TILES[4]
    logits_NV = torch.randn(6, 48, device=device)
    target_N = torch.tensor([3, -100, 0, 47, 5, 6], device=device)
    factor = torch.full((), 0.5, device=device)

    def losses(rows: slice) -> tuple[Tensor, Tensor]:
        flat = logits_NV[rows].clone().view(-1)
        parts = loss_rows.in_one_part(flat, len(flat) // 48, 48)
        return loss_rows.loss_rows(parts, target_N[rows], factor, options, way)[0], flat

    together, alone = losses(slice(None)), [losses(slice(i, i + 1)) for i in range(6)]
    assert torch.equal(together[0], torch.cat([loss for loss, _ in alone]))
    assert torch.equal(together[1], torch.cat([gradient for _, gradient in alone]))


def test_groups_of_rows_change_no_loss() -> None:
    case = drawn(9, 50, 16, torch.float32)
    found = []
    for most in (1, 3 * 64 * 4, 1 << 20):
        with most_bytes(most):
            found.append(run(ROWS, case)[0])
    assert all(torch.allclose(found[0], other, rtol=1e-6, atol=1e-6) for other in found[1:])


@pytest.mark.parametrize("function", [MEAN, ROWS])
@pytest.mark.parametrize("rows", [0, 4])
def test_nothing_to_predict(function: Function, rows: int) -> None:
    case = drawn(rows, 20, 16, torch.float32, bias=True, ignored=1.0)
    with poisoned():
        loss, gradients = run(function, case)
    assert not loss.any() and loss.shape == (() if function is MEAN else (rows,))
    assert len(gradients) == 3 and not any(g.any() for g in gradients)


@pytest.mark.parametrize("function", [MEAN, ROWS])
@pytest.mark.parametrize("wrong", [20, -1, 1 << 40])
def test_a_target_that_is_none_gives_no_number(function: Function, wrong: int) -> None:
    case = drawn(3, 20, 8, torch.float32, ignored=0.0)
    case.target_N[1] = wrong
    loss, gradients = run(function, case)
    assert loss.isnan().sum() == 1 and gradients[0][1].isnan().all()


@pytest.mark.parametrize("size", [1e-6, 3e3])
def test_tiny_and_huge_logits(size: float) -> None:
    case = drawn(5, 40, 16, torch.float32, size=size)
    for function in (MEAN, ROWS):
        close(run(function, case), exact(function, case), 1e-4)


def test_small_probabilities_of_many_rows_are_not_lost_in_float16() -> None:
    case = drawn(64, 16, 8, torch.float16, ignored=0.0)
    rare_V = torch.full((16,), -11.0, device=device, dtype=torch.float16)
    rare_V[:2] = 0.0
    case = Given((case.tensors[0], case.tensors[1] * 0.1, rare_V), case.target_N % 2, case.upstream_N)
    _, (_, weight, _) = run(MEAN, case, by=1024.0)
    _, (_, wanted, _) = exact(MEAN, case, by=1024.0)
    assert (weight[2:].double() - wanted[2:]).norm() < 2e-2 * wanted[2:].norm()


def test_many_rows_of_one_target_do_not_overflow_in_float16() -> None:
    """The sum of their gradients does, of which the mean is wanted."""
    rows = 1024
    x = torch.full((rows, 16), 180.0, device=device, dtype=torch.float16)
    tensors = (x, torch.zeros(4, 16, device=device, dtype=torch.float16), torch.zeros_like(x[0, :4]))
    case = Given(tensors, torch.zeros(rows, device=device, dtype=torch.int64), torch.ones(rows, device=device))
    for most in (1 << 20, 4096):  # one group of rows, and several
        with most_bytes(most):
            close(run(MEAN, case), exact(MEAN, case), 1e-3)


@pytest.mark.parametrize("by", [1.0, -3.0, 0.0, 65536.0])
def test_what_comes_from_above_multiplies_the_gradients(by: float) -> None:
    case = drawn(5, 20, 16, torch.float32, bias=True)
    close(run(MEAN, case, by), exact(MEAN, case, by), 1e-4)


def test_the_gradient_of_the_weight_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = loss_products._Mean._end

    def end(self: loss_products._Mean) -> tuple[Tensor, loss_products.Gradients]:
        assert self.grad_VD is not None
        made.append(self.grad_VD.data_ptr())
        return original(self)

    monkeypatch.setattr(loss_products._Mean, "_end", end)
    _, (_, weight) = run(MEAN, drawn(5, 20, 16, torch.float32))
    assert made == [weight.data_ptr()]


def test_gradients_come_once_and_add_up() -> None:
    case = drawn(5, 20, 16, torch.float32)
    x, weight = (t.detach().requires_grad_() for t in case.tensors[:2] if t is not None)
    loss = MEAN(x, weight, case.target_N)
    loss.backward(retain_graph=True)
    once = weight.grad.clone()  # type: ignore[union-attr]
    with pytest.raises(KernelError, match="gone after one backward"):
        loss.backward()
    MEAN(x, weight, case.target_N).backward()
    assert torch.allclose(weight.grad, 2 * once)  # type: ignore[arg-type]


def test_a_tied_weight_has_the_gradients_of_both_uses() -> None:
    case = drawn(6, 20, 16, torch.float64)
    tokens = torch.arange(6, device=device)

    def gradient(mode: str) -> Tensor:
        weight = case.tensors[1].detach().requires_grad_()
        with use_kernels(mode):
            MEAN(2.0 * weight[tokens], weight, case.target_N).backward()
        assert weight.grad is not None
        return weight.grad

    assert torch.allclose(gradient("triton"), gradient("reference"))


@pytest.mark.parametrize("function", [MEAN, ROWS])
@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_only_what_is_wanted_is_computed(function: Function, wanted: tuple[bool, bool]) -> None:
    case = drawn(5, 20, 16, torch.float32)
    x, weight = (t.detach().requires_grad_(w) for t, w in zip(case.tensors[:2], wanted, strict=True) if t is not None)
    loss = function(x, weight, case.target_N)
    assert loss.requires_grad == any(wanted)
    if any(wanted):
        loss.sum().backward()
    assert (x.grad is not None, weight.grad is not None) == wanted
    with torch.no_grad():
        assert torch.allclose(loss, function(x, weight, case.target_N))


@pytest.mark.parametrize("function", [MEAN, ROWS])
def test_tensors_that_do_not_lie_one_row_behind_the_other(function: Function) -> None:
    plain = drawn(6, 40, 16, torch.float32)
    x, weight, _ = plain.tensors
    target = torch.stack([plain.target_N, plain.target_N], 1)[:, 0]
    strided = (torch.cat([x, x], 1)[:, :16], weight.T.contiguous().T, None)
    close(run(function, Given(strided, target, plain.upstream_N)), exact(function, plain), 1e-4)
    spread = (x.T.contiguous().T, torch.cat([weight, weight], 1)[:, 16:], None)
    close(run(function, Given(spread, target, plain.upstream_N)), exact(function, plain), 1e-4)


def test_weights_take_the_dtype_of_x() -> None:
    case = drawn(5, 20, 16, torch.float32)
    x, weight = case.tensors[0].half(), case.tensors[1].detach().requires_grad_()
    MEAN(x, weight, case.target_N).backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32


def test_gradients_by_differences() -> None:
    case = drawn(3, 5, 3, torch.float64, bias=True)
    leaves = [t.detach().requires_grad_() for t in case.tensors if t is not None]

    def losses(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ROWS(x, weight, case.target_N, bias_V=bias, z=1e-2, smoothing=0.1, softcap=3.0, scale=0.7)

    assert torch.autograd.gradcheck(losses, leaves)


def test_log_probabilities_of_targets() -> None:
    case = drawn(6, 20, 16, torch.float64)
    x, weight, _ = case.tensors
    found = ROWS(x, weight, case.target_N, log_probabilities=True)
    wanted = (x @ weight.T).log_softmax(-1).gather(1, case.target_N.clamp(min=0)[:, None])[:, 0]
    assert torch.allclose(found, wanted.where(case.target_N != -100, 0.0))
    with pytest.raises(KernelError, match="neither z nor smoothing"):
        ROWS(x, weight, case.target_N, log_probabilities=True, z=0.1)


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_next_tokens(ahead: int) -> None:
    case = drawn(10, 20, 16, torch.float64)
    x_BSD, target_BS = case.tensors[0].view(2, 5, 16), case.target_N.view(2, 5)
    found = linear_loss.next_token_linear(x_BSD, case.tensors[1], target_BS, ahead)
    assert torch.allclose(found, reference.next_token(x_BSD @ case.tensors[1].T, target_BS, ahead))


@pytest.mark.parametrize("function", [MEAN, ROWS])
def test_timing_every_way_changes_nothing(function: Function) -> None:
    case = drawn(20, 50, 16, torch.float32)
    seen: list[str] = []
    with most_bytes(8 * 64 * 4):
        plain = run(function, case)
        with tuning(lambda timing: seen.append(timing.way)):
            tuned = run(function, case)
    assert len(seen) >= 4
    close(tuned, (plain[0].double(), [g.double() for g in plain[1]]), 1e-5)


def test_what_cannot_be_taken_is_said() -> None:
    x, weight, _ = drawn(5, 20, 16, torch.float32).tensors
    target = torch.zeros(5, dtype=torch.int64, device=device)
    for arguments, what in {
        (x, weight[:, :3], target): "x is .* and the weight",
        (x, weight, target[:4]): "must be int64",
        (x, weight, target.int()): "must be int64",
        (x.to(torch.float8_e4m3fn), weight, target): "kernels take",
        (x, weight[:0], target): "nothing to predict",
        (x, weight.to("meta"), target): "is on meta",
    }.items():
        with pytest.raises(KernelError, match=what):
            MEAN(*arguments)
    with pytest.raises(KernelError, match="smoothing"):
        MEAN(x, weight, target, smoothing=2.0)
    for softcap in (0.0, float("nan"), float("inf")):
        with pytest.raises(KernelError, match="softcap"):
            MEAN(x, weight, target, softcap=softcap)
    for wrong in ({"z": float("nan")}, {"scale": float("inf")}):
        with pytest.raises(KernelError, match="must be finite"):
            MEAN(x, weight, target, **wrong)
    with pytest.raises(KernelError, match="the bias is"):
        MEAN(x, weight, target, bias_V=x[0])


# --- what torch is told


@pytest.mark.parametrize("function", [MEAN, ROWS])
def test_torch_compile_sees_one_graph(function: Function) -> None:
    case = drawn(5, 20, 16, torch.float32, bias=True)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    ours, plain = run(compiled, case, 2.0, z=1e-3), run(function, case, 2.0, z=1e-3)
    assert torch.equal(ours[0], plain[0]) and all(map(torch.allclose, ours[1], plain[1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("by", [1 / 3, 65536.0])
def test_torch_compile_multiplies_by_what_comes_from_above_as_it_is(dtype: torch.dtype, by: float) -> None:
    """Not rounded to the gradients' dtype, in which it may be infinite."""
    case = drawn(8, 20, 16, dtype, bias=True)
    compiled = torch.compile(MEAN, fullgraph=True, backend="aot_eager")
    ours, plain = run(compiled, case, by), run(MEAN, case, by)
    assert all(map(torch.equal, ours[1], plain[1])) and all(g.isfinite().all() for g in ours[1])


def test_autocast_computes_in_the_dtype_of_x() -> None:
    case = drawn(6, 20, 16, torch.float32)
    for function in (MEAN, ROWS):
        with torch.autocast(device, dtype=torch.bfloat16):
            ours = run(function, case)
        plain = run(function, case)
        assert torch.equal(ours[0], plain[0]) and all(map(torch.equal, ours[1], plain[1]))


@pytest.mark.parametrize("bias", [False, True])
def test_operations_are_as_they_are_described(bias: bool) -> None:
    case = drawn(5, 20, 16, torch.float32, bias=bias)
    given = (*(None if t is None else t.detach().requires_grad_() for t in case.tensors), case.target_N)
    options = (0.0, 0.1, 5.0, 1.0, -100)
    torch.library.opcheck(torch.ops.dskc.linear_losses.default, (*given, *options))
    torch.library.opcheck(torch.ops.dskc.mean_linear_loss.default, (*given, *options, True, True, bias))


# --- at the shapes of models


@pytest.mark.gpu
@gpu
@pytest.mark.usefixtures("much_memory")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2000, 32000, 512), (1, 50257, 768), (777, 50257, 768), (3000, 4096, 1024)])
@pytest.mark.parametrize("function", [MEAN, ROWS])
def test_large(function: Function, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    case = drawn(*shape, dtype)
    with most_bytes(20 << 20):
        ours = run(function, case, z=1e-4)
    close(ours, exact(function, case, z=1e-4), TOLERANCE[dtype])


@pytest.mark.gpu
@gpu
@pytest.mark.usefixtures("much_memory")
@pytest.mark.parametrize("rows", [4096, 8192])
def test_memory_beside_the_gradients(rows: int) -> None:
    x = torch.randn(rows, 4096, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(102400, 4096, device="cuda", dtype=torch.bfloat16) * 0.02).requires_grad_()
    target = torch.randint(0, 102400, (rows,), device="cuda")

    def step() -> None:
        x.grad = weight.grad = None
        MEAN(x, weight, target).backward()

    step()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    assert torch.cuda.max_memory_allocated() - before <= 0.2 * 2**30


LARGE = pytest.param(8200, 262_160, 8192, marks=[pytest.mark.gpu, gpu])


@pytest.mark.usefixtures("much_memory")
@pytest.mark.parametrize(("rows", "vocabulary", "width"), [(40, 66, 32), LARGE])
def test_logits_whose_places_take_more_than_32_bits(rows: int, vocabulary: int, width: int) -> None:
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    x = torch.randn(rows, width, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, device=device, dtype=dtype).mul_(2 * width**-0.5).requires_grad_()
    target = torch.randint(0, vocabulary, (rows,), device=device)
    target[-8:] = vocabulary - 1
    with most_bytes(8 * vocabulary * x.element_size() if device == "cpu" else loss_products.MOST_BYTES):
        loss = MEAN(x, weight, target)
        loss.backward()
    assert x.grad is not None and weight.grad is not None
    total, of_columns = 0.0, torch.zeros(16, width, device=device)
    for of in torch.arange(rows, device=device).split(256):
        logits = (x.detach()[of] @ weight.detach().T).float()
        total += float(torch.nn.functional.cross_entropy(logits, target[of], reduction="sum"))
        change = logits.softmax(-1)
        change[torch.arange(len(of)), target[of]] -= 1.0
        of_columns += change[:, -16:].T @ x.detach()[of].float() / rows
        of_x = change.to(dtype) @ weight.detach() / rows
        assert (x.grad[of] - of_x).norm() <= TOLERANCE[dtype] * of_x.norm()
    assert abs(float(loss) - total / rows) <= 1e-3 * total / rows
    assert (weight.grad[-16:].float() - of_columns).norm() <= TOLERANCE[dtype] * of_columns.norm()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("function", [MEAN, ROWS])
def test_tensors_on_another_gpu_than_the_current_one(function: Function) -> None:
    case = drawn(40, 300, 64, torch.bfloat16)
    tensors = tuple(None if t is None else t.to("cuda:1") for t in case.tensors)
    there = Given(tensors, case.target_N.to("cuda:1"), case.upstream_N.to("cuda:1"))
    (ours, grads), (theirs, wanted) = run(function, there), run(function, case)
    assert torch.equal(ours.cpu(), theirs.cpu())
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(grads, wanted, strict=True))


@pytest.mark.gpu
@gpu
def test_capture_in_a_graph() -> None:
    """Nothing waits for the device, and a replay computes anew from what inputs then hold."""
    case, other = drawn(40, 300, 64, torch.bfloat16), drawn(40, 300, 64, torch.bfloat16, seed=1)
    x, weight = (t.detach().clone().requires_grad_() for t in case.tensors[:2] if t is not None)
    target = case.target_N.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            x.grad = weight.grad = None
            MEAN(x, weight, target).backward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    x.grad = weight.grad = None
    with torch.cuda.graph(graph):
        loss = MEAN(x, weight, target)
        loss.backward()
    with torch.no_grad():
        for mine, new in zip((x, weight), other.tensors[:2], strict=True):
            assert new is not None
            mine.copy_(new)
    target.copy_(other.target_N)
    graph.replay()
    assert x.grad is not None and weight.grad is not None
    close((loss.detach(), [x.grad, weight.grad]), exact(MEAN, other), TOLERANCE[torch.bfloat16])
