"""A run as a model of lm-eval: against its own model of transformers where it is installed, and against a stub."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from dskc.runtime.eval import code as code_tasks
from dskc.runtime.eval.encode import encode
from dskc.runtime.eval.harness_tasks import open_names
from dskc.runtime.eval.score import Work
from dskc.runtime.eval.settings import Settings
from dskc.runtime.eval.subject import Subject
from dskc.runtime.problem import Problem

from .runs import END, LENGTH, TEXT, dskc, their_loglikelihood
from .samples import PROGRAMS
from .stub_lm_eval import Request, forget, install


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    forget(monkeypatch)
    yield monkeypatch
    for name in ("harness", "harness_tasks"):
        sys.modules.pop(f"dskc.runtime.eval.{name}", None)


def model_class(name: str = "dskc.runtime.eval.harness") -> Any:
    return importlib.import_module(name).RunLM


def texts(draw: random.Random, count: int) -> list[str]:
    words = TEXT.split()
    return [" ".join(draw.choices(words, k=draw.randint(1, 30))) for _ in range(count)]


def pairs(draw: random.Random, count: int) -> list[tuple[str, str]]:
    """Contexts of all lengths, also none and too long, some with a blank at their end; continuations begin with one,
    unless the context ends so."""
    made = [(context, f" {text}"[:30]) for context, text in zip(texts(draw, count), texts(draw, count), strict=True)]
    made += [(f"{context} ", text[:9]) for context, text in zip(texts(draw, 5), texts(draw, 5), strict=True)]
    return [
        *made,
        ("", "the cat"),
        ("", f"{END}the cat"),
        (TEXT * 3, " mat"),
        (f"{END}the", " cat"),
        *made[:3],
    ]


def test_without_lm_eval_it_is_told_what_to_install(clean: pytest.MonkeyPatch, run: Path) -> None:
    clean.setitem(sys.modules, "lm_eval.api.model", None)
    found = dskc("eval", run, "--tasks", "hellaswag")
    assert found.exit_code == 1 and 'pip install "dskc[eval]"' in found.output and "Traceback" not in found.output


def test_lm_eval_without_what_it_needs(clean: pytest.MonkeyPatch) -> None:
    install(clean)
    clean.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(Problem, match="without what it needs"):
        open_names(["hellaswag"], Settings())


def test_it_is_a_model_that_lm_eval_can_make(clean: pytest.MonkeyPatch, run: Path) -> None:
    registry = install(clean)
    made = model_class()
    assert registry == {"dskc": made}
    model = made.create_from_arg_string(
        f"run={run},prefix=a,max_length={LENGTH},batch_tokens=99", {"batch_size": 1, "device": "cpu"}
    )
    assert model.subject.prefix == model.subject.tokenizer.token_to_id("a") == model.eot_token_id
    assert (model.max_length, model.work.batch_tokens, model.device.type) == (LENGTH, 99, "cpu")


def test_requests_are_answered_as_by_transformers(
    clean: pytest.MonkeyPatch, subject: Subject, theirs: LlamaForCausalLM
) -> None:
    install(clean)
    model = model_class()(subject, batch_tokens=200)
    asked = [("the cat", " sat on the mat"), ("", "the dog"), ("and the ", "hat")]
    found = model.loglikelihood([Request(each) for each in asked], disable_tqdm=True)
    for (context, after), (value, greedy) in zip(asked, found, strict=True):
        before = encode(subject, context.rstrip()) or [subject.prefix]
        whole = encode(subject, context + after) if context else [subject.prefix, *encode(subject, after)]
        assert value == pytest.approx(their_loglikelihood(theirs, before, whole[len(before) :]), abs=1e-4)
        assert greedy in (True, False)
    tokens = torch.tensor([[subject.prefix, *encode(subject, TEXT[:50])]])
    with torch.inference_mode():
        expected = -float(theirs(tokens, labels=tokens).loss) * (tokens.shape[1] - 1)
    (value,) = model.loglikelihood_rolling([Request((TEXT[:50],))])
    assert value == pytest.approx(expected, abs=1e-3)
    kinds = [kind for kind, _, _ in model.cache_hook.seen]
    assert kinds == ["loglikelihood"] * 3 + ["loglikelihood_rolling"]
    assert model.cache_hook.seen[0][1:] == (asked[0], found[0])


def test_answers_end_as_their_options_say(clean: pytest.MonkeyPatch, subject: Subject) -> None:
    install(clean)
    model = model_class()(subject)
    (whole,) = model.generate_until([Request(("the cat", {"max_gen_toks": 20}))])
    end = whole[4:6]
    options = [
        {"until": end, "max_gen_toks": 20}, {"until": [end], "max_tokens": 20}, {"max_new_tokens": 1},
        {"until": ["never"], "max_gen_toks": 20, "do_sample": False, "temperature": 1.0},
        {"max_gen_toks": 20, "do_sample": True, "temperature": 5.0, "top_k": 50},
        {"max_gen_toks": 20, "temperature": 5.0},
    ]  # fmt: skip
    found = model.generate_until([Request(("the cat", each)) for each in options])
    assert found[0] == found[1] == whole.split(end)[0]
    assert found[2] == subject.tokenizer.decode(encode(subject, whole)[:1]) or whole.startswith(found[2])
    assert found[3] == whole and whole not in (found[4], found[5])
    with pytest.raises(Problem, match="leave no room"):
        model.generate_until([Request(("the cat", {}))])  # 256 tokens are more than this model takes


def test_names_are_asked_through_lm_eval(clean: pytest.MonkeyPatch, run: Path) -> None:
    def evaluated(**arguments: Any) -> dict[str, Any]:
        assert arguments["tasks"] == ["hellaswag"] and arguments["limit"] == 2 and arguments["num_fewshot"] is None
        (value,) = arguments["model"].loglikelihood([Request(("the", " cat"))])
        assert value[0] < 0
        return {
            "results": {"hellaswag": {
                "alias": "hellaswag", "acc,none": 0.5, "acc_stderr,none": 0.5, "acc_norm,none": 1.0,
                "acc_norm_stderr,none": "N/A", "sample_len": 2, "word_perplexity,none": 9.0,
            }},
            "higher_is_better": {"hellaswag": {"acc": True, "acc_norm": True, "word_perplexity": False}},
            "samples": {"hellaswag": [{"doc_id": 0, "acc": 1.0}, {"doc_id": 1, "acc": 0.0}]},
        }  # fmt: skip

    install(clean, evaluated)
    found = dskc("eval", run, "--tasks", "hellaswag", "--limit", 2, "--device", "cpu")
    assert found.exit_code == 0, found.output
    assert "0.5000 ± 0.5000" in found.output and "1.0000" in found.output
    from dskc.runtime.eval.results import load, path_of

    kept = load(path_of(run, "hellaswag"))
    assert set(kept.metrics) == {"acc", "acc_norm", "word_perplexity"}
    assert not kept.metrics["word_perplexity"].higher_is_better
    assert [item["right"] for item in kept.items] == [True, False]
    assert kept.prefill_ms


def refused(**_: Any) -> None:
    raise ValueError("Attempted to run task: mbpp which is marked as unsafe.")


def test_names_that_cannot_be_asked(clean: pytest.MonkeyPatch, subject: Subject) -> None:
    install(clean, refused)
    with pytest.raises(Problem, match=r"no task of lm-eval called helaswag\nhelp: did you mean hellaswag\?"):
        importlib.import_module("dskc.runtime.eval.harness_tasks").open_names(["helaswag"], Settings())
    with pytest.raises(Problem, match="--extract is for files"):
        open_names(["hellaswag"], Settings(extract="x"))
    (task,) = open_names(["mbpp"], Settings())
    with pytest.raises(Problem, match="outside of our sandbox"):
        task.run(subject, Work())
    with pytest.raises(Problem, match="--allow-code-execution"):
        open_names(["humaneval"], Settings())


def test_humaneval_runs_in_our_sandbox(clean: pytest.MonkeyPatch, subject: Subject) -> None:
    install(clean, refused, PROGRAMS)
    (task,) = open_names(["humaneval"], Settings(allow_code=True))
    clean.setattr(code_tasks, "generate_all", lambda *_: ["    return a + b\n", "    import os; os._exit(0)\n"])
    metrics, items = task.run(subject, Work())
    assert metrics["pass@1"].value == 0.5 and "left the interpreter" in items[1]["reason"]


def their_tokenizer(run: Path) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)


@pytest.mark.slow
def test_every_answer_is_that_of_lm_evals_own_model(
    clean: pytest.MonkeyPatch, subject: Subject, theirs: LlamaForCausalLM, run: Path
) -> None:
    """The same requests to both, in float32: log-likelihoods within 1e-4, and greedy texts equal."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install --no-deps lm-eval==0.4.13")
    huggingface = importlib.import_module("lm_eval.models.huggingface")
    instance = importlib.import_module("lm_eval.api.instance")
    ours = model_class()(subject, batch_tokens=300)
    tokenizer = their_tokenizer(run)
    # In 0.4.13 its cache takes the wrong place of continuations that differ in length and share all before the last
    # token, such as `<|endoftext|>the` + ` cat` and nothing + `<|endoftext|>the cat`.
    hf = huggingface.HFLM(pretrained=theirs, tokenizer=tokenizer, batch_size=3, max_length=LENGTH, logits_cache=False)

    def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        return [instance.Instance(kind, {}, each, i) for i, each in enumerate(arguments)]

    draw = random.Random(0)
    asked = requests("loglikelihood", pairs(draw, 60))
    for request, a, b in zip(asked, ours.loglikelihood(asked), hf.loglikelihood(asked), strict=True):
        assert a[0] == pytest.approx(b[0], abs=1e-4) and a[1] == b[1], request.args
    asked = requests("loglikelihood_rolling", [(text * 3,) for text in texts(draw, 8)])
    assert ours.loglikelihood_rolling(asked) == pytest.approx(hf.loglikelihood_rolling(asked), abs=1e-3)
    options = [{"until": ["\n\n", " mat"], "max_gen_toks": 12}, {"until": "e", "max_gen_toks": 20, "do_sample": False}]
    asked = requests("generate_until", [(text, options[i % 2]) for i, text in enumerate(texts(draw, 14))])
    assert ours.generate_until(asked) == hf.generate_until(asked)
    registry = importlib.import_module("lm_eval.api.registry")
    assert registry.get_model("dskc") is type(ours)
