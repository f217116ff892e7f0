"""Files of questions: what is asked, what counts, and what is refused."""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from dskc.runtime.eval import choice as choice_tasks
from dskc.runtime.eval import code as code_tasks
from dskc.runtime.eval.answer import compiled, extracted, same
from dskc.runtime.eval.decode import Prompt
from dskc.runtime.eval.encode import encode
from dskc.runtime.eval.lines import parse_fields, read_lines, task_name
from dskc.runtime.eval.score import Scored, Work
from dskc.runtime.eval.settings import Settings
from dskc.runtime.eval.statistics import mean, paired, ratio
from dskc.runtime.eval.subject import Subject
from dskc.runtime.eval.tasks import FileTask, open_file, open_perplexity
from dskc.runtime.problem import Problem

from .runs import LENGTH, TEXT, their_loglikelihood
from .samples import ANSWERS, CHOICES, COMPLETIONS, CONTINUED, PROGRAMS, TEXTS, write_lines

HELLASWAG = {"context": "ctx", "choices": "endings", "answer": "label"}


def opened(folder: Path, lines: Sequence[dict[str, Any]], **settings: Any) -> FileTask:
    return open_file(write_lines(folder / "asked.jsonl", lines), Settings(**settings))


def test_a_question_is_asked_with_its_choices_under_letters(tmp_path: Path) -> None:
    task = opened(tmp_path, CHOICES)
    assert (task.name, task.kind, task.size) == ("asked", "choice", 11)
    first: Any = task.questions[0]
    assert first.prompt == "Where did the cat sit?\nA. on the mat\nB. on the hat\nC. not\nAnswer:"
    assert [(question.choices, question.gold) for question in task.questions] == [
        (("A", "B", "C"), 0), (("A", "B", "C"), 2), (("A", "B"), 0), (("A", "B", "C"), 1),
    ]  # fmt: skip


def test_other_ways_to_ask(tmp_path: Path) -> None:
    first: Any = opened(tmp_path, CHOICES, style="text").questions[0]
    assert (first.prompt, first.choices[0]) == ("Question: Where did the cat sit?\nAnswer:", "on the mat")
    first = opened(tmp_path, CONTINUED, fields=HELLASWAG).questions[0]
    assert (first.prompt, first.choices[2], first.gold) == ("the cat sat on", "hat", 1)


def test_choices_that_a_table_made_numbers_of(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"context": "c", "choices": ["a", 1, 2.5, NaN, null], "answer": "None"}', encoding="utf-8")
    first: Any = open_file(path, Settings()).questions[0]
    assert (first.choices, first.gold) == (("a", "1", "2.5", "None", "None"), 3)


def their_scores(
    subject: Subject, theirs: LlamaForCausalLM, asked: Sequence[tuple[str, Sequence[str], int]]
) -> tuple[float, float]:
    """acc and acc_norm as they are defined, of texts whose choices begin with a blank."""
    right = norm = 0
    for prompt, choices, gold in asked:
        before = encode(subject, prompt)
        found = np.array([
            their_loglikelihood(theirs, before, encode(subject, f"{prompt} {choice}")[len(before) :])
            for choice in choices
        ])  # fmt: skip
        right += int(found.argmax()) == gold
        norm += int((found / [len(choice) for choice in choices]).argmax()) == gold
    return right / len(asked), norm / len(asked)


def test_accuracies_are_those_of_transformers(subject: Subject, theirs: LlamaForCausalLM, tmp_path: Path) -> None:
    lines = [{**line, "label": label} for line in CONTINUED for label in range(len(line["endings"]))]
    task = opened(tmp_path, lines, fields=HELLASWAG)
    metrics, items = task.run(subject, Work())
    expected = their_scores(subject, theirs, [(line["ctx"], line["endings"], line["label"]) for line in lines])
    assert (metrics["acc"].value, metrics["acc_norm"].value) == expected
    assert metrics["acc"].stderr == pytest.approx(math.sqrt(expected[0] * (1 - expected[0]) / (len(lines) - 1)))
    assert [item["line"] for item in items] == list(range(1, len(lines) + 1))
    assert any(item["chosen"] != item["chosen_norm"] for item in items)  # or the length would not be tested


def test_the_length_of_a_choice_is_in_characters(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither bytes nor the blank before it count: -6 / 2 is more than -10 / 3, and less than -10 / 4 or -2 / 1."""
    given = iter([-6.0, -10.0, -2.01, -6.0, -9.01])
    found = lambda _subject, asked, _work: [Scored(next(given), False) for _ in asked]  # noqa: E731
    monkeypatch.setattr(choice_tasks, "loglikelihoods", found)
    lines = [{"context": "c", "choices": ["ab", "ïïï"], "answer": 0}, {"context": "c", "choices": ["a", "abc", "abcd"],
             "answer": 1}]  # fmt: skip
    items = opened(tmp_path, lines).run(subject, Work())[1]
    assert [(item["chosen"], item["chosen_norm"]) for item in items] == [(0, 0), (0, 1)]


def test_examples_come_before(tmp_path: Path) -> None:
    task = opened(tmp_path, CHOICES, few_shot=1)
    assert task.shots.before(0) == "Who sat?\nA. the cat\nB. the dog and the cat\nAnswer: A\n\n"  # of its topic
    with pytest.raises(Problem, match="there are 0 examples of topic 'dog'"):
        task.shots.before(1)
    one = write_lines(tmp_path / "one.jsonl", [CHOICES[1]])
    task = opened(tmp_path, CHOICES[1:2], few_shot=1, shots=one)
    assert task.shots.before(0).endswith("Answer: C\n\n")
    task = opened(tmp_path, ANSWERS, few_shot=2)
    assert task.shots.before(1) == (
        "Question: How many cats?\nAnswer: There are 900 and 100. So 1,000\n\nQuestion: How many hats?\nAnswer: 4\n\n"
    )


def test_the_limit_leaves_examples_alone(subject: Subject, tmp_path: Path) -> None:
    task = opened(tmp_path, CONTINUED, fields=HELLASWAG, few_shot=2, limit=1)
    assert task.shots.before(0) == "and the dog which was not naïve\n\nsaid the hat\n\n"
    assert len(task.run(subject, Work())[1]) == 1


def test_completions_and_texts_as_transformers_sees_them(
    subject: Subject, theirs: LlamaForCausalLM, tmp_path: Path
) -> None:
    metrics, items = opened(tmp_path, COMPLETIONS).run(subject, Work())
    losses, tokens, size = [], 0, 0
    for line in COMPLETIONS:
        before = encode(subject, line.get("context", "")) or [subject.prefix]
        after = encode(subject, line.get("context", "") + line["completion"])[len(before) * ("context" in line) :]
        losses.append(-their_loglikelihood(theirs, before, after))
        tokens, size = tokens + len(after), size + len(line["completion"].encode())
    assert [item["loss"] for item in items] == pytest.approx(losses, abs=1e-4)
    assert metrics["loss"].value == pytest.approx(sum(losses) / tokens, abs=1e-5)
    assert metrics["perplexity"].value == pytest.approx(math.exp(sum(losses) / tokens), rel=1e-4)
    assert metrics["bits_per_byte"].value == pytest.approx(sum(losses) / size / math.log(2), abs=1e-5)
    assert not metrics["loss"].higher_is_better and metrics["acc"].higher_is_better


@torch.inference_mode()
def test_perplexity_predicts_every_token_once(subject: Subject, theirs: LlamaForCausalLM, tmp_path: Path) -> None:
    """A text of less than a window: transformers' own loss. A longer one: that of each stretch after what fits."""
    (tmp_path / "short.txt").write_text(TEXT[:60], encoding="utf-8")
    task = open_perplexity(Settings(data=(tmp_path / "short.txt",)))
    metrics, _ = task.run(subject, Work())
    tokens = torch.tensor([[subject.prefix, *encode(subject, TEXT[:60])]])
    assert metrics["loss"].value == pytest.approx(float(theirs(tokens, labels=tokens).loss), abs=1e-5)
    assert metrics["bits_per_byte"].value == pytest.approx(
        metrics["loss"].value * (tokens.shape[1] - 1) / len(TEXT[:60].encode()) / math.log(2)
    )
    (tmp_path / "long.txt").write_text(TEXT * 3, encoding="utf-8")
    ids = [subject.prefix, *encode(subject, TEXT * 3)]
    for overlap in (1, 20, LENGTH):
        metrics, (item,) = open_perplexity(Settings(data=(tmp_path / "long.txt",), overlap=overlap)).run(
            subject, Work()
        )
        total, done = 0.0, LENGTH
        total -= their_loglikelihood(theirs, ids[:1], ids[1 : LENGTH + 1])
        while done < len(ids) - 1:
            stop = min(len(ids) - 1, done + LENGTH - overlap + 1)
            total -= their_loglikelihood(theirs, ids[stop - LENGTH : done + 1], ids[done + 1 : stop + 1])
            done = stop
        assert item["loss"] == pytest.approx(total, abs=1e-3) and item["tokens"] == len(ids) - 1
    lines = opened(tmp_path, TEXTS).run(subject, Work())[1]
    assert [item["tokens"] for item in lines] == [len(encode(subject, line["text"])) for line in TEXTS]
    _, rows = open_perplexity(Settings(data=(write_lines(tmp_path / "rows.jsonl", TEXTS),))).run(subject, Work())
    assert [item["loss"] for item in rows] == [item["loss"] for item in lines]
    with pytest.raises(Problem, match="perplexity of what"):
        open_perplexity(Settings())


@pytest.mark.parametrize(
    ("text", "pattern", "answers", "found"),
    [
        ("so 3 and 4 are 7 cats.", None, ["7"], "7"),
        ("it costs $1,234.50 in all", None, ["5"], "$1,234.50"),
        (" the cat \n", None, ["the cat"], "the cat"),
        ("#### 18\nand more 5", r"#### (-?[0-9.,]+)", ["18"], "18"),
        ("A or (B)", r"\(([A-D])\)|\b([A-D])\b", ["B"], "B"),
        ("nothing", r"\d+", ["1"], ""),
        ("-5 degrees", None, ["-5"], "-5"),
    ],
)
def test_what_counts_of_an_answer(text: str, pattern: str | None, answers: list[str], found: str) -> None:
    assert extracted(text, compiled(pattern), answers) == found


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [("1,000", "1000", True), ("$5", "5.0", True), ("5", "6", False), ("a", "a", True), ("a", "A", False),
     ("", "0", False), ("nan", "nan ", False), ("50%", "50", True)],
)  # fmt: skip
def test_answers_that_are_the_same(a: str, b: str, equal: bool) -> None:
    assert same(a, b) is equal and same(b, a) is equal


def test_a_bad_expression_is_refused() -> None:
    with pytest.raises(Problem, match="not a regular expression"):
        compiled("(")


def test_answers_are_what_greedy_decoding_gives(subject: Subject, theirs: LlamaForCausalLM, tmp_path: Path) -> None:
    lines = [{"prompt": "the cat", "answer": "?"}, {"prompt": TEXT[:40], "answer": "?"}]
    for line in lines:
        tokens = encode(subject, line["prompt"])
        new = theirs.generate(torch.tensor([tokens]), max_new_tokens=8, do_sample=False)[0, len(tokens) :]
        line["answer"] = subject.tokenizer.decode(new.tolist()).split("\n\n")[0].strip()
    lines.append({**lines[0], "answer": "something else"})
    metrics, items = opened(tmp_path, lines, max_tokens=8).run(subject, Work())
    assert [item["right"] for item in items] == [True, True, False]
    assert metrics["exact_match"].value == pytest.approx(2 / 3)


def test_programs_need_consent_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="--allow-code-execution"):
        opened(tmp_path, PROGRAMS)


def test_programs_are_run_with_their_tests(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model writes is put in by hand: right once, once by leaving before the test."""
    written = iter([["    return a + b\n", "    import os; os._exit(0)\n"], ["    return 0\n", "    return 2 * a\n"]])
    asked: list[Prompt] = []

    def generated(_: Subject, prompts: Sequence[Prompt], work: Work) -> list[str]:
        asked.extend(prompts)
        return next(written)

    monkeypatch.setattr(code_tasks, "generate_all", generated)
    task = opened(tmp_path, PROGRAMS, allow_code=True)
    assert task.kind == "code"
    for rights in ([True, False], [False, True]):
        metrics, items = task.run(subject, Work())
        assert [item["right"] for item in items] == rights and metrics["pass@1"].value == 0.5
    assert items[0]["reason"].startswith("AssertionError")
    assert asked[0].tokens == tuple(encode(subject, PROGRAMS[0]["prompt"])) and "\ndef" in asked[0].until


def test_what_a_file_is_called(tmp_path: Path) -> None:
    path = tmp_path / "a.b.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "x"}\n\n{"text": "y"}'))
    assert [line.number for line in read_lines(path)] == [1, 3]
    assert task_name(path) == "a.b" and task_name(Path("x.jsonl")) == "x" and task_name(Path("y.json")) == "y"


def test_fields_by_other_names() -> None:
    assert parse_fields(["a=b, c = d", "e=f"]) == {"a": "b", "c": "d", "e": "f"}
    for wrong in ("a", "=b", "a=", ""):
        with pytest.raises(Problem, match="no pair of fields"):
            parse_fields([wrong])


GOOD = '{"question": "q", "choices": ["a", "b"], "answer": 0}'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "must be an object"),
        ('{"question": "q", "choices": ["a", "b"]}', "there is no `answer`"),
        ('{"question": "q", "choices": ["a", "b"], "answer": 2}', "`answer` must be"),
        ('{"question": "q", "choices": ["a", "b"], "answer": true}', "`answer` must be"),
        ('{"question": "q", "choices": ["a", "b"], "answer": "D"}', "`answer` must be"),
        ('{"question": "q", "choices": ["a", [1]], "answer": 0}', "`choices` must be a list of texts"),
        ('{"question": "q", "choices": [], "answer": 0}', "`choices` must be a list of texts"),
        ('{"question": "q", "choices": ["a", ""], "answer": 0}', "`choices` must be a list of texts"),
        ('{"question": 1, "choices": ["a"], "answer": 0}', "`question` must be text, and is 1"),
        ('{"choices": ["a"], "answer": 0}', "there is no `question`"),
        ('{"question": "q", "answer": 0}', "of the kind `answer`, and the first line of the kind `choice`"),
        ('{"other": 1}', "this is no question"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(Problem, match=re.escape(f"{path}:3: ") + ".*" + re.escape(said)):
        open_file(path, Settings())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"completion": ""}, "`completion` is empty"), ({"text": ""}, "`text` is empty"),
        ({"question": "q", "answer": []}, "`answer` must be"), ({"question": "q", "answer": " "}, "`answer` must be"),
        ({"prompt": "p", "test": "t", "entry_point": "a b"}, "name of a function"),
        ({"question": "q", "choices": ["a"] * 27, "answer": 0}, "more than there are letters"),
    ],
)  # fmt: skip
def test_bad_values_of_other_kinds(tmp_path: Path, line: dict[str, Any], said: str) -> None:
    with pytest.raises(Problem, match=said):
        opened(tmp_path, [line], allow_code=True)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content in (("no.jsonl", None), ("empty.jsonl", b"\n"), ("bad.jsonl.gz", b"{}"), ("a.jsonl", b"\xff{}")):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(Problem, match=re.escape(str(path))):
            open_file(path, Settings())


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(0.1, 9)), min_size=2, max_size=30))
def test_means_and_their_errors(pairs: list[tuple[float, float]]) -> None:
    values, weights = [v for v, _ in pairs], [w for _, w in pairs]
    expected = np.std(values, ddof=1) / math.sqrt(len(values))
    assert mean(values).value == pytest.approx(np.mean(values), abs=1e-12)
    assert mean(values).stderr == pytest.approx(expected, abs=1e-12)
    found = ratio(values, weights)
    assert found.value == pytest.approx(sum(values) / sum(weights))
    scaled = ratio([2 * v for v in values], [2 * w for w in weights])
    assert scaled.stderr == pytest.approx(found.stderr, abs=1e-12)
    assert paired(values, values) == 0


def test_one_question_has_no_error() -> None:
    assert mean([1.0]).stderr is None and json.dumps(mean([True, False]).value) == "0.5"
