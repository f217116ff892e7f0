"""Generated trainers of mixtures of experts: the bias moves as by hand, goes on where a run was cut, and what experts
have no room for is reported.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from dskc.compiler.compile import compile_spec
from dskc.runtime.train import Batch, load_model
from dskc.runtime.train.checkpoint import read_checkpoint
from tests.compiler.small_models import Small, compiled

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "language.md").read_text(encoding="utf-8")
SPEC = """dsk 1

use std { attention, deepseek_moe, moe }

model small(tokens: ids[B, S]) -> logits: [B, S, V] {
  dims { V = 300, D = 16, F = 16, H = 2, E = D / H, X = 8 }
  x = embed(tokens, V -> D)
  repeat 2 layers {
    x += attention(rms_norm(x), heads: H, width: E, rope: rope())
    x += deepseek_moe(rms_norm(x), count: X, inner: F, top: 2, shared: 1, groups: 4, keep_groups: 2, scale: 2.5)
  }
  x += moe(rms_norm(x), count: X, inner: F, top: 2, capacity: 1.0, router_noise: 0.1, z_loss: true)
  logits = linear(rms_norm(x) as norm, D -> V)
}

train tiny of small {
  objective next_token(logits) + 0.01 * balance + 0.001 * router_z
  tokens    = 100K
  batch     { sequences = 4, S = 32, microbatch = 2 }
  balance   { speed = 0.25 }
  precision { params = fp32, compute = fp32 }
  optimizer adamw(lr: 1e-2)
  schedule  constant()
}
"""
BIASES = tuple(f"layers.{i}.deepseek_moe.balance_bias.bias" for i in range(2))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return compiled(SPEC, tmp_path_factory.mktemp("spec"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for i, part in enumerate(TEXT.split("\n## ")):
        (folder / f"{i}.md").write_text(part, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(small: Small, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(
        small, "--data", text, "--steps", 3, "--out", out, "--save-every", 2
    )  # oddly many steps up and down are not 0
    return out


def train(small: Small, *arguments: object) -> None:
    small.trainer().main([*map(str, arguments), "--device", "cpu"])


def log(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_s"} for line in lines]


def state(run: Path) -> dict[str, torch.Tensor]:
    return load_model(run, device="cpu")[0].state_dict()


def test_the_bias_moves_with_each_step(whole: Path, small: Small) -> None:
    found = state(whole)
    for name in BIASES:
        steps = found[name] / 0.25
        assert torch.equal(steps, steps.round()) and 0 < steps.abs().max() <= 3, "as many steps as were made"
    assert "balance = optim.Balance(model, speed=0.25)" in (small.folder / "train.py").read_text(encoding="utf-8")


def test_a_resumed_run_goes_on_with_bias_and_losses(whole: Path, small: Small, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "step-00000003")  # as if it had been killed before
    before = torch.zeros(8)
    read_checkpoint(broken / "checkpoints" / "step-00000002", {"model": _only(broken, before)})
    train(small, "--out", broken, "--resume")
    assert log(broken) == log(whole)
    ours, theirs = state(broken), state(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not torch.equal(before, theirs[BIASES[0]]), "the steps after the cut should move it"


def _only(run: Path, bias: torch.Tensor) -> dict[str, torch.Tensor]:
    """A state dict to read a checkpoint into, whose first bias is this tensor."""
    return state(run) | {BIASES[0]: bias}


def test_what_is_dropped_is_in_the_log_and_in_the_result(whole: Path) -> None:
    shares = [line["dropped"] for line in log(whole)]
    assert all(0 < share < 0.5 for share in shares)
    assert all(abs(share * 256 - round(share * 256)) < 1e-3 for share in shares), "of 4 * 32 * 2 choices"
    result = json.loads((whole / "result.json").read_text(encoding="utf-8"))
    assert result["dropped"] == pytest.approx(sum(shares) / len(shares))


def test_the_bias_is_counted_over_microbatches_and_not_by_evaluation(small: Small) -> None:
    trainer, model = small.trainer(), small.model().train()
    tokens = torch.randint(0, 300, (4, 32))
    parts = [Batch(part, part, torch.zeros_like(part)) for part in tokens.split(2)]
    router = model.layers[0].deepseek_moe.balance_bias
    for batch in parts:
        trainer.objective(model, batch)
    assert int(router.load.sum()) == 4 * 32 * 2
    model.eval()
    trainer.objective(model, parts[0])
    assert int(router.load.sum()) == 4 * 32 * 2


def test_decoding_knows_no_capacity_and_no_noise(small: Small) -> None:
    """A model in eval mode gives a token what it gives it among others."""
    model = small.model()
    tokens = torch.randint(0, 300, (2, 16))
    with torch.no_grad():
        logits = model(tokens).logits
        torch.testing.assert_close(model(tokens[:, :9]).logits, logits[:, :9], rtol=1e-4, atol=1e-5)


def test_without_balance_in_the_recipe_the_bias_stays(tmp_path: Path) -> None:
    spec = tmp_path / "still.dsk"
    spec.write_text(SPEC.replace("  balance   { speed = 0.25 }\n", ""), encoding="utf-8")
    _, (output,) = compile_spec(spec, None, ())
    assert "Balance" not in output.files["train.py"]
    spec.write_text(SPEC[: SPEC.index("train tiny")], encoding="utf-8")
    _, (output,) = compile_spec(spec, None, ())
    assert "balance = optim.Balance(model, speed=0.001)" in output.files["train.py"], "the default recipe has it"
    assert "  balance   { speed = 0.001 }" in output.files["train.py"]
