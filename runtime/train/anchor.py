"""Elastic weight consolidation (arXiv:1612.00796): weights that mattered for what was learnt before are held to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..data import Batch
from ..optim.optimizer import Optimizer, trainable
from ..problem import Problem
from .evaluate import Objective

FISHER, BEFORE = "fisher.", "before."


@dataclass
class Anchor:
    """The penalty `strength / 2 * sum(fisher * (weight - before) ** 2)` over the parameters that are trained.

    before: their values when the earlier run ended. fisher: how much the earlier loss depends on each, in fp32; see
    `fisher_of`. penalty: as of the last `pull`, a scalar on the device.
    """

    strength: float
    parameters: Mapping[str, nn.Parameter]
    before: Mapping[str, Tensor]
    fisher: Mapping[str, Tensor]
    penalty: Tensor | None = None

    @torch.no_grad()
    def pull(self, optimizer: Optimizer) -> Tensor:
        """Adds the penalty's gradient to those that are there, which are `optimizer.scale` times too large. Returns the
        penalty.
        """
        total: Tensor | None = None
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            moved = parameter.float() - self.before[name].float()
            force = self.fisher[name] * moved
            parameter.grad.add_((self.strength * optimizer.scale * force).to(parameter.grad.dtype))
            own = (force * moved).sum()
            total = own if total is None else total + own
        assert total is not None
        self.penalty = 0.5 * self.strength * total
        return self.penalty

    def write(self, path: Path) -> None:
        """Keeps what it was made of, whole or not at all. Raises Problem when the disk does not take it."""
        tensors = {f"{FISHER}{name}": value.cpu().contiguous() for name, value in self.fisher.items()}
        tensors |= {f"{BEFORE}{name}": value.cpu().contiguous() for name, value in self.before.items()}
        partial = path.with_name(f".{path.name}.partial")
        try:
            save_file(tensors, partial)
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise Problem(f"{path} could not be written: {error.strerror or error}") from error

    @classmethod
    def read(cls, path: Path, model: nn.Module, strength: float) -> Anchor:
        """What `write` kept, for the parameters of a model that are trained. Raises Problem when it is not of them."""
        parameters = trainable(model)
        try:
            stored = load_file(path, device=str(next(model.parameters()).device))
        except Exception as error:  # safetensors raises an exception of its own, which is nothing but an Exception
            raise Problem(f"{path} cannot be read: {error}", "begin another run from the same weights") from error
        fisher, before = (
            {n.removeprefix(part): t for n, t in stored.items() if n.startswith(part)} for part in (FISHER, BEFORE)
        )
        if not fisher.keys() == before.keys() == parameters.keys():
            raise Problem(f"{path} is of other parameters than the model trains")
        return cls(strength, parameters, before, fisher)


def fisher_of(model: nn.Module, objective: Objective, rows: Iterable[Batch]) -> dict[str, Tensor]:
    """The diagonal of the Fisher information of the parameters that are trained, in fp32, as the mean over some rows of
    the square of the gradient of a row's loss, with the labels that the data has.

    rows: batches of one row each, on the model's device. The model does not change, and computes as in evaluation.
    """
    parameters = trainable(model)
    sums = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
    count, training = 0, model.training
    model.eval()
    try:
        for batch in rows:
            grads = torch.autograd.grad(objective(model, batch)["loss"], list(parameters.values()), allow_unused=True)
            for total, grad in zip(sums.values(), grads, strict=True):
                if grad is not None:
                    total.add_(grad.float().square())
            count += 1
    finally:
        model.train(training)
    return {name: total / max(1, count) for name, total in sums.items()}
