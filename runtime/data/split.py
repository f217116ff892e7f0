"""Which text is held out from training, to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .corpus import Document
from .table import Row

Documents = Sequence[Document | Row]

SHARE = 0.05  # of the text, held out
MOST = 0.20  # of the text; a choice of whole documents that takes more is not made


def split_held_out(documents: Documents) -> tuple[list[Document | Row], list[Document | Row]]:
    """(training, held out), both in the given order. Only a single document of one character leaves nothing to train
    on.

    A document is held out when the hash of its text (sha256 of it as UTF-8, in a file or in a row) falls in the first
    5%: which ones does not depend on the others, on names or on order, and copies of one text stay on one side. When
    that chooses none, the document nearest to 5% of all text is taken; when whole documents would take more than 20% of
    it (one document, or one large among few), the tail of the largest, from the beginning of a line.
    """
    assert documents, "nothing to split"
    total = sum(document.bytes for document in documents)
    held = {document.sha256 for document in documents if _fraction(document) < SHARE}
    if not held:
        held = {min(documents, key=lambda document: (abs(document.bytes - SHARE * total), document.sha256)).sha256}
    if sum(document.bytes for document in documents if document.sha256 in held) > MOST * total:
        return _cut_tail(documents)
    return (
        [document for document in documents if document.sha256 not in held],
        [document for document in documents if document.sha256 in held],
    )


def _fraction(document: Document | Row) -> float:
    return int(document.sha256[:16], 16) / 2**64


def _cut_tail(documents: Documents) -> tuple[list[Document | Row], list[Document | Row]]:
    largest = max(documents, key=lambda document: (document.bytes, document.sha256))
    cut = _line_start(largest, largest.stop - max(1, round(SHARE * largest.bytes)))
    training = [replace(each, stop=cut) if each is largest else each for each in documents]
    return [each for each in training if each.bytes], [replace(largest, start=cut)]


def _line_start(document: Document | Row, near: int) -> int:
    """The byte at or before `near` where a line begins, at most half the text back; without one, where a character
    does.
    """
    start, stop = document.start, document.stop
    back = min(max(start, near - (stop - start) // 2), max(start, near - 3))  # a character has at most 4 bytes
    text = document.read(back, near + 1)
    line = text[:-1].rfind(b"\n") + 1
    if line:
        return back + line
    at = len(text) - 1
    while text[at] & 0xC0 == 0x80:  # a later byte of a character (RFC 3629, section 3)
        at -= 1
    return back + at
