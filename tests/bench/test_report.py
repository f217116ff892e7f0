"""Reports: what is kept comes back, and what follows from it; the page that is made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dskc.runtime.bench.page import PAGE, page
from dskc.runtime.bench.report import Machine, Report, Row, Timed, joined, read_reports, write_reports
from dskc.runtime.bench.show import lines, table
from dskc.runtime.bench.targets import BETWEEN, TARGETS, Target
from dskc.runtime.problem import Problem

MACHINE = Machine("GPU 9", {"torch": "1", "triton": "2", "python": "3"}, "abc")


def row(ours: float = 1.0, kernel: str = "attention forward", shape: str = "causal B2", **more: object) -> Row:
    times = (
        Timed("dskc", ours, 0.9 * ours, 1.1 * ours, 500.0 / ours),
        Timed("dskc, in pages", 0.1, 0.1, 0.1, 1.0),
        Timed("slow", 3.0, 3.0, 3.0, 170.0),
        Timed("quick", 1.2, 1.1, 1.3, 417.0),
    )
    made = Row(kernel, shape, "TFLOP/s", "bf16", 500e9, 1e9, times, {"liger": "ImportError: no liger"})
    return replace(made, **more)  # type: ignore[arg-type]


def report(*rows: Row, began: str = "2026-01-01T00:00:00+00:00") -> Report:
    return Report(began, MACHINE, {"copy": 2000.0, "bf16": 625.0}, rows)


def test_a_row() -> None:
    one, most = row(), report().ceilings
    assert one.best_peer is not None and one.best_peer.name == "quick"  # ours under another name is no peer
    assert one.ratio == pytest.approx(1.2)
    assert one.ours is not None and one.share(one.ours, most) == pytest.approx(0.8)
    assert one.floor(most) == pytest.approx(0.8)  # 500 GFLOP at 625 TFLOP/s; the bytes take 0.5 ms
    assert row(bytes=4e9).floor(most) == pytest.approx(2.0)
    assert row(times=()).ratio is None


def test_runs_side_by_side(tmp_path: Path) -> None:
    file = tmp_path / "out" / "kernels.json"
    first, second = report(row()), report(row(0.9), began="2026-01-02T00:00:00+00:00")
    write_reports(file, [first])
    write_reports(file, [*read_reports(file), second])
    assert read_reports(file) == [first, second]
    file.write_text("{}")
    with pytest.raises(Problem, match="holds no runs"):
        read_reports(file)


def test_rows_of_one_case_take_its_place() -> None:
    other = row(shape="causal B4")
    assert joined([row(0.5)], [row(), other]) == (row(0.5), other)


def test_what_is_shown() -> None:
    text = "\n".join(lines(row(), report()))
    for part in ("1.20 x the best peer", "(0.9000 to 1.1000)", "500.0 TFLOP/s   80% of bf16", "liger: ImportError"):
        assert part in text
    assert table(report(row(), row(times=()))).row_count == 2


TARGET = Target("causal", "attention forward", ("causal B2",), "ratio", 1.1)


def kept(folder: Path, *reports: Report) -> Path:
    write_reports(folder / "kernels_gpu9.json", reports)
    return folder


def test_the_page_of_two_runs(tmp_path: Path) -> None:
    runs = report(row()), report(row(0.5), row(shape="causal B4"), began="2026-01-02T00:00:00+00:00")
    text = page(kept(tmp_path, *runs), [TARGET], {})
    assert "| causal | 1.00 ms, 500 TFLOP/s / 0.5000 ms, 1,000 TFLOP/s | quick: 1.20 ms, 417 TFLOP/s |" in text
    assert "1.20 ×, 80% of bf16 / 2.40 ×, 160% of bf16 | ≥ 1.10 × | 0.8000 ms (0.5 TFLOP, 1 GB) | met |" in text
    assert "| attention forward | causal B4 |" in text.split("## Other cases")[1]
    assert text.count("abc") == 2


def test_what_stands_between_is_said_of_missed_targets_alone(tmp_path: Path) -> None:
    missed = kept(tmp_path, report(row()), report(row(1.15), began="later"))  # the second run misses it
    with pytest.raises(Problem, match=r"is not said of missed targets \(causal\)"):
        page(missed, [TARGET], {})
    text = page(missed, [TARGET], {"causal": "The softmax."})
    assert "**missed**" in text and "- causal: The softmax." in text
    kept(tmp_path, report(row()))
    with pytest.raises(Problem, match=r"said of others \(causal\)"):
        page(tmp_path, [TARGET], {"causal": "The softmax."})


def test_memory_is_part_of_a_target(tmp_path: Path) -> None:
    target = replace(TARGET, most_gib=0.2)
    much = row(times=(replace(row().times[0], gib=0.3), *row().times[1:]))
    assert not target.met(much, report().ceilings) and target.met(row(), report().ceilings)


def test_titles_are_those_of_one_target_each() -> None:
    assert len({target.title for target in TARGETS}) == len(TARGETS)
    assert set(BETWEEN) <= {target.title for target in TARGETS}


def test_the_page_is_what_the_runs_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m dskc.runtime.bench.page"
