"""`dskc new`: every template compiles under any good name, and nothing else is ever written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from dskc.compiler.cli import main
from dskc.compiler.commands.new import TEMPLATES

from .conftest import Dskc, names

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["my_model", "mine/a", f"specs/{'long' * 16}", "tiny.dsk"])
def test_templates_check_and_compile(template: str, name: str, project: Path, dskc: Dskc) -> None:
    dskc("new", name, "--template", template)
    spec = name if name.endswith(".dsk") else f"{name}.dsk"
    assert "no problems" in dskc("check", spec).output
    dskc("fmt", "--check", spec)
    dskc("compile", spec)
    assert "starter" not in (project / spec).read_text()


def test_golden(project: Path, dskc: Dskc, golden: Callable[[Path, str], None]) -> None:
    golden(GOLDEN / "new.txt", dskc("new", "my_model", "--template", "moe").output)
    golden(GOLDEN / "new.dsk", (project / "my_model.dsk").read_text())


def test_the_size_that_the_dense_template_speaks_of(project: Path, dskc: Dskc) -> None:
    dskc("new", "mine")
    text = (project / "mine.dsk").read_text()
    number = text.split("require params == ")[1].split("\n")[0]
    (project / "mine.dsk").write_text(text.replace("  weights llama", f"  require params == {number}\n  weights llama"))
    dskc("check", "mine.dsk")


def test_nothing_is_overwritten(project: Path, dskc: Dskc) -> None:
    (project / "mine.dsk").write_text("mine")
    (project / "file").write_text("a file")
    (project / "dangling.dsk").symlink_to("nowhere")
    before = names(project)
    for name, said in (
        ("mine", "mine.dsk is there already\nhelp: choose another name"),
        ("mine.dsk", "mine.dsk is there already"),
        ("dangling", "dangling.dsk is there already"),
        ("file/mine", "needs a folder, and file is a file"),
    ):
        result = dskc("new", name, exit_code=1)
        assert said in result.output or "cannot be written: Not a directory" in result.output
    assert (project / "mine.dsk").read_text() == "mine"
    assert names(project) == before


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("My-Model", "dskc new my_model`"),
        ("specs/bigModel", "dskc new specs/big_model`"),
        ("7b", "dskc new model_7b`"),
        ("a b.dsk", "dskc new a_b`"),
        ("x.y", "dskc new x_y`"),
        ("", "dskc new my_model`"),
        ("..", "dskc new my_model`"),
        ("é", "dskc new my_model`"),
        ("x" * 65, f"dskc new {'x' * 64}`"),
        ("class", "`class` is a word of Python's\nhelp: such as `dskc new my_class`"),
        ("model", "`model` has a meaning in the spec already\nhelp: such as `dskc new my_model`"),
        ("attention", "such as `dskc new my_attention`"),
        ("small", "such as `dskc new my_small`"),
    ],
)
def test_names_that_no_model_can_have(name: str, way_out: str, project: Path, dskc: Dskc) -> None:
    before = names(project)
    result = dskc("new", name, exit_code=1)
    assert result.output.startswith(f"error: a model cannot be called `{Path(name).name.removesuffix('.dsk')}`")
    assert way_out in result.output
    assert names(project) == before


def test_templates_that_are_none(dskc: Dskc) -> None:
    assert "is not one of 'dense', 'moe', 'local', 'block'" in dskc("new", "m", "--template", "rnn", exit_code=2).output


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("dskc sh", {"shapes"}),
        ("dskc check specs/moe", {"specs/moe_nano.dsk"}),
        ("dskc check sp", {f"specs/{name}" for name in ("moe_nano.dsk", "qwen3_8b.dsk")}),
        ("dskc ir specs/moe_nano.dsk --after e", {"expand"}),
        ("dskc shapes specs/moe_nano.dsk --train ", {"tiny"}),
        ("dskc shapes specs/moe_nano.dsk --model m", {"moe_nano"}),
        ("dskc shapes specs/absent.dsk --model ", set()),
        ("dskc shapes --model ", set()),
        ("dskc check absent/", set()),
        ("dskc new m --template l", {"local"}),
    ],
)
def test_what_a_shell_is_offered(words: str, offered: set[str], project: Path) -> None:
    (project / "specs" / "moe.txt").write_text("no spec")
    environment = {"_DSKC_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    result = CliRunner().invoke(main, [], env=environment, prog_name="dskc")
    found = {line.removeprefix("plain,") for line in result.output.split()}
    assert offered <= found if offered else not found
    assert len(found) == len(offered) or words.endswith(" sp")


def test_completion_of_codes() -> None:
    from dskc.compiler.commands.complete import CODE

    command = main.get_command(None, "ir")  # type: ignore[arg-type]
    assert command is not None
    with command.make_context("ir", ["x"]) as ctx:
        assert [item.value for item in CODE(ctx, command.params[0], "dsk0001")] == ["DSK0001"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_of_shells(shell: str, dskc: Dskc) -> None:
    script = dskc("completion", shell).output
    assert f"_DSKC_COMPLETE={shell}_complete" in script


def test_shells_that_are_not_known(dskc: Dskc) -> None:
    assert "is not one of 'bash', 'zsh', 'fish'" in dskc("completion", "tcsh", exit_code=2).output
