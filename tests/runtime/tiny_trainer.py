"""A tiny generated package, written by hand into a folder, and ways to run its trainer."""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
from pathlib import Path

from dskc.runtime.train.load import load_package

MODEL = """
import torch
from torch import nn

from dskc.runtime.modules import Embed, Linear, RMSNorm, SpecModule


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = RMSNorm(16, eps=1e-6)
        self.up = Linear(16, 32, bias=True)
        self.down = Linear(32, 16)

    def forward(self, x):
        y = nn.functional.dropout(nn.functional.gelu(self.up(self.norm(x))), 0.1, self.training)
        return x + self.down(y)


class Model(SpecModule):
    def __init__(self, compute=torch.bfloat16):
        super().__init__()
        self.compute = compute
        self.embed = Embed(300, 16)
        self.layers = nn.ModuleList([Layer() for _ in range(3)])
        self.norm = RMSNorm(16, eps=1e-6)
        self.logits = Linear(16, 300)

    def forward(self, tokens, documents=None):
        x = self.embed(tokens).to(self.compute)
        for layer in self.layers:
            x = layer(x)
        return self.logits(self.norm(x))
"""

SERVE = """
def forward(self, tokens, cache):
    return self(tokens)[:, -1]
"""

TRAIN = """
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    __package__ = Path(__file__).resolve().parent.name
    __import__(__package__)

from dskc.runtime import optim
from dskc.runtime.reference import next_token
from dskc.runtime.train import (
    Ledger, Plan, Precision, Recipe, Repeat, Run, Saved, parse_options, stop_on_problem
)

from .model import Model

RECIPE = Recipe(
    name="tiny", model="tiny", spec="specs/tiny.dsk", spec_hash="@HASH@", vocabulary=300, tokens=4096, sequences=8,
    length=32, precision=Precision(params="@PARAMS@", compute="@COMPUTE@", optimizer="@STATES@"),
    save_every=4, save_keep=2,
)
PLANS = {
    "default": Plan(recompute=@RECOMPUTE@, memory_limit=@LIMIT@),
    "free": Plan(),
    "cluster": Plan(devices=512),
}
LEDGER = Ledger(
    params=12_704,
    repeats=(Repeat("layers", count=3, input=512, params=1_072, saved=Saved(compute=4_096, fp32=32)),),
    rest=Saved(compute=1_024),
    logits=9_600,
)


def objective(model, batch):
    loss = next_token(model(batch.tokens, batch.documents), batch.targets)
    return {"loss": loss, "next_token": loss}


def main(arguments=None):
    options = parse_options(RECIPE, PLANS, arguments)
    run = Run.open(options, RECIPE, LEDGER, objective, package=Path(__file__).resolve().parent)
    model = run.build(Model, optim.normal(std=0.02))
    optimizer = optim.@OPTIMIZER@(model, lr=float("@LR@"), **run.states)
    schedule = optim.cosine(peak=float("@LR@"), warmup=2, steps=run.steps)
    run.restore(model, optimizer)
    for step in run:
        rate = schedule(step)
        for batch in run.batches(step):
            losses = objective(model, batch)
            run.add(losses)
            run.backward(losses["loss"])
        norm = optimizer.clip(1.0)
        optimizer.step(rate)
        run.report(step, rate=rate, norm=norm)@EXTRA@
    run.finish()


if __name__ == "__main__":
    stop_on_problem(main)
"""

CHOICES = {
    "HASH": "aaaa",
    "PARAMS": "fp32",
    "COMPUTE": "fp32",
    "STATES": "fp32",
    "RECOMPUTE": '"auto"',
    "LIMIT": "None",
    "OPTIMIZER": "AdamW",
    "LR": "1e-2",
    "EXTRA": "",
}


def write_package(folder: Path, **choices: str) -> Path:
    """The package in `folder/tiny`; choices replace the marked places of its trainer."""
    package = folder / "tiny"
    package.mkdir(parents=True, exist_ok=True)
    train = TRAIN
    for name, value in (CHOICES | choices).items():
        train = train.replace(f"@{name}@", value)
    (package / "__init__.py").write_text("from .model import Model\n\n__all__ = ['Model']\n")
    (package / "model.py").write_text(MODEL)
    (package / "serve.py").write_text(SERVE)
    (package / "train.py").write_text(train)
    return package


def train(package: Path, *arguments: object) -> None:
    """Run the trainer in this process; a Problem comes out as one."""
    module = importlib.import_module(load_package(package).__name__ + ".train")
    module.main([str(argument) for argument in arguments])


def start(package: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start the trainer as a script of its own."""
    command = [sys.executable, str(package / "train.py"), *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def write_text(folder: Path, documents: int = 20, seed: int = 0) -> Path:
    """A folder of documents in which the next word can be learned."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    words = ["alpha beta", "gamma", "delta epsilon zeta", "eta", "theta iota"]
    for number in range(documents):
        text = "\n".join(" ".join(rng.choice(words) for _ in range(6)) for _ in range(30))
        (folder / f"{number:03}.txt").write_text(text)
    return folder


def log_lines(run: Path) -> list[dict[str, float]]:
    """The lines of a run's log, without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    for line in lines:
        del line["tokens_per_s"]
    return lines
