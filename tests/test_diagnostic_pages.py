"""docs/diagnostics: a page for every code. The wrong example gets just the output it shows; the right one is right."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from dskc.compiler.cli import main
from dskc.compiler.report import read_all
from dskc.dsl.codes import CODES
from dskc.dsl.explain import PAGES, UnknownCode, find_code, list_codes, read_page, show_page
from dskc.dsl.format import format_source
from dskc.dsl.render import render
from dskc.dsl.source import Source

ROOT = Path(__file__).resolve().parent.parent
FENCED = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
LONGEST = 1000  # characters of prose on a page


@dataclass(frozen=True)
class Example:
    """One half of a page: its files, by name, and what the compiler prints of `model.dsk`."""

    files: dict[str, bytes]
    output: str | None


def example(text: str) -> Example:
    """Blocks that open with `dsk NAME` are files beside `model.dsk`; behind the name, an encoding or `N times`."""
    files: dict[str, bytes] = {}
    output = None
    for info, content in FENCED.findall(text):
        if not info:
            output = content
            continue
        language, *words = info.split()
        assert language == "dsk", info
        name, *how = words or ("model.dsk",)
        times = int(how[0]) if how[1:] == ["times"] else 1
        encoding = how[0] if len(how) == 1 else "utf-8"
        files[name] = content.encode(encoding) * times
    return Example(files, output)


def halves(code: str) -> tuple[str, str, str]:
    """The prose of a page, its wrong and its right example."""
    prose, rest = read_page(code).split("\n## Wrong\n")
    wrong, right = rest.split("\n## Right\n")
    return prose, wrong, right


def drawn(files: dict[str, bytes], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], str]:
    """The codes that the compiler finds in `model.dsk`, and their drawing."""
    monkeypatch.chdir(folder)
    for name, data in files.items():
        Path(name).write_bytes(data)
    found = list(read_all(Path("model.dsk")))
    return [problem.code for problem in found], render(found) + "\n"


def test_every_code_has_a_page_and_every_page_a_code() -> None:
    assert sorted(path.stem for path in PAGES.glob("DSK*.md")) == sorted(CODES)


INDEX = """\
# Diagnostics

Every problem that the compiler reports has a code, and every code a page, which `dskc explain CODE` shows in the
terminal.

"""


def test_the_index_lists_every_page(golden: Callable[[Path, str], None]) -> None:
    golden(PAGES / "README.md", INDEX + "".join(f"- [{c}]({c}.md): {meaning}\n" for c, meaning in CODES.items()))


@pytest.mark.parametrize("code", CODES)
def test_a_page(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: Callable[[Path, str], None]
) -> None:
    prose, wrong, right = halves(code)
    title, _, said = prose.partition("\n\n")
    assert title == f"# {code}: {CODES[code]}"
    assert 0 < len(said) <= LONGEST

    before = example(wrong)
    codes, text = drawn(before.files, tmp_path, monkeypatch)
    assert codes == [code], text
    assert before.output is not None
    golden(PAGES / f"{code}.md", read_page(code).replace(f"```\n{before.output}```", f"```\n{text}```"))

    after = example(right)
    assert after.output is None
    for name in before.files:
        (tmp_path / name).unlink()
    assert drawn(after.files, tmp_path, monkeypatch)[0] == []
    assert after.files != before.files
    for name, data in after.files.items():
        spec = data.decode()
        assert format_source(Source(name, spec)) == spec, f"dskc fmt would change {name}"


# --- dskc explain


@pytest.mark.parametrize("spelled", ["DSK0101", "dsk0101", "DSK101", "101", " 0101 "])
def test_a_code_is_found_however_it_is_written(spelled: str) -> None:
    assert find_code(spelled) == "DSK0101"


def test_explain_shows_the_page() -> None:
    result = CliRunner().invoke(main, ["explain", "DSK0003"])
    assert result.exit_code == 0
    assert result.output == show_page(read_page("DSK0003")) + "\n"
    assert result.output.startswith("DSK0003: a bracket or brace is never closed\n")
    assert "\n    error[DSK0003]: this `{` is never closed\n" in result.output
    assert "```" not in result.output and "\n#" not in result.output


def test_explain_names_the_files_of_an_example_and_paints_headings() -> None:
    shown = show_page(read_page("DSK0105"), color=True)
    assert "\x1b[1mWrong\x1b[0m" in shown and "\x1b[1;34ma.dsk:\x1b[0m" in shown
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown) == show_page(read_page("DSK0105"))


@pytest.mark.parametrize(("spelled", "near"), [("DSK0110O", "DSK0110"), ("0133", "DSK0131"), ("colour", None)])
def test_an_unknown_code_gets_the_nearest_and_the_list(spelled: str, near: str | None) -> None:
    with pytest.raises(UnknownCode) as raised:
        find_code(spelled)
    result = CliRunner().invoke(main, ["explain", spelled])
    assert result.exit_code == 1
    assert list_codes() in result.output and f"error: there is no diagnostic `{spelled}`" in result.output
    if near is None:
        assert raised.value.near is None and "those above are all there are" in result.output
    else:
        assert f"help: did you mean `{raised.value.near}`?" in result.output and raised.value.near in CODES


def test_an_installation_without_pages_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dskc.dsl.explain.PAGES", tmp_path)
    result = CliRunner().invoke(main, ["explain", "DSK0001"])
    assert result.exit_code == 1 and "help: install dskc again" in result.output


def test_the_pages_are_installed_along() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    package = "dskc." + ".".join(PAGES.resolve().relative_to(ROOT).parts)
    assert package in setup["packages"]
    assert ROOT / setup["package-dir"][package] == PAGES.resolve()
    assert setup["package-data"][package] == ["*.md"]
