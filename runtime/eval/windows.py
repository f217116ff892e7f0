"""A long text in windows that a model takes, each token predicted once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .encode import Request


def windows(tokens: Sequence[int], prefix: int, length: int, overlap: int = 1) -> Iterator[Request]:
    """Requests of at most `length` tokens of input that score each of the tokens once, in order.

    Each window but the first repeats at least `overlap` (1 to length) tokens for a context; the last is as long as the
    others, so that what is left over is predicted from all that fits. As `get_rolling_token_windows` of lm-eval 0.4
    has them, with `context_len` for the overlap.
    """
    assert 1 <= overlap <= length, f"an overlap of {overlap} in windows of {length}"
    text = [prefix, *tokens]  # token i of the text is at i + 1
    done, first = 0, True
    while done < len(tokens):
        stop = min(len(tokens), done + (length if first else length - overlap + 1))
        start = max(0, stop - length)
        yield Request(tuple(text[start : done + 1]), tuple(text[done + 1 : stop + 1]))
        done, first = stop, False
