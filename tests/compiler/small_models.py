"""Specs as text, compiled and imported: what the tests of the compiler share."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from dskc.compiler.compile import compile_spec, write
from dskc.compiler.ir import Graph
from dskc.compiler.pipeline import Compiled, lower
from dskc.dsl.render import render
from dskc.runtime.serve.cache import Cache
from dskc.runtime.spec_module import SpecModule
from dskc.runtime.train.load import load_package


@dataclass(frozen=True)
class Small:
    """A compiled model: what the compiler knows of it, and the modules that it generated."""

    compiled: Compiled
    graph: Graph  # after the last pass
    folder: Path
    package: ModuleType
    serve: ModuleType

    def model(self, compute: torch.dtype = torch.float32, seed: int = 0) -> SpecModule:
        """A fresh model in eval mode, its weights large enough for every part to matter."""
        torch.manual_seed(seed)
        model = self.package.Model(compute=compute)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return model.eval()

    def trainer(self) -> ModuleType:
        return importlib.import_module(f"{self.package.__name__}.train")


def compiled(text: str, folder: Path, settings: Sequence[str] = ()) -> Small:
    """The last model of a spec's text, written into `folder`, compiled beside it and imported."""
    spec = folder / "small.dsk"
    spec.write_text(text, encoding="utf-8")
    made, outputs = compile_spec(spec, None, tuple(settings))
    assert not made.problems.has_errors, f"{render(made.problems)}\n\n{text}"
    output = outputs[-1]
    write(output)
    package = load_package(output.folder)
    serve = importlib.import_module(f"{package.__name__}.serve")
    return Small(made, lower(made.graphs[output.model]), output.folder, package, serve)


def first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The logits: a model with further results gives a tuple of them, the logits first."""
    return output if isinstance(output, Tensor) else output[0]


def decoded(small: Small, model: SpecModule, tokens_BS: Tensor, chunks: Sequence[int]) -> Tensor:
    """Logits [B, len(chunks), V] behind each chunk of tokens, one after another through the cache."""
    cache = Cache(tokens_BS.shape[0], tokens_BS.shape[1])
    with torch.no_grad():
        found = [small.serve.forward(model, part_BS, cache) for part_BS in tokens_BS.split(list(chunks), dim=1)]
    assert cache.length == tokens_BS.shape[1]
    return torch.stack(found, dim=1)
