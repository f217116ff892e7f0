"""One that fails costs itself: who stands behind it, and the next case, are measured."""

from __future__ import annotations

import pytest

from dskc.runtime.bench.case import Source
from dskc.runtime.bench.isolate import Isolated, warm
from dskc.runtime.bench.report import Timed
from dskc.runtime.bench.worker import BUILDING, TURNS, Answer, Begun, Missing, Request, _answer

pytestmark = pytest.mark.slow  # each process imports torch

SOURCE = Source("tests.bench.fake_cases")


def test_all_that_can_go_wrong() -> None:
    rough, unbuilt, smooth, _ = SOURCE.cases()
    with Isolated(seconds=2) as isolated:
        row = isolated.measure(SOURCE, rough)
        assert [t.name for t in row.times] == ["dskc", "behind"]
        assert row.missing == {
            "raises": "ValueError: no such thing",
            "exits": "its process ended with exit code 3",
            "killed": "its process was ended by SIGKILL",
            "hangs": "nothing came of it within 2 s",
        }
        row = isolated.measure(SOURCE, unbuilt)
        assert not row.times and row.missing == {"all": "RuntimeError: no memory"}
        row = isolated.measure(SOURCE, smooth)
        assert not row.missing and row.ratio is not None
        for timed in row.times:
            assert timed.low <= timed.median <= timed.high
            assert timed.rate == pytest.approx(2e9 / 1e9 / timed.median, rel=0.05)  # TFLOP/s of 2 GFLOP


def test_what_is_compiled_before_is_told_case_by_case() -> None:
    asked = [(SOURCE, case) for case in SOURCE.cases() if case.kernel in ("smooth", "unbuilt")]
    assert sorted(case.kernel for case in warm(asked, processes=2)) == ["smooth", "unbuilt"]


def test_everyone_of_a_case_takes_turns() -> None:
    told: list[Answer] = []
    assert _answer(Request(SOURCE, "smooth", "s"), told.append)
    at = [answer.name for answer in told if isinstance(answer, Begun)]
    assert at == [BUILDING, *["dskc", "peer"] * (1 + TURNS + 1)]  # tried, timed, and its memory told
    assert [answer.name for answer in told if isinstance(answer, Timed)] == ["dskc", "peer"]


def test_who_fails_later_than_at_first_is_told_once() -> None:
    told: list[Answer] = []
    assert _answer(Request(SOURCE, "tiring", "s"), told.append)
    assert [answer for answer in told if isinstance(answer, Missing)] == [Missing("tires", "RuntimeError: tired")]
    assert [answer.name for answer in told if isinstance(answer, Timed)] == ["dskc"]
