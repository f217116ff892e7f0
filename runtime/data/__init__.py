"""From files of text and of records to batches."""

from .batch import IGNORED, Batch
from .bins import Bins
from .collate import Example, answer, collate
from .corpus import Corpus, Document, find_documents
from .entropy import unigram_entropy
from .fields import Fields, Input, Task
from .loader import Loader, windows
from .mixture import Mixture, whole_weights
from .records import Records, read_records
from .settings import DataSettings
from .source import RecordSource, Source, TextSource
from .split import split_held_out
from .tokenizer import END_OF_TEXT, end_of_text, load_tokenizer, train_tokenizer
from .tokens import TokenData, open_tokens, prepare_tokens, text_digest

__all__ = [
    "END_OF_TEXT",
    "IGNORED",
    "Batch",
    "Bins",
    "Corpus",
    "DataSettings",
    "Document",
    "Example",
    "Fields",
    "Input",
    "Loader",
    "Mixture",
    "RecordSource",
    "Records",
    "Source",
    "Task",
    "TextSource",
    "TokenData",
    "answer",
    "collate",
    "end_of_text",
    "find_documents",
    "load_tokenizer",
    "open_tokens",
    "prepare_tokens",
    "read_records",
    "split_held_out",
    "text_digest",
    "train_tokenizer",
    "unigram_entropy",
    "whole_weights",
    "windows",
]
