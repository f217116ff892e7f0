"""The `attention` block with all its options at once, against its formula written out in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from .small_models import compiled, first
from .test_properties import inputs, kept_bytes, ledger_bytes

OPTIONS = {
    "kv_heads": "2",
    "qk_norm": "true",
    "eps": "1e-2",
    "offset": "1",
    "scale": "1 / sqrt(3)",
    "softcap": "1.5",
    "sinks": "true",
    "gate": "true",
}


def spec(options: dict[str, str]) -> str:
    said = ", ".join(f"{name}: {value}" for name, value in options.items())
    return f"""dsk 1

use std {{ attention }}

model m(tokens: ids[B, S]) -> logits: [B, S, V] {{
  dims {{ V = 31, D = 16, H = 4, E = 6 }}
  x = embed(tokens, V -> D)
  logits = linear(attention(x, heads: H, width: E, {said}) as mix, D -> V)
}}
"""


def written_out(weights: dict[str, Tensor], tokens_BS: Tensor) -> Tensor:
    x = weights["x.weight"][tokens_BS]
    batch, length, _ = x.shape

    def heads(name: str, count: int) -> Tensor:
        return (x @ weights[f"mix.{name}.weight"].T).view(batch, length, count, 6)

    def normed(y: Tensor, name: str) -> Tensor:
        return y / (y.square().mean(-1, keepdim=True) + 1e-2).sqrt() * (1 + weights[f"mix.{name}.weight"])

    q, k, v = normed(heads("q", 4), "q_norm"), normed(heads("k", 2), "k_norm"), heads("v", 2)
    out = torch.zeros_like(q)
    for h in range(4):
        score = torch.einsum("bse,bte->bst", q[:, :, h], k[:, :, h // 2]) / 3**0.5
        grown = (1.5 * torch.tanh(score / 1.5)).exp().tril()
        share = grown / (grown.sum(-1, keepdim=True) + weights["mix.sinks.weight"][h].exp())
        out[:, :, h] = share @ v[:, :, h // 2]
    out = out / (1 + (-heads("gate", 4)).exp())
    return out.flatten(2) @ weights["mix.out.weight"].T @ weights["logits.weight"].T


@pytest.fixture(scope="module")
def tokens_BS() -> Tensor:
    return torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(0))


def test_against_the_formula(tmp_path: Path, tokens_BS: Tensor) -> None:
    model = compiled(spec(OPTIONS), tmp_path).model(compute=torch.float64).double()
    torch.testing.assert_close(
        first(model(tokens_BS)), written_out(model.state_dict(), tokens_BS), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("left_out", ["eps", "offset", "scale", "softcap", "sinks", "gate"])
def test_every_option_counts(left_out: str, tmp_path: Path, tokens_BS: Tensor) -> None:
    """The same weights, as far as there are any, give another result without it."""
    weights = compiled(spec(OPTIONS), tmp_path).model(compute=torch.float64).double().state_dict()
    (tmp_path / "without").mkdir()
    without = compiled(spec({k: v for k, v in OPTIONS.items() if k != left_out}), tmp_path / "without")
    model = without.model(compute=torch.float64).double()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    assert (first(model(tokens_BS)) - written_out(weights, tokens_BS)).norm() > 1e-3


@pytest.mark.parametrize("options", [{"sinks": "true"}, {"softcap": "2", "mask": "everything"}, {"softcap": "2"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ledger_has_what_is_kept_for_backward(options: dict[str, str], dtype: torch.dtype, tmp_path: Path) -> None:
    """Of a text so long that the scores are most of it: one such tensor, two with a softcap."""
    small = compiled(spec(options), tmp_path)
    model = small.model(compute=dtype).to(dtype).train()
    counted = ledger_bytes(small.graph, 150, 2, dtype.itemsize)
    assert counted > (2 if "softcap" in options else 1) * 2 * 4 * 150 * 150 * 4
    assert 0.9 < counted / kept_bytes(model, inputs(small, 150)) < 1.1
