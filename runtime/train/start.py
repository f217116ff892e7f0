"""A model that begins with the weights of another run: what fine-tuning starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..adapter import Adapter, attach
from ..data import Mixture
from ..optim.groups import find, is_under
from ..optim.init import seeded
from ..problem import Problem
from .folder import RunFolder
from .load import load_package, load_weights
from .recipe import Recipe
from .sources import open_sources


def base_of(weights: Path) -> RunFolder:
    """The run whose weights are named. Raises Problem when it is no run."""
    if not weights.is_dir():
        raise Problem(f"--weights {weights}: there is no such run", "name the folder of a run, or of `dskc import`")
    folder = RunFolder(weights)
    folder.read()
    return folder


@torch.no_grad()
def read_base(model: nn.Module, base: Path, starts: Sequence[str]) -> list[str]:
    """Copies the weights of a run into a model, by name. starts: paths that stay as they are where the run does not
    have them. What there is to say of names that only one of the two has.

    Raises Problem for a parameter that the run has in another shape, and for one that it does not have and that is
    under none of `starts`.
    """
    folder = RunFolder(base)
    there = load_weights(load_package(folder.code(folder.read().model)).Model, base, device="cpu").state_dict()
    own: Mapping[str, Tensor] = model.state_dict()
    wrong = [name for name in own if name in there and own[name].shape != there[name].shape]
    missing = [name for name in own if name not in there]
    unsaid = [name for name in missing if not any(is_under(name, path) for path in starts)]
    if wrong or unsaid:
        lines = [f"  {name}: {list(there[name].shape)} there, {list(own[name].shape)} here" for name in wrong]
        lines += [f"  {name}: not there" for name in unsaid]
        shown = lines[:20] + ([f"  and {len(lines) - 20} more"] if len(lines) > 20 else [])
        way = "the model must be that of the run"
        if unsaid:
            part = unsaid[0].rpartition(".")[0]
            way = f"say in the recipe how what is new begins: groups {{ {part}.init normal(std: 0.02) }}"
        raise Problem(f"--weights {base} does not fit the model:\n" + "\n".join(shown), way)
    for name in own.keys() & there.keys():
        own[name].copy_(there[name])
    said = (("begins anew", missing), ("is not used", [name for name in there if name not in own]))
    return [f"{', '.join(n[:5])}{' and others' if len(n) > 5 else ''} {what}" for what, n in said if n]


def earlier_data(base: RunFolder) -> Mixture:
    """What a run was trained on, in its order. Raises Problem where its files are missing."""
    facts = base.read()
    assert facts.recipe is not None, f"{base.path} is an import"
    sources = open_sources(base, facts.sources, facts.recipe, facts.seed, facts.data.packing)
    return Mixture(sources, facts.mix, facts.unit or facts.microbatch)


def adapt(model: nn.Module, recipe: Recipe, seed: int) -> dict[str, Adapter]:
    """Adapters as the recipe has them, begun from the seed; then what it freezes is frozen, and what it does not is
    not. By the names of their layers.
    """
    made = attach(model, recipe.lora, recipe.bare) if recipe.lora else {}
    for name, adapter in made.items():
        adapter.start(seeded(seed, f"{name}.adapter", adapter.down.device))
    paths = list(recipe.frozen)
    named = list(model.named_parameters())
    for path in paths:
        if not any(is_under(name, path) for name, _ in named):
            raise Problem(f"the model has no parameter under {path} to freeze")
    for name, parameter in named:
        place = find(name, paths)
        if place is not None and ".adapter." not in name:
            parameter.requires_grad_(not recipe.frozen[paths[place]])
    if not any(parameter.requires_grad for _, parameter in named):
        raise Problem("all of the model is frozen: nothing is left to train", "leave a part out of `frozen`")
    return made
