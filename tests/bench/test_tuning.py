"""Choosing by measurement, with ways that are plain functions: what is timed, kept and recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dskc.runtime.kernels import tuning as tuner
from dskc.runtime.kernels.tuning import Timing, Way, compiling, forget, record, run_best, tuning

WAYS = [Way("slow"), Way("quick"), Way("unable")]


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    forget()
    monkeypatch.setattr(tuner, "_milliseconds", lambda run: {"slow": 2.0, "quick": 1.0}[run()])
    yield
    forget()


def named(way: Way) -> str:
    if way.name == "unable":
        raise tuner.Unfit("it cannot")
    return way.name


def test_the_fastest_is_chosen() -> None:
    heard: list[Timing] = []
    assert run_best("op", (1,), WAYS, named) == "slow"  # the likeliest, as long as nothing was timed
    with tuning(heard.append):
        assert run_best("op", (1,), WAYS, named) == "quick"
        run_best("op", (1,), WAYS, named)  # timed once
    assert [(t.way, t.median) for t in heard] == [("slow", 2.0), ("quick", 1.0), ("unable", None)]
    assert heard[-1].reason == "Unfit: it cannot"
    assert run_best("op", (1,), WAYS, named) == "quick" and run_best("op", (2,), WAYS, named) == "slow"


def test_ways_that_are_close_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first timing is of a cold GPU; what is far behind is not timed again."""
    warm = {"first": 1.1, "second": 1.06, "third": 0.5}
    turns: list[str] = []

    def timed(run: object, *limits: object) -> list[float]:
        assert callable(run)
        turns.append(run())
        return [warm[turns[-1]]] * 3

    monkeypatch.setattr(tuner.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tuner, "gpu_times", timed)
    ran = {"first": 1.0, "second": 1.05, "third": 1.2}
    assert tuner._best_of(ran, {way: lambda way=way: way for way in ran}) == "second"
    assert turns == ["first", "second"] * tuner.AGAIN
    assert tuner._best_of({"first": 1.0, "third": 2.0}, {}) == "first"


def test_compiling_runs_all_and_chooses_nothing() -> None:
    ran: list[str] = []

    def run(way: Way) -> str:
        ran.append(way.name)
        return named(way)

    heard: list[Timing] = []
    with compiling(heard.append):
        run_best("op", (1,), WAYS, run)
    assert {"slow", "quick"} <= set(ran) and all(t.median is None for t in heard)
    assert run_best("op", (1,), WAYS, named) == "slow"
    with tuning(heard.append):  # and timing is on again
        run_best("op", (3,), WAYS, named)
    assert heard[-2].median == 1.0


def test_a_file_of_choices_is_added_to(tmp_path: Path) -> None:
    file = tmp_path / "kernels" / "GPU.json"
    record(file, {"a": {"x": "one"}})
    record(file, {"a": {"y": "two"}, "b": {"x": "three"}})
    record(file, {"a": {"x": "four"}})
    assert json.loads(file.read_text()) == {"a": {"x": "four", "y": "two"}, "b": {"x": "three"}}
    assert tuner._read(file)["a"]["x"] == "four"
