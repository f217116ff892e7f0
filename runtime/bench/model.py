"""A model of some spec, cut to one layer of each kind, and a batch to run it on: what measurements of shapes need."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from ..data import Batch
from ..problem import Problem
from ..train.load import build_model, load_package
from ..train.recipe import Plan, Recipe, dtype_of

MOST_TOKENS = 16_384  # of a batch whose size nobody told


@dataclass(frozen=True)
class Trained:
    """A generated package with its trainer: the model's class, its kernels, recipe and objective."""

    package: ModuleType
    trainer: ModuleType

    @staticmethod
    @cache
    def load(folder: Path) -> Trained:
        """From a folder that `dskc compile` wrote, once a process."""
        package = load_package(folder)
        return Trained(package, importlib.import_module(f"{package.__name__}.train"))

    @property
    def name(self) -> str:
        return self.recipe.model

    @property
    def recipe(self) -> Recipe:
        recipe = self.trainer.RECIPE
        assert isinstance(recipe, Recipe)
        return recipe

    @property
    def kernels(self) -> ModuleType:
        return importlib.import_module(f"{self.package.__name__}.kernels")

    def batch_size(self, length: int) -> int:
        """Sequences in a forward pass: what a plan says, else as many as have `MOST_TOKENS` together."""
        plans: Mapping[str, Plan] = self.trainer.PLANS
        told = [plan.microbatch for plan in plans.values() if plan.microbatch is not None]
        return told[0] if told else max(1, min(self.recipe.sequences, MOST_TOKENS // length))

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        objective: Callable[[nn.Module, Batch], dict[str, Tensor]] = self.trainer.objective
        return objective(model, batch)


def cut_model(trained: Trained, compute: torch.dtype, params: torch.dtype, device: torch.device) -> nn.Module:
    """The model with one layer of each kind in every repeat, as shapes depend on kinds alone; not yet set."""
    meta = build_model(trained.package.Model, compute, params, torch.device("meta"))
    for module in meta.modules():
        if isinstance(module, nn.ModuleList):
            kinds = [_kind(layer) for layer in module]
            for i in reversed(range(len(kinds))):
                if kinds.index(kinds[i]) < i:
                    del module[i]
    return meta.to_empty(device=device) if device.type != "meta" else meta


def _kind(layer: nn.Module) -> object:
    return type(layer), tuple((name, p.shape) for name, p in layer.named_parameters())


def random_batch(recipe: Recipe, batch: int, length: int, device: torch.device) -> Batch:
    """Inputs and labels as the recipe has them, drawn at random: text of `length` tokens in one document a row."""
    made: dict[str, Tensor] = {}
    inputs = recipe.fields.inputs
    for name, one in inputs.items():
        if one.ids and one.optional and name != "tokens" and "tokens" in inputs:
            continue  # another text, which would stand in the sequence too
        shape = (batch, length) if name == "tokens" else (batch, *one.shape)
        if one.ids:
            made[name] = torch.randint(0, max(1, recipe.vocabulary), shape, device=device)
        else:
            made[name] = torch.randn(shape, device=device)
    labels: dict[str, Tensor] = {}
    for name, task in recipe.fields.tasks.items():
        if task.loss == "classify":
            labels[name] = torch.randint(0, task.shape[-1], (batch, *task.shape[:-1]), device=device)
        else:
            labels[name] = torch.randn((batch, *task.shape), device=device)
    tokens = made.pop("tokens", None)
    targets = documents = None
    if tokens is not None:
        targets, documents = tokens.roll(-1, 1), torch.zeros(tokens.shape, dtype=torch.int32, device=device)
    return Batch(tokens, targets, documents, made, labels)


def checked_length(recipe: Recipe, length: int | None) -> int:
    """The recipe's unless told. Raises Problem for a length that no sequence has."""
    if length is not None and length < 2:
        raise Problem(f"a sequence of {length} tokens predicts nothing", "give --length 2 or more")
    return length or recipe.length


def computed_in(recipe: Recipe) -> torch.dtype:
    return dtype_of(recipe.precision.compute)
