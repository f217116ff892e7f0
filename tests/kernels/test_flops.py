"""FlopCounterMode over kernels: what it counts without them, and by hand where the reference does something else."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dskc.runtime.kernels import AttentionKernel, use_kernels
from dskc.runtime.kernels.decode import latent as latent
from dskc.runtime.kernels.decode.attention import decode_attention
from dskc.runtime.kernels.experts import grouped_fp8 as grouped_fp8
from dskc.runtime.kernels.experts.grouped import grouped_linear
from dskc.runtime.kernels.experts.layer import experts
from dskc.runtime.kernels.loss.linear_loss import linear_losses, mean_linear_loss
from dskc.runtime.kernels.products import fp8_matmul, int8_matmul, matvec  # noqa: F401  # which define operations
from dskc.runtime.kernels.tuning import tuning
from dskc.runtime.reference import mask

from ..compiler.test_properties import COUNTED
from .test_models import NANO, ROOT, compiled

dskc = torch.ops.dskc
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="attention's kernels take no float32 there")


def counted(run: Callable[[], object], kernels: str = "triton") -> int:
    with use_kernels(kernels), FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        run()
    return int(counter.get_total_flops())


def by_operation(run: Callable[[], object], kernels: str) -> dict[str, int]:
    with use_kernels(kernels), FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        run()
    return {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}


def built(name: str, folder: Path) -> tuple[ModuleType, torch.nn.Module]:
    settings = tuple(f"dims.{setting}" for setting in NANO[name])
    module = compiled(ROOT / "specs" / f"{name}.dsk", folder, settings)[name]
    torch.manual_seed(0)
    model = module.Model(compute=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return module, model


@pytest.mark.parametrize("name", ["deepseek_nano", "moe_nano"])
def test_a_model_counts_as_without_kernels_forward_and_backward(name: str, tmp_path: Path) -> None:
    """But for attention's backward, which torch does not count on the CPU: two and a half times its forward."""
    _, model = built(name, tmp_path)
    tokens = torch.randint(0, 96, (1, 7))

    def step() -> None:
        out = model(tokens)
        terms = (out,) if isinstance(out, Tensor) else out
        torch.stack([term.float().mean() for term in terms]).sum().backward()

    ours, theirs = by_operation(step, "triton"), by_operation(step, "reference")
    forward, backward = of_attention(ours)
    assert forward and 2 * backward == 5 * forward
    assert sum(ours.values()) - backward == sum(theirs.values())


@pytest.mark.parametrize("name", ["deepseek_nano", "moe_nano"])
def test_the_generated_ledger_says_what_is_counted(name: str, tmp_path: Path) -> None:
    """With causal attention as half; on meta tensors, of the recipe's own length."""
    module, model = built(name, tmp_path)
    train = importlib.import_module(f"{module.__name__}.train")
    length = train.RECIPE.length
    tokens = torch.zeros(1, length, dtype=torch.int64, device="meta")
    model.to("meta")
    with torch.no_grad():
        found = by_operation(lambda: model(tokens), "triton")
    forward, _ = of_attention(found)
    assert forward and train.LEDGER.flops_per_token == (sum(found.values()) - forward // 2) // length


def of_attention(counts: dict[str, int]) -> tuple[int, int]:
    """Forward and backward."""
    found = {operation: count for operation, count in counts.items() if "attention" in operation}
    backward = sum(count for operation, count in found.items() if "backward" in operation)
    return sum(found.values()) - backward, backward


def attention(allowed: mask.Mask) -> AttentionKernel:
    return AttentionKernel("counted::attention", "none", lambda documents: allowed)


@pytest.mark.parametrize("watched", ["both", "backward"])
def test_attention_counts_every_pair(watched: str) -> None:
    kernel = attention(mask.everything)
    q = torch.randn(2, 5, 4, 16, requires_grad=True)
    k, v = (torch.randn(2, 9, 2, width, requires_grad=True) for width in (16, 8))
    pairs = 2 * 2 * 4 * 5 * 9
    if watched == "both":
        assert counted(lambda: kernel(q, k, v).sum().backward()) == pairs * (4 * 16 + 3 * 8)
    else:
        with use_kernels("triton"):
            made = kernel(q, k, v).sum()
        assert counted(made.backward) == pairs * (3 * 16 + 2 * 8)


def test_attention_over_a_cache_counts_the_longest() -> None:
    q, k, v = torch.randn(2, 1, 4, 16), torch.randn(2, 12, 2, 16), torch.randn(2, 12, 2, 16)
    lengths = torch.tensor([3, 8], dtype=torch.int32)
    assert counted(lambda: decode_attention(q, k, v, lengths, longest=8)) == 2 * 2 * 4 * 8 * (16 + 16)


@pytest.mark.parametrize("keep", [True, False])
def test_experts_count_the_rows_of_choices(keep: bool) -> None:
    x, weight = torch.randn(6, 16, requires_grad=True), torch.rand(6, 2)
    chosen = torch.tensor([[0, 2]] * 6)
    gate, up, down = (torch.randn(3, *shape, requires_grad=True) for shape in ((8, 16), (8, 16), (16, 8)))
    count = counted(lambda: experts(x, chosen, weight, gate, up, down, keep=keep).sum().backward())
    assert count == (9 if keep else 11) * 2 * 12 * 16 * 8
    frozen = [t.detach() for t in (gate, up, down)]
    assert counted(lambda: experts(x, chosen, weight, *frozen).sum().backward()) == 6 * 2 * 12 * 16 * 8


def test_grouped_linear_counts_what_is_wanted() -> None:
    x, weight = torch.randn(7, 16), torch.randn(3, 8, 16, requires_grad=True)
    offsets = torch.tensor([2, 2, 7], dtype=torch.int32)
    run: Callable[[], None] = lambda: grouped_linear(x, weight, offsets).sum().backward()  # noqa: E731
    assert counted(run) == counted(run, "reference") == 2 * 2 * 7 * 8 * 16


@pytest.mark.parametrize("loss", [mean_linear_loss, linear_losses])
def test_the_linear_loss_counts_three_products_or_four(loss: Callable[..., Tensor]) -> None:
    x, weight = torch.randn(5, 12, requires_grad=True), torch.randn(33, 12, requires_grad=True)
    target = torch.randint(0, 33, (5,))
    again = loss is linear_losses
    run: Callable[[], None] = lambda: loss(x, weight, target).sum().backward()  # noqa: E731
    assert counted(run, "reference") == 3 * 2 * 5 * 12 * 33
    assert counted(run) == (4 if again else 3) * 2 * 5 * 12 * 33
    with torch.no_grad(), tuning(lambda timing: None):  # within an operation: timed several times, counted once
        assert counted(lambda: loss(x, weight, target)) == 2 * 5 * 12 * 33


def on_meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


N, D, F, X = 3, 32, 48, 5
PRODUCT = 2 * N * D * F
E4M3, BF16, INT = torch.float8_e4m3fn, torch.bfloat16, torch.int32
OPERATIONS: dict[str, tuple[Callable[[], object], int]] = {  # in the order of their parameters, on tensors without data
    "matvec": (
        lambda: dskc.matvec(
            on_meta(N, D), on_meta(F, D), *[None] * 7, None, 0, 0.0, 0.0, "", BF16, False, False
        ),
        PRODUCT,
    ),
    "matvec of 4 bits with an up projection": (
        lambda: dskc.matvec(
            on_meta(N, D), on_meta(F, D // 2, dtype=torch.uint8), on_meta(F, 1), on_meta(F, 1),
            on_meta(F, D // 2, dtype=torch.uint8), on_meta(F, 1), on_meta(F, 1), None, None, None, 32, 0.0, 0.0, "",
            BF16, False, False,
        ),
        2 * PRODUCT,
    ),
    "int8_linear": (
        lambda: dskc.int8_linear(
            on_meta(N, D, dtype=torch.int8), on_meta(F, D, dtype=torch.int8), on_meta(1), on_meta(F),
            on_meta(1, dtype=INT), on_meta(F, dtype=INT), None, BF16,
        ),
        PRODUCT,
    ),
    "fp8_rows_matmul": (
        lambda: dskc.fp8_rows_matmul(
            on_meta(N, D, dtype=E4M3), on_meta(N), on_meta(F, D, dtype=E4M3), on_meta(F), BF16, True
        ),
        PRODUCT,
    ),
    "fp8_blocks_matmul": (
        lambda: dskc.fp8_blocks_matmul(
            on_meta(N, D, dtype=E4M3), on_meta(1, N), on_meta(F, D, dtype=E4M3), on_meta(1, 1), BF16
        ),
        PRODUCT,
    ),
    "grouped_linear_fp8 of two choices": (
        lambda: dskc.grouped_linear_fp8(
            on_meta(N, D, dtype=E4M3), on_meta(N), on_meta(X, F, D, dtype=E4M3), on_meta(X, F), on_meta(X, dtype=INT),
            on_meta(2 * N, dtype=INT), 2, BF16, True,
        ),
        2 * PRODUCT,
    ),
    "latent_decode": (
        lambda: dskc.latent_decode(
            on_meta(2, 1, 4, 16), on_meta(2, 1, 4, 8), on_meta(6, 4, 16), on_meta(6, 4, 8), on_meta(2, dtype=INT),
            on_meta(2, 3, dtype=INT), 10, 1.0, None, None, None,
        ),
        2 * 2 * 4 * 10 * (16 + 16 + 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_count_by_shapes(name: str) -> None:
    run, expected = OPERATIONS[name]
    assert counted(run) == expected
