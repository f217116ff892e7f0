"""`dskc shapes`: every operation with its shape and costs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .complete import MODEL, TRAIN
from .shared import SPEC, checked, chosen, fail, settings_option

if TYPE_CHECKING:
    from ..ir import Graph
    from ..pipeline import Compiled
    from ..print_shapes import Given, Line
    from ..recipe import TrainRecipe

_COUNT = click.IntRange(min=1, max=2**40)


@click.command(name="shapes")
@click.argument("spec", type=SPEC)
@click.option("--model", "name", shell_complete=MODEL, help="the model, when the spec defines several")
@click.option(
    "--train",
    "recipe",
    metavar="NAME",
    shell_complete=TRAIN,
    help="a recipe: its length for S, one sequence, its precision",
)
@click.option("--length", type=_COUNT, help="S in numbers")
@click.option("--batch", type=_COUNT, help="B in numbers")
@click.option("--fused", is_flag=True, help="with what becomes one kernel as one operation, as on a GPU")
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", help="how to print")
@settings_option
def shapes_command(
    spec: Path,
    name: str | None,
    recipe: str | None,
    length: int | None,
    batch: int | None,
    fused: bool,
    style: str,
    settings: tuple[str, ...],
) -> None:
    """Print every operation with its shape, parameters, FLOPs and the bytes that training keeps of it.

    FLOPs are those of matrix products in one forward pass. B and S stay symbols where nothing tells them.
    """
    from ..ir import DType
    from ..pipeline import lower
    from ..print_shapes import shape_lines, shapes_json
    from ..shapes import shapes

    compiled = checked(spec, settings)
    train = _train(compiled, recipe)
    graphs = chosen(compiled, name, spec)
    if train is not None:
        if name not in (None, train.model):
            fail(f"train `{train.name}` is of `{train.model}`, not of `{name}`", "name another recipe or leave --model")
        graphs = [graph for graph in graphs if graph.name == train.model]
    found = []
    for graph in graphs:
        asked = _recipe(compiled, graph, train)
        given = _given(graph, asked, train, length, batch)
        lowered = lower(graph, None if fused else "canonicalize")
        top = shapes(lowered, DType(given.compute), dict(given.sizes), kernels=fused, objective=asked.objective)
        found.append((top, given))
    if style == "json":
        click.echo(shapes_json(found))
        return
    for i, (top, given) in enumerate(found):
        if i:
            click.echo()
        _print(shape_lines(top, given))


def _train(compiled: Compiled, name: str | None) -> TrainRecipe | None:
    trains = compiled.recipes.trains
    if name is not None and name not in trains:
        way_out = f"it can be {', '.join(trains)}" if trains else "this spec has none; --length tells S as well"
        fail(f"there is no train `{name}`", way_out)
    return trains[name] if name is not None else None


def _recipe(compiled: Compiled, graph: Graph, train: TrainRecipe | None) -> TrainRecipe:
    """That which was asked for, else the model's first."""
    from ..parameters import total_parameters
    from ..passes.recipes import default_train

    own = [recipe for recipe in compiled.recipes.trains.values() if recipe.model == graph.name]
    return train or (own[0] if own else default_train(graph, total_parameters(graph)))


def _given(
    graph: Graph, recipe: TrainRecipe, train: TrainRecipe | None, length: int | None, batch: int | None
) -> Given:
    """The sizes that the options give to dims of data; ends the command where the model has no such dim."""
    from ..print_shapes import Given

    sizes = {"S": length or (train.length if train else None), "B": batch or (1 if train else None)}
    sizes |= dict(train.lengths) if train else {}
    inputs = {symbol for value in graph.body.arguments for axis in value.type.axes for symbol in axis.size.symbols()}
    for dim, asked in (("S", length), ("B", batch)):
        if asked and (dim not in inputs or dim in graph.sizes):
            fail(f"`{graph.name}` takes no input along `{dim}`", "leave --length and --batch out")
    known = tuple((dim, size) for dim, size in sizes.items() if size is not None and dim in inputs)
    which = "the default recipe" if recipe.default else f"train {recipe.name}"
    return Given(known, recipe.precision.compute or "fp32", which)


def _print(lines: list[Line]) -> None:
    """In bold where it structures, on a terminal; else plain."""
    if not sys.stdout.isatty():
        click.echo("\n".join(line.text for line in lines))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    for line in lines:
        console.print(Text(line.text, style="bold" if line.strong else ""))
