"""Log-likelihoods of many continuations, in batches of texts of like length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..problem import Problem
from .encode import Request
from .pace import Pace
from .subject import Subject

GPU_LOGITS = 2**30  # that a batch has at most: 2 GiB of them in bf16
CPU_LOGITS = 2**24  # some hundred tokens: more of them only make memory that caches do not hold
MOST = 16_384  # tokens of a batch, unless told
POSITIONS = 1024  # whose logits become float32 at a time
MULTIPLE = 16  # that lengths are filled up to on a GPU, where each new shape has its costs


@dataclass(frozen=True)
class Scored:
    """Of a continuation: its log-likelihood in nats, and whether greedy decoding would give it."""

    loglikelihood: float
    greedy: bool


@dataclass
class Work:
    """How questions are asked. batch_tokens: most of a batch, filled up; None to choose. advance: told of each request
    that is done. pace: sums up what it took.
    """

    batch_tokens: int | None = None
    advance: Callable[[int], None] = lambda _: None
    pace: Pace = field(default_factory=Pace)

    def room(self, subject: Subject, logits: bool) -> int:
        """Tokens of a batch; with `logits`, all of theirs must find room."""
        if self.batch_tokens is not None:
            return self.batch_tokens
        if not logits:
            return MOST
        most = GPU_LOGITS if subject.device.type == "cuda" else CPU_LOGITS
        return min(MOST, most // max(1, subject.tokenizer.get_vocab_size()))


@dataclass(frozen=True)
class _Row:
    """A text that goes through the model once, and the requests whose continuations end it."""

    tokens: tuple[int, ...]
    requests: tuple[int, ...]


def loglikelihoods(subject: Subject, requests: Sequence[Request], work: Work | None = None) -> list[Scored]:
    """One for each request, in their order. What does not fit is cut off on the left, as lm-eval does; requests with
    the same text but for the last token share a pass.

    Raises Problem when a continuation alone is longer than the model's length.
    """
    work = work or Work()
    rows = _rows(subject, requests)
    found: list[Scored | None] = [None] * len(requests)
    for batch in _batches(rows, work.room(subject, logits=True)):
        with torch.inference_mode(), work.pace.prefill(subject, sum(len(row.tokens) for row in batch)):
            for index, scored in _score(subject, batch, requests):
                found[index] = scored
        work.advance(sum(len(row.requests) for row in batch))
    return [scored for scored in found if scored is not None]


def _rows(subject: Subject, requests: Sequence[Request]) -> list[_Row]:
    """The longest first: when memory runs out, it does so at once, and what is left is never underestimated."""
    same: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        if len(request.continuation) > subject.length:
            raise Problem(
                f"a continuation is {len(request.continuation):,} tokens long, and the model takes {subject.length:,}",
                "give a larger --length if the model can take it, or leave the line out",
            )
        text = request.context + request.continuation
        same.setdefault(text[-(subject.length + 1) :][:-1], []).append(index)
    rows = [_Row(tokens, tuple(indices)) for tokens, indices in same.items()]
    return sorted(rows, key=lambda row: (-len(row.tokens), row.tokens))


def _batches(rows: Sequence[_Row], room: int) -> Iterator[list[_Row]]:
    """Consecutive rows of at most `room` tokens when all are as long as the first; one row at least."""
    start = 0
    while start < len(rows):
        count = max(1, room // len(rows[start].tokens))
        yield list(rows[start : start + count])
        start += count


def _score(subject: Subject, batch: list[_Row], requests: Sequence[Request]) -> Iterator[tuple[int, Scored]]:
    longest = len(batch[0].tokens)
    if subject.device.type == "cuda":
        longest = -(-longest // MULTIPLE) * MULTIPLE
    tokens_BS = torch.zeros(len(batch), longest, dtype=torch.int64)
    at: list[int] = []  # of each token to predict, the place in the batch that predicts it
    targets: list[int] = []
    counts: list[tuple[int, int]] = []  # of each request, its index and how many tokens it has
    for b, row in enumerate(batch):
        size = len(row.tokens)
        tokens_BS[b, :size] = torch.tensor(row.tokens)  # what stands behind a position does not change it
        for index in row.requests:
            continuation = requests[index].continuation
            at += range(b * longest + size - len(continuation), b * longest + size)
            targets += continuation
            counts.append((index, len(continuation)))
    logits_BSV = subject.logits(tokens_BS.to(subject.device))
    value_N, right_N = _of_targets(logits_BSV.flatten(0, 1), torch.tensor(at), torch.tensor(targets))
    values, rights = value_N.split([n for _, n in counts]), right_N.split([n for _, n in counts])
    for (index, _), value, right in zip(counts, values, rights, strict=True):
        yield index, Scored(float(value.sum()), bool(right.all()))


def _of_targets(logits_TV: Tensor, at_N: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihoods (float32) of targets [N] at places [N] of logits [T, V], and whether each is the likeliest; both
    on the CPU."""
    values, rights = [], []
    for at, target in zip(at_N.split(POSITIONS), target_N.split(POSITIONS), strict=True):
        logits_NV = logits_TV[at.to(logits_TV.device)].float()
        target = target.to(logits_TV.device)
        own_N = logits_NV.gather(-1, target[:, None])[:, 0]
        values.append((own_N - logits_NV.logsumexp(-1)).cpu())
        rights.append((logits_NV.argmax(-1) == target).cpu())
    return torch.cat(values), torch.cat(rights)
