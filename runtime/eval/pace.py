"""How fast a model was: tokens and seconds of prefill (whole texts at once) and of decode (token by token)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..problem import Problem
from ..serve.cache import Cache
from .subject import Subject

PROMPT, NEW = 256, 32  # tokens of the measurement


@dataclass
class Pace:
    """Sums over what was run so far."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    @property
    def prefill_ms(self) -> float | None:
        """Milliseconds a token; None where there was none."""
        return 1e3 * self.prefill_seconds / self.prefill_tokens if self.prefill_tokens else None

    @property
    def decode_ms(self) -> float | None:
        return 1e3 * self.decode_seconds / self.decode_tokens if self.decode_tokens else None

    @contextmanager
    def prefill(self, subject: Subject, tokens: int) -> Iterator[None]:
        """Count the work within as prefill of so many tokens."""
        start = time.perf_counter()
        yield
        subject.sync()
        self.prefill_seconds += time.perf_counter() - start
        self.prefill_tokens += tokens

    @contextmanager
    def decode(self, subject: Subject, tokens: int) -> Iterator[None]:
        start = time.perf_counter()
        yield
        subject.sync()
        self.decode_seconds += time.perf_counter() - start
        self.decode_tokens += tokens


@torch.inference_mode()
def measure(subject: Subject) -> Pace:
    """Of one sequence alone: PROMPT tokens of prefill, or as many as the model takes, and NEW of decode, after both
    have run once. A model that cannot decode has no decode.
    """
    size = max(1, min(PROMPT, subject.length - NEW))
    tokens_1S = torch.arange(size, device=subject.device)[None] % subject.tokenizer.get_vocab_size()
    pace = Pace()
    for count in (None, pace):
        into = count or Pace()
        cache = Cache(1, size + NEW, subject.device)
        try:
            with into.prefill(subject, size):
                subject.serve.forward(subject.model, tokens_1S, cache)
            with into.decode(subject, NEW):
                for _ in range(NEW):
                    subject.serve.forward(subject.model, tokens_1S[:, :1], cache)
        except Problem:
            return pace
    return pace
