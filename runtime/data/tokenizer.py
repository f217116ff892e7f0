"""Text to token ids: a byte-level BPE of our own, or one that the user brings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ..problem import Problem
from .corpus import Document
from .progress import progress
from .table import Row, read_texts

END_OF_TEXT = "<|endoftext|>"
# How the tokenizers that people bring name the token that ends a document, most telling first.
ENDS = (
    END_OF_TEXT,
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
    "<|eos|>",
    "<eos>",
    "</s>",
    "<|im_end|>",
)
ALPHABET = 256  # bytes


def train_tokenizer(documents: Sequence[Document | Row], vocabulary: int) -> Tokenizer:
    """A byte-level BPE (arXiv:1909.03341) with at most `vocabulary` ids; the end of a document is id 0.

    The same text in the same order gives the same tokenizer. Any text encodes, and decodes to itself. Raises Problem
    when `vocabulary` has no room for the 256 bytes and the end.
    """
    if vocabulary < ALPHABET + 1:
        raise Problem(
            f"a vocabulary of {vocabulary} is too small for byte-level BPE: it needs {ALPHABET + 1} ids at least",
            "make V larger in the spec, or bring a tokenizer with --tokenizer FILE",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    with progress("training a tokenizer", sum(document.bytes for document in documents), "B") as done:
        tokenizer.train_from_iterator(_pieces(documents, done), trainer=trainer)
    return tokenizer


def load_tokenizer(path: Path, vocabulary: int) -> Tokenizer:
    """The tokenizer in a `tokenizers` JSON file (Hugging Face's `tokenizer.json`).

    Raises Problem when the file is not one, when an id does not fit in `vocabulary`, or when no token ends a document.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for all its reasons
        reason = "there is no such file" if not path.exists() else f"not a tokenizers JSON file ({error})"
        raise Problem(f"--tokenizer {path}: {reason}", "it is the file called tokenizer.json") from error
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest < 0:
        raise Problem(f"--tokenizer {path}: it has no tokens")
    if largest >= vocabulary:
        raise Problem(
            f"--tokenizer {path}: its ids go up to {largest:,}, but the model's vocabulary is {vocabulary:,}",
            f"set V = {largest + 1:_} or more in the spec and compile again, or leave --tokenizer out to train one",
        )
    end_of_text(tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id that ends a document; raises Problem when the tokenizer has none of the usual ones."""
    for name in ENDS:
        found = tokenizer.token_to_id(name)
        if found is not None:
            return int(found)
    raise Problem("the tokenizer has no token that ends a document", "add one of these to it: " + ", ".join(ENDS))


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Ids of each text, nothing added to them; a special token that is spelled out in the text is only text."""
    tokenizer.encode_special_tokens = True
    return [encoded.ids for encoded in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _pieces(documents: Sequence[Document | Row], done: Callable[[int], None]) -> Iterator[str]:
    for document, pieces in read_texts(documents):
        yield from pieces
        done(document.bytes)
