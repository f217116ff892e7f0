"""The tokenizer that comes with a checkpoint: `tokenizer.json`, or the one inside a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ..problem import Problem
from .gguf_source import open_reader

CONTROL, USER_DEFINED = 3, 4  # of `tokenizer.ggml.token_type`: llama.cpp, include/llama.h, `llama_token_type`
ADDED = (CONTROL, USER_DEFINED)  # looked for in the text before it is cut

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class _Splitting:
    """How a byte-level BPE cuts text before merging (llama.cpp, src/llama-vocab.cpp, by `tokenizer.ggml.pre`)."""

    pattern: str | None = None  # None is GPT-2's own
    single_digits: bool = False
    nfc: bool = False
    whole_words_first: bool = False  # a piece that is a token is taken whole, whatever the merges say
    starts_with_bos: bool = False  # unless the file says otherwise


SPLITTINGS = {
    "gpt-2": _Splitting(),
    "smollm": _Splitting(single_digits=True),
    "llama-bpe": _Splitting(WORDS + r"\p{N}{1,3}" + REST, whole_words_first=True, starts_with_bos=True),
    "qwen2": _Splitting(WORDS + r"\p{N}" + REST, nfc=True),
}


def read_tokenizer(path: str | Path) -> Tokenizer | None:
    """The tokenizer of a checkpoint's folder or file, or that another file is; None where there is none.

    Problem when it cannot be read, or is of a kind that this does not know.
    """
    path = Path(path)
    if not path.exists():
        raise Problem(f"there is no tokenizer at {path}")
    if path.suffix == ".gguf":
        return tokenizer_of_gguf(path)
    folder = path if path.is_dir() else path.parent
    of_checkpoint = path.is_dir() or path.suffix == ".safetensors"
    file = folder / "tokenizer.json" if of_checkpoint else path
    if file.is_file():
        try:
            return Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more specific
            raise Problem(f"{file} is not a tokenizer: {error}") from error
    ggufs = sorted(folder.glob("*.gguf"))
    return tokenizer_of_gguf(ggufs[0]) if len(ggufs) == 1 else None


def tokenizer_of_gguf(path: Path) -> Tokenizer | None:
    """The byte-level BPE in a GGUF file; None where the file has no tokenizer."""
    reader = open_reader(path)

    def field(name: str, default: object = None) -> object:
        found = reader.get_field(f"tokenizer.ggml.{name}")
        return default if found is None else found.contents()

    model = field("model")
    if model is None:
        return None
    kind = str(field("pre", "gpt-2"))
    if model != "gpt2" or kind not in SPLITTINGS:
        raise Problem(
            f"{path} holds a tokenizer of the kind `{model}`, `{kind}`",
            help=f"those that can be read are {', '.join(SPLITTINGS)}; give the model's tokenizer.json instead",
        )
    splitting = SPLITTINGS[kind]
    tokens, merges, types = field("tokens"), field("merges"), field("token_type", [])
    if not (isinstance(tokens, list) and isinstance(merges, list) and isinstance(types, list)):
        raise Problem(f"{path} holds a tokenizer without tokens or merges")
    pairs = [(a, b) for a, _, b in (merge.partition(" ") for merge in merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=splitting.whole_words_first))
    if splitting.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(splitting)
    tokenizer.decoder = decoders.ByteLevel()
    added = [(token, kind == CONTROL) for token, kind in zip(tokens, types, strict=False) if kind in ADDED]
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token, special in added])
    bos = field("bos_token_id")
    if isinstance(bos, int) and field("add_bos_token", splitting.starts_with_bos):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", pair=f"{tokens[bos]} $A {tokens[bos]} $B", special_tokens=[(tokens[bos], bos)]
        )
    return tokenizer


def _pre_tokenizer(splitting: _Splitting) -> pre_tokenizers.PreTokenizer:
    steps: list[pre_tokenizers.PreTokenizer] = []
    if splitting.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if splitting.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(splitting.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting.pattern is None))
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
