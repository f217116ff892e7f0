"""The objective of a trainer: the model's call, then a statement for each term."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..ir import Graph
from ..passes.lift import METHOD, LastMap
from ..recipe import Term
from ..sections import NEXT_TOKEN
from .function import suffixed
from .model import output_fields
from .names import Names
from .text import WIDTH, fit, number

PLAIN, LINEAR = NEXT_TOKEN.name, f"{NEXT_TOKEN.name}_linear"  # of logits, and of what their last linear map takes


@dataclass(frozen=True, slots=True)
class Losses:
    """What objectives are written with. kernels: of terms whose logits are held, by `Term.kernel`; maps: by result."""

    kernels: Mapping[tuple[object, ...], str]
    maps: Mapping[str | None, LastMap]
    names: Names  # of model.py, where the maps' weights are

    def functions(self, terms: tuple[Term, ...]) -> set[str]:
        """The losses that terms of results call, by the names of their functions."""
        return {
            LINEAR if term.loss == PLAIN and term.result in self.maps else term.loss
            for term in terms
            if term.result is not None
        }

    def objective(self, graph: Graph, terms: tuple[Term, ...]) -> list[str]:
        """The body of a trainer's `objective` whose model is of text alone."""
        fields = output_fields(graph)
        given = tuple("batch.documents" if name == "documents" else f"batch.{name}" for name in graph.inputs)
        target, callee = self._call(graph, terms)
        lines = _fitted(f"{target} = {callee}", given)
        spelled: list[str] = []
        named: list[tuple[str, str]] = []  # keys of what is returned, and the expressions of it
        many = sum(1 for t in terms if t.loss == PLAIN) > 1
        for term in terms:
            if term.loss == PLAIN:
                name = _unlike(f"{PLAIN}_{term.result}" if many else "token", [own for _, own in named])
                function, arguments = self._next_token(term, f"out.{term.result}" if fields else target)
                if len(terms) == 1 and term.weight == 1:
                    return [*lines, *_only(function, arguments)]
                lines += _fitted(f"{name} = {function}", arguments)
                plain = term.result == graph.results[0] and term.ahead == 1  # what held-out text is measured by
                named.append((_unlike(PLAIN if plain else name, [key for key, _ in named]) if many else PLAIN, name))
            else:
                name = f"out.{term.loss}"
                named.append((term.loss, name))
            spelled.append(name if term.weight == 1 else f"{float(term.weight):g} * {name}")
        total = " + ".join(spelled)
        if len(terms) == 1 and terms[0].weight == 1:
            return [*lines, f'return {{"loss": {total}}}']
        pairs = [f'"{key}": {name}' for key, name in (("loss", total), *named)]
        whole = f"return {{{', '.join(pairs)}}}"
        if len(whole) + 4 <= WIDTH:
            return [*lines, whole]
        return [*lines, "return {", *(f"    {pair}," for pair in pairs), "}"]

    def of_tasks(self, graph: Graph, terms: tuple[Term, ...]) -> list[str]:
        """The same where inputs and targets come and go: terms count in the batches that have their target."""
        single = not output_fields(graph)
        own = {"tokens": "batch.tokens", "documents": "batch.documents"}
        given = (
            own.get(name) or (f'batch.inputs.get("{name}")' if name in graph.optional else f'batch.inputs["{name}"]')
            for name in graph.inputs
        )
        _, callee = self._call(graph, terms)
        lines = _fitted(f"out = {callee}", tuple(given))
        lines.append("losses: dict[str, Tensor] = {}")
        predicted = [term for term in terms if term.loss == PLAIN]
        keys: list[str] = []
        factors = []
        for term in terms:
            source = "out" if single else f"out.{term.result or term.loss}"
            key = term.loss
            if term.loss == PLAIN:
                key = _unlike(f"{PLAIN}_{term.result}" if len(predicted) > 1 else PLAIN, keys)
                keys.append(key)
                function, arguments = self._next_token(term, source)
                lines.append("if batch.targets is not None:")
                lines += (f"    {line}" for line in _fitted(f'losses["{key}"] = {function}', arguments, depth=8))
            elif term.result is not None:
                key = f"{term.loss}_{term.result}"
                lines.append(f'if "{term.result}" in batch.labels:')
                lines.append(f'    losses["{key}"] = {term.loss}({source}, batch.labels["{term.result}"])')
            else:
                lines.append(f'losses["{key}"] = {source}')
            if term.weight != 1:
                factors.append(f'"{key}": {float(term.weight):g}')
        return [*lines, f'return {{"loss": weighted(losses, {{{", ".join(factors)}}}), **losses}}']

    def _call(self, graph: Graph, terms: tuple[Term, ...]) -> tuple[str, str]:
        """The variable of what the model gives, and what is called for it."""
        if LINEAR not in self.functions(terms):
            return "out" if output_fields(graph) else "logits", "model"
        (x, *_) = (one.x for one in self.maps.values())
        return "out" if output_fields(graph) else suffixed(METHOD, x.type), f"model.{METHOD}"

    def _next_token(self, term: Term, source: str) -> tuple[str, tuple[str, ...]]:
        """The function of a term, and its arguments."""
        ahead = [f"ahead={term.ahead}"] if term.ahead != 1 else []
        found = self.maps.get(term.result)
        if found is None:
            return PLAIN, (source, "batch.targets", *ahead, f"rows=kernels.{self.kernels[term.kernel]}")
        weight, *bias = (f"model.{self.names.owners[v].path}.{self.names.tensors[v]}" for v in found.weights)
        options = [f"bias_V={one}" for one in bias]
        options += [f"{key}={number(value)}" for key in ("z", "smoothing") if (value := getattr(term, key))]
        options += [f"softcap={number(found.softcap)}"] if found.softcap is not None else []
        options += [f"scale={number(found.scale)}"] if found.scale != 1 else []
        return LINEAR, (source, weight, "batch.targets", *ahead, *options)


def _unlike(name: str, others: list[str]) -> str:
    """The name, numbered where another term of the same result has it."""
    chosen, n = name, 2
    while chosen in others:
        chosen, n = f"{name}_{n}", n + 1
    return chosen


def _fitted(head: str, arguments: tuple[str, ...], depth: int = 4) -> list[str]:
    """A call within the width at that depth, as lines without the function's own indent."""
    return [line[depth:] for line in fit(" " * depth, head, arguments, "")]


def _only(function: str, arguments: tuple[str, ...]) -> list[str]:
    """The end of an objective of one term."""
    whole = f'return {{"loss": {function}({", ".join(arguments)})}}'
    if len(whole) + 4 <= WIDTH:
        return [whole]
    return [*_fitted(f"loss = {function}", arguments), 'return {"loss": loss}']
