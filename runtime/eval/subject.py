"""The model of a run that is evaluated, and what must be known of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ..data.tokenizer import end_of_text
from ..problem import Problem
from ..train.folder import RunFolder
from ..train.kept import Which, find_checkpoint
from ..train.load import load_model
from ..train.recipe import dtype_of, name_of

LENGTH = 2048  # tokens that an imported model, whose folder does not say it, is given at once; lm-eval's default too


@dataclass(frozen=True)
class Subject:
    """A loaded run. step: of its checkpoint. length: the most tokens that it sees at once. prefix: the token before a
    text that has nothing before it.
    """

    run: Path
    model: nn.Module
    serve: ModuleType
    tokenizer: Tokenizer
    device: torch.device
    step: int
    length: int
    prefix: int

    @property
    def dtype(self) -> str:
        """What it computes in."""
        compute = getattr(self.model, "compute", None)
        return name_of(compute if isinstance(compute, torch.dtype) else next(self.model.parameters()).dtype)

    def logits(self, tokens_BS: Tensor) -> Tensor:
        """Logits [B, S, V] of tokens [B, S]; a model with further results gives these first."""
        output = self.model(tokens_BS)
        logits_BSV = output if isinstance(output, Tensor) else output[0]
        assert isinstance(logits_BSV, Tensor)
        return logits_BSV

    def sync(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def open_subject(
    run: Path,
    checkpoint: Which = None,
    device: str = "auto",
    precision: str | None = None,
    length: int | None = None,
    prefix: str | None = None,
) -> Subject:
    """The model of a run's or an import's folder, for evaluation.

    precision: `fp32` or `bf16` of parameters and computing, those of the run when None. length: tokens at once; when
    None those that the run was trained on, or LENGTH. prefix: the token, as text, before texts with nothing before
    them; when None the one that the tokenizer puts there, or else the one that ends a text. Raises Problem when the
    folder holds no model of text, or one without a tokenizer.
    """
    folder = RunFolder(run)
    model, serve, tokenizer = load_model(run, checkpoint, device, dtype_of(precision) if precision else None)
    if tokenizer is None:
        raise Problem(f"{run} has no tokenizer.json", "copy the model's tokenizer.json into the folder")
    facts = folder.read()
    _require_text(folder.code(facts.model) / "plan.json", run)
    if length is not None and length < 2:
        raise Problem(f"--length {length} leaves nothing to predict from", "give 2 tokens or more")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _, position = find_checkpoint(folder.checkpoints, checkpoint)
    subject = Subject(
        run=run,
        model=model,
        serve=serve,
        tokenizer=tokenizer,
        device=next(model.parameters()).device,
        step=position.step,
        length=length or (facts.recipe.length if facts.recipe is not None else LENGTH),
        prefix=_prefix(tokenizer, prefix),
    )
    _require_causal(subject)
    return subject


def current_step(run: Path, checkpoint: Which = None) -> int:
    """The step of the checkpoint that `open_subject` would load; Problem where there is none."""
    return find_checkpoint(RunFolder(run).checkpoints, checkpoint)[1].step


def _prefix(tokenizer: Tokenizer, given: str | None) -> int:
    if given is not None:
        found = tokenizer.token_to_id(given)
        if found is None:
            raise Problem(f"--prefix {given}: the tokenizer has no such token", "name one as it is in tokenizer.json")
        return int(found)
    added = tokenizer.encode("").ids
    return int(added[0]) if added else end_of_text(tokenizer)


def _require_text(plan: Path, run: Path) -> None:
    inputs = json.loads(plan.read_text(encoding="utf-8"))["inputs"] if plan.is_file() else ["tokens"]
    if len(inputs) != 1:
        raise Problem(
            f"the model of {run} takes {', '.join(inputs)}, and these tasks give it text alone",
            "its held-out loss and accuracy are in result.json",
        )


@torch.inference_mode()
def _require_causal(subject: Subject) -> None:
    """A model whose positions see later ones would be told what it should predict."""
    vocabulary = subject.tokenizer.get_vocab_size()
    tokens_1S = torch.arange(1, min(9, subject.length + 1), device=subject.device)[None] % vocabulary
    whole_SV = subject.logits(tokens_1S)[0].float()
    half = max(1, tokens_1S.shape[1] // 2)
    part_SV = subject.logits(tokens_1S[:, :half])[0].float()
    if (whole_SV[:half] - part_SV).norm() > 0.1 * part_SV.norm():
        raise Problem(
            f"the positions of the model in {subject.run} see later ones, so that it foretells no token",
            "its held-out loss is in result.json; tasks are for models with causal masks",
        )
