"""`dskc runs`: how runs stand, and where they differ."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny_trainer import log_lines, start, train, write_package, write_text

from dskc.compiler.cli import main
from dskc.runtime.train import Precision, create_run_folder
from dskc.runtime.train.folder import Facts
from dskc.runtime.train.runs import Comparison, Summary, comparison_text, find_runs, list_text, summarise


def runs(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["runs", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/a, and runs/deep/er/b of another seed and half as many steps; a model that was imported."""
    home = tmp_path_factory.mktemp("home")
    text, package = write_text(home / "text"), write_package(home / "generated")
    train(package, "--data", text, "--steps", 12, "--out", home / "runs" / "a", "--microbatch", 8)
    b = home / "runs" / "deep" / "er" / "b"
    train(package, "--data", text, "--steps", 6, "--seed", 3, "--out", b, "--microbatch", 8)
    facts = Facts("tiny", "specs/tiny.dsk", "aaaa", Precision("bf16", "fp32", "fp32", "fp32"))
    create_run_folder(home / "runs" / "c", package, facts)
    return home / "runs"


def test_runs_are_found_wherever_they_lie(folder: Path) -> None:
    assert find_runs(folder) == [folder / "a", folder / "c", folder / "deep" / "er" / "b"]
    assert find_runs(folder / "a") == [folder / "a"]


def test_the_list(folder: Path) -> None:
    a, c, b = json.loads(runs(folder, "--json").output)
    log = log_lines(folder / "a")
    assert (a["model"], a["state"], a["step"], a["steps"]) == ("tiny", "done", 12, 12)
    assert (a["loss"], a["held_out"]) == (log[-1]["loss"], log[-1]["held_out"])
    assert (b["state"], b["step"], c["state"], c["loss"]) == ("done", 6, "imported", None)
    speeds = sorted(json.loads(line)["tokens_per_s"] for line in (folder / "a" / "train.jsonl").open())
    assert speeds[5] - 0.1 <= a["tokens_per_s"] <= speeds[6] + 0.1
    lines = runs(folder).output.splitlines()
    assert [line.split()[0] for line in lines] == ["run", *(each["run"] for each in (a, c, b))]


def test_a_run_that_was_killed_is_stopped_and_one_that_trains_is_running(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text")
    slow = write_package(tmp_path / "generated", EXTRA="\n        __import__('time').sleep(0.2)")
    out = tmp_path / "run"
    process = start(slow, "--data", text, "--out", out)
    while not (out / "train.jsonl").exists() or not (out / "train.jsonl").read_text():
        assert process.poll() is None
    assert summarise(out).state == "running"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    found = summarise(out)
    assert found.state == "stopped" and 1 <= found.step < found.steps == 16


def test_a_comparison(folder: Path, tmp_path: Path) -> None:
    a, b = folder / "a", folder / "deep" / "er" / "b"
    found = json.loads(runs(a, b, "--json").output)
    assert found["facts"] == {"seed": [0, 3], "steps": [12, 6]}
    logs = [log_lines(a), log_lines(b)]
    assert found["losses"] == {str(i): [log[i - 1]["loss"] for log in logs] for i in range(1, 7)}
    assert list(found["held_out"]) == ["4"]
    shutil.copytree(b, tmp_path / "other")
    tokenizer = tmp_path / "other" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert "different tokenizers, so losses of a token do not compare" in runs(b, tmp_path / "other").output
    assert "no fact differs" in runs(b, b).output


def test_losses_over_each_other(folder: Path, tmp_path: Path) -> None:
    result = runs(folder / "a", folder / "deep" / "er" / "b", "--plot", tmp_path / "both.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_where_there_are_none(tmp_path: Path) -> None:
    for arguments in ((tmp_path,), (tmp_path / "missing",), (tmp_path, tmp_path)):
        result = runs(*arguments)
        assert result.exit_code == 1 and result.output.startswith("error: "), result.output


SUMMARIES = [
    Summary("runs/a", "tiny", "done", 1200, 1200, 2.5, 2.625, 43210.5, "2026-01-02 03:04"),
    Summary("runs/long/b", "tiny", "stopped", 50, 1200, None, None, None, "2026-01-02 03:05"),
]


def test_how_they_are_shown() -> None:
    assert (
        list_text(SUMMARIES)
        == """\
run          model  state           step    loss  held out  tokens/s  changed
runs/a       tiny   done     1,200/1,200  2.5000    2.6250    43,210  2026-01-02 03:04
runs/long/b  tiny   stopped     50/1,200                              2026-01-02 03:05"""
    )
    found = Comparison(SUMMARIES, {"seed": [0, 1], "recipe.text": ["", "a\nb"]}, {10: [3.0, 3.5]}, {})
    assert comparison_text(found).split("\n\n")[1:] == [
        'differs      [1]  [2]\nseed         0    1\nrecipe.text  ""   a...',
        "loss at step     [1]     [2]\n10            3.0000  3.5000",
    ]
