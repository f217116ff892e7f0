"""A run that trained adapters as a model of its own, with what they came to in its weights: `dskc merge`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..problem import Problem
from .checkpoint import write_checkpoint
from .folder import Facts, RunFolder, create_run_folder, staged
from .load import load_package, load_weights
from .recipe import name_of


def write_merged(run: Path, out: Path) -> None:
    """Makes `out` a folder such as an import makes, of the last checkpoint of a run; all or nothing.

    Raises Problem when `run` is no run, has trained no adapters, or `out` is not new.
    """
    folder = RunFolder(run)
    if not run.is_dir():
        raise Problem(f"{run}: there is no such run", "name the --out folder of a run")
    facts = folder.read()
    if facts.recipe is None or not facts.recipe.lora:
        raise Problem(f"{run} has trained no adapters: there is nothing to merge", "its weights are whole as they are")
    package = folder.code(facts.model)
    with staged(out) as made:
        model = load_weights(load_package(package).Model, run, device="cpu")
        stored = name_of(next(model.parameters()).dtype)
        own = Facts(facts.model, facts.spec, facts.spec_hash, replace(facts.precision, params=stored))
        tokenizer = folder.tokenizer if folder.tokenizer.is_file() else None
        write_checkpoint(create_run_folder(made, package, own, tokenizer).checkpoints, 0, model.state_dict())
