"""A tiny generated package whose model takes text, images or both, written by hand; and files of records for it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_trainer import SERVE
from torch import Tensor

MODEL = """
from typing import NamedTuple

import torch
from torch import nn

from dskc.runtime.modules import Embed, Linear, SpecModule


class Output(NamedTuple):
    logits: torch.Tensor
    kind: torch.Tensor
    reward: torch.Tensor


class Model(SpecModule):
    def __init__(self, compute=torch.float32):
        super().__init__()
        self.compute = compute
        self.embed = Embed(300, 16)
        self.patch = Linear(3, 16, bias=True)
        self.logits = Linear(16, 300)
        self.kind = Linear(16, 4, bias=True)
        self.reward = Linear(16, 1, bias=True)

    def forward(self, tokens, code=None, image=None):
        text = tokens if tokens is not None else code
        parts = [] if image is None else [torch.tanh(self.patch(image))]
        parts += [] if text is None else [self.embed(text)]
        x = torch.cat(parts, 1)
        mean = x.mean(1)
        return Output(self.logits(x if text is None else parts[-1]), self.kind(mean), self.reward(mean))
"""

TRAIN = """
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    __package__ = Path(__file__).resolve().parent.name
    __import__(__package__)

from dskc.runtime import optim
from dskc.runtime.reference import classify, next_token, regress, weighted
from dskc.runtime.train import (
    Input, Ledger, Plan, Precision, Recipe, Run, Saved, Task, parse_options, stop_on_problem
)

from .model import Model

RECIPE = Recipe(
    name="tiny", model="tasks", spec="specs/tasks.dsk", spec_hash="aaaa", vocabulary=300, tokens=4096, sequences=8,
    length=32, precision=Precision(compute="fp32"), save_every=4, save_keep=2,
    inputs={
        "tokens": Input((32,), optional=True, ids=True),
        "code": Input((16,), optional=True, ids=True),
        "image": Input((5, 3), optional=True),
    },
    tasks={"kind": Task("classify", (4,)), "reward": Task("regress", (1,))},
)
PLANS = {"default": Plan(microbatch=4)}
LEDGER = Ledger(params=10_000, rest=Saved(compute=1_024), logits=9_600)


def objective(model, batch):
    out = model(batch.tokens, batch.inputs.get("code"), batch.inputs.get("image"))
    losses = {}
    if batch.targets is not None:
        losses["next_token"] = next_token(out.logits, batch.targets)
    if "kind" in batch.labels:
        losses["classify_kind"] = classify(out.kind, batch.labels["kind"])
    if "reward" in batch.labels:
        losses["regress_reward"] = regress(out.reward, batch.labels["reward"])
    return {"loss": weighted(losses, {"regress_reward": 0.5}), **losses}


def main(arguments=None):
    options = parse_options(RECIPE, PLANS, arguments)
    run = Run.open(options, RECIPE, LEDGER, objective, package=Path(__file__).resolve().parent)
    model = run.build(Model, optim.normal(std=0.1))
    optimizer = optim.AdamW(model, lr=3e-2, **run.states)
    run.restore(model, optimizer)
    for step in run:
        for batch in run.batches(step):
            losses = objective(model, batch)
            run.add(losses)
            run.backward(losses["loss"])
        optimizer.step(3e-2)
        run.report(step, rate=3e-2)@EXTRA@
    run.finish()


if __name__ == "__main__":
    stop_on_problem(main)
"""


def write_tasks_package(folder: Path, extra: str = "") -> Path:
    """The package in `folder/tasks`; `extra` comes at the end of its loop."""
    package = folder / "tasks"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("from .model import Model\n\n__all__ = ['Model']\n")
    (package / "model.py").write_text(MODEL)
    (package / "serve.py").write_text(SERVE)
    (package / "train.py").write_text(TRAIN.replace("@EXTRA@", extra))
    return package


def images(count: int, seed: int = 0) -> dict[str, Tensor]:
    """Images [N, 5, 3] of four kinds that their mean tells apart."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(4, (count,), generator=generator)
    corners = torch.tensor([[1.0, 1, 0], [1, -1, 0], [-1, 1, 0], [-1, -1, 0]])
    image = corners[kind][:, None, :] + 0.3 * torch.randn(count, 5, 3, generator=generator)
    return {"image": image, "kind": kind}


def write_records(path: Path, **tensors: Tensor) -> Path:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    return path
