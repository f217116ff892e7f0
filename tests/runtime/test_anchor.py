"""Elastic weight consolidation: the penalty against autograd, Fisher information row by row, and runs that are held."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dskc.runtime import optim
from dskc.runtime.data import Batch
from dskc.runtime.problem import Problem
from dskc.runtime.train.anchor import Anchor, fisher_of
from tests.compiler.small_models import Small, compiled
from tests.test_training import MODEL, PLAIN, corpus

HELD = "\ntrain held from tiny of small { hold ewc(strength: 1e3, samples: 5) }\n"


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.frozen, self.unused = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(torch.tanh(self.up(x)))


@pytest.mark.parametrize("scale", [1.0, 2.0**10])
def test_the_pull_is_the_gradient_of_the_penalty(scale: float) -> None:
    model = Two()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach() + torch.randn_like(p) for name, p in parameters.items()}
    fisher = {name: torch.rand_like(p) for name, p in parameters.items()}
    anchor = Anchor(7.0, parameters, before, fisher)
    optimizer = optim.AdamW(model, lr=0.1)
    optimizer.scale = scale
    x = torch.randn(5, 3)
    (model(x).square().mean() * scale).backward()
    found = anchor.pull(optimizer)
    penalty = 3.5 * sum((fisher[n] * (p - before[n]).square()).sum() for n, p in parameters.items())
    wanted = torch.autograd.grad(model(x).square().mean() + penalty, list(parameters.values()), allow_unused=True)
    torch.testing.assert_close(found, penalty.detach())
    for (name, parameter), grad in zip(parameters.items(), wanted, strict=True):
        assert grad is not None and parameter.grad is not None
        torch.testing.assert_close(parameter.grad / scale, grad, msg=lambda m, name=name: f"{name}: {m}")


def test_fisher_is_the_mean_of_each_rows_squared_gradient() -> None:
    model = Two().train()
    rows = [torch.randn(1, 3) for _ in range(4)]

    def objective(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        assert not model.training
        return {"loss": model(batch).square().mean()}  # type: ignore[operator]

    found = fisher_of(model, objective, rows)  # type: ignore[arg-type]
    assert model.training and found.keys() == {"up.weight", "up.bias", "unused.weight", "unused.bias"}
    wanted = torch.zeros(4, 3)
    for row in rows:
        (grad,) = torch.autograd.grad(model(row).square().mean(), [model.up.weight])
        wanted += grad.square() / 4
    torch.testing.assert_close(found["up.weight"], wanted)
    assert not found["unused.weight"].any()


def test_what_an_anchor_is_made_of_is_kept_whole(tmp_path: Path) -> None:
    model = Two()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before, fisher = ({n: p.detach() * f for n, p in parameters.items()} for f in (2.0, 3.0))
    anchor = Anchor(2.0, parameters, before, fisher)
    anchor.write(tmp_path / "anchor.safetensors")
    again = Anchor.read(tmp_path / "anchor.safetensors", model, 2.0)
    assert all(torch.equal(again.before[n], anchor.before[n]) for n in parameters)
    assert all(torch.equal(again.fisher[n], anchor.fisher[n]) for n in parameters)
    assert [path.name for path in tmp_path.iterdir()] == ["anchor.safetensors"]
    with pytest.raises(Problem, match="is of other parameters"):
        Anchor.read(tmp_path / "anchor.safetensors", nn.Linear(3, 4), 2.0)
    (tmp_path / "anchor.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(Problem, match="cannot be read"):
        Anchor.read(tmp_path / "anchor.safetensors", model, 2.0)


# Runs


def run(small: Small, name: str, *arguments: object) -> None:
    importlib.import_module(f"{small.package.__name__}.{name}").main([*map(str, arguments), "--device", "cpu"])


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_held_run_moves_less_and_goes_on_as_it_was(tmp_path: Path) -> None:
    small = compiled(MODEL.format(**PLAIN) + HELD, tmp_path)
    text = corpus(tmp_path)
    other = tmp_path / "other.txt"
    other.write_text("0123456789 " * 4000, encoding="utf-8")
    run(small, "train", "--data", text, "--steps", 6, "--out", tmp_path / "base")
    asked = ("--data", other, "--weights", tmp_path / "base", "--steps", 6)
    run(small, "train", *asked, "--out", tmp_path / "free")
    run(small, "train_held", *asked, "--save-every", 2, "--out", tmp_path / "held")
    held, free = lines(tmp_path / "held"), lines(tmp_path / "free")
    assert held[0]["loss"] == free[0]["loss"] and held[0]["ewc"] == 0.0
    assert held[-1]["ewc"] > 0 and held[-1]["loss"] > free[-1]["loss"]
    assert importlib.import_module(f"{small.package.__name__}.train_held").LEDGER.anchored
    for path in sorted((tmp_path / "held" / "checkpoints").glob("step-*"))[1:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    run(small, "train_held", "--out", tmp_path / "held", "--resume")
    assert [(line["loss"], line["ewc"]) for line in lines(tmp_path / "held")] == [
        (line["loss"], line["ewc"]) for line in held
    ]
    # and a third, held to both before it
    run(small, "train_held", "--data", text, "--weights", tmp_path / "held", "--steps", 2, "--out", tmp_path / "third")
    first, third = (
        Anchor.read(tmp_path / n / "anchor.safetensors", small.model(), 1.0).fisher for n in ("held", "third")
    )
    assert all((third[name] >= first[name]).all() for name in first)
    with pytest.raises(Problem, match="holds weights to those of an earlier run"):
        run(small, "train_held", "--data", text, "--out", tmp_path / "none")
