"""README.md and docs/ say what is so: their specs compile, their commands run, their outputs are those that come."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from pygments.token import Error

from dskc.compiler.cli import main
from dskc.compiler.highlight.lexer import DskLexer

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
TUTORIAL = PAGES["tutorial.md"]


NOTES = """dsk 1

use std { swiglu }

model notes(tokens: ids[B, S]) -> logits: [B, S, V] {
  dims { V = 300, D = 16 }
  x = embed(tokens, V -> D)
  x += swiglu(rms_norm(x), inner: 2 * D)
  logits = linear(rms_norm(x), D -> V)
}

train tiny of notes {
  objective next_token(logits)
  tokens    = 4096
  batch     { sequences = 4, S = 32 }
  precision { compute = fp32 }
  optimizer adamw(lr: 1e-2)
}
"""


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language; "" for those without one."""
    found: list[str] = []
    inside: tuple[str, list[str]] | None = None
    for line in text.splitlines(keepends=True):
        if not line.startswith("```"):
            if inside:
                inside[1].append(line)
        elif inside is None:
            inside = (line[3:].strip(), [])
        else:
            if inside[0] == language:
                found.append("".join(inside[1]))
            inside = None
    return found


def dskc(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the specs and their generated code, as the current folder."""
    for folder in ("specs", "generated"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_shows_the_shipped_spec() -> None:
    (shown,) = blocks(README, "dsk")
    assert (ROOT / "specs" / "deepseek_7b.dsk").read_text(encoding="utf-8").startswith(shown)


def test_the_readme_shows_the_generated_class() -> None:
    (shown,) = blocks(README, "python")
    model = (ROOT / "generated" / "deepseek_7b" / "model.py").read_text(encoding="utf-8")
    head, *body = shown.splitlines()
    assert head in model
    assert "\n".join(body) in model


def test_the_readme_shows_the_diagnostic_that_comes(project: Path) -> None:
    shown = next(block for block in blocks(README, "") if block.startswith("error"))
    spec = project / "specs" / "deepseek_7b.dsk"
    spec.write_text(spec.read_text(encoding="utf-8").replace("swiglu(rms_norm", "swigloo(rms_norm"), encoding="utf-8")
    result = dskc("check", "specs/deepseek_7b.dsk")
    assert result.exit_code == 1
    assert shown.strip() in result.output


def test_the_tutorial_shows_the_shipped_spec_and_its_diagnostic(project: Path) -> None:
    shown = next(block for block in blocks(TUTORIAL, "dsk") if "deepseek_nano from" in block)
    spec = project / "specs" / "deepseek_nano.dsk"
    text = spec.read_text(encoding="utf-8")
    assert text.startswith(shown)
    spec.write_text(text.replace("qk_norm: true", "qk_nrm: true"), encoding="utf-8")
    error = next(block for block in blocks(TUTORIAL, "") if block.startswith("error"))
    result = dskc("check", "specs/deepseek_nano.dsk")
    assert error.strip() in result.output
    spec.write_text(text.replace("  layers.attention(qk", "  # layers.attention(qk"), encoding="utf-8")
    result = dskc("check", "specs/deepseek_nano.dsk")
    assert result.exit_code == 0
    assert result.output in blocks(TUTORIAL, "")


def test_the_tutorial_shows_what_qk_norm_adds(project: Path) -> None:
    (added,) = blocks(TUTORIAL, "python")
    spec = "specs/deepseek_nano.dsk"
    assert dskc("compile", spec).exit_code == 0
    model = project / "generated" / "deepseek_nano" / "model.py"
    assert added in model.read_text(encoding="utf-8")
    assert dskc("compile", spec, "--set", "layers.attention.qk_norm=false").exit_code == 0
    assert added not in model.read_text(encoding="utf-8")


def test_the_tutorial_block_compiles_in_a_folder_of_ones_own(tmp_path: Path) -> None:
    text = next(block for block in blocks(TUTORIAL, "dsk") if "squared_relu" in block)
    spec = tmp_path / "mine.dsk"
    spec.write_text(text, encoding="utf-8")
    result = dskc("compile", str(spec))
    assert result.exit_code == 0, result.output
    assert "squared_relu.up" in (tmp_path / "generated" / "mine" / "plan.json").read_text(encoding="utf-8")


def test_the_recipe_of_the_training_page_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shown,) = blocks((ROOT / "docs" / "training.md").read_text(encoding="utf-8"), "dsk")
    monkeypatch.chdir(tmp_path)
    assert dskc("new", "my_model").exit_code == 0
    spec = tmp_path / "my_model.dsk"
    spec.write_text(f"{spec.read_text(encoding='utf-8')}\n{shown}", encoding="utf-8")
    result = dskc("compile", "my_model.dsk")
    assert result.exit_code == 0, result.output
    trainer = (tmp_path / "generated" / "my_model" / "train_long.py").read_text(encoding="utf-8")
    assert "optim.Muon(" in trainer and 'optim.Group("embed", rate=0.1, decay=0.0)' in trainer


@pytest.mark.parametrize("page", [name for name in PAGES if blocks(PAGES[name], "sh")])
def test_every_command_is_one_that_dskc_has(page: str) -> None:
    """Options and subcommands exist; what they do is tested where they are at home."""
    seen = 0
    for block in blocks(PAGES[page], "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.split(" #")[0].replace(".venv/bin/", ""), comments=True)
            if not words or words[0] != "dskc":
                continue
            seen += 1
            command = main.get_command(click.Context(main), words[1])
            assert command is not None, line
            known = {option for parameter in command.params for option in parameter.opts}
            if words[1] in ("train", "generate", "eval"):
                continue  # these pass their options on, see the next test
            assert {word for word in words[2:] if word.startswith("-")} <= known, line
    assert seen or page == "compiler.md" or "make" in PAGES[page]


def test_the_settings_that_the_reference_shows_are_ones(project: Path) -> None:
    (shown,) = blocks(PAGES["language.md"], "sh")
    for line in shown.splitlines():
        result = dskc(*line.split()[1:])
        assert (result.exit_code, result.output) == (0, "1 spec checked, no problems\n"), result.output


def test_the_flags_of_trainers_are_those_documented() -> None:
    page = PAGES["training.md"]
    documented = set(re.findall(r"`(--[a-z-]+)", page.split("## What happens")[0]))
    options = (ROOT / "runtime" / "train" / "options.py").read_text(encoding="utf-8")
    assert documented == set(re.findall(r'"(--[a-z-]+)"', options))


@pytest.mark.parametrize("page", [name for name in PAGES if blocks(PAGES[name], "dsk")])
def test_what_is_shown_as_the_language_is_read_by_its_lexer(page: str) -> None:
    for block in blocks(PAGES[page], "dsk"):
        wrong = [value for kind, value in DskLexer().get_tokens(block) if kind is Error]
        assert not wrong, block


def test_whole_specs_are_marked_as_the_language() -> None:
    for name, text in PAGES.items():
        assert not [block for block in blocks(text, "") if block.startswith("dsk 1\n\n")], name


def anchors(text: str) -> set[str]:
    """What a page's headings are called in links, as code hosts make it of them."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    for name, text in PAGES.items():
        base = ROOT if name == "README.md" else ROOT / "docs"
        for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", text):
            if "://" in target:
                continue
            path = base / target if target else base / name
            assert path.exists(), f"{name} links to {target}"
            assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), f"{name}: {target}#{anchor}"


def test_the_kernels_page_shows_what_is_generated() -> None:
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    kernels = (ROOT / "generated" / "deepseek_nano" / "kernels.py").read_text(encoding="utf-8")
    excerpts = re.findall(r"```(?:python|text)\n(.*?)```", page, flags=re.DOTALL)
    shown = [text for text in excerpts if "_ptr" in text or "kept=" in text]
    assert len(shown) >= 2
    for text in shown:
        assert text in kernels, text


@pytest.mark.slow
def test_the_page_on_several_kinds_of_data_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its spec, its file of records and its command, as they stand there, with some text of ours."""
    page = PAGES["multimodal.md"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reader.dsk").write_text(blocks(page, "dsk")[0], encoding="utf-8")
    (tmp_path / "notes").mkdir()
    for name, text in PAGES.items():
        (tmp_path / "notes" / name).write_text(text, encoding="utf-8")
    exec(compile(blocks(page, "python")[0], "multimodal.md", "exec"), {})
    (command,) = blocks(page, "sh")
    result = dskc(*shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "runs" / "reader" / "result.json").read_text(encoding="utf-8"))
    assert list(found["sources"]) == ["text", "digits"]
    assert set(found["sources"]["digits"]["accuracy"]) == {"digit"}


@pytest.mark.slow
def test_the_page_on_text_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files and its commands, in turn, with a small model."""
    page = PAGES["data.md"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.dsk").write_text(NOTES, encoding="utf-8")
    for block in blocks(page, "python"):
        exec(compile(block, "data.md", "exec"), {})
    commands = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    assert commands
    for command in commands:
        result = dskc(*shlex.split(command, comments=True)[1:])
        assert result.exit_code == 0, result.output
