"""A small Llama of transformers with random weights, and the run that `dskc import` makes of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from click.testing import CliRunner, Result
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from dskc.compiler.cli import main

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "specs" / "smollm2_135m.dsk"
VOCABULARY, LENGTH = 320, 48
SETTINGS = (f"dims.V={VOCABULARY}", "dims.D=48", "dims.F=64", "dims.H=4", "dims.G=2", "layers=2")
TEXT = (
    "the cat sat on the mat and the dog sat on the cat, which was not what the mat had wanted — naïve, said the hat. "
)
END = "<|endoftext|>"


def byte_level() -> Tokenizer:
    """A tokenizer as runs train them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 4,  # models are often a little larger than their tokenizers
        special_tokens=[AddedToken(END, special=True, normalized=False)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return tokenizer


def llama(seed: int = 0) -> LlamaForCausalLM:
    """With weights so large that its odds are far from even."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True, initializer_range=0.2, max_position_embeddings=LENGTH,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def import_run(folder: Path, seed: int = 0) -> tuple[LlamaForCausalLM, Path]:
    """The model of transformers, and the folder of ours."""
    model, checkpoint, run = llama(seed), folder / f"llama{seed}", folder / f"run{seed}"
    model.save_pretrained(checkpoint)
    byte_level().save(str(checkpoint / "tokenizer.json"))
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    result = dskc("import", SPEC, checkpoint, "-o", run, *settings)
    assert result.exit_code == 0, result.output
    return model, run


def dskc(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@torch.inference_mode()
def their_loglikelihood(model: LlamaForCausalLM, context: Iterable[int], continuation: Iterable[int]) -> float:
    """Of one continuation, from the whole table of log-probabilities."""
    before, after = list(context), list(continuation)
    tokens = (before + after)[-(LENGTH + 1) :]
    odds = torch.log_softmax(model(torch.tensor([tokens[:-1]])).logits[0].double(), dim=-1)
    places = range(len(tokens) - 1 - len(after), len(tokens) - 1)
    return sum(float(odds[place, token]) for place, token in zip(places, after, strict=True))
