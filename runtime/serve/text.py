"""Text from a stream of tokens, as early as it is certain."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what bytes that are no UTF-8 (yet) decode to
CONTEXT = 8  # tokens of a prompt that the first piece is decoded with
LONGEST_START = 3  # bytes that a character can have and still be incomplete


class TextStream:
    """Gives the text of tokens put in one at a time; never a part of a character whose other bytes are still to come.

    Each time only the tokens since the last two certain places are decoded, so that a long text costs no more per
    token; the stretch before the last place is decoded again because some decoders treat the start of a text
    differently.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(prompt[-CONTEXT:])  # from the last certain place but one
        self._certain = len(self._tokens)  # how many of them lie before the last certain place
        self._given = len(self._text())  # characters of their text that were given
        self._waited = 0  # tokens in a row whose text ended within a character

    def put(self, token: int) -> str:
        """The text that became certain with this token; often its own, sometimes none yet."""
        self._tokens.append(token)
        text = self._text()
        held = min(LONGEST_START, len(text) - len(text.rstrip(UNKNOWN)))
        self._waited = self._waited + 1 if held else 0
        if held and self._waited <= LONGEST_START:
            return ""  # some decoders (byte fallback) show the whole characters before as unknown, too
        new = text[self._given : len(text) - held]
        self._given += len(new)
        if new and not held:
            self._tokens = self._tokens[self._certain :]
            self._certain = len(self._tokens)
            self._given = len(self._text())
        return new

    def end(self) -> str:
        """What is left once no more tokens come, with bytes that are no UTF-8 as U+FFFD."""
        new = self._text()[self._given :]
        self._given += len(new)
        return new

    def _text(self) -> str:
        return self._tokenizer.decode(self._tokens, skip_special_tokens=True)
