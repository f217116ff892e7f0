"""`dskc eval` as people call it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from dskc.runtime.eval import command
from dskc.runtime.eval.compare import compare
from dskc.runtime.eval.results import Result, load, path_of, saved
from dskc.runtime.eval.statistics import mean
from dskc.runtime.problem import Problem
from dskc.runtime.train import load_model, write_checkpoint

from ..test_docs import NOTES, PAGES, blocks
from .runs import LENGTH, ROOT, dskc, import_run
from .samples import ANSWERS, CHOICES, COMPLETIONS, CONTINUED, PROGRAMS, write_lines


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, Path]:
    return import_run(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture
def two(run: Path, other: tuple[LlamaForCausalLM, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the runs `a` and `b`, and a file of each kind."""
    monkeypatch.chdir(tmp_path)
    for name, source in (("a", run), ("b", other[1])):
        shutil.copytree(source, tmp_path / name)
    for name, lines in (
        ("choices", CHOICES), ("stories", CONTINUED), ("answers", ANSWERS), ("rest", COMPLETIONS), ("code", PROGRAMS),
    ):  # fmt: skip
        write_lines(tmp_path / f"{name}.jsonl", lines)
    return tmp_path


OPTIONS = ("--device", "cpu", "--length", LENGTH)


def test_scores_are_printed_and_kept(two: Path) -> None:
    tasks = ("choices.jsonl", "answers.jsonl", "rest.jsonl", "code.jsonl")
    options = ("--max-tokens", 4, "--allow-code-execution", "--json", "out.json")
    result = dskc("eval", "a", "--tasks", *tasks, *OPTIONS, *options)
    assert result.exit_code == 0, result.output
    for said in ("acc_norm", "exact_match", "bits_per_byte", "pass@1", " ± ", "prefill", "decode", "fp32"):
        assert said in result.output, result.output
    kept = saved(two / "a")
    assert set(kept) == {"choices", "answers", "rest", "code"}
    assert kept["choices"].count == len(CHOICES) and kept["choices"].about["length"] == LENGTH
    assert kept["answers"].decode_ms and kept["choices"].decode_ms is None and kept["choices"].alone["decode_ms"]
    out = json.loads((two / "out.json").read_text(encoding="utf-8"))
    assert [each["task"] for each in out] == list(map(task_of, tasks))
    assert load(path_of(two / "a", "code")) == kept["code"]


def task_of(file: str) -> str:
    return file.removesuffix(".jsonl")


def test_both_are_compared_by_what_is_kept(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = dskc("eval", "--compare", "a", "b", "--tasks", "choices.jsonl", "rest.jsonl", *OPTIONS)
    assert first.exit_code == 0, first.output
    a, b = saved(two / "a"), saved(two / "b")
    changed = sum(x["chosen"] != y["chosen"] for x, y in zip(a["choices"].items, b["choices"].items, strict=True))
    assert f"{changed} of {len(CHOICES)} (" in first.output
    ran: list[str] = []
    evaluate = command.evaluate

    def noted(subject, tasks, *rest):  # type: ignore[no-untyped-def]
        ran.extend(task.name for task in tasks)
        return evaluate(subject, tasks, *rest)

    monkeypatch.setattr(command, "evaluate", noted)
    for arguments in (("--tasks", "choices.jsonl", "rest.jsonl", *OPTIONS), ()):
        again = dskc("eval", "--compare", "a", "b", *arguments)
        assert again.output.splitlines()[-6:] == first.output.splitlines()[-6:]
    assert not ran  # all was there
    assert dskc("eval", "--compare", "a", "b", "--tasks", "choices.jsonl", *OPTIONS, "--limit", 2).exit_code == 0
    assert ran == ["choices", "choices"]  # what was there was asked more
    write_checkpoint(two / "a" / "checkpoints", 7, load_model(two / "a", device="cpu")[0].state_dict())
    assert dskc("eval", "--compare", "a", "b", "--tasks", "rest.jsonl", *OPTIONS).exit_code == 0
    assert ran == ["choices", "choices", "rest"]  # of another checkpoint
    write_lines(two / "rest.jsonl", COMPLETIONS[1:])
    assert dskc("eval", "--compare", "a", "b", "--tasks", "rest.jsonl", *OPTIONS).exit_code == 0
    assert ran == ["choices", "choices", "rest", "rest", "rest"]  # other questions


def result(metric: str, rights: list[bool], chosen: list[int]) -> Result:
    items = [{"right": r, "chosen": c} for r, c in zip(rights, chosen, strict=True)]
    return Result("t", "choice", {metric: mean([float(r) for r in rights])}, {}, items)


def test_what_changed_is_counted() -> None:
    before = result("acc", [True, True, False, False, False], [0, 1, 2, 0, 0])
    after = result("acc", [True, False, True, False, True], [0, 2, 1, 3, 1])
    (row,) = compare({"t": before}, {"t": after})
    assert (row.changed, row.gained, row.lost, row.questions) == (4, 2, 1, 5)
    assert (row.change, row.relative) == (pytest.approx(0.2), pytest.approx(0.5))
    assert row.change_error == pytest.approx(mean([0.0, -1.0, 1.0, 0.0, 1.0]).stderr)
    (row,) = compare({"t": result("acc", [False], [1])}, {"t": result("acc", [True], [0])})
    assert row.relative is None and row.change == 1
    assert compare({"t": before}, {}) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "one run is evaluated, or two compared"),
        (("a", "--compare", "a", "b"), "one run is evaluated, or two compared"),
        (("a",), "there is nothing to ask"),
        (("nowhere", "--tasks", "choices.jsonl"), "there is no such run"),
        (("a", "--tasks", "none.jsonl"), "none.jsonl: it cannot be read"),
        (("a", "--tasks", "perplexity"), "perplexity of what"),
        (("a", "--tasks", "choices.jsonl", "--data", "x"), "--data is for the task"),
        (("a", "--tasks", "choices.jsonl", "./choices.jsonl"), "two tasks are called choices"),
        (("a", "--tasks", "code.jsonl"), "--allow-code-execution"),
        (("a", "--tasks", "stories.jsonl"), "stories.jsonl:1: "),
        (("--compare", "a", "b"), "no results of the same tasks"),
        (("--compare", "a", "nowhere"), "nowhere"),
        (("a", "--tasks", "choices.jsonl", "--json", "no/where.json"), "--json no/where.json"),
        (("a", "--tasks", "choices.jsonl", "--checkpoint", "5"), "no checkpoint of step 5"),
    ],
)
def test_mistakes_are_told(two: Path, arguments: tuple[str, ...], said: str) -> None:
    found = dskc("eval", *arguments)
    assert found.exit_code == 1 and said in found.output and "Traceback" not in found.output, found.output


def test_what_was_kept_can_be_damaged(two: Path) -> None:
    path = two / "a" / "eval" / "x.json"
    path.parent.mkdir()
    for text in ("{", '{"format": 99}', "[]", '{"format": 1}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(Problem, match="is no result of an evaluation"):
            saved(two / "a")


def test_every_flag_is_documented() -> None:
    flags = set(re.findall(r'"(--[a-z-]+)"', (ROOT / "runtime" / "eval" / "command.py").read_text(encoding="utf-8")))
    assert flags == set(re.findall(r"(?<!-)--[a-z][a-z-]+", PAGES["evaluation.md"])) - {"--model"}  # lm-eval's


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files, its commands and its program, with two small runs; names of lm-eval's tasks need their data."""
    page = PAGES["evaluation.md"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.dsk").write_text(NOTES, encoding="utf-8")
    (tmp_path / "notes.txt").write_text("\n".join(PAGES.values())[:60_000], encoding="utf-8")
    for name, steps in (("notes", 2), ("longer", 4)):
        trained = dskc("train", "notes.dsk", "--data", "notes.txt", "--steps", steps, "--out", f"runs/{name}")
        assert trained.exit_code == 0, trained.output
    files, program = blocks(page, "python")
    exec(compile(files, "evaluation.md", "exec"), {})
    assert dskc("eval", "runs/longer", "--tasks", "questions.jsonl").exit_code == 0
    ran = 0
    for line in (line for block in blocks(page, "sh") for line in block.splitlines()):
        words = shlex.split(line, comments=True)
        if words and words[0] == "dskc" and "hellaswag" not in words:
            found = dskc(*words[1:])
            assert found.exit_code == 0, f"{line}\n{found.output}"
            ran += 1
    assert ran == 7
    exec(compile(program, "evaluation.md", "exec"), {})
