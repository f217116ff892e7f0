"""What is seen of a run: the terminal, MFU, experts, TensorBoard, a profile, and who may train in a folder."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_trainer import log_lines, start, train, write_package, write_text
from torch import Tensor, nn

from dskc.runtime.modules import GroupedLinear
from dskc.runtime.problem import Problem
from dskc.runtime.train import events
from dskc.runtime.train.expert_load import ExpertLoad
from dskc.runtime.train.lock import is_running, locked, require_free
from dskc.runtime.train.mfu import PEAKS, peak_flops, utilisation
from dskc.runtime.train.progress import Moment, Progress, details, line
from dskc.runtime.train.stop import Stop


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "documents")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("generated"))


MOMENT = Moment(120, 5.12345, 4321.4, 0.5, 1 << 30, 3e-4, 0.8211, 0.3819, 1.314, 2)


# The terminal


def test_what_is_shown() -> None:
    assert details(MOMENT, (100, 5.3)) == [
        "loss 5.1235  held out 5.3000 (step 100)  gradient norm 0.821  rate 0.0003",
        "4,321 tokens/s  MFU 38.2%  1.0 GiB  busiest expert 1.31 x even  2 steps skipped",
    ]
    assert details(Moment(1, 5.0, 10.0, 0.5, 1 << 20, 3e-4), None) == [
        "loss 5.0000  rate 0.0003",
        "10 tokens/s  1.0 MiB",
    ]
    assert line(MOMENT, 2500, "1:03 min") == (
        "step   120/2,500  loss 5.1235  4,321 tok/s  MFU 38.2%  1:03 min left  1.0 GiB"
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(text: str, width: int = 100) -> list[str]:
    """What a terminal shows after this: lines, with what moves its cursor and clears them obeyed."""
    rows, row, column = [""], 0, 0
    for code, count, letter, char in re.findall(r"(\x1b\[\??([\d;]*)([A-Za-z]))|([^\x1b])", text):
        if code:
            if letter == "A":
                row -= int(count or 1)
            elif letter == "K":
                rows[row] = "" if count == "2" else rows[row][:column]
        elif char == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif char == "\r":
            column = 0
        else:
            rows[row] = rows[row][:column].ljust(column) + char + rows[row][column + 1 :]
            column += 1
            assert column <= width
    return [row.rstrip() for row in rows]


def test_a_terminal_shows_a_few_lines_that_are_drawn_over(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    progress = Progress(200, Stop())
    monkeypatch.setattr("dskc.runtime.train.progress.REDRAW", 0.0)
    for step in range(1, 121):
        progress.update(Moment(step, 6 - step / 100, 1000.0 + step, 0.5, 1 << 20, 1e-3))
        if step == 100:
            progress.held_out = (100, 5.25)
            progress.say("step 100, held-out loss 5.2500, saved step-00000100")
    progress.close()
    progress.say("done")
    shown = screen(terminal.getvalue())
    assert shown[0] == "step 100, held-out loss 5.2500, saved step-00000100"
    assert re.fullmatch(r"step 120 of 200 [━╸╺ ]+ 40 s left", shown[1])
    assert shown[2:5] == ["loss 4.8000  held out 5.2500 (step 100)  rate 0.001", "1,120 tokens/s  1.0 MiB", "done"]
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 1  # the cursor is back


def test_drawings_are_few_however_fast_steps_are(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    progress = Progress(1000, Stop())
    for step in range(1, 1001):
        progress.update(Moment(step, 1.0, 1.0, 0.1, 1, 1.0))
    assert len(re.findall(r"step [\d,]+ of", terminal.getvalue())) <= 3


def test_a_trainer_on_a_terminal(package: Path, text: Path, tmp_path: Path) -> None:
    main, side = pty.openpty()
    command = [sys.executable, str(package / "train.py"), "--data", str(text), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=side, stderr=side, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"})
    os.close(side)
    found = b""
    while True:
        try:
            part = os.read(main, 1 << 16)
        except OSError:  # how Linux says that the other side is closed
            break
        if not part:
            break
        found += part
    os.close(main)
    assert process.wait() == 0
    shown = screen(found.decode(), 10_000)
    assert sum("step 16 of 16" in row for row in shown) == 1 and not any("step 1 of" in row for row in shown)
    assert any(row.startswith("step 16, held-out loss") for row in shown)
    assert shown[-2].startswith("done: ")


# MFU


def test_mfu_of_published_measurements() -> None:
    """PaLM (arXiv:2204.02311), appendix B: Megatron-Turing NLG 530B on 2,240 A100s at 65.43 K tokens/s has 29.7 %
    without attention, by 6 FLOPs a parameter and token.
    """
    peak = peak_flops("NVIDIA A100-SXM4-80GB", "bf16")
    assert peak == 312e12
    found = utilisation(2 * 530 * 10**9, 65_430 / 2240, peak)
    assert found == pytest.approx(0.297, abs=0.001)


def test_devices_of_which_nothing_is_known() -> None:
    assert peak_flops("x86_64", "fp32") is None and peak_flops("NVIDIA H100 80GB HBM3", "fp64") is None
    assert utilisation(100, 1.0, None) is None
    assert peak_flops("NVIDIA H100 PCIe", "bf16") == 756e12 != peak_flops("NVIDIA H100 80GB HBM3", "bf16")
    assert all(peaks["fp32"] < peaks["bf16"] for _, peaks in PEAKS)


# Experts


class Experts(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.up = GroupedLinear(count, 2, 2)

    def forward(self, x_BSD: Tensor, chosen_BSK: Tensor) -> Tensor:
        return x_BSD


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=1, max_size=4))
def test_expert_load_against_counting(batches: list[list[int]]) -> None:
    model = nn.ModuleList([Experts(5), Experts(5)])
    load = ExpertLoad(model)
    assert load.take() is None
    for chosen in batches:
        model[0](torch.zeros(1), torch.tensor(chosen).view(1, -1, 1))
        model[1](torch.zeros(1), chosen_BSK=torch.arange(5).view(1, -1, 1))  # even
    every = [one for chosen in batches for one in chosen]
    busiest = max(every.count(expert) for expert in range(5))
    assert load.take() == pytest.approx(busiest * 5 / len(every))
    assert load.take() is None
    model.eval()
    model[0](torch.zeros(1), torch.tensor([[[0]]]))
    assert load.take() is None


# TensorBoard


def test_tensorboard_reads_what_the_log_has(package: Path, text: Path, tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    train(package, "--data", text, "--steps", 6, "--save-every", 3, "--out", out, "--tensorboard")
    (out / "checkpoints" / "step-00000006").rename(out / "checkpoints" / "other")
    train(package, "--out", out, "--resume", "--steps", 8, "--tensorboard")  # step 4 to 6 again
    found = reading.EventAccumulator(str(out / "tensorboard"))
    found.Reload()
    lines = [json.loads(text) for text in (out / "train.jsonl").read_text().splitlines()]
    assert set(found.Tags()["scalars"]) == {name for line in lines for name in line} - {"step"}
    for name in ("loss", "held_out", "rate", "norm"):
        told = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines if name in line]
        assert [(event.step, event.value) for event in found.Scalars(name)] == told


def test_tensorboard_that_is_not_there(
    package: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Problem, match="TensorBoard is not installed") as raised:
        train(package, "--data", text, "--out", tmp_path / "runs" / "run", "--tensorboard")
    assert raised.value.help == "pip install 'dskc[tensorboard]'"
    assert list(tmp_path.iterdir()) == []


# A profile


def test_profile_of_some_steps(package: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(package, "--data", text, "--steps", 6, "--out", out, "--profile", "3:4", "--microbatch", 8)
    trace = json.loads((out / "profile" / "trace.json").read_text())
    steps = [event for event in trace["traceEvents"] if event.get("name") == "aten::embedding"]
    assert len(steps) == 2  # one forward pass in each step
    table = (out / "profile" / "operations.txt").read_text()
    assert table.startswith("steps 3 to 4\n") and "aten::mm" in table
    plain = tmp_path / "plain"
    train(package, "--data", text, "--steps", 6, "--out", plain, "--microbatch", 8)
    assert log_lines(out) == log_lines(plain)


@pytest.mark.parametrize("window", ["0:2", "5", "4:3", "a:b", "3:"])
def test_what_is_no_window(package: Path, window: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train(package, "--profile", window)
    assert f"{window!r} is not two steps such as 10:12" in capsys.readouterr().err


def test_window_that_is_not_to_come(package: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="--profile 5:9: these are not steps to come") as raised:
        train(package, "--data", text, "--steps", 6, "--out", tmp_path / "runs" / "run", "--profile", "5:9")
    assert raised.value.help == "they are 1 to 6" and list(tmp_path.iterdir()) == []


# Who trains


def test_two_processes_do_not_train_in_one_folder(package: Path, text: Path, tmp_path: Path) -> None:
    slow = write_package(tmp_path / "generated", EXTRA="\n        __import__('time').sleep(0.2)")
    out = tmp_path / "run"
    process = start(slow, "--data", text, "--out", out, "--save-every", 1)
    while not (out / "checkpoints").is_dir() or not list((out / "checkpoints").glob("step-*")):
        assert process.poll() is None
    assert is_running(out)
    with pytest.raises(Problem, match=rf"run is being trained by another process \({process.pid}\)"):
        train(package, "--out", out, "--resume")
    with pytest.raises(Problem, match="is being trained"), locked(out):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not is_running(out)
    require_free(out)
    train(package, "--out", out, "--resume")
    assert not is_running(tmp_path)
