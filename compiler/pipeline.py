"""The passes in their order. This file reads as the compiler does."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dskc.dsl.diagnostics import Diagnostic, DiagnosticError, Diagnostics
from dskc.dsl.dims import DimSizeError
from dskc.dsl.source import Source, read_source

from .ir import Graph
from .passes.expand import expand
from .passes.infer import infer
from .passes.recipes import Recipes, recipes
from .passes.resolve import resolve
from .program import ModelSource, Program
from .verify import verify


@dataclass(slots=True)
class Compiled:
    """A spec gone through the passes, as far as its problems let it."""

    program: Program
    graphs: dict[str, Graph]  # of the models that the file defines, then of those its recipes speak of
    recipes: Recipes
    problems: Diagnostics = field(default_factory=Diagnostics)


# Behind `infer`, each in a file of its name, which a check does not load.
GRAPH_PASSES = ("precision", "canonicalize", "fuse")
SERVING_PASSES = ("absorb",)  # `emit/serve.py` runs them
PASS_NAMES = ("expand", "infer", *GRAPH_PASSES, *SERVING_PASSES)


def check(path: Path, settings: tuple[str, ...] = (), source: Source | None = None) -> Compiled:
    """Everything up to infer: all that `dskc check` reports. Raises DiagnosticError when the file cannot be read."""
    problems = Diagnostics()
    program = resolve(source or read_source(path), path, problems, settings)
    graphs: dict[str, Graph] = {}
    for model in program.models.values():
        graph = _front(model, problems)
        assert graph is not None or problems.has_errors, f"{model.name.text} is given up without a word"
        if graph is not None:
            graphs[model.name.text] = graph
    return Compiled(program, graphs, recipes(program, graphs, problems), problems)


def _front(model: ModelSource, problems: Diagnostics) -> Graph | None:
    try:
        expanded = expand(model, problems)
        if expanded is None:
            return None
        graph, requirements = expanded
        verify(graph)
        return infer(graph, requirements, problems)
    except DimSizeError as error:  # some product of sizes
        problems.add(Diagnostic("DSK0131", f"a size of `{model.name.text}` is beyond reason: {error}", model.name.span))
    except DiagnosticError as error:
        problems.extend(error.diagnostics)
    except RecursionError:
        problems.add(Diagnostic("DSK0005", f"`{model.name.text}` is nested too deep to be compiled", model.name.span))
    return None


def lower(graph: Graph, after: str | None = None) -> Graph:
    """A checked graph through the remaining passes, verified after each; `after` stops behind the pass of that name."""
    if after in ("expand", "infer"):
        return graph
    for name in (*GRAPH_PASSES, *(SERVING_PASSES if after in SERVING_PASSES else ())):
        run: Callable[[Graph], Graph] = getattr(importlib.import_module(f".passes.{name}", __package__), name)
        graph = run(graph)
        verify(graph)
        if name == after:
            break
    return graph
