"""What is left out of a corpus, and MinHash against the similarity that it estimates."""

from __future__ import annotations

import json
import random
import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_trainer import train, write_package, write_text

from dskc.runtime.data import DataSettings, find_documents
from dskc.runtime.data import corpus as corpus_module
from dskc.runtime.data.cleaning import Measure
from dskc.runtime.data.near_duplicates import (
    ORDERS,
    Sketch,
    near_duplicates,
    rows_of_band,
    shingles,
    sign,
    similarity,
    smallest,
)
from dskc.runtime.data.order import mix64
from dskc.runtime.problem import Problem
from dskc.runtime.train.folder import RunFolder

WORDS = [f"word{n}" for n in range(400)]


def prose(rng: random.Random, count: int) -> list[str]:
    return [rng.choice(WORDS) for _ in range(count)]


def exact(one: str, other: str) -> float:
    """Jaccard similarity of the sets of runs of five words, by Python's sets."""
    sets = []
    for text in (one, other):
        words = text.casefold().split()
        sets.append({tuple(words[n : n + 5]) for n in range(max(1, len(words) - 4))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def signature(text: str) -> np.ndarray:
    sketch = Sketch()
    sketch.add(text)
    return sketch.signature()


def hashes(count: int, seed: int) -> np.ndarray:
    """So many different ones of shingles."""
    return (mix64(np.arange(count, dtype=np.uint64) + np.uint64(seed << 20)) >> np.uint64(32)).astype(np.uint32)


# Rules


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\x1b\x7f\x80\x9f\u0660\n\t"), max_size=80))
def test_control_characters_are_those_of_unicode(text: str) -> None:
    measure = Measure()
    encoded = text.encode()
    for at in range(0, len(encoded), 3):  # which cuts characters
        measure.add(encoded[at : at + 3], "")
    expected = sum(unicodedata.category(c) == "Cc" and c not in "\t\n\f\r" for c in text)
    assert measure.controls == expected


RULES = [
    ("\x1b[0m" * 9, {}, "with control characters", "25% of 36 characters"),
    ("\x1b[0m" * 9, {"max_control": 0.2}, "with control characters", "25% of 36 characters"),
    ("\x1b[0m" * 9, {"max_control": 0.25}, None, ""),
    ("\x1b[0m", {"min_chars": 4, "max_control": 1.0}, None, ""),
    ("four", {"min_chars": 5}, "too short", "4 characters"),
    ("fünf漢", {"min_chars": 5, "max_chars": 5}, None, ""),
    ("sechs!", {"max_chars": 5}, "too long", "6 characters"),
    ("1", {"min_chars": 2}, "too short", "1 character"),
]


@pytest.mark.parametrize(("text", "choices", "reason", "detail"), RULES)
def test_rules_hold_for_files_and_rows_alike(
    tmp_path: Path, text: str, choices: dict[str, float], reason: str | None, detail: str
) -> None:
    (tmp_path / "files").mkdir()
    for name, content in (("a", text), ("b", "fives")):
        (tmp_path / "files" / name).write_text(content)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": "fives"}) + "\n")
    for path, name, other in ((tmp_path / "files", "a", "b"), (tmp_path / "a.jsonl", "a.jsonl:1", "a.jsonl:2")):
        corpus = find_documents([path], settings=DataSettings(**choices))  # type: ignore[arg-type]
        kept = [document.name for document in corpus.documents]
        assert kept == ([name, other] if reason is None else [other])
        assert corpus.examples == ({} if reason is None else {reason: [f"{name}: {detail}"]})


def test_of_the_same_text_the_first_is_kept(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.txt").write_text("one")
    (tmp_path / "rows.jsonl").write_text('{"text": "two"}\n{"text": "one"}\n{"text": "two"}\n')
    # two files of one name, too
    corpus = find_documents([tmp_path / "a" / "same.txt", tmp_path / "b" / "same.txt", tmp_path])
    assert [document.name for document in corpus.documents] == ["same.txt", "rows.jsonl:1"]
    assert corpus.examples == {
        "duplicate": ["same.txt: of same.txt", "rows.jsonl:2: of same.txt", "rows.jsonl:3: of rows.jsonl:1"]
    }
    every = find_documents([tmp_path], settings=DataSettings(keep_duplicates=True))
    assert len(every.documents) == 5 and not every.skipped


def test_when_nothing_is_left_the_error_counts(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("short")
    with pytest.raises(Problem, match=r"no text found \(skipped 1 too short\)"):
        find_documents([tmp_path / "a"], settings=DataSettings(min_chars=10))


# MinHash


@settings(max_examples=60, deadline=None)
@given(shared=st.integers(0, 300), one=st.integers(1, 300), other=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_the_estimate_is_near_the_similarity_of_random_sets(shared: int, one: int, other: int, seed: int) -> None:
    numbers = hashes(shared + one + other, seed)
    first, second = numbers[: shared + one], np.concatenate([numbers[:shared], numbers[shared + one :]])
    truth = shared / (shared + one + other)
    found = float((smallest(first) == smallest(second)).mean())
    deviation = np.sqrt(truth * (1 - truth) / ORDERS)
    assert abs(found - truth) <= 5 * deviation + 1e-12


@pytest.mark.parametrize("truth", [0.1, 0.5, 0.8, 0.95])
def test_the_estimate_is_unbiased(truth: float) -> None:
    size, pairs = 400, 1000
    shared = round(size * truth)
    errors = []
    for seed in range(pairs):
        numbers = hashes(size, seed)
        rest = (size - shared) // 2
        one, other = (
            smallest(numbers[: shared + rest]),
            smallest(np.concatenate([numbers[:shared], numbers[shared + rest :]])),
        )
        errors.append(float((one == other).mean()) - shared / size)
    deviation = np.sqrt(truth * (1 - truth) / ORDERS)
    assert abs(np.mean(errors)) < 4 * deviation / np.sqrt(pairs)
    assert np.std(errors) == pytest.approx(deviation, rel=0.1)  # and as sure as independent orders would make it


def test_the_estimate_of_texts_against_pythons_sets() -> None:
    rng = random.Random(0)
    errors = []
    for _ in range(150):
        words = prose(rng, 300)
        changed = list(words)
        for at in rng.sample(range(300), rng.randrange(0, 40)):
            changed[at] = rng.choice(WORDS)
        one, other = " ".join(words), " ".join(changed)
        errors.append(similarity(signature(one), signature(other)) - exact(one, other))
    assert abs(np.mean(errors)) < 4 * 0.044 / np.sqrt(len(errors)) and max(map(abs, errors)) < 5 * 0.044


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 40), cuts=st.lists(st.integers(0, 40), max_size=6), seed=st.integers(0, 99))
def test_a_signature_does_not_depend_on_pieces_case_or_space(count: int, cuts: list[int], seed: int) -> None:
    words = prose(random.Random(seed), count)
    sketch = Sketch()
    edges = [0, *sorted(cuts), count]
    for start, stop in pairwise(edges):
        sketch.add("\n ".join(words[start:stop]).upper())
    whole = signature(" ".join(words))
    assert (sketch.signature() == whole).all()
    assert similarity(signature(" ".join([*words[:-1], "other"])), whole) < 1


def test_shingles_are_all_runs_of_five_words() -> None:
    words = mix64(np.arange(30, dtype=np.uint64) % np.uint64(10))
    found = shingles(words)
    assert len(found) == 26 and len(set(found.tolist())) == 10
    assert (found[:10] == found[10:20]).all()
    assert shingles(words[[1, 0, 2, 3, 4]])[0] != found[0]  # their order counts


def test_bands_leave_similar_pairs_their_chance() -> None:
    for threshold, rows in ((0.8, 6), (0.5, 3), (0.3, 2)):
        assert rows_of_band(threshold) == rows
        missed = [(1 - threshold**n) ** (ORDERS // n) for n in (rows, rows + 1)]
        assert missed[0] <= 0.01 < missed[1]
    assert rows_of_band(0.01) == 1 and rows_of_band(1.0) == ORDERS


def test_near_duplicates_against_comparing_all_pairs() -> None:
    rng = random.Random(1)
    texts: list[str] = []
    for _ in range(80):  # each with others that go ever further from it
        words = prose(rng, 200)
        texts.append(" ".join(words))
        for _ in range(rng.randrange(8)):
            words = list(words)
            for at in rng.sample(range(200), rng.choice([1, 2, 3, 4])):
                words[at] = rng.choice(WORDS)
            texts.append(" ".join(words))
    rng.shuffle(texts)
    signatures = sign([[text] for text in texts], len(texts), lambda _: None)
    kept: list[int] = []
    expected = {}
    for n in range(len(texts)):
        close = [k for k in kept if similarity(signatures[k], signatures[n]) >= 0.8]
        if close:
            expected[n] = close[0], similarity(signatures[close[0]], signatures[n])
        else:
            kept.append(n)
    assert 80 < len(kept) < len(texts) - 80
    assert near_duplicates(signatures, 0.8) == expected
    for n, (first, _) in expected.items():
        assert exact(texts[n], texts[first]) > 0.65


def test_near_duplicates_are_left_out_of_a_corpus_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = prose(random.Random(2), 500)
    for name, text in {
        "a": words,
        "b": [*words[:499], "x"],
        "c": words[250:],
        "d": [*words[:400], "y", *words[401:]],
    }.items():
        (tmp_path / name).write_text("\n".join(text))
    corpus = find_documents([tmp_path], settings=DataSettings(near_duplicates=0.8))
    assert [document.name for document in corpus.documents] == ["a", "c"]
    (first, second) = corpus.examples["near-duplicate"]
    assert first.startswith("b: ") and second.startswith("d: ") and second.endswith(" of a")
    assert float(first[3:7]) == pytest.approx(495 / 497, abs=0.02)
    monkeypatch.setattr(corpus_module, "PIECE", 64)
    again = find_documents([tmp_path], settings=DataSettings(near_duplicates=0.8))
    assert again.examples == corpus.examples
    assert len(find_documents([tmp_path]).documents) == 4


# Whole runs


def test_a_run_reports_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = write_package(tmp_path / "generated")
    text = write_text(tmp_path / "text")
    (text / "copy.txt").write_text((text / "000.txt").read_text())
    (text / "close.txt").write_text((text / "001.txt").read_text() + " more")
    (text / "short.txt").write_text("short")
    out = tmp_path / "run"
    flags = ["--near-duplicates", "0.8", "--min-chars", "10"]
    train(package, "--data", text, *flags, "--steps", 1, "--out", out)
    said = capsys.readouterr().out
    assert "20 documents, 0.0 MB; skipped 1 duplicate, 1 near-duplicate, 1 too short" in said
    report = json.loads((out / "data" / "cleaning.json").read_text())["text"]
    assert report["documents"] == 20
    assert report["skipped"] == {"duplicate": 1, "near-duplicate": 1, "too short": 1}
    assert report["examples"]["duplicate"] == ["copy.txt: of 000.txt"]
    assert RunFolder(out).read().data == DataSettings(near_duplicates=0.8, min_chars=10)
    train(package, "--data", text, *flags, "--steps", 2, "--out", out, "--resume")
    for changed in (["--near-duplicates", "0.7"], ["--keep-duplicates"], ["--min-chars", "9"]):
        with pytest.raises(Problem, match=f"{changed[0]}: .* when this run was begun, which cannot change"):
            train(package, "--steps", 2, "--out", out, "--resume", *changed)


@pytest.mark.parametrize("flag", [("--near-duplicates", "0"), ("--near-duplicates", "1.1"), ("--max-chars", "0")])
def test_flags_out_of_range_are_refused(tmp_path: Path, flag: tuple[str, str]) -> None:
    package = write_package(tmp_path / "generated")
    with pytest.raises(SystemExit):
        train(package, "--data", __file__, *flag)
