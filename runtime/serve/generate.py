"""Generation of text: tokens one after another, and the command that prints them as they come."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from types import ModuleType

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ..kernels.choice import CHOICES, choose_kernels
from ..problem import Problem
from ..spec_module import spec_lines
from .cache import Cache
from .sampling import Sampler
from .text import TextStream

# What models call the token that ends a text or a turn; generation stops at those a tokenizer declares special.
END_TOKENS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|im_end|>",
    "</s>",
    "<eos>",
    "<end_of_turn>",
    "<|return|>",
    "<｜end▁of▁sentence｜>",
)

Forward = Callable[[nn.Module, Tensor, Cache], Tensor]


def generate(
    model: nn.Module,
    forward: Forward,
    tokens: Sequence[int],
    max_tokens: int,
    sampler: Callable[[Tensor], Tensor],
    stop_ids: Collection[int] = (),
) -> Iterator[int]:
    """The ids that follow `tokens`, one by one: at most `max_tokens`, and none from the first of `stop_ids` on.

    `forward(model, tokens_BS, cache)` is that of a generated `serve.py`: logits [B, V] of the last position. `sampler`
    maps them to ids [B]. The model stays in the mode it is in: call `model.eval()` before. Problem for an empty prompt.
    """
    if not tokens:
        raise Problem("there is no token to start from", help="give a prompt of at least one token")
    device = next(model.parameters()).device
    cache = Cache(1, len(tokens) + max_tokens, device)
    new_BS = torch.tensor([list(tokens)], device=device)
    for _ in range(max_tokens):
        with torch.inference_mode():
            next_B = sampler(forward(model, new_BS, cache))
        token = int(next_B)
        if token in stop_ids:
            return
        yield token
        new_BS = next_B.unsqueeze(-1)


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids of the special tokens of this tokenizer that end a text."""
    special = tokenizer.get_added_tokens_decoder()
    return frozenset(id for id, token in special.items() if token.special and token.content in END_TOKENS)


def stream(
    model: nn.Module, serve: ModuleType, tokenizer: Tokenizer, prompt: str, max_tokens: int, sampler: Sampler
) -> Iterator[str]:
    """The text that follows `prompt`, in pieces that end between characters. Problem where the prompt has no tokens."""
    ends = stop_ids(tokenizer)
    tokens = tokenizer.encode(prompt).ids
    if not tokens:
        # The training data are texts that each end with this token: after it, a new one begins.
        start = tokenizer.token_to_id("<|endoftext|>")
        if start is None:
            raise Problem("the prompt is empty, and this model has no token that starts a text", help="give --prompt")
        tokens = [start]
    vocabulary = tokenizer.get_vocab_size()
    text = TextStream(tokenizer, tokens)
    with spec_lines(serve):
        for token in generate(model, serve.forward, tokens, max_tokens, sampler, ends):
            if token < vocabulary:  # a model's vocabulary may be padded beyond its tokenizer's
                yield text.put(token)
    yield text.end()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dskc generate", description="Continue a text with a trained model.")
    parser.add_argument("run", metavar="RUN", help="the folder of a run, as given to --out")
    parser.add_argument(
        "--checkpoint",
        default="last",
        metavar="last|best|N",
        help="which one: the last, that with the least held-out loss, or that of step N (last)",
    )
    parser.add_argument("--prompt", default="", help="the text to continue; empty starts a new one")
    parser.add_argument("--max-tokens", type=int, default=200, metavar="N", help="stop after N tokens (200)")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0 is greedy (0.8)")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest tokens up to probability P")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (0)")
    parser.add_argument(
        "--kernels", default="auto", choices=CHOICES, help="Triton kernels or plain PyTorch (auto: kernels on a GPU)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (auto)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """`dskc generate RUN --prompt TEXT`: prints the prompt and what follows it, as it comes."""
    options = parse(arguments)
    if options.max_tokens < 1:
        raise Problem(f"--max-tokens of {options.max_tokens} generates nothing", help="give 1 or more")
    sampler = Sampler(options.temperature, options.top_k, options.top_p, options.seed)
    choose_kernels(options.kernels)
    from ..train import load_model  # the trainer's package, which only a run folder needs

    model, serve, tokenizer = load_model(options.run, options.checkpoint, options.device)
    if tokenizer is None:
        raise Problem(f"{options.run} has no tokenizer.json", help="copy the model's tokenizer.json into the folder")
    sys.stdout.write(options.prompt)
    sys.stdout.flush()
    for piece in stream(model, serve, tokenizer, options.prompt, options.max_tokens, sampler):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
