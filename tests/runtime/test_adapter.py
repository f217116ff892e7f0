"""Adapters: what they compute, that merged they compute the same, and runs that train them beside another's weights."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from dskc.compiler.cli import main
from dskc.runtime import optim
from dskc.runtime.adapter import Adapter, Lora, attach, merge
from dskc.runtime.modules import Embed, Linear
from dskc.runtime.problem import Problem
from dskc.runtime.train.load import load_model
from tests.compiler.small_models import Small, compiled
from tests.test_training import MODEL, PLAIN, corpus

ADAPTED = """
train adapt from tiny of small {
  groups {
    layers.attention.lora = lora(rank: 4, alpha: 8)
    layers.attention.q.lora = lora(rank: 2)
    norm.frozen = false
  }
}
"""


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = Embed(5, 8)
        self.layers = nn.ModuleList([Linear(8, 6, bias=True), Linear(6, 8)])
        self.head = Linear(8, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        return self.head(x + self.layers[1](torch.relu(self.layers[0](x))))


def adapted(lora: Lora) -> tuple[Two, dict[str, Adapter]]:
    torch.manual_seed(0)
    model = Two()
    optim.normal(0.5)(model, 0)
    made = attach(model, {"layers": lora}, outside=("head",))
    for i, adapter in enumerate(made.values()):
        adapter.start(torch.Generator().manual_seed(i))
    return model, made


def test_an_adapter_begins_as_nothing_and_adds_two_maps() -> None:
    model, made = adapted(Lora(rank=3, alpha=6.0))
    plain = Two()
    plain.load_state_dict({n: v for n, v in model.state_dict().items() if ".adapter." not in n})
    ids = torch.tensor([[0, 3, 4]])
    assert torch.equal(model(ids), plain(ids))
    for adapter in made.values():
        nn.init.normal_(adapter.up)
    x = torch.randn(2, 8)
    layer, adapter = model.layers[0], made["layers.0"]
    wanted = x @ layer.weight.T + layer.bias + 2.0 * (x @ adapter.down.T) @ adapter.up.T
    torch.testing.assert_close(layer(x), wanted)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"layers.{i}.adapter.{part}" for i in (0, 1) for part in ("down", "up")
    }


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_merged_is_unmerged(dtype: torch.dtype, bound: float) -> None:
    model, made = adapted(Lora(rank=3, alpha=1.5, dropout=0.5))
    model = model.to(dtype).eval()
    for adapter in made.values():
        nn.init.normal_(adapter.up)
    ids = torch.arange(5).unsqueeze(0)
    before = model(ids)
    assert merge(model) == 2 and merge(model) == 0
    after = model(ids)
    assert not any("adapter" in name for name in model.state_dict())
    assert (after - before).norm() <= bound * before.norm()


def test_dropout_is_of_training_alone() -> None:
    model, made = adapted(Lora(rank=3, alpha=3.0, dropout=0.5))
    nn.init.normal_(made["layers.0"].up)
    x = torch.randn(64, 8)
    assert torch.equal(model.eval().layers[0](x), model.layers[0](x))
    assert not torch.equal(model.train().layers[0](x), model.layers[0](x))


def test_adapters_that_cannot_be() -> None:
    with pytest.raises(Problem, match="no linear layers under embed"):
        attach(Two(), {"embed": Lora(2, 2.0)})
    with pytest.raises(Problem, match="no linear layers under head"):
        attach(Two(), {"head": Lora(2, 2.0)}, outside=("head",))
    with pytest.raises(Problem, match="the rank of an adapter is 0"):
        Lora(0, 1.0)
    with pytest.raises(Problem, match="dropout of an adapter is 1"):
        Lora(1, 1.0, dropout=1.0)


# Runs


def trainer(small: Small, name: str) -> ModuleType:
    return importlib.import_module(f"{small.package.__name__}.{name}")


def run(small: Small, name: str, *arguments: object) -> None:
    trainer(small, name).main([*map(str, arguments), "--device", "cpu"])


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Small, Path]:
    """A spec with two recipes, and a run of the first."""
    folder = tmp_path_factory.mktemp("adapted")
    small = compiled(MODEL.format(**PLAIN) + ADAPTED, folder)
    run(small, "train", "--data", corpus(folder), "--steps", 8, "--out", folder / "base")
    return small, folder


def test_a_run_trains_adapters_beside_the_weights_of_another(made: tuple[Small, Path]) -> None:
    small, folder = made
    module = trainer(small, "train_adapt")
    out = folder / "lora"
    asked = ("--data", folder / "text", "--weights", folder / "base", "--steps", 6)
    run(small, "train_adapt", *asked, "--out", out)
    base, _, _ = load_model(folder / "base", device="cpu")
    merged, _, tokenizer = load_model(out, device="cpu")
    assert tokenizer is not None
    assert tokenizer.to_str() == load_model(folder / "base", device="cpu")[2].to_str()
    same = {name for name, value in base.state_dict().items() if torch.equal(value, merged.state_dict()[name])}
    changed = base.state_dict().keys() - same
    assert changed == {
        "norm.weight", *(f"layers.{i}.attention.{part}.weight" for i in (0, 1) for part in ("q", "k", "v", "out"))
    }  # fmt: skip
    ledger = module.LEDGER
    saved = torch.distributed.checkpoint.FileSystemReader(out / "checkpoints" / "step-00000006").read_metadata()
    sizes = {n: e.size.numel() for n, e in saved.state_dict_metadata.items() if n.startswith("model.")}
    assert sum(sizes.values()) == ledger.params == 2 * (2 * 64 + 3 * 4 * 64) + 32
    assert ledger.frozen == sum(p.numel() for p in base.parameters()) - 32
    # merged by the command, it is a model like an imported one
    result = CliRunner().invoke(main, ["merge", str(out), "-o", str(folder / "whole")])
    assert result.exit_code == 0, result.output
    alone, _, _ = load_model(folder / "whole", device="cpu")
    assert all(torch.equal(value, alone.state_dict()[name]) for name, value in merged.state_dict().items())
    assert CliRunner().invoke(main, ["merge", str(folder / "base"), "-o", str(folder / "no")]).exit_code == 1
    # and a run on from there, broken off, is the whole one
    run(small, "train_adapt", *asked, "--out", folder / "cut", "--save-every", 2)
    for path in sorted((folder / "cut" / "checkpoints").glob("step-*"))[1:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    run(small, "train_adapt", "--out", folder / "cut", "--resume")
    assert losses(folder / "cut") == losses(out)


def test_a_run_begins_with_all_weights_of_another(made: tuple[Small, Path]) -> None:
    small, folder = made
    run(
        small,
        "train",
        "--data",
        folder / "text",
        "--weights",
        folder / "base",
        "--steps",
        2,
        "--out",
        folder / "on",
    )
    assert losses(folder / "on")[0] < losses(folder / "base")[0] - 0.02
    assert json.loads((folder / "on" / "run.json").read_text(encoding="utf-8"))["base"] == str(folder / "base")


def test_weights_that_do_not_fit(made: tuple[Small, Path], tmp_path: Path) -> None:
    small, folder = made
    out = tmp_path / "out"
    with pytest.raises(Problem, match="there are no weights to adapt"):
        run(small, "train_adapt", "--data", folder / "text", "--out", out)
    with pytest.raises(Problem, match="there is no such run"):
        run(small, "train", "--data", folder / "text", "--weights", tmp_path / "none", "--out", out)
    with pytest.raises(Problem, match="--weights cannot change on the way"):
        run(small, "train", "--resume", "--weights", folder / "base", "--out", folder / "base")
    wide = compiled(MODEL.format(**PLAIN).replace("F = 48", "F = 64"), tmp_path)
    with pytest.raises(Problem, match=r"layers.0.swiglu.gate.weight: \[48, 32\] there, \[64, 32\] here"):
        run(wide, "train", "--data", folder / "text", "--weights", folder / "base", "--out", out)
    assert not out.exists()
    headed = (
        MODEL.format(**PLAIN)
        .replace("-> logits: [B, S, V] {", "-> logits: [B, S, V], other: [B, S, V] {")
        .replace(
            "  logits = linear(rms_norm(x) as norm, D -> V)\n",
            "  y = rms_norm(x) as norm\n  logits = linear(y, D -> V)\n  other = linear(y, D -> V)\n",
        )
    )
    (tmp_path / "headed").mkdir()
    new = compiled(headed, tmp_path / "headed")
    with pytest.raises(Problem, match=r"(?s)other.weight: not there.*groups \{ other.init normal"):
        run(new, "train", "--data", folder / "text", "--weights", folder / "base", "--out", out)
