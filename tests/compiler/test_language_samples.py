"""The samples of the language's design, small, as files of a user's own: checked, compiled, trained, decoded."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from dskc.compiler.cli import main
from dskc.runtime.serve.cache import Cache
from dskc.runtime.spec_module import SpecModule
from dskc.runtime.train import Batch
from dskc.runtime.train.load import load_package

from .small_models import first

BLOCKS = """
dsk 1

use std { swiglu }

/// Multi-head latent attention (arXiv:2405.04434, section 2.1).
block mla(x: [B, S, D], heads: H, q_rank: Rq?, kv_rank: Rc, nope: En, rotary: Er, value: Ev, rope: block) -> [B, S, D] {
  q = x
  if Rq {
    q = rms_norm(linear(x, D -> Rq) as q_down) as q_norm
  }
  qn, qr = split(linear(q, .. -> [H, En + Er]) as q_up, [En, Er])
  c, kr  = split(linear(x, D -> Rc + Er) as kv_down, [Rc, Er])
  c      = rms_norm(c) as kv_norm
  kr     = rope(kr)
  keep c, kr                         # what decoding keeps; what follows is recomputed, or absorbed
  kn, v  = split(linear(c, Rc -> [H, En + Ev]) as kv_up, [En, Ev])
  o      = attend([qn, rope(qr)], [kn, kr], v, mask: causal)
  return linear(o, [H, Ev] -> D) as out
}

/// DeepSeek-V3 mixture of experts (arXiv:2412.19437, section 2.1.2), without its groups and selection bias.
block deepseek_moe(x: [B, S, D], count: X, inner: Fx, top: int, shared: int, scale: float) -> [B, S, D] {
  score  = sigmoid(linear(x, D -> X, compute: fp32) as router)
  chosen = top_k(score, top)
  weight = scale * normalize(gather(score, chosen))
  loss balance = sequence_balance(score, chosen)
  return experts(x, chosen, weight, swiglu(inner: Fx), count: X) + swiglu(x, inner: shared * Fx) as shared_expert
}
"""

LARGE = """
dsk 1

use std { swiglu }
use "blocks.dsk" { mla, deepseek_moe }

/// DeepSeek-V3, small.
model large(tokens: ids[B, S]) -> logits: [B, S, V], next: [B, S, V] {
  dims { V = 96, D = 32, F = 48, H = 4, X = 6, Fx = 16, Rq = 24, Rc = 16, En = 8, Er = 4, Ev = 12 }

  table = embed(V -> D)              # without its tensor a call is a value that owns one set of weights;
  head  = linear(D -> V)             # applying it twice shares them (tied embeddings, the MTP head)

  x = table(tokens)
  repeat 5 layers[i] {
    x += mla(rms_norm(x), heads: H, q_rank: Rq, kv_rank: Rc, nope: En, rotary: Er, value: Ev,
             rope: rope(theta: 10_000, pairs: interleaved, scaling: yarn(factor: 40, from: 16)))
    x += if i < 3 then swiglu(rms_norm(x), inner: F) else deepseek_moe(rms_norm(x), count: X, inner: Fx,
             top: 2, shared: 1, scale: 2.5)
  }
  logits = head(rms_norm(x) as norm)

  group mtp {
    h = linear(concat(rms_norm(table(shift(tokens, 1))) as enorm, rms_norm(x) as hnorm), 2 * D -> D) as proj
    h += mla(rms_norm(h), heads: H, q_rank: Rq, kv_rank: Rc, nope: En, rotary: Er, value: Ev,
             rope: rope(theta: 10_000, pairs: interleaved, scaling: yarn(factor: 40, from: 16)))
    h += swiglu(rms_norm(h), inner: F)
    next = head(rms_norm(h) as norm)
  }
  require params - params(mtp) == PARAMS
}

train pretrain of large {
  objective next_token(logits) + 0.3 * next_token(next, ahead: 2) + 1e-4 * balance
  tokens    = 1M
  batch     { sequences = 4, S = 16 }
}
"""

ALTERNATING = """
dsk 1

use std { attention, geglu }

model alternating(tokens: ids[B, S]) -> logits: [B, S, V] {
  dims { V = 96, D = 32, F = 48, H = 4, G = 2, E = 8 }
  embed = embed(V -> D)
  x = 5.65 * embed(tokens)
  repeat 12 layers[i] {
    x += attention(rms_norm(x, offset: 1), heads: H, width: E, kv_heads: G,
                   rope: rope(theta: if i % 6 == 5 then 1M else 10_000),
                   mask: if i % 6 == 5 then causal else causal & window(4))
    x += geglu(rms_norm(x, offset: 1), inner: F)
  }
  logits = softcap(unembed(rms_norm(x, offset: 1) as norm, embed), 30)
}
"""


@dataclass(frozen=True)
class Made:
    model: SpecModule
    package: ModuleType
    folder: Path

    @property
    def source(self) -> str:
        return (self.folder / "model.py").read_text()

    @property
    def serve(self) -> ModuleType:
        return importlib.import_module(f"{self.package.__name__}.serve")


def dskc(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, and the way there."""
    (tmp_path / "blocks.dsk").write_text(BLOCKS.lstrip())
    (tmp_path / "large.dsk").write_text(LARGE.lstrip().replace("PARAMS", "69_288"))
    (tmp_path / "alternating.dsk").write_text(ALTERNATING.lstrip())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(name: str) -> Made:
    dskc("check", f"{name}.dsk")
    dskc("compile", f"{name}.dsk")
    package = load_package(Path("generated") / name)
    torch.manual_seed(0)
    model = package.Model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Made(model.eval(), package, Path("generated") / name)


def check_decoding(made: Made, tokens_BS: Tensor) -> None:
    """A prompt and then token by token gives the logits of the whole."""
    whole_BSV = first(made.model(tokens_BS)).detach()
    cache = Cache(tokens_BS.shape[0], tokens_BS.shape[1])
    start = tokens_BS.shape[1] // 2
    for i in range(start, tokens_BS.shape[1] + 1):
        part_BS = tokens_BS[:, :start] if i == start else tokens_BS[:, i - 1 : i]
        with torch.no_grad():
            torch.testing.assert_close(made.serve.forward(made.model, part_BS, cache), whole_BSV[:, i - 1])


def check_training(made: Made, tokens_BS: Tensor) -> dict[str, Tensor]:
    """The recipe's objective reaches every parameter, and one small step makes it less."""
    trainer = importlib.import_module(f"{made.package.__name__}.train")
    batch = Batch(tokens_BS[:, :-1], tokens_BS[:, 1:], torch.zeros_like(tokens_BS[:, 1:]))
    losses = trainer.objective(made.model, batch)
    losses["loss"].backward()
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            assert parameter.grad is not None, name
            parameter -= 1e-3 * parameter.grad / (parameter.grad.norm() + 1e-9)
    assert trainer.objective(made.model, batch)["loss"] < losses["loss"]
    return losses


def test_a_large_model_with_latent_attention_experts_and_a_second_head(folder: Path) -> None:
    large = made("large")
    tokens_BS = torch.randint(0, 96, (2, 11))
    seen: list[Tensor] = []
    large.model.mtp.proj.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    output = large.model(tokens_BS)
    following_BS = torch.nn.functional.pad(tokens_BS[:, 1:], (0, 1))
    torch.testing.assert_close(seen[0][..., :32], large.model.mtp.enorm(large.model.table(following_BS)))
    assert output._fields == ("logits", "next", "balance")
    assert output.logits.shape == output.next.shape == (2, 11, 96)
    check_decoding(large, tokens_BS)
    losses = check_training(large, tokens_BS)
    total = losses["next_token"] + 0.3 * losses["next_token_next"] + 1e-4 * losses["balance"]
    torch.testing.assert_close(losses["loss"], total)
    assert (
        "nn.ModuleList([*(SwigluLayer() for _ in range(3)), *(DeepseekMoeLayer() for _ in range(2))])" in large.source
    )


def test_latent_attention_keeps_only_the_latent(folder: Path) -> None:
    large = made("large")
    cache = Cache(1, 8)
    large.serve.forward(large.model, torch.randint(0, 96, (1, 8)), cache)
    kept = {path[-1]: tuple(buffer.shape[2:]) for path, buffer in cache._store.buffers.items()}
    assert kept == {"c": (16,), "kr": (4,)}
    assert len(cache._store.buffers) == 2 * 5, "the second head is not served"


def test_latent_attention_is_attention_over_what_it_expands_to(folder: Path) -> None:
    """Against the formulas of arXiv:2405.04434, section 2.1.3, written out with explicit heads."""
    large = made("large")
    mla = large.model.layers[0].mla
    x_BSD = torch.randn(2, 7, 32)
    angle = torch.arange(7.0).unsqueeze(-1) * torch.tensor([1.0, 0.3])
    cos, sin = angle.cos(), angle.sin()

    def turn(x: Tensor) -> Tensor:
        a, b = x[..., 0::2], x[..., 1::2]
        c, s = (t.view(7, *[1] * (x.ndim - 3), 2) for t in (cos, sin))
        return torch.stack((a * c - b * s, b * c + a * s), dim=-1).flatten(-2)

    q = mla.q_up(mla.q_norm(mla.q_down(x_BSD))).view(2, 7, 4, 12)
    latent = mla.kv_down(x_BSD)
    shared = turn(latent[..., 16:])
    kv = mla.kv_up(mla.kv_norm(latent[..., :16])).view(2, 7, 4, 20)
    heads = []
    for h in range(4):
        query = torch.cat((q[:, :, h, :8], turn(q[..., 8:])[:, :, h]), dim=-1)
        key = torch.cat((kv[:, :, h, :8], shared), dim=-1)
        score = query @ key.mT / 12**0.5
        score = score.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
        heads.append(score.softmax(-1) @ kv[:, :, h, 8:])
    torch.testing.assert_close(mla(x_BSD, cos, sin), mla.out(torch.cat(heads, dim=-1)))


def test_local_and_global_layers(folder: Path) -> None:
    alternating = made("alternating")
    tokens_BS = torch.randint(0, 96, (2, 10))
    check_decoding(alternating, tokens_BS)
    check_training(alternating, tokens_BS)
    assert "kinds = (Layer1, Layer1, Layer1, Layer1, Layer1, Layer2)" in alternating.source
    assert "kernels.causal_window_4_attention(" in alternating.source
    assert "kernels.causal_attention(" in alternating.source
    written = (alternating.folder / "kernels.py").read_text(encoding="utf-8")
    assert "mask=lambda _: reference.causal & reference.window(4)," in written
    assert "mask=lambda _: reference.causal," in written


def test_a_local_layer_does_not_see_beyond_its_window(folder: Path) -> None:
    dskc("compile", "alternating.dsk", "--set", "layers=2", "-o", "local")
    model = load_package(Path("local") / "alternating").Model().eval()
    tokens_BS = torch.randint(0, 96, (1, 12))
    other_BS = tokens_BS.clone()
    other_BS[:, 0] = (other_BS[:, 0] + 1) % 96
    differs_S = (model(tokens_BS) - model(other_BS)).abs().amax(-1)[0] > 0
    assert differs_S.tolist() == [True] * 7 + [False] * 5  # two layers of a window of 4 reach back 6 positions


def test_a_change_in_three_lines(folder: Path) -> None:
    """Another router in a user's own block, without touching the compiler."""
    text = Path("blocks.dsk").read_text()
    folder = made("large").folder
    before = {file: (folder / file).read_text() for file in ("model.py", "kernels.py")}
    Path("blocks.dsk").write_text(text.replace("sigmoid(linear(x", "softmax(linear(x"))
    made("large")
    after = {file: (folder / file).read_text() for file in before}
    for function, texts in (("sigmoid", before), ("softmax", after)):
        assert f"kernels.{function}_top_k" in texts["model.py"] and f"reference.{function}(" in texts["kernels.py"]
    lines = before["model.py"].splitlines()
    changed = [line for line in after["model.py"].splitlines() if line not in lines and not line.startswith("#")]
    assert len(changed) <= 3, changed
