"""A trained (or imported) model out of its run's folder."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch
from tokenizers import Tokenizer
from torch import nn

from ..adapter import merge
from ..problem import Problem
from .checkpoint import read_checkpoint, stored_dtype
from .device import find_device
from .folder import Facts, RunFolder
from .kept import Which, find_checkpoint
from .recipe import Recipe, dtype_of

Model = TypeVar("Model", bound=nn.Module)


def load_model(
    run_folder: Path | str, step: Which = None, device: str = "auto", dtype: torch.dtype | None = None
) -> tuple[nn.Module, ModuleType, Tokenizer | None]:
    """(model in eval mode, its `serve` module, its tokenizer if there is one) from a run's folder.

    step: of the checkpoint; the last when None, and `best` is the one with the least held-out loss. dtype: of
    parameters and computing; when None, parameters as they were saved, computing as the run did. The generated code is
    the run's own copy. Raises Problem when the folder is no run, has no whole checkpoint, or code and checkpoint do not
    match.
    """
    folder = RunFolder(Path(run_folder))
    facts = _facts(folder)
    package = load_package(folder.code(facts.model))
    model = load_weights(package.Model, run_folder, step, device, dtype)
    serve = importlib.import_module(f"{package.__name__}.serve")
    tokenizer = Tokenizer.from_file(str(folder.tokenizer)) if folder.tokenizer.is_file() else None
    return model, serve, tokenizer


def load_weights(
    model_class: type[Model],
    run_folder: Path | str,
    step: Which = None,
    device: str = "auto",
    dtype: torch.dtype | None = None,
) -> Model:
    """A model of this class, in eval mode, with the weights of a run's or an import's checkpoint; see `load_model`."""
    folder = RunFolder(Path(run_folder))
    facts = _facts(folder)
    path, _ = find_checkpoint(folder.checkpoints, step)
    where = find_device(device)
    model = build_model(model_class, dtype or dtype_of(facts.precision.compute), dtype or stored_dtype(path), where)
    if facts.recipe is not None and facts.recipe.lora:
        _read_adapted(model, facts, facts.recipe, path)
    else:
        read_checkpoint(path, {"model": model.state_dict()})
    return model.eval().requires_grad_(False)


def _read_adapted(model: nn.Module, facts: Facts, recipe: Recipe, path: Path) -> None:
    """The weights that adapters were trained beside, with what these came to added."""
    from .start import adapt, read_base  # which load other runs by what is here

    adapt(model, recipe, facts.seed)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    read_base(model, Path(facts.base), list(trained))
    read_checkpoint(path, {"model": {name: value for name, value in model.state_dict().items() if name in trained}})
    merge(model)


def _facts(folder: RunFolder) -> Facts:
    if not folder.path.is_dir():
        raise Problem(f"{folder.path}: there is no such run", "name the --out folder of a run")
    return folder.read()


def build_model(model_class: type[Model], compute: torch.dtype, params: torch.dtype, device: torch.device) -> Model:
    """An instance whose parameters have this dtype and lie, not yet set, on the device."""
    with torch.device("meta"):
        model = model_class(compute=compute)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(params)
    return model.to_empty(device=device)


def load_package(folder: Path) -> ModuleType:
    """Import the package in a folder under a name of its own, so that several runs' code can live in one process."""
    if not (folder / "__init__.py").is_file():
        raise Problem(f"{folder}: the run's generated code is missing")
    name = f"dskc_run_{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}_{folder.name}"
    for known in [known for known in sys.modules if known == name or known.startswith(name + ".")]:
        del sys.modules[known]  # the folder may hold other code by now
    specification = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert specification is not None and specification.loader is not None, folder
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module
