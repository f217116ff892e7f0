"""Log-likelihoods and answers in batches are those of transformers one by one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from dskc.runtime.eval.decode import Prompt, generate_all
from dskc.runtime.eval.encode import Request, encode, pair
from dskc.runtime.eval.pace import measure
from dskc.runtime.eval.score import Work, loglikelihoods
from dskc.runtime.eval.subject import Subject, open_subject
from dskc.runtime.eval.windows import windows
from dskc.runtime.problem import Problem

from ..runtime.tiny_trainer import train, write_package, write_text
from .runs import END, LENGTH, TEXT, VOCABULARY, their_loglikelihood


def requests(draw: random.Random, count: int) -> list[Request]:
    """Of all lengths, also too long ones; some share a context, some all but the last token."""
    made: list[Request] = []
    for _ in range(count):
        context = tuple(draw.randrange(VOCABULARY) for _ in range(draw.randint(1, LENGTH + 9)))
        for _ in range(draw.randint(1, 3)):
            made.append(Request(context, tuple(draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 6)))))
    return made


@pytest.mark.parametrize("batch_tokens", [1, 100, 5000])
def test_loglikelihoods_are_those_of_transformers(
    subject: Subject, theirs: LlamaForCausalLM, batch_tokens: int
) -> None:
    asked = requests(random.Random(batch_tokens), 12)
    asked.append(Request((5,), tuple(range(LENGTH))))  # it fills all that the model takes
    work = Work(batch_tokens)
    done: list[int] = []
    work.advance = done.append
    found = loglikelihoods(subject, asked, work)
    for request, scored in zip(asked, found, strict=True):
        assert scored.loglikelihood == pytest.approx(
            their_loglikelihood(theirs, request.context, request.continuation), abs=1e-4
        )
    assert sum(done) == len(asked)
    assert work.pace.prefill_tokens <= sum(min(LENGTH, len(r.context + r.continuation) - 1) for r in asked)


def test_what_greedy_decoding_gives_is_known_as_such(subject: Subject, theirs: LlamaForCausalLM) -> None:
    tokens = encode(subject, TEXT[:40])
    with torch.inference_mode():
        answer = theirs.generate(torch.tensor([tokens]), max_new_tokens=3, do_sample=False)[0, len(tokens) :].tolist()
    other = [*answer[:-1], (answer[-1] + 1) % VOCABULARY]
    found = loglikelihoods(subject, [Request(tuple(tokens), tuple(each)) for each in (answer, other)])
    assert [scored.greedy for scored in found] == [True, False]


def test_texts_with_the_same_beginning_go_through_once(subject: Subject) -> None:
    work = Work()
    loglikelihoods(subject, [Request((1, 2, 3), (token,)) for token in range(20)], work)
    assert work.pace.prefill_tokens == 3


def test_a_continuation_longer_than_the_model_is_refused(subject: Subject) -> None:
    with pytest.raises(Problem, match=f"{LENGTH + 1} tokens long, and the model takes {LENGTH}"):
        loglikelihoods(subject, [Request((1,), (1,) * (LENGTH + 1))])


@settings(max_examples=200, deadline=None)
@given(context=st.text(alphabet="the cat \n—ï", max_size=12), word=st.text(alphabet="the—ï", min_size=1, max_size=8))
def test_a_pair_is_the_text_of_both(subject: Subject, context: str, word: str) -> None:
    """Cut as one text, whichever of the two the blank between them is in."""
    for found in (pair(subject, context, f" {word}"), pair(subject, f"{context} ", word)):
        text = encode(subject, f"{context} {word}")
        assert [*found.context, *found.continuation] in (text, [subject.prefix, *text])
        assert subject.tokenizer.decode(found.continuation).endswith(f" {word}")
        assert bool(context.strip()) == (found.context != (subject.prefix,))


def test_a_pair_with_nothing_to_score_is_refused(subject: Subject) -> None:
    with pytest.raises(Problem, match="no token to score"):
        pair(subject, "the cat", "")


def test_windows_as_lm_eval_documents_them() -> None:
    """The example of `LM.loglikelihood_rolling`: inputs and predictions of ten tokens, four at once."""
    found = [((*r.context, *r.continuation)[:-1], r.continuation) for r in windows(range(10), -1, 4)]
    assert found == [((-1, 0, 1, 2), (0, 1, 2, 3)), ((3, 4, 5, 6), (4, 5, 6, 7)), ((5, 6, 7, 8), (8, 9))]


@given(count=st.integers(0, 60), length=st.integers(1, 20), data=st.data())
def test_each_token_is_predicted_once_from_what_is_before_it(count: int, length: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(1, length))
    found = list(windows(range(count), -1, length, overlap))
    assert [token for r in found for token in r.continuation] == list(range(count))
    for place, r in enumerate(found):
        seen = (*r.context, *r.continuation)[:-1]
        assert len(seen) <= length
        assert list(seen) == list(range(r.continuation[-1] - len(seen), r.continuation[-1]))
        assert place == 0 or len(r.context) >= overlap
        assert len(found) == 1 or len(seen) == length


PROMPTS = ["the cat", TEXT[:60], "and the dog sat", "—", TEXT[:44], "the hat", TEXT * 2]


@pytest.mark.parametrize("batch_tokens", [1, 60, 4000])
def test_answers_are_those_of_transformers(subject: Subject, theirs: LlamaForCausalLM, batch_tokens: int) -> None:
    """Prompts of different lengths go together, and each gets what it gets alone."""
    new = 12
    prompts = [Prompt(tuple(encode(subject, text)), new) for text in PROMPTS]
    found = generate_all(subject, prompts, Work(batch_tokens))
    for prompt, text in zip(prompts, found, strict=True):
        tokens = list(prompt.tokens[-(LENGTH - new) :])
        expected = theirs.generate(torch.tensor([tokens]), max_new_tokens=new, do_sample=False)[0, len(tokens) :]
        assert text == subject.tokenizer.decode(expected.tolist())
    assert len(set(found)) > 3


def test_an_answer_ends_before_any_of_its_texts(subject: Subject) -> None:
    tokens = tuple(encode(subject, TEXT[:30]))
    (whole,) = generate_all(subject, [Prompt(tokens, 30)])
    end = whole[len(whole) // 2 :][:2]
    work = Work()
    (short,) = generate_all(subject, [Prompt(tokens, 30, ("not there", end, ""))], work)
    assert short == whole.split(end)[0] and short != whole
    assert work.pace.decode_tokens < 29


def test_prompts_that_cannot_be_continued(subject: Subject) -> None:
    with pytest.raises(Problem, match="no token to start from"):
        generate_all(subject, [Prompt((), 3)])
    with pytest.raises(Problem, match="leave no room for a prompt"):
        generate_all(subject, [Prompt((1,), LENGTH)])


def test_the_token_before_a_text(run: Path, subject: Subject) -> None:
    assert subject.tokenizer.id_to_token(subject.prefix) == END
    assert open_subject(run, device="cpu", prefix="a").prefix == subject.tokenizer.token_to_id("a")
    with pytest.raises(Problem, match="no such token"):
        open_subject(run, prefix="<not there>")
    with pytest.raises(Problem, match="nothing to predict"):
        open_subject(run, length=1)


def test_the_pace_of_one_sequence(subject: Subject) -> None:
    pace = measure(subject)
    assert pace.prefill_tokens == LENGTH - 32 and pace.decode_tokens == 32
    assert pace.prefill_ms and pace.decode_ms


def test_runs_that_foretell_no_text_are_refused(tmp_path: Path) -> None:
    package = write_package(tmp_path / "code")
    out = tmp_path / "run"
    train(package, "--data", write_text(tmp_path / "text"), "--out", out, "--steps", 4, "--device", "cpu")
    assert open_subject(out, device="cpu").length == 32  # what it was trained on
    (code,) = out.glob("code/*")
    model = (code / "model.py").read_text(encoding="utf-8")
    (code / "model.py").write_text(model.replace("return self.logits(self.norm(x))", "return self.logits(x.flip(1))"))
    with pytest.raises(Problem, match="see later ones"):
        open_subject(out, device="cpu")
    (code / "model.py").write_text(model, encoding="utf-8")
    (code / "plan.json").write_text('{"inputs": ["tokens", "image"]}', encoding="utf-8")
    with pytest.raises(Problem, match="takes tokens, image"):
        open_subject(out, device="cpu")
    (out / "tokenizer.json").unlink()
    with pytest.raises(Problem, match=r"no tokenizer\.json"):
        open_subject(out, device="cpu")
