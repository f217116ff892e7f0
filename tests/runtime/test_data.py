"""Documents, their split, their tokens, and the batches made of them."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from dskc.runtime.data import (
    IGNORED,
    Document,
    Loader,
    find_documents,
    load_tokenizer,
    prepare_tokens,
    split_held_out,
    text_digest,
    train_tokenizer,
    unigram_entropy,
    windows,
)
from dskc.runtime.data import corpus as corpus_module
from dskc.runtime.data import tokens as tokens_module
from dskc.runtime.data.loader import pack
from dskc.runtime.data.order import mix64, shuffled
from dskc.runtime.data.progress import progress
from dskc.runtime.data.tokenizer import encode
from dskc.runtime.problem import Problem

TEXT = st.text(alphabet=st.sampled_from("ab \n\té漢🙂<|endoftext|>"), min_size=1, max_size=400)


def write(folder: Path, **files: str | bytes) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


# Finding


def test_folder_is_walked_in_order_and_what_is_no_text_is_counted(tmp_path: Path) -> None:
    for path, content in {
        "b.txt": b"b",
        "a/z.py": b"z",
        "a.txt": b"a",
        ".hidden": b"h",
        ".git/x": b"x",
        "__pycache__/y.pyc": b"y",
        "image.png": b"\x89PNG\0\0",
        "latin.txt": "é".encode("latin-1"),
        "cut.txt": "é".encode()[:1],
        "nothing.txt": b"",
        "blank.txt": b" \n",
        "out/run.txt": b"r",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    corpus = find_documents([tmp_path, tmp_path / "a.txt"], exclude=tmp_path / "out")
    assert [document.name for document in corpus.documents] == ["a.txt", "b.txt", "a/z.py"]
    assert corpus.skipped == {"binary": 1, "not UTF-8": 2, "empty": 2}
    assert corpus.summary() == "3 documents, 0.0 MB; skipped 1 binary, 2 empty, 2 not UTF-8"


@pytest.mark.parametrize(
    ("content", "reason"), [(b"\0\1\2", "binary"), (b"", "empty"), (b"\xff\xfe", "not UTF-8"), (None, "no such")]
)
def test_named_file_that_is_no_text_is_an_error(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "named"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Problem, match=reason):
        find_documents([path])


def test_no_text_at_all_is_an_error_that_counts(tmp_path: Path) -> None:
    write(tmp_path, a=b"\0", b=b"\0", c=b"")
    with pytest.raises(Problem, match=r"no text found \(skipped 2 binary, 1 empty\)"):
        find_documents([tmp_path])


@settings(max_examples=50, deadline=None)
@given(text=TEXT, piece=st.integers(4, 30))
def test_pieces_make_up_the_text(tmp_path_factory: pytest.TempPathFactory, text: str, piece: int) -> None:
    path = tmp_path_factory.mktemp("pieces") / "document"
    path.write_bytes((text + "x").encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "PIECE", piece)
        (document,) = find_documents([path]).documents
        pieces = list(document.pieces())
    assert "".join(pieces) == text + "x"
    assert all(pieces)
    assert len(pieces) == 1 or len(path.read_bytes()) > piece


def test_document_that_shrank_since_is_an_error(tmp_path: Path) -> None:
    (document,) = find_documents([write(tmp_path, a="text " * 10)]).documents
    document.path.write_text("te")
    with pytest.raises(Problem, match="changed while it was read"):
        list(document.pieces())


# Splitting


def documents(*sizes: int, start: int = 0) -> list[Document]:
    return [
        Document(Path(f"{n}"), f"{n}", hashlib.sha256(f"{n}".encode()).hexdigest(), 0, size)
        for n, size in enumerate(sizes, start)
    ]


@settings(deadline=None)
@given(sizes=st.lists(st.integers(50, 100), min_size=40, max_size=120))
def test_split_is_a_partition_of_whole_documents(sizes: list[int]) -> None:
    given = documents(*sizes)
    training, held = split_held_out(given)
    assert training and held
    assert sorted(d.name for d in training + held) == sorted(d.name for d in given)
    assert sum(d.bytes for d in held) <= 0.2 * sum(sizes)


def test_about_a_twentieth_is_held_out_and_more_documents_move_none() -> None:
    training, held = split_held_out(documents(*[10] * 2000))
    assert 0.035 < len(held) / 2000 < 0.065
    more_training, more_held = split_held_out(documents(*[10] * 3000))
    assert set(training) <= set(more_training) and set(held) <= set(more_held)


def test_copies_of_a_text_stay_on_one_side(tmp_path: Path) -> None:
    for n in range(60):
        (tmp_path / f"{n}").write_text(f"text {n % 30}")
    training, held = split_held_out(find_documents([tmp_path]).documents)
    assert held and not {d.sha256 for d in training} & {d.sha256 for d in held}


def test_of_one_document_the_tail_is_held_out_from_a_line_on(tmp_path: Path) -> None:
    text = "".join(f"line {n} é\n" for n in range(200))
    given = find_documents([write(tmp_path, only=text)]).documents
    (training,), (held,) = split_held_out(given)
    before, after = ("".join(each.pieces()) for each in (training, held))
    assert before + after == text
    assert after.startswith("line") and 0.04 < len(after) / len(text) < 0.06


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet="é漢🙂a", min_size=2, max_size=60))
def test_tail_of_a_document_without_lines_is_whole_characters(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("tail") / "document"
    path.write_text(text, encoding="utf-8")
    training, (held,) = split_held_out(find_documents([path]).documents)
    assert "".join(piece for each in [*training, held] for piece in each.pieces()) == text
    assert held.bytes > 0


# Tokenizing


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    folder = tmp_path_factory.mktemp("prose")
    for n in range(8):
        (folder / f"{n}").write_text("the quick brown fox jumps over the lazy dog and again the quick fox\n" * 20)
    return list(find_documents([folder]).documents)


@pytest.fixture(scope="module")
def tokenizer(prose: list[Document]) -> Tokenizer:
    return train_tokenizer(prose, 300)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=100))
def test_any_text_encodes_and_decodes_to_itself(tokenizer: Tokenizer, text: str) -> None:
    (ids,) = encode(tokenizer, [text])
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert 0 not in ids


def test_tokenizer_stays_within_the_vocabulary_and_knows_the_end(tokenizer: Tokenizer) -> None:
    assert 257 < tokenizer.get_vocab_size() <= 300
    assert tokenizer.token_to_id("<|endoftext|>") == 0


def test_training_a_tokenizer_is_deterministic(
    prose: list[Document], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert train_tokenizer(prose, 300).to_str() == tokenizer.to_str()


def test_vocabulary_without_room_for_the_bytes_is_refused(prose: list[Document]) -> None:
    with pytest.raises(Problem, match="a vocabulary of 256 is too small"):
        train_tokenizer(prose, 256)


def test_tokenizer_with_too_large_ids_is_refused_with_both_numbers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(str(tmp_path / "t.json"))
    largest = tokenizer.get_vocab_size() - 1
    load_tokenizer(tmp_path / "t.json", largest + 1)
    with pytest.raises(Problem, match=rf"its ids go up to {largest}, but the model's vocabulary is {largest}\n"):
        load_tokenizer(tmp_path / "t.json", largest)


@pytest.mark.parametrize("content", ["", "{}", "not json", None])
def test_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "t.json").write_text(content)
    with pytest.raises(Problem, match=r"--tokenizer .*t\.json: (not a tokenizers JSON|there is no such file)"):
        load_tokenizer(tmp_path / "t.json", 300)


def test_tokens_decode_to_the_documents_and_are_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for n in range(30):
        (folder / f"{n:02}").write_text(f"document {n} says <|endoftext|> and é {'more ' * n}")
    corpus = find_documents([folder])
    data, tokenizer_file = tmp_path / "data", tmp_path / "tokenizer.json"
    tokens = prepare_tokens(data, tokenizer_file, corpus, 320)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    for ids, part in zip((tokens.train, tokens.held), split_held_out(corpus.documents), strict=True):
        ends = np.flatnonzero(ids == 0)
        found = [tokenizer.decode(list(each[:-1])) for each in np.split(ids, ends + 1)[:-1]]
        assert found == [document.path.read_text() for document in part]
    assert tokens.train.dtype == np.uint16

    before = (data / "train.tokens").stat().st_mtime_ns
    prepare_tokens(data, tokenizer_file, corpus, 320)
    assert (data / "train.tokens").stat().st_mtime_ns == before
    (folder / "00").write_text("another text")
    changed = find_documents([folder])
    assert text_digest(changed.documents) != text_digest(corpus.documents)
    prepare_tokens(data, tokenizer_file, changed, 320)
    assert (data / "train.tokens").stat().st_mtime_ns != before

    with (data / "train.tokens").open("r+b") as file:
        file.truncate(10)
    with pytest.raises(Problem, match=r"train\.tokens: 10 bytes, but"):
        prepare_tokens(data, tokenizer_file, changed, 320)


def test_long_documents_are_encoded_in_pieces_to_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "PIECE", 64)
    (tmp_path / "long").write_text("one line of text\n" * 200)
    (tmp_path / "short").write_text("another\n")
    tokens = prepare_tokens(tmp_path / "data", tmp_path / "t.json", find_documents([tmp_path / "long"]), 300)
    assert (tokens.train == 0).sum() == 1 == (tokens.held == 0).sum()
    decoded = Tokenizer.from_file(str(tmp_path / "t.json")).decode(list(tokens.train[:-1]) + list(tokens.held[:-1]))
    assert decoded == "one line of text\n" * 200


def test_tokens_do_not_depend_on_how_much_is_encoded_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").mkdir()
    for n in range(40):
        (tmp_path / "text" / f"{n:02}").write_text(f"document {n} is as long as {'this ' * n}")
    corpus = find_documents([tmp_path / "text"])
    whole = prepare_tokens(tmp_path / "whole", tmp_path / "t.json", corpus, 320)
    for batch in (1, 100, 1000):
        monkeypatch.setattr(tokens_module, "BATCH", batch)
        parts = prepare_tokens(tmp_path / f"{batch}", tmp_path / "t.json", corpus, 320)
        assert (parts.train == whole.train).all() and (parts.held == whole.held).all()


def test_a_bar_is_drawn_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setenv("TERM", "xterm")
        with progress("tokenizing", 2_000_000, "B") as done:
            done(1_000_000)
            done(1_000_000)
        assert ("tokenizing" in capsys.readouterr().out) == terminal


# Batches


def naive_batch(tokens: list[int], index: list[int], length: int, end: int) -> list[list[tuple[int, int, int]]]:
    """(token, target, document) of each position, written the slow and plain way."""
    rows = []
    for n in index:
        row, document = [], 0
        for position in range(n * length, (n + 1) * length):
            token = tokens[position] if position < len(tokens) else end
            following = tokens[position + 1] if position + 1 < len(tokens) else end
            row.append((token, IGNORED if token == end else following, document))
            document += token == end
        rows.append(row)
    return rows


@settings(deadline=None)
@given(
    tokens=st.lists(st.integers(0, 4), min_size=2, max_size=80),
    length=st.integers(1, 9),
    seed=st.integers(0, 3),
    data=st.data(),
)
def test_packing_against_a_plain_loop(tokens: list[int], length: int, seed: int, data: st.DataObject) -> None:
    count = windows(len(tokens), length) + 1  # and one that is not full
    index = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=4))
    batch = pack(np.array(tokens, np.uint16), np.array(index), length, end=0)
    found = [
        list(zip(*row, strict=True))
        for row in zip(batch.tokens.tolist(), batch.targets.tolist(), batch.documents.tolist(), strict=True)
    ]
    assert found == naive_batch(tokens, index, length, end=0)
    assert (batch.tokens.dtype, batch.targets.dtype, batch.documents.dtype) == (torch.int64, torch.int64, torch.int32)


@settings(deadline=None)
@given(tokens=st.integers(10, 200), length=st.integers(1, 9), seed=st.integers(0, 5))
def test_an_epoch_predicts_every_token_once(tokens: int, length: int, seed: int) -> None:
    loader = Loader(np.arange(1, tokens + 1, dtype=np.uint16), length, end=0, seed=seed)
    batch = loader.batch(0, loader.count)
    assert sorted(batch.targets.flatten().tolist()) == list(range(2, loader.count * length + 2))


@settings(deadline=None)
@given(start=st.integers(0, 60), counts=st.lists(st.integers(1, 25), min_size=1, max_size=5))
def test_batches_do_not_depend_on_how_they_are_cut(start: int, counts: list[int]) -> None:
    loader = Loader(np.arange(100, dtype=np.uint16), 7, end=0, seed=1)
    whole = loader.batch(start, sum(counts))
    parts = [loader.batch(start + sum(counts[:n]), count) for n, count in enumerate(counts)]
    assert torch.equal(whole.tokens, torch.cat([part.tokens for part in parts]))


def test_order_is_a_permutation_that_seed_and_epoch_change() -> None:
    orders = [shuffled(1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(1000)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert abs(np.corrcoef(orders[0], np.arange(1000))[0, 1]) < 0.1


def test_splitmix64_gives_the_published_numbers() -> None:
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + n * gamma) % 2**64 for n in range(3)], np.uint64)
    # the first outputs of the reference implementation seeded with 1234567 (https://prng.di.unimi.it/splitmix64.c)
    assert mix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_too_little_text_is_an_error_with_numbers() -> None:
    loader = Loader(np.arange(64, dtype=np.uint16), 8, end=0)
    loader.require(7)
    with pytest.raises(Problem, match="64 tokens to train on make 7 sequences of 8, and one batch takes 8"):
        loader.require(8)


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_unigram_entropy_against_torch(counts: list[int]) -> None:
    ids = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    expected = torch.distributions.Categorical(torch.tensor(counts, dtype=torch.float64)).entropy()
    assert unigram_entropy(torch.cat([ids, torch.full((5,), IGNORED)])) == pytest.approx(float(expected), abs=1e-6)


def test_unreadable_files_are_counted(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads every file")
    write(tmp_path, a="text", b="secret")
    (tmp_path / "b").chmod(0)
    assert find_documents([tmp_path]).skipped == {"unreadable": 1}
