"""From files of text to batches of token ids."""

from .batch import IGNORED, Batch
from .corpus import Corpus, Document, find_documents
from .entropy import unigram_entropy
from .loader import Loader, windows
from .split import split_held_out
from .tokenizer import END_OF_TEXT, end_of_text, load_tokenizer, train_tokenizer
from .tokens import TokenData, open_tokens, prepare_tokens, text_digest

__all__ = [
    "END_OF_TEXT",
    "IGNORED",
    "Batch",
    "Corpus",
    "Document",
    "Loader",
    "TokenData",
    "end_of_text",
    "find_documents",
    "load_tokenizer",
    "open_tokens",
    "prepare_tokens",
    "split_held_out",
    "text_digest",
    "train_tokenizer",
    "unigram_entropy",
    "windows",
]
