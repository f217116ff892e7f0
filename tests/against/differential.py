"""A model of transformers beside ours, made from its checkpoint by the command line."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from click.testing import Result
from command import dskc
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from dskc.runtime.serve.cache import Cache
from dskc.runtime.train import Batch, load_model
from dskc.runtime.weights import export_weights

TOLERANCE = 1e-4  # relative, by norm, in float32


@dataclass(frozen=True)
class Ours:
    """A run that was imported: its model, its generated modules, and the map of its weights."""

    model: nn.Module
    serve: ModuleType
    trainer: ModuleType
    rules: list[dict[str, object]]


def import_(spec: Path, checkpoint: Path, out: Path, settings: Sequence[str] = (), config: bool = False) -> Result:
    """`dskc import`; with `config` it reads the checkpoint's config.json too."""
    overrides = [part for setting in settings for part in ("--set", setting)]
    return dskc("import", spec, checkpoint, "-o", out, *overrides, *(() if config else ("--no-config",)))


def imported(spec: Path, checkpoint: Path, out: Path, settings: Sequence[str] = (), config: bool = False) -> Ours:
    """The run that `dskc import` makes of a checkpoint, loaded."""
    result = import_(spec, checkpoint, out, settings, config)
    assert result.exit_code == 0, result.output
    model, serve, _ = load_model(out, device="cpu")
    assert serve.__package__ is not None
    trainer = importlib.import_module(f"{serve.__package__}.train")
    (plan,) = out.glob("code/*/plan.json")
    return Ours(model, serve, trainer, json.loads(plan.read_text())["checkpoint"])


def error(ours: Tensor, theirs: Tensor) -> float:
    """The norm of the difference, relative to theirs."""
    assert ours.shape == theirs.shape, f"{list(ours.shape)}, and theirs is {list(theirs.shape)}"
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def logits(model: nn.Module, tokens_BS: Tensor) -> Tensor:
    """[B, S, V]. A model with further results gives a tuple of them, the logits first."""
    output = model(tokens_BS)
    return output if isinstance(output, Tensor) else output[0]


def batch(tokens_BS: Tensor) -> Batch:
    """Each position predicts the token after it, the last none: what `labels=tokens` means to transformers."""
    nothing_B1 = torch.full_like(tokens_BS[:, :1], -100)
    targets_BS = torch.cat([tokens_BS[:, 1:], nothing_B1], dim=1)
    return Batch(tokens_BS, targets_BS, torch.zeros_like(tokens_BS))


def losses(ours: Ours, tokens_BS: Tensor) -> dict[str, Tensor]:
    """Every loss by name, as the generated trainer computes them."""
    found = ours.trainer.objective(ours.model, batch(tokens_BS))
    return {"next_token": found["loss"]} | found  # alone, it is the whole objective


def our_gradients(ours: Ours, tokens_BS: Tensor) -> dict[str, Tensor]:
    """Of the next-token loss, by the names of the checkpoint; none of what only foretells tokens further ahead."""
    model = ours.model.requires_grad_(True)
    model.zero_grad()
    losses(ours, tokens_BS)["next_token"].backward()
    parameters = model.named_parameters()
    gradients = {name: _gradient(parameter) for name, parameter in parameters if not name.startswith("mtp.")}
    model.requires_grad_(False)
    return export_weights(ours.rules, gradients)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter.data) if parameter.grad is None else parameter.grad


def their_gradients(theirs: PreTrainedModel, tokens_BS: Tensor, folder: Path) -> dict[str, Tensor]:
    """Of the next-token loss, by the names of the checkpoint: saved as if they were weights, and read back."""
    model = copy.deepcopy(theirs)
    model(tokens_BS, labels=tokens_BS).loss.backward()
    for parameter in model.parameters():
        parameter.data = _gradient(parameter)
    model.save_pretrained(folder)
    buffers = tuple(name.rpartition(".")[2] for name, _ in model.named_buffers())
    return {
        name: value for name, value in load_file(folder / "model.safetensors").items() if not name.endswith(buffers)
    }


def decoded(ours: Ours, tokens_BS: Tensor, steps: Sequence[int]) -> Tensor:
    """Logits [B, N, V] at the ends of N passes with a cache, which take so many tokens each."""
    assert sum(steps) == tokens_BS.shape[1]
    cache = Cache(*tokens_BS.shape)
    with torch.inference_mode():
        parts = [ours.serve.forward(ours.model, part_BS, cache) for part_BS in tokens_BS.split(list(steps), dim=1)]
    return torch.stack(parts, dim=1)
