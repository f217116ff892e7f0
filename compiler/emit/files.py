"""Every file that `dskc compile` writes for a model, as text: the same bytes on any machine."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from pathlib import Path

from dskc.dsl.source import Source

from .. import __version__
from ..checkpoint_map import checkpoint_rules
from ..ir import Graph
from ..parameters import total_parameters
from ..passes.lift import last_maps, lift
from ..passes.memory import memory
from ..passes.recipes import default_train
from ..pipeline import Compiled, lower
from ..program import Program
from ..verify import verify
from .classes import Classes
from .function import Line
from .kernels import emit_kernels
from .losses import Losses
from .model import emit_model, output_fields
from .names import Names
from .plan import emit_plan
from .serve import emit_serve
from .train import emit_train


def emit(compiled: Compiled, name: str, settings: tuple[str, ...] = ()) -> dict[str, str]:
    """The files of one model by their names."""
    graph = lower(compiled.graphs[name])
    spec = shown_path(compiled.program)
    spec_hash = program_hash(compiled.program, settings)
    header = Header(spec, spec_hash, settings)
    trains = [r for r in compiled.recipes.trains.values() if r.model == name]
    recipes = trains or [default_train(graph, total_parameters(graph))]
    terms = tuple(term for recipe in recipes for term in recipe.objective)
    graph = lift(graph, terms)
    verify(graph)
    heads = last_maps(graph, terms)
    kernels = emit_kernels(graph, [term for term in terms if all(term.result != one.result for one in heads)])
    classes = Classes(Names(graph, kernels=kernels.names.kernels))
    model = emit_model(graph, classes, heads)
    serve = emit_serve(graph, classes)
    ledgers = [(recipe, memory(graph, recipe, terms)) for recipe in recipes]
    losses = Losses(kernels.losses, {one.result: one for one in heads}, classes.names)
    written = kernels.file()
    texts = {"__init__.py": _init(graph), "model.py": _join(model), "serve.py": _join(serve)}
    texts["kernels.py"] = _join(written)
    for i, (recipe, ledger) in enumerate(ledgers):
        file = "train.py" if i == 0 else f"train_{recipe.name}.py"
        plans = [p for p in compiled.recipes.plans.values() if p.train == recipe.name]
        texts[file] = emit_train(graph, recipe, plans, ledger, losses, spec, spec_hash, file)
    files = {file: header.on(text) for file, text in texts.items()}
    rules = checkpoint_rules(compiled.program.models[name], graph, compiled.problems)
    files["plan.json"] = emit_plan(graph, ledgers, compiled.recipes, rules, spec, spec_hash)
    offset = header.lines
    lines = {"model.py": model, "kernels.py": written, "serve.py": serve}
    maps = {file: _map(text, offset, compiled) for file, text in lines.items()}
    files["source.map.json"] = json.dumps({"files": maps}, ensure_ascii=False, indent=0) + "\n"
    return files


def _join(lines: list[Line]) -> str:
    return "\n".join(line.text for line in lines).rstrip("\n") + "\n"


def _map(lines: list[Line], offset: int, compiled: Compiled) -> dict[str, list[str | int]]:
    """Generated line to spec line. A line within a library block belongs to the user's call that led there."""
    found: dict[str, list[str | int]] = {}
    last: list[str | int] = []
    for number, line in enumerate(lines, start=offset + 1):
        if line.span is None:
            continue
        place = line.site if line.site is not None and line.span.source.library else line.span
        text = place.source.line_text(place.line).strip()
        if place is not line.span:
            text += f"  (in {line.span.source.path}:{line.span.line})"
        entry: list[str | int] = [_shown(place.source, compiled.program), place.line, text]
        if entry != last:
            found[str(number)] = last = entry
    return found


def _init(graph: Graph) -> str:
    fields = output_fields(graph)
    names = ["Model", *(["Output"] if fields else [])]
    exported = ", ".join(f'"{n}"' for n in [*names, "load"])
    doc = (graph.doc or graph.name).split("\n")[0]
    return f'''"""{doc}

    from {graph.name} import Model, load

`Model()` is a plain `nn.Module`; `load(run)` is one with the weights of a run's or an import's last checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import torch

from .model import {", ".join(names)}

__all__ = [{exported}]


def load(run: Path | str, device: str = "auto", dtype: torch.dtype | None = None) -> Model:
    """The model in eval mode with the weights that `run`, the folder of a run or of an import, saved last.

    dtype: of parameters and computing; as they were when None. Raises dskc.runtime.problem.Problem when the folder
    holds no checkpoint of this model.
    """
    from dskc.runtime.train import load_weights

    return load_weights(Model, run, device=device, dtype=dtype)
'''


class Header:
    """The first lines of every generated file: where it comes from, and a hash by which an edit shows."""

    lines = 3

    def __init__(self, spec: str, spec_hash: str, settings: tuple[str, ...]) -> None:
        self.spec, self.spec_hash = spec, spec_hash
        self.command = " ".join(["dskc compile", spec, *(f"--set {shlex.quote(s)}" for s in settings)])

    def on(self, body: str) -> str:
        return (
            f"# Code generated by dskc {__version__} from {self.spec}. DO NOT EDIT.\n"
            f"# spec sha256:{self.spec_hash}  body sha256:{short_hash(body)}\n"
            f"# regenerate: {self.command}\n{body}"
        )


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def program_hash(program: Program, settings: tuple[str, ...]) -> str:
    """Of the spec, the files of the user's that it imports, and what was set on the command line."""
    digest = hashlib.sha256()
    for source in program.sources:
        if not source.library:
            digest.update(source.text.encode())
            digest.update(b"\0")
    for setting in settings:
        digest.update(setting.encode() + b"\0")
    return digest.hexdigest()[:16]


def shown_path(program: Program) -> str:
    """The spec's path as generated files give it: with its folder when that is `specs`, never more of the machine's."""
    return _shown(program.main, program)


def _shown(source: Source, program: Program) -> str:
    """A file's path relative to the spec's folder, with that folder when it is called `specs`."""
    if source.library:
        return source.path
    home = Path(program.main.path).resolve().parent
    path = os.path.relpath(Path(source.path).resolve(), home)
    return Path(f"specs/{path}" if home.name == "specs" else path).as_posix()
