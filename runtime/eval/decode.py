"""Continuations of many prompts at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..problem import Problem
from ..serve.cache import Cache
from ..serve.generate import stop_ids
from ..serve.sampling import greedy
from ..spec_module import spec_lines
from .score import Work
from .subject import Subject

SPREAD = 16  # tokens that prompts of a batch may differ by; half of what they may become, where that is more

Sample = Callable[[Tensor], Tensor]  # logits [B, V] -> ids [B]


@dataclass(frozen=True)
class Prompt:
    """Ids to continue, by at most so many tokens, up to one of the texts `until`."""

    tokens: tuple[int, ...]
    max_tokens: int
    until: tuple[str, ...] = ()


@dataclass
class _Row:
    """A prompt that is being continued."""

    prompt: Prompt
    tokens: list[int] = field(default_factory=list)
    done: bool = False
    tail: int = 0  # tokens in which the end of any of `until` lies, if it has come


def generate_all(
    subject: Subject, prompts: Sequence[Prompt], work: Work | None = None, sample: Sample = greedy
) -> list[str]:
    """The text that follows each prompt, without special tokens, cut before the first of its `until`.

    Prompts of a batch begin together and are fed token by token where they are longer than the shortest, so that no
    filling is ever seen. What does not fit before `max_tokens` more is cut off on the left. Raises Problem when a
    prompt has no token or its `max_tokens` leave no room for one.
    """
    work = work or Work()
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].tokens))
    fitted = [_fitted(prompts[i], subject.length) for i in order]
    found: dict[int, str] = {}
    start = 0
    for batch in _batches(fitted, work.room(subject, logits=False)):
        rows = [_row(subject, prompt) for prompt in batch]
        with torch.inference_mode(), spec_lines(subject.serve):
            _continue(subject, rows, work, sample)
        for index, row in zip(order[start:], rows, strict=False):
            found[index] = _text(subject, row)
        start += len(batch)
        work.advance(len(batch))
    return [found[index] for index in range(len(prompts))]


def _fitted(prompt: Prompt, length: int) -> Prompt:
    room = length - prompt.max_tokens
    if not prompt.tokens:
        raise Problem("there is no token to start from", "a prompt needs some text")
    if room < 1:
        raise Problem(
            f"{prompt.max_tokens:,} tokens to generate leave no room for a prompt: the model takes {length:,}",
            "give --max-tokens, or a larger --length if the model can take it",
        )
    return Prompt(prompt.tokens[-room:], prompt.max_tokens, tuple(text for text in prompt.until if text))


def _batches(prompts: Sequence[Prompt], room: int) -> Iterator[list[Prompt]]:
    """The longest first; as many as find room with what they become, and are about as long as the first."""
    batch: list[Prompt] = []
    for prompt in prompts:
        longest = len(batch[0].tokens) if batch else 0
        whole = longest + max((each.max_tokens for each in batch), default=0)
        spread = max(SPREAD, prompt.max_tokens // 2)  # each is a step of the batch, and a batch of its own is more
        if batch and ((len(batch) + 1) * whole > room or len(prompt.tokens) < longest - spread):
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


def _row(subject: Subject, prompt: Prompt) -> _Row:
    longest = max((len(text.encode()) for text in prompt.until), default=0)
    return _Row(prompt, tail=longest + 4)  # a token has a byte at least, and a character 4 at most


def _continue(subject: Subject, rows: list[_Row], work: Work, sample: Sample) -> None:
    """Fills in the rows' tokens."""
    ends = stop_ids(subject.tokenizer)
    lengths = [len(row.prompt.tokens) for row in rows]
    place = min(lengths)
    capacity = max(length + row.prompt.max_tokens for length, row in zip(lengths, rows, strict=True))
    cache = Cache(len(rows), capacity, subject.device)
    new_BS = torch.tensor([row.prompt.tokens[:place] for row in rows], device=subject.device)
    with work.pace.prefill(subject, new_BS.numel()):
        logits_BV = subject.serve.forward(subject.model, new_BS, cache)
    while True:
        chosen = sample(logits_BV).tolist()
        for b, row in enumerate(rows):
            if place < lengths[b]:
                chosen[b] = row.prompt.tokens[place]  # the prompt goes on, whatever the model would say
            elif not row.done:
                _take(subject, row, chosen[b], ends)
        active = sum(not row.done for row in rows)
        if not active:
            return
        place += 1
        with work.pace.decode(subject, active):
            new_B1 = torch.tensor(chosen, device=subject.device)[:, None]
            logits_BV = subject.serve.forward(subject.model, new_B1, cache)


def _take(subject: Subject, row: _Row, token: int, ends: frozenset[int]) -> None:
    if token in ends:
        row.done = True
        return
    row.tokens.append(token)
    row.done = len(row.tokens) >= row.prompt.max_tokens or any(
        text in subject.tokenizer.decode(row.tokens[-row.tail :]) for text in row.prompt.until
    )


def _text(subject: Subject, row: _Row) -> str:
    text = subject.tokenizer.decode(row.tokens, skip_special_tokens=True)
    for end in row.prompt.until:
        text = text.split(end)[0]
    return text
