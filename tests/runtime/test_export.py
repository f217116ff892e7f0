"""Exported programs are core ATen and nothing else, and do what the module does; forms are what they stand for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

from dskc.runtime.export import compile_cpu, forms, load_cpu, prefill, to_aten, to_mlir
from dskc.runtime.export.aten import operations
from dskc.runtime.problem import Problem
from dskc.runtime.reference import attention, causal, grouped_linear, window
from dskc.runtime.train.load import load_package

GENERATED = Path(__file__).parents[2] / "generated"


class Apply(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_a_mixture_of_experts_in_core_aten() -> None:
    torch.manual_seed(0)
    model = load_package(GENERATED / "moe_nano").Model().eval()
    program = prefill(model)
    assert all(torch.Tag.core in operation.tags for operation in operations(program))
    for batch, length in ((1, 2), (3, 11)):
        tokens_BS = torch.randint(0, 2048, (batch, length))
        for found, expected in zip(program.module()(tokens_BS), model(tokens_BS), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_sizes_stay_open_only_where_none_is_given() -> None:
    model = load_package(GENERATED / "deepseek_nano").Model()
    run = prefill(model, batch=1).module()
    assert run(torch.zeros(1, 5, dtype=torch.int64)).shape == (1, 5, 4096)
    with pytest.raises(AssertionError):
        run(torch.zeros(2, 5, dtype=torch.int64))


def test_a_window_stays_when_the_length_is_open() -> None:
    class Windowed(nn.Module):
        def forward(self, q_BSHE: Tensor) -> Tensor:
            return attention(q_BSHE, q_BSHE, q_BSHE, causal & window(4))

    module = Windowed()
    run = to_aten(module, (torch.zeros(2, 3, 2, 8),), {0: {1: Dim("length", min=2)}}).module()
    for length in (2, 4, 9):
        q_BSHE = torch.randn(2, length, 2, 8)
        torch.testing.assert_close(run(q_BSHE), module(q_BSHE))


@torch.library.custom_op("dskc_test::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_an_operation_that_is_not_of_aten_is_refused() -> None:
    with pytest.raises(Problem, match=r"core ATen has no dskc_test\.twice\.default"):
        to_aten(Apply(lambda x: twice(x) + 1), (torch.ones(2),))


def test_without_iree_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    program = to_aten(Apply(torch.neg), (torch.ones(2),))
    for name in ("iree", "iree.compiler", "iree.compiler.extras.fx_importer", "iree.compiler.tools"):
        monkeypatch.setitem(sys.modules, name, None)
    for step in (lambda: to_mlir(program), lambda: compile_cpu(b""), lambda: load_cpu(b"")):
        with pytest.raises(Problem, match=r'IREE is not installed\nhelp: pip install "dskc\[mlir\]"'):
            step()


@given(st.lists(st.lists(st.integers(-2, 2), min_size=4, max_size=4), min_size=1, max_size=6), st.booleans())
@settings(max_examples=50, deadline=None)
def test_stable_sort(rows: list[list[int]], descending: bool) -> None:
    for x in (torch.tensor(rows), torch.tensor(rows, dtype=torch.bfloat16)):
        for dim in (0, 1, -1):
            found = forms.stable_sort(x, dim=dim, descending=descending)
            expected = torch.sort(x, dim=dim, descending=descending, stable=True)
            assert torch.equal(found[0], expected.values) and torch.equal(found[1], expected.indices)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.booleans())
@settings(max_examples=50, deadline=None)
def test_searchsorted(counts: list[int], right: bool) -> None:
    ends = torch.tensor(counts).cumsum(0)
    values = torch.arange(-1, 26).view(3, 9)
    assert torch.equal(forms.searchsorted(ends, values, right=right), torch.searchsorted(ends, values, right=right))
    side = "right" if right else "left"
    found = forms.searchsorted(ends, values, side=side, out_int32=True)
    assert torch.equal(found, torch.searchsorted(ends, values, side=side, out_int32=True))


def test_grouped_linear_with_experts_that_nobody_chose() -> None:
    x_RD, weight_XFD = torch.randn(7, 5), torch.randn(4, 3, 5)
    weight_XFD[2] = torch.inf  # what nobody chose has no say
    offsets_X = torch.tensor([0, 3, 3, 7], dtype=torch.int32)
    torch.testing.assert_close(
        forms.grouped_linear(x_RD, weight_XFD, offsets_X), grouped_linear(x_RD, weight_XFD, offsets_X)
    )


def test_cosines_of_large_angles() -> None:
    angle = torch.linspace(-1e6, 1e6, 10_001, dtype=torch.float64)
    assert forms.cos(angle).dtype == torch.float64
    torch.testing.assert_close(forms.cos(angle), angle.cos(), rtol=0, atol=2e-7)
    torch.testing.assert_close(forms.sin(angle), angle.sin(), rtol=0, atol=2e-7)
    assert forms.cos(angle.float()) is NotImplemented


def test_gelu_tanh() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.linspace(-6, 6, 101, dtype=dtype)
        torch.testing.assert_close(forms.gelu(x, approximate="tanh"), F.gelu(x, approximate="tanh"))


@pytest.mark.parametrize("dims", [[0], [-1], [0, 2], [1], [0, 1, 2, 3]])
def test_squeeze(dims: list[int]) -> None:
    x = torch.randn(1, 3, 1, 1)
    assert torch.equal(forms.squeeze(x, dims), x.squeeze(dims))
