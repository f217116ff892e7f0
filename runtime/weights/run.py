"""An imported checkpoint as the folder of a run: `dskc generate`, `load` and later commands read it as any other."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer

from ..problem import Problem
from ..train.checkpoint import write_checkpoint
from ..train.folder import Facts, create_run_folder, staged
from ..train.load import load_package
from ..train.recipe import Precision, dtype_of, name_of
from .config import check_config
from .coverage import plan_import
from .source import open_source
from .tokenizer import read_tokenizer
from .transfer import read_weights


def import_run(
    files: Mapping[str, str],
    spec: str,
    spec_hash: str,
    model: str,
    rules: Sequence[Mapping[str, object]],
    vocabulary: int,
    checkpoint: Path,
    out: Path,
    dtype: str | None = None,
    tokenizer: Path | None = None,
    places: Mapping[str, str] | None = None,
    facts: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Makes `out` of a model's generated `files` and the weights in `checkpoint`, read by `rules`; all or nothing.

    vocabulary: V, which the tokenizer's ids stay under. dtype: to store weights in (`fp32`, `bf16`); what most of them
    are in when None. places: the line of the spec that each parameter comes from (`*` for indices). facts: what a
    config.json beside the checkpoint must not contradict (see `config.py`), None to leave it unread. Raises Problem
    when the checkpoint, its configuration or its tokenizer does not match, naming each tensor, or when `out` cannot be
    made.
    """
    if not rules:
        raise Problem(
            f"`{model}` says nothing of others' weights", "give it `weights NAME`, the name of a checkpoint map"
        )
    source = open_source(checkpoint)
    if facts is not None:
        check_config(checkpoint, facts)
    with staged(out) as folder, tempfile.TemporaryDirectory() as code:
        package = Path(code) / model
        package.mkdir()
        for name, text in files.items():
            (package / name).write_text(text, encoding="utf-8")
        with torch.device("meta"):
            empty = load_package(package).Model()
        shapes = {name: tuple(value.shape) for name, value in empty.state_dict().items()}
        plan = plan_import(rules, shapes, source, places or {})
        for note in plan.notes:
            print(note)
        ids = _tokenizer(tokenizer, checkpoint, vocabulary)
        buffers = {name: value.dtype for name, value in empty.named_buffers()}  # these keep a dtype of their own
        state = {
            name: value.to(buffers.get(name) or (dtype_of(dtype) if dtype else _trainable(value.dtype)))
            for name, value in read_weights(plan, source)
        }
        stored = name_of(next(iter(state.values())).dtype)
        run_facts = Facts(
            model=model, spec=spec, spec_hash=spec_hash, precision=Precision(stored, stored, "fp32", "fp32")
        )
        run = create_run_folder(folder, package, run_facts)
        write_checkpoint(run.checkpoints, 0, state)
        if ids is not None:
            ids.save(str(run.tokenizer))
    total = sum(value.numel() for name, value in state.items() if name not in buffers)
    print(f"{len(state)} tensors, {total:,} parameters in {stored}: {out}")


def _trainable(dtype: torch.dtype) -> torch.dtype:
    """What a model runs in: fp16 weights become fp32, which holds them exactly."""
    return torch.bfloat16 if dtype is torch.bfloat16 else torch.float32


def _tokenizer(given: Path | None, checkpoint: Path, vocabulary: int) -> Tokenizer | None:
    path = checkpoint if given is None else given
    found = read_tokenizer(path)
    if found is None:
        if given is not None:
            raise Problem(f"--tokenizer {given}: there is no tokenizer in it", "it is the file called tokenizer.json")
        print("no tokenizer found: name one with --tokenizer to sample from text")
        return None
    largest = max(found.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocabulary:
        raise Problem(
            f"the ids of the tokenizer in {path} go up to {largest:,}, but the model's vocabulary is {vocabulary:,}",
            "the checkpoint must be of this size, and of this tokenizer; name another tokenizer with --tokenizer",
        )
    return found
