"""What a model asks of kernels is found without a GPU, and so are the cases at its shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dskc.runtime.bench.linear_loss import cases as linear_loss_cases
from dskc.runtime.bench.model import Trained, cut_model
from dskc.runtime.bench.run import chosen_cases, sources
from dskc.runtime.bench.targets import TARGETS
from dskc.runtime.bench.workload import Workload, workload
from dskc.runtime.problem import Problem

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "generated"


def called(found: Workload, kernel: str) -> list[tuple[int, ...]]:
    (call,) = [call for call in found.calls if call.kernel == kernel]
    return [t.shape for t in call.tensors]


def test_a_dense_model() -> None:
    found = workload(GENERATED / "qwen3_8b", batch=2, length=64)
    assert called(found, "causal_attention") == [(2, 64, 32, 128), (2, 64, 8, 128), (2, 64, 8, 128)]
    assert called(found, "swiglu") == [(2, 64, 12288)] * 2
    # The loss applies the last linear map itself, and so is no row program: its case is that of both.
    assert not any("cross_entropy" in call.kernel for call in found.calls)
    (loss,) = [c for c in linear_loss_cases(found) if c.kernel == "linear + cross entropy, forward and backward"]
    assert loss.shape == "N128 D4096 V151936 bf16"
    assert (12288, 4096) in found.linears and found.hidden == 4096 and not found.experts
    (norm,) = [call for call in found.calls if call.kernel == "add_rms_norm"]
    assert [t.learns for t in norm.tensors] == [True, True, True]


def test_experts_sinks_and_windows() -> None:
    found = workload(GENERATED / "gpt_oss_20b", batch=1, length=256)
    assert found.experts[0][:2] == (32, 4)
    attention = [call for call in found.calls if call.is_attention]
    assert [call.kernel for call in attention] == ["causal_window_128_attention", "causal_attention"]
    assert all(call.named == ("sinks_H",) for call in attention)


def test_layers_of_each_kind_are_kept() -> None:
    trained = Trained.load(GENERATED / "deepseek_v4_flash")
    model = cut_model(trained, torch.bfloat16, torch.bfloat16, torch.device("meta"))
    kinds = [type(layer).__name__ for layer in model.layers]  # type: ignore[union-attr]
    assert len(set(kinds)) == len(kinds) == 4, kinds


@pytest.mark.parametrize("name", ["deepseek_7b", "deepseek_v2_lite", "gemma2_2b", "deepseek_adaptive_nano"])
def test_cases_at_a_models_shapes(name: str) -> None:
    cases = [case for _, case in chosen_cases(sources(GENERATED / name, None, 2, 256), [])]
    assert len({case.title for case in cases}) == len(cases)
    assert all(case.bytes > 0 for case in cases)
    kernels = {case.kernel for case in cases}
    assert {"attention forward", "linear + cross entropy, forward and backward", "AdamW"} <= kernels


def test_bytes_of_row_programs() -> None:
    cases = {case.kernel: case for _, case in chosen_cases(sources(None, GENERATED / "deepseek_7b", None, None), [])}
    one, wide = 16384 * 4096 * 2, 16384 * 11008 * 2
    for kernel, moved in {
        "rms_norm forward": 2 * one, "rms_norm backward": 3 * one, "add_rms_norm forward": 4 * one,
        "add_rms_norm backward": 4 * one, "swiglu forward": 3 * wide, "swiglu backward": 5 * wide,
    }.items():  # fmt: skip
        assert cases[kernel].bytes == pytest.approx(moved, rel=1e-4), kernel


def test_every_target_has_its_case() -> None:
    cases = [case for _, case in chosen_cases(sources(None, GENERATED / "deepseek_7b", None, None), [])]
    for target in TARGETS:
        fitting = [c for c in cases if c.kernel == target.kernel and c.shape.startswith(target.shapes)]
        assert len(fitting) == 1, target.title


def test_no_case() -> None:
    with pytest.raises(Problem, match="no case has 'flying' in it"):
        chosen_cases(sources(None, None, None, None), ["flying"])
