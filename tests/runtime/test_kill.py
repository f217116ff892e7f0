"""kill -9 at any moment: the run goes on from its last checkpoint, and ends as if nothing had happened."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest
from tiny_trainer import log_lines, start, write_package, write_text

from dskc.runtime.train.kept import find_sound, list_checkpoints, step_of

STEPS, EVERY = 60, 3
# So slow that a run is still there when it is to be killed, and that kills fall into each part of a step.
SLOW = "\n        __import__('time').sleep(0.01)"


def run(package: Path, out: Path, *arguments: object, kill_after: float | None = None) -> bool:
    """Whether the trainer came to its end; killed so many seconds after it began to train, or while it starts when
    that is negative.
    """
    log = out / "train.jsonl"
    before = log.stat().st_ino if log.exists() else None
    process = start(package, "--out", out, *arguments)
    if kill_after is not None:
        while process.poll() is None and kill_after >= 0 and (not log.exists() or log.stat().st_ino == before):
            time.sleep(0.002)
        try:
            process.wait(abs(kill_after))
        except subprocess.TimeoutExpired:
            process.kill()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode in (0, -9), stderr
    return process.returncode == 0


def kill_and_go_on(tmp_path: Path, kills: int, seed: int) -> None:
    text, package = write_text(tmp_path / "text"), write_package(tmp_path / "generated", EXTRA=SLOW)
    options = ("--steps", STEPS, "--save-every", EVERY, "--microbatch", 4)
    assert run(package, tmp_path / "whole", "--data", text, *options)
    expected = log_lines(tmp_path / "whole")

    rng, out, killed, resumed = random.Random(seed), tmp_path / "broken", 0, 0
    while killed < kills:
        done = (out / "checkpoints").is_dir() and bool(list_checkpoints(out / "checkpoints"))
        if not done and out.exists():
            out.rename(tmp_path / f"before-any-checkpoint-{killed}")
        arguments = ("--resume",) if done else ("--data", text, *options)
        before = step_of(find_sound(out / "checkpoints")[0]) if done else 0
        resumed += done
        if run(package, out, *arguments, kill_after=rng.choice([-5.0, 1.0, 1.0, 1.0, 1.0]) * rng.random()):
            out.rename(tmp_path / f"ended-{killed}")  # the next one begins anew
            assert log_lines(tmp_path / f"ended-{killed}") == expected
            continue
        killed += 1
        lines = (out / "train.jsonl").read_text().splitlines() if out.exists() else []
        if (out / "checkpoints").is_dir() and list_checkpoints(out / "checkpoints"):
            path, position, damaged = find_sound(out / "checkpoints")
            assert not damaged, f"a kill damaged {damaged}"
            # the one in flight and what was trained meanwhile may be lost
            assert before <= position.step and len(lines) - position.step <= 2 * EVERY, path
    if not list_checkpoints(out / "checkpoints"):
        if out.exists():
            out.rename(tmp_path / "before-any-checkpoint")
        assert run(package, out, "--data", text, *options)
    else:
        assert run(package, out, "--resume")
        resumed += 1
    assert resumed >= kills // 3
    assert log_lines(out) == expected
    assert not list(out.glob("**/.*.partial")) and not list(out.glob("**/*.damaged"))


@pytest.mark.slow
def test_three_kills(tmp_path: Path) -> None:
    kill_and_go_on(tmp_path, kills=3, seed=1)


@pytest.mark.exhaustive
def test_fifty_kills(tmp_path: Path) -> None:
    kill_and_go_on(tmp_path, kills=50, seed=random.randrange(1 << 30))
