"""One that fails costs itself: who stands behind it, and the next case, are measured."""

from __future__ import annotations

import pytest

from dskc.runtime.bench.case import Source
from dskc.runtime.bench.isolate import Isolated, warm

pytestmark = pytest.mark.slow  # each process imports torch

SOURCE = Source("tests.bench.fake_cases")


def test_all_that_can_go_wrong() -> None:
    rough, unbuilt, smooth = SOURCE.cases()
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
    asked = [(SOURCE, case) for case in SOURCE.cases() if case.kernel != "rough"]
    assert sorted(case.kernel for case in warm(asked, processes=2)) == ["smooth", "unbuilt"]
