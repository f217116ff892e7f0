"""A compiler that people like to make mistakes in: 10,000 mutations of the shipped specs, answered and measured."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from .answer import Answer, answer
from .mutations import KINDS, SINGLE, SPECS, mutation

FEW = 500
MANY = 10_000
CHUNK = 1000
RIGHT = 0.98  # of misspelt words that something is reported of: the line, and the word as it was
MEAN = 1.05  # problems of a wrong token, at most
MOST = 3
MOST_OF_ANY = 12  # problems of bytes in any place, nesting and sheer size


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The shipped specs, which import each other, as neighbours of the mutated one."""
    for path in SPECS.glob("*.dsk"):
        shutil.copy(path, tmp_path)
    return tmp_path


def answers(seeds: range, folder: Path) -> list[Answer]:
    return [answer(mutation(seed), folder) for seed in seeds]


def check(found: list[Answer]) -> None:
    spelt = [one for one in found if one.mutation.kind == "misspell" and one.found]
    off = [one for one in spelt if not one.on_the_line]
    unhelpful = [one for one in spelt if not one.suggests]
    assert len(off) <= (1 - RIGHT) * len(spelt), f"{len(off)} of {len(spelt)} on another line, such as\n{off[0]}"
    assert len(unhelpful) <= (1 - RIGHT) * len(spelt), f"{len(unhelpful)} of {len(spelt)}, such as\n{unhelpful[0]}"

    single = [one for one in found if one.mutation.kind in SINGLE and one.found]
    mean = sum(len(one.found) for one in single) / len(single)
    worst = max(single, key=lambda one: len(one.found))
    assert mean <= MEAN, f"{mean:.3f} problems for one mistake; most are of\n{worst}"
    assert len(worst.found) <= MOST, f"{len(worst.found)} problems for one mistake:\n{worst}"
    most = max(found, key=lambda one: len(one.found))
    assert len(most.found) <= MOST_OF_ANY, f"{len(most.found)} problems:\n{most}"


def test_mutations_are_answered(folder: Path) -> None:
    check(answers(range(FEW), folder))


@pytest.mark.exhaustive
@pytest.mark.parametrize("start", range(FEW, MANY, CHUNK))
def test_many_mutations_are_answered(start: int, folder: Path) -> None:
    check(answers(range(start, min(start + CHUNK, MANY)), folder))


def test_a_seed_gives_one_mutation_and_every_kind_comes() -> None:
    made = [mutation(seed) for seed in range(FEW)]
    assert made == [mutation(seed) for seed in range(FEW)]
    kinds = Counter(one.kind for one in made)
    assert set(kinds) == set(KINDS)
    assert all(one.data != (SPECS / one.spec).read_bytes() for one in made if one.kind in SINGLE)


def test_a_failure_shows_the_spec_and_how_to_make_it_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> None:
        raise KeyError(path.name)

    monkeypatch.setattr("tests.fuzz.answer.read_all", fails)
    one = mutation(3)
    with pytest.raises(AssertionError) as raised:
        answer(one, folder)
    assert "KeyError" in str(raised.value) and "python -m tests.fuzz 3" in str(raised.value)
    assert one.data.decode() in str(raised.value)


def test_what_takes_too_long_is_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(path: Path) -> None:
        while True:
            pass

    monkeypatch.setattr("tests.fuzz.answer.read_all", hangs)
    monkeypatch.setattr("tests.fuzz.answer.LIMIT", 0.05)
    with pytest.raises(AssertionError, match="TimeoutError"):
        answer(mutation(3), folder)
