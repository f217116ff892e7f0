"""Texts as ids, the way lm-eval cuts them, so that scores can be compared."""

from __future__ import annotations

from dataclasses import dataclass

from ..problem import Problem
from .subject import Subject


@dataclass(frozen=True)
class Request:
    """Ids to score after the ids before them, of which there is one at least."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


def encode(subject: Subject, text: str, special: bool | None = None) -> list[int]:
    """Ids of a text, with what the tokenizer puts before one unless `special` is False, or it begins with that."""
    if special is None:
        special = not text.startswith(subject.tokenizer.decode([subject.prefix], skip_special_tokens=False))
    return list(subject.tokenizer.encode(text, add_special_tokens=special).ids)


def pair(subject: Subject, context: str, continuation: str) -> Request:
    """A text and what is scored after it. Blanks at the end of the context belong to what follows, since tokens of
    words begin with them; both are cut into tokens as one text. Problem when nothing is left to score.

    As `TemplateLM._encode_pair` of lm-eval 0.4 does it.
    """
    if not context:
        ids = encode(subject, continuation, special=False)
        if ids[:1] == [subject.prefix]:
            return _request(ids[:1], ids[1:], continuation)
        return _request([subject.prefix], ids, continuation)
    kept = context.rstrip()
    continuation, context = context[len(kept) :] + continuation, kept
    if not context:
        return _request([subject.prefix], encode(subject, continuation, special=False), continuation)
    whole, before = encode(subject, context + continuation), encode(subject, context)
    return _request(before, whole[len(before) :], continuation)


def _request(context: list[int], continuation: list[int], text: str) -> Request:
    if not continuation:
        raise Problem(f"there is no token to score in {text!r}", "a choice or completion needs some text")
    return Request(tuple(context or continuation[:1]), tuple(continuation if context else continuation[1:]))
