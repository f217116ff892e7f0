"""The `dskc` command. Each subcommand imports what it needs when it is called, so that `check` stays fast."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from . import __version__

if TYPE_CHECKING:
    from dskc.dsl.diagnostics import Diagnostics

    from .compile import Output
    from .pipeline import Compiled

SPEC = click.Path(path_type=Path)
_SET = click.option("--set", "settings", multiple=True, metavar="PATH=VALUE", help="override, as in dims.D=512")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dskc")
def main() -> None:
    """Compile language-model architectures: check a spec, generate its code, train it, sample from it."""


@main.command()
@click.argument("specs", nargs=-1, required=True, type=SPEC)
@click.option("--format", "style", type=click.Choice(["text", "json", "github"]), default="text", help="how to report")
@_SET
def check(specs: tuple[Path, ...], style: str, settings: tuple[str, ...]) -> None:
    """Report every problem of the specs. Exit code 0 when there is none, else 1."""
    from dskc.dsl.diagnostics import Diagnostics

    from .report import read_all

    problems = Diagnostics()
    for path in specs:
        problems.extend(read_all(path, settings))
    _print(problems, style, f"{len(specs)} spec{'s' * (len(specs) != 1)} checked, no problems")
    sys.exit(1 if problems.has_errors else 0)


@main.command()
@click.argument("specs", nargs=-1, required=True, type=SPEC)
@click.option("--check", "only_check", is_flag=True, help="write nothing; fail when a file is not in the style")
def fmt(specs: tuple[Path, ...], only_check: bool) -> None:
    """Put specs into the one canonical style."""
    from dskc.dsl.format import format_source
    from dskc.dsl.source import read_source

    changed = 0
    for path in specs:
        with _diagnosed():
            source = read_source(path)
            text = format_source(source)
        if text == path.read_text(encoding="utf-8"):
            continue
        changed += 1
        if only_check:
            click.echo(f"{path} is not formatted", err=True)
        else:
            from .report import write_text

            write_text(path, text)
            click.echo(f"formatted {path}")
    sys.exit(1 if only_check and changed else 0)


@main.command()
@click.argument("specs", nargs=-1, required=True, type=SPEC)
@click.option("--check", "only_check", is_flag=True, help="write nothing; fail with a diff when what is there is stale")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="folder to write into, instead of generated/")
@click.option("--force", is_flag=True, help="overwrite files that were edited by hand")
@_SET
def compile(
    specs: tuple[Path, ...], only_check: bool, out: Path | None, force: bool, settings: tuple[str, ...]
) -> None:
    """Generate the code of every model that the specs define."""
    from .compile import EditedError, stale, write

    failed = False
    for path in specs:
        _, outputs = _compiled(path, out, settings)
        for output in outputs:
            if only_check:
                for text in stale(output):
                    failed = True
                    click.echo(text, err=True)
                continue
            try:
                changed = write(output, force)
            except EditedError as error:
                _fail(f"{error} was edited by hand", "keep the change in a subclass, or overwrite it with --force")
            except OSError as error:
                _fail(f"{output.folder}: {error.strerror or error}", "name another folder with --out")
            what = f"wrote {', '.join(changed)}" if changed else "unchanged"
            click.echo(f"{output.folder}: {what}")
    if failed:
        _fail("generated code is not what the compiler writes now", "run dskc compile without --check")


@main.command()
@click.argument("spec", type=SPEC)
@click.option("--after", default="canonicalize", help="the pass to stop behind: expand, infer, precision, canonicalize")
@click.option("--model", "name", help="the model, when the spec defines several")
@_SET
def ir(spec: Path, after: str, name: str | None, settings: tuple[str, ...]) -> None:
    """Print the graph after a pass."""
    from .pipeline import PASS_NAMES, lower
    from .print_ir import print_graph

    if after not in PASS_NAMES:
        _fail(f"there is no pass `{after}`", f"it can be {', '.join(PASS_NAMES)}")
    compiled = _checked(spec, settings)
    for model, graph in compiled.graphs.items():
        if name in (None, model):
            click.echo(print_graph(lower(graph, after)))


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("spec", type=SPEC)
@_SET
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train(spec: Path, settings: tuple[str, ...], arguments: tuple[str, ...]) -> None:
    """Compile a spec and run its trainer: dskc train SPEC --data FOLDER --steps 300 --out RUN.

    The trainer's own flags: dskc train SPEC -- --help.
    """
    from .launch import launch_trainer

    _, outputs = _compiled(spec, None, settings)
    with _problems():
        launch_trainer(outputs, settings, arguments)


@main.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def generate(arguments: tuple[str, ...]) -> None:
    """Sample from a run: dskc generate RUN --prompt TEXT."""
    from .launch import launch_generate

    with _problems():
        launch_generate(arguments)


@main.command(name="import")
@click.argument("spec", type=SPEC)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="the folder to make")
@click.option("--dtype", type=click.Choice(["fp32", "bf16"]), help="to store weights in; as they are unless told")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="a tokenizer.json; the checkpoint's own unless told")
@_SET
def import_(
    spec: Path, checkpoint: Path, out: Path, dtype: str | None, tokenizer: Path | None, settings: tuple[str, ...]
) -> None:
    """Read the weights of others (safetensors or GGUF) by the spec's checkpoint map."""
    from .launch import launch_import

    _, outputs = _compiled(spec, None, settings)
    with _problems():
        launch_import(outputs, checkpoint, out, dtype, tokenizer)


@main.command()
@click.argument("code")
def explain(code: str) -> None:
    """Say what a diagnostic means, why it is one, and how to put it right: dskc explain DSK0101."""
    from .explain import explain as run

    run(code)


# --- what they share


def _checked(path: Path, settings: tuple[str, ...]) -> Compiled:
    from .pipeline import check as run

    with _diagnosed():
        compiled = run(path, settings)
    _stop_on(compiled.problems)
    return compiled


def _compiled(path: Path, out: Path | None, settings: tuple[str, ...]) -> tuple[Compiled, list[Output]]:
    from .compile import compile_spec

    with _diagnosed():
        compiled, outputs = compile_spec(path, out, settings)
    _stop_on(compiled.problems)
    return compiled, outputs


def _stop_on(problems: Diagnostics) -> None:
    if problems.has_errors:
        _print(problems, "text", "")
        sys.exit(1)


def _print(problems: Diagnostics, style: str, otherwise: str) -> None:
    from dskc.dsl.render import render, to_github, to_json

    if style == "json":
        click.echo(to_json(problems))
    elif style == "github":
        click.echo(to_github(problems), nl=False)
    elif len(problems):
        click.echo(render(problems, color=sys.stderr.isatty()), err=True)
        count = len(problems)
        click.echo(f"\n{count} problem{'s' * (count != 1)}", err=True)
    elif otherwise:
        click.echo(otherwise)


@contextmanager
def _diagnosed() -> Iterator[None]:
    """Ends with the drawing of a problem that stopped everything, such as a file that cannot be read."""
    from dskc.dsl.diagnostics import DiagnosticError, Diagnostics

    try:
        yield
    except DiagnosticError as error:
        _print(Diagnostics(error.diagnostics), "text", "")
        sys.exit(1)


@contextmanager
def _problems() -> Iterator[None]:
    """Ends with the text of a problem of the runtime's, without a traceback."""
    from .launch import runtime_problem

    try:
        yield
    except runtime_problem() as error:
        _fail(str(error))  # which ends with the way out


def _fail(message: str, help_: str | None = None) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    if help_:
        click.echo(f"help: {help_}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
