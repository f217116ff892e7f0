"""Generated trainers on real text: they learn, a resumed run is the unbroken one bit for bit, and they sample."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dskc.compiler.cli import main
from dskc.runtime import optim
from tests.compiler.small_models import Small, compiled

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "language.md").read_text(encoding="utf-8")
MODEL = """dsk 1

use std {{ attention, {inner}, llama }}

model small(tokens: ids[B, S]) -> logits: [B, S, V] {{
  dims {{ V = 300, D = 32, F = 48, H = 4, E = D / H, X = 4 }}
  x = embed(tokens, V -> D)
  repeat 2 layers {{
    x += attention(rms_norm(x), heads: H, width: E, rope: rope(), mask: {mask}, dropout: {dropout})
    x += {feed_forward}
  }}
  logits = linear(rms_norm(x) as norm, D -> V)
}}

train tiny of small {{
  objective next_token(logits){balance}
  tokens    = 100K
  batch     {{ sequences = 4, S = 32{microbatch}{ramp} }}
  precision {{ params = {params}, compute = {compute}, optimizer = {params}{rounding} }}
  optimizer {optimizer}
  schedule  {schedule}
  save      {{ every = 2, keep = 2 }}
{groups}}}
"""
PLAIN = {
    "inner": "swiglu", "mask": "causal", "dropout": "0", "feed_forward": "swiglu(rms_norm(x), inner: F)", "balance": "",
    "microbatch": "", "ramp": "", "params": "fp32", "rounding": "", "compute": "fp32", "groups": "",
    "optimizer": "adamw(lr: 1e-2)", "schedule": "cosine()",
}  # fmt: skip
GROUPS = "  groups    { embed { rate = 8 / D, decay = 0.5 }, layers.attention.out.init = zeros }\n"
EIGHT = "  groups    { layers.fp8 = rows, layers.attention.fp8 = blocks, layers.attention.k.fp8 = none }\n"


@pytest.fixture(scope="module", autouse=True)
def one_thread():  # type: ignore[no-untyped-def]
    """Small tensors: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


OPTIMIZERS = (
    "adamw(lr: 1e-2, decay: 0.1, clip: 1.0)",
    "lion(lr: 1e-3, decay: 0.1)",
    "muon(lr: 1e-2, decay: 0.1, clip: 1.0)",
    "muon(lr: 2e-2, scale: original, adamw: adamw(lr: 1e-3))",
)
SCHEDULES = (
    "cosine(warmup: 1)",
    "constant(decay: 0.5)",
    "constant(decay: 0.5, shape: root, floor: 0.1)",
    "steps(at: [0.5], factor: [0.3])",
)


@st.composite
def specs(draw: st.DrawFn) -> str:
    moe = draw(st.booleans())
    kept = [("fp32", ""), ("bf16", ""), ("bf16", ", rounding = stochastic"), ("bf16", ", master = fp32")]
    params, rounding = draw(st.sampled_from(kept))
    return MODEL.format(
        inner="moe" if moe else "swiglu",
        mask=draw(st.sampled_from(["causal", "causal & documents", "causal & window(8)"])),
        dropout=draw(st.sampled_from(["0", "0.1"])),
        feed_forward="moe(rms_norm(x), count: X, inner: F, top: 2)" if moe else "swiglu(rms_norm(x), inner: F)",
        balance=" + 0.01 * balance" if moe else "",
        microbatch=draw(st.sampled_from(["", ", microbatch = 2"])),
        params=params,
        rounding=rounding,
        compute=draw(st.sampled_from(["fp32", "bf16"])),
        optimizer=draw(st.sampled_from(OPTIMIZERS)),
        schedule=draw(st.sampled_from(SCHEDULES)),
        ramp=draw(st.sampled_from(["", ", ramp = ramp(start: 2, over: 0.7)"])),
        groups=draw(st.sampled_from(["", GROUPS, EIGHT])),
    )


def losses(run: Path) -> list[float]:
    lines = (run / "train.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    return [line["loss"] for line in found]


def corpus(folder: Path) -> Path:
    path = folder / "text"
    path.mkdir()
    for i, part in enumerate(TEXT.split("\n## ")):
        (path / f"{i}.md").write_text(part, encoding="utf-8")
    return path


def train(small: Small, *arguments: str) -> None:
    small.trainer().main([*arguments, "--device", "cpu"])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(text=specs())
def test_a_resumed_run_is_the_unbroken_one(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = compiled(text, folder)
        data = str(corpus(folder))
        whole, broken = folder / "whole", folder / "broken"
        train(small, "--data", data, "--steps", "6", "--out", str(whole))
        train(small, "--data", data, "--steps", "6", "--out", str(broken), "--save-every", "2")
        cut = sorted((broken / "checkpoints").iterdir())
        for path in cut[1:]:  # as if it had been killed after an earlier checkpoint
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        train(small, "--out", str(broken), "--data", data, "--resume", "--steps", "6")
        assert losses(whole) == losses(broken)


def test_it_learns_and_samples(tmp_path: Path) -> None:
    text = MODEL.format(**PLAIN | {"optimizer": "adamw(lr: 1e-2, clip: 1.0)"})
    small = compiled(text, tmp_path)
    run = tmp_path / "run"
    code = Path(__file__).resolve().parent.parent / "compiler"
    train(small, "--data", str(code), "--steps", "250", "--save-every", "1000", "--out", str(run))
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert result["held_out_loss"] < result["unigram_entropy"] - 0.3
    assert (run / "loss.png").stat().st_size > 1000
    arguments = ["generate", str(run), "--prompt", "the ", "--max-tokens", "20", "--seed", "3"]
    first, again = (CliRunner().invoke(main, arguments) for _ in range(2))
    assert first.exit_code == 0, first.output
    assert first.output.startswith("the ")
    assert first.output == again.output


def test_a_model_without_a_recipe_says_which_one_it_trains_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = MODEL.format(**PLAIN).split("\ntrain ")[0]
    small = compiled(text, tmp_path)
    recipe = small.trainer().RECIPE
    assert recipe.default
    assert "train default of small {" in recipe.text
    # The text that is shown is itself a spec that says the same.
    again = compiled(f"{text}\n{recipe.text}", tmp_path)
    said = again.trainer().RECIPE
    assert (said.tokens, said.sequences, said.length, said.precision) == (
        recipe.tokens, recipe.sequences, recipe.length, recipe.precision,
    )  # fmt: skip


def test_what_a_recipe_trains_otherwise_reaches_its_trainer(tmp_path: Path) -> None:
    text = MODEL.format(
        **PLAIN
        | {
            "groups": GROUPS,
            "ramp": ", ramp = ramp(start: 1, over: 0.5)",
            "optimizer": "muon(lr: 3e-2, decay: 0.1, adamw: adamw(lr: 1e-2))",
        }
    )
    small = compiled(text, tmp_path)
    trainer, model = small.trainer(), small.model()
    recipe = trainer.RECIPE
    assert [recipe.sequences_at(step, 12) for step in range(12)] == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 4, 4]
    assert recipe.divisor == 1 and recipe.tokens == 100_000
    steps = recipe.steps
    trained = sum(recipe.sequences_at(step, steps) for step in range(steps)) * recipe.length
    assert 0 <= trained - recipe.tokens < 3 * recipe.sequences * recipe.length
    optim.normal(std=0.02, groups=trainer.STARTS)(model, 0)
    assert all(not layer.attention.out.weight.any() for layer in model.layers)
    assert 0.015 < float(model.layers[0].attention.q.weight.detach().std()) < 0.025
    hidden = {n for n, p in model.named_parameters() if p.ndim == 2 and n.startswith("layers")}
    own = optim.Muon(model, lr=1e-2, adamw_for=("embed", "logits"), groups=trainer.GROUPS)
    assert {name for name, state in own.state_dict().items() if "momentum_buffer" in state} == hidden
    assert trainer.LEDGER.single_moment == sum(model.get_parameter(name).numel() for name in hidden)
    run = tmp_path / "run"
    train(small, "--data", str(corpus(tmp_path)), "--steps", "30", "--out", str(run))
    found = losses(run)
    assert found[-1] < found[0] - 0.5


def test_parts_in_eight_bits_reach_the_trainer_and_learn(tmp_path: Path) -> None:
    small = compiled(MODEL.format(**PLAIN | {"groups": EIGHT}), tmp_path)
    trainer = small.trainer()
    assert trainer.FP8 == {"layers": "rows", "layers.*.attention": "blocks", "layers.*.attention.k": "none"}
    run = tmp_path / "run"
    train(small, "--data", str(corpus(tmp_path)), "--steps", "20", "--out", str(run))
    (tmp_path / "plain").mkdir()
    plain = compiled(MODEL.format(**PLAIN), tmp_path / "plain")
    train(plain, "--data", str(tmp_path / "text"), "--steps", "20", "--out", str(tmp_path / "exact"))
    eight, exact = losses(run), losses(tmp_path / "exact")
    assert eight != exact
    assert eight[-1] == pytest.approx(exact[-1], rel=0.03)


def test_the_microbatch_of_a_recipe_reaches_its_trainer(tmp_path: Path) -> None:
    text = MODEL.format(**PLAIN | {"microbatch": ", microbatch = 1"})
    small = compiled(text, tmp_path)
    assert small.trainer().PLANS["default"].microbatch == 1
    run = tmp_path / "run"
    train(small, "--data", str(corpus(tmp_path)), "--steps", "1", "--out", str(run))
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["microbatch"] == 1
