"""What kernels.py holds of a model's attentions: each mask once, and no two masks for one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dskc.runtime.kernels import AttentionKernel

from .small_models import compiled, first


def spec(masks: list[str], width: int = 4) -> str:
    lines = [f"  x += attention(x, heads: 2, width: {width}, mask: {m}) as mix{i}" for i, m in enumerate(masks)]
    return "\n".join(
        (
            "dsk 1\n\nuse std { attention }\n\nmodel m(tokens: ids[B, S]) -> logits: [B, S, V] {",
            "  dims { V = 31, D = 8 }\n  x = embed(tokens, V -> D)",
            *lines,
            "  logits = linear(x, D -> V)\n}\n",
        )
    )


def test_functions_of_a_mask_are_written_once(tmp_path: Path) -> None:
    small = compiled(spec(["causal", "causal & window(3)", "causal", "causal & window(3)", "everything"]), tmp_path)
    text = (small.folder / "kernels.py").read_text(encoding="utf-8")
    for name in ("causal", "causal_window_3"):
        for function in (f"def {name}(query", f"def {name}_of_queries(", f"def {name}_of_keys("):
            assert text.count(function) == 1, function
    assert text.count("= AttentionKernel(") == 3
    assert "everything_attention = AttentionKernel(" in text and "def everything" not in text
    model = (small.folder / "model.py").read_text(encoding="utf-8")
    assert "reference.attention" not in model and "kernels.everything_attention(" in model


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("causal & (window(3) | documents)", "(causal & window(3)) | documents"),
        ("causal & blocks(size: 2)", "causal & blocks(size: 4)"),
        ("causal & blocks(size: 2, seed: 0)", "causal & blocks(size: 2, seed: 1)"),
    ],
)
def test_masks_that_differ_do_not_share_functions(one: str, other: str, tmp_path: Path) -> None:
    small = compiled(spec([one, other, one]), tmp_path)
    model = small.model()
    kernels = {name: k for name, k in vars(small.package.kernels).items() if isinstance(k, AttentionKernel)}
    assert len(kernels) == 2
    first_kernel, other_kernel = kernels.values()
    assert first_kernel.allows is not other_kernel.allows
    assert first_kernel.name != other_kernel.name
    tokens_BS = torch.randint(0, 31, (2, 9))
    assert torch.isfinite(first(model(tokens_BS))).all()


@pytest.mark.parametrize(("width", "known"), [(256, True), (258, False)])
def test_heads_wider_than_a_kernel_holds_keep_the_reference(width: int, known: bool, tmp_path: Path) -> None:
    small = compiled(spec(["causal"], width), tmp_path)
    model = (small.folder / "model.py").read_text(encoding="utf-8")
    assert ("kernels.causal_attention(" in model) == known
    assert ("attention(q" in model.replace("kernels.causal_attention", "")) == (not known)
    text = small.folder / "kernels.py"
    assert ("AttentionKernel" in (text.read_text(encoding="utf-8") if text.exists() else "")) == known
