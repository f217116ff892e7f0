"""On a GPU: the kernels of shipped models in bf16 against float64, known to torch.compile, clean under odd shapes."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dskc.runtime.kernels import KernelError, One, Part, RowKernel, Vector, use_kernels

from .conftest import triton_interprets
from .test_row_programs import compare

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("deepseek_7b", "deepseek_nano", "moe_nano", "qwen3_8b", "smollm2_135m")


@cache
def shipped(model: str) -> dict[str, RowKernel]:
    """The kernels of a shipped model, interpreted where there is no GPU, whatever else has imported them."""
    spec = importlib.util.spec_from_file_location(f"{model}_kernels", ROOT / "generated" / model / "kernels.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with triton_interprets():
        spec.loader.exec_module(module)
    return {name: value for name, value in vars(module).items() if isinstance(value, RowKernel)}


def given(kernel: RowKernel, lead: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, ...]:
    """Random tensors for a kernel of a model, on its device, with rows numbered by `lead`."""
    generator = torch.Generator().manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    made = []
    lead = (*lead, 4) if any(isinstance(a, Part) for a in kernel.arguments) else lead  # with heads
    for layout in kernel.arguments:
        if isinstance(layout, One):
            targets = torch.randint(0, 100, lead, generator=generator)
            made.append(torch.where(torch.rand(lead, generator=generator) < 0.1, -100, targets))
            continue
        width = kernel.sizes[layout.width]
        assert width is not None
        shape = (width,) if isinstance(layout, Vector) else (*lead, width)
        if isinstance(layout, Part):
            shape = (lead[1], width)
        kind = torch.float32 if isinstance(layout, Part) or dtype == torch.float64 else dtype
        made.append(torch.randn(shape, generator=generator).to(kind if dtype != torch.float64 else dtype))
    return tuple(t.to(device) for t in made)


def cases() -> list[tuple[str, str]]:
    return [(model, name) for model in MODELS for name in shipped(model)]


@pytest.mark.parametrize(("model", "name"), cases())
@pytest.mark.parametrize("lead", [(2, 300), (1, 1), (3, 7), (0, 5)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_shipped_kernel(model: str, name: str, lead: tuple[int, int], dtype: torch.dtype) -> None:
    kernel = shipped(model)[name]
    if "top_k" in name:
        dtype = torch.float32  # scores are computed in it
        torch.manual_seed(0)
    compare(kernel, given(kernel, lead, dtype), dtype, "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["rms_norm", "add_rms_norm", "swiglu"])
def test_torch_compile_sees_one_graph(name: str) -> None:
    kernel = shipped("deepseek_nano")[name]
    tensors = given(kernel, (2, 30), torch.float32)
    compiled = torch.compile(lambda *ts: kernel(*ts), fullgraph=True)
    for a, b in zip(_all(compiled(*tensors)), _all(kernel(*tensors)), strict=True):
        assert torch.equal(a, b)


def _all(made: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return made if isinstance(made, tuple) else (made,)


def test_what_a_kernel_cannot_take_is_said_with_its_line() -> None:
    kernel = shipped("deepseek_nano")["swiglu"]
    gate = torch.randn(2, 3, 688)
    with use_kernels("triton"):
        for tensors, what in {
            (gate.to(torch.float8_e4m3fn), gate): "float8_e4m3fn, and kernels take",
            (gate[..., :5], gate): "last axis must be 688",
            (gate, gate[:1]): "does not lie over rows",
            (gate, gate.to("meta")): "is on meta",
        }.items():
            with pytest.raises(KernelError, match=what) as caught:
                kernel(*(t.cuda() if torch.cuda.is_available() and t.device.type == "cpu" else t for t in tensors))
            assert "swiglu (" in str(caught.value) and "feed_forward.dsk:" in str(caught.value)


def test_a_gradient_that_cannot_be_had_is_refused() -> None:
    kernel = shipped("deepseek_nano")["rms_norm_rope"]
    tensors = [t.requires_grad_() for t in given(kernel, (2, 5), torch.float32)]
    with use_kernels("triton"):
        y = kernel(*tensors)
        with pytest.raises(KernelError, match="no gradient of `cos`"):
            y.sum().backward()
