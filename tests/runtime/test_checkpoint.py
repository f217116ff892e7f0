"""Checkpoints: whole or absent, the last few kept, and errors that say what is wrong with them."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dskc.runtime.problem import Problem
from dskc.runtime.train import saver as saver_module
from dskc.runtime.train import write_checkpoint
from dskc.runtime.train.checkpoint import read_checkpoint, stored_dtype
from dskc.runtime.train.kept import Position, find_checkpoint, find_sound, list_checkpoints, set_aside, step_of
from dskc.runtime.train.saver import Saver


def state(value: float, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"layers.0.weight": torch.full((3, 4), value, dtype=dtype), "norm.weight": torch.full((4,), value + 1)}


def optimizer(value: float) -> dict[str, dict[str, Tensor]]:
    return {"layers.0.weight": {"step": torch.tensor(value), "exp_avg": torch.full((3, 4), value)}}


def test_what_is_written_is_read_into_place(tmp_path: Path) -> None:
    position = Position(7, 56, 3, "abc", "text")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = write_checkpoint(tmp_path, 7, state(1.0), optimizer(7.0), position)
        assert path == tmp_path / "step-00000007"
        assert find_checkpoint(tmp_path) == (path, position)
        own, moments = state(0.0), optimizer(0.0)
        weight = own["layers.0.weight"]
        read_checkpoint(path, {"model": own, "optimizer": moments})
    assert torch.equal(weight, torch.full((3, 4), 1.0))
    assert moments["layers.0.weight"]["step"].item() == 7.0
    assert torch.equal(moments["layers.0.weight"]["exp_avg"], torch.full((3, 4), 7.0))


def test_model_alone_and_in_another_dtype(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 0, state(1.5, torch.bfloat16), optimizer(0.0))
    assert stored_dtype(path) == torch.bfloat16
    own = state(0.0)
    read_checkpoint(path, {"model": own})
    assert torch.equal(own["layers.0.weight"], torch.full((3, 4), 1.5))


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 100_000_000, 6):
        write_checkpoint(tmp_path, step, state(step), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000006", "step-100000000"]


def test_leftovers_are_no_checkpoints_and_go_away(tmp_path: Path) -> None:
    (tmp_path / ".step-00000009.partial").mkdir()
    with pytest.raises(Problem, match="holds no checkpoint"):
        find_checkpoint(tmp_path)
    write_checkpoint(tmp_path, 1, state(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001"]


def test_one_step_is_written_anew(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, state(1.0))
    path = write_checkpoint(tmp_path, 1, state(2.0))
    own = state(0.0)
    read_checkpoint(path, {"model": own})
    assert own["layers.0.weight"].max() == 2.0


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "checkpoint.json"])
@pytest.mark.parametrize("how", ["cut", "missing"])
def test_damaged_one_names_the_last_that_is_whole(tmp_path: Path, name: str, how: str) -> None:
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, state(step))
    file = tmp_path / "step-00000003" / name
    os.truncate(file, file.stat().st_size - 10) if how == "cut" else file.unlink()
    with pytest.raises(Problem) as raised:
        find_checkpoint(tmp_path)
    assert "step-00000003 is damaged" in raised.value.message and name in raised.value.message
    assert raised.value.help == "step-00000002 is whole: ask for it (--checkpoint 2)"
    assert find_checkpoint(tmp_path, 2)[1].step == 2


def test_damage_that_sizes_do_not_show_is_found_in_reading(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1, state(1))
    metadata = path / ".metadata"
    metadata.write_bytes(b"x" * metadata.stat().st_size)
    find_checkpoint(tmp_path)
    with pytest.raises(Problem, match=r"is damaged: .*"):
        read_checkpoint(path, {"model": state(0)})


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "checkpoint.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
def test_the_last_sound_one_is_found(tmp_path: Path, name: str, how: str) -> None:
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, state(step))
    file = tmp_path / "step-00000003" / name
    content = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[:-9])
    else:
        at = content.index(b'"step": 3') + 8 if name == "checkpoint.json" else len(content) // 2
        content[at] ^= 1
        file.write_bytes(content)
    path, position, damaged = find_sound(tmp_path)
    assert (path.name, position.step) == ("step-00000002", 2)
    assert [each.name for each in damaged] == ["step-00000003"]
    (reason,) = damaged.values()
    assert name in reason
    assert set_aside(next(iter(damaged))).name == "step-00000003.damaged"
    assert [each.name for each in list_checkpoints(tmp_path)] == ["step-00000001", "step-00000002"]


@settings(max_examples=40, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), file=st.sampled_from(["__0_0.distcp", ".metadata"]))
def test_any_bit_that_changed_is_found(at: float, bit: int, file: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = write_checkpoint(Path(name), 1, state(1))
        content = bytearray((path / file).read_bytes())
        content[int(at * len(content))] ^= 1 << bit
        (path / file).write_bytes(content)
        with pytest.raises(Problem, match=rf"is damaged: {file} is not what was written"):
            find_sound(Path(name))


def test_checksums_are_those_of_coreutils(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1, state(1))
    digests = json.loads((path / "checkpoint.json").read_text())["sha256"]
    assert set(digests) == {"__0_0.distcp", ".metadata", "checkpoint.json"}
    lines = "".join(f"{digest}  {path / name}\n" for name, digest in digests.items() if name != "checkpoint.json")
    assert (
        subprocess.run(["sha256sum", "--check", "--strict"], input=lines.encode(), capture_output=True).returncode == 0
    )


def test_one_without_checksums_is_as_good_as_its_sizes(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1, state(1))
    facts = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps({"position": facts["position"], "files": facts["files"]}))
    assert find_sound(tmp_path)[0] == path == find_checkpoint(tmp_path, "best")[0]


# The best of them


@given(st.lists(st.sampled_from([None, 1.0, 2.0, 3.0, math.nan]), min_size=1, max_size=6), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_the_best_is_kept_beside_the_last(losses: list[float | None], keep: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for step, loss in enumerate(losses):
            write_checkpoint(folder, step, {"w": torch.zeros(1)}, keep=keep, held_out=loss)
        measured = [(loss, step) for step, loss in enumerate(losses) if loss in (1.0, 2.0, 3.0)]
        best = min(measured)[1] if measured else len(losses) - 1
        last = range(max(0, len(losses) - keep), len(losses))
        assert {find_checkpoint(folder, step_of(path))[1].step for path in list_checkpoints(folder)} == {best, *last}
        assert find_checkpoint(folder, "best")[1].step == best
        assert find_checkpoint(folder, "last")[1].step == len(losses) - 1


def test_what_is_no_checkpoint_to_ask_for(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, state(1))
    with pytest.raises(Problem, match="no checkpoint `worst`") as raised:
        find_checkpoint(tmp_path, "worst")
    assert raised.value.help == "it can be last, best or the number of its step"


# Behind training's back


def saver(folder: Path, keep: int = 2) -> Saver:
    return Saver(folder, keep)


def test_what_is_saved_is_the_state_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    write = saver_module.write_checkpoint

    def slow(*arguments: object) -> Path:
        assert go.wait(30)
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(saver_module, "write_checkpoint", slow)
    own, model, moments = saver(tmp_path), state(1.0), optimizer(1.0)
    own.start(Position(1), model, moments, None, "first")
    for tensor in (*model.values(), *moments["layers.0.weight"].values()):
        tensor.fill_(-1)
    assert own.finished() == [] and list_checkpoints(tmp_path) == []
    go.set()
    own.wait()
    assert own.finished() == ["first, saved step-00000001"] and own.finished() == []
    found, states = state(0.0), optimizer(0.0)
    read_checkpoint(tmp_path / "step-00000001", {"model": found, "optimizer": states})
    assert all(torch.equal(found[name], tensor) for name, tensor in state(1.0).items())
    assert states["layers.0.weight"]["exp_avg"].min() == 1.0


def test_a_save_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[int] = []
    write = saver_module.write_checkpoint

    def counted(*arguments: object) -> Path:
        running.append(threading.active_count())
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(saver_module, "write_checkpoint", counted)
    own, before = saver(tmp_path), threading.active_count()
    for step in range(1, 6):
        own.start(Position(step), state(step), {}, float(step), f"step {step}")
    own.wait()
    assert running == [before + 1] * 5
    assert own.finished() == [f"step {step}, saved step-{step:08d}" for step in range(1, 6)]
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [1, 4, 5]


def failing(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has so many writes find the disk full after some bytes."""
    left, save = [times], torch.distributed.checkpoint.save

    def write(*arguments: object, storage_writer: torch.distributed.checkpoint.FileSystemWriter, no_dist: bool) -> None:
        save(*arguments, storage_writer=storage_writer, no_dist=no_dist)  # type: ignore[arg-type]
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(28, os.strerror(28))

    monkeypatch.setattr(torch.distributed.checkpoint, "save", write)


def test_a_failed_save_is_told_and_the_next_must_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = saver(tmp_path)
    own.start(Position(1), state(1), {}, None, "one")
    own.wait()
    failing(1, monkeypatch)
    own.start(Position(2), state(2), {}, None, "two")
    own._join()
    own.start(Position(3), state(3), {}, None, "three")  # the disk has room again
    own.wait()
    one, two, three = own.finished()
    assert (one, three) == ("one, saved step-00000001", "three, saved step-00000003")
    assert two.startswith("two, not saved: the checkpoint ") and "No space left on device" in two

    failing(2, monkeypatch)
    own.start(Position(4), state(4), {}, None, "four")
    own._join()
    with pytest.raises(Problem, match=r"step-00000005 could not be written: No space left on device") as raised:
        own.start(Position(5), state(5), {}, None, "five")
    assert raised.value.help == "make room on the disk; what was saved before is still there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def test_the_last_save_that_fails_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = saver(tmp_path)
    failing(1, monkeypatch)
    own.start(Position(1), state(1), {}, None, "one")
    with pytest.raises(Problem, match="No space left"):
        own.wait()
    assert own.finished() == []


def test_a_failure_that_nobody_asked_for_is_printed_in_the_end(tmp_path: Path) -> None:
    code = f"""
import torch, resource
from pathlib import Path
from dskc.runtime.train.saver import Saver
from dskc.runtime.train.kept import Position
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
saver = Saver(Path({str(tmp_path)!r}), 1)
saver.start(Position(7), {{"w": torch.zeros(100_000)}}, {{}}, None, "seven")
raise ZeroDivisionError
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    assert "step-00000007 could not be written: File too large" in done.stderr.splitlines()[-1]


def test_without_room_for_a_copy_training_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver_module, "available_memory", lambda device: 50)
    own, threads = saver(tmp_path), threading.active_count()
    own.start(Position(1), state(1), {}, None, "one")
    assert threading.active_count() == threads
    assert own.finished() == ["one, saved step-00000001"]


def test_steps_that_are_not_there(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, state(1))
    with pytest.raises(Problem, match="no checkpoint of step 5") as raised:
        find_checkpoint(tmp_path, 5)
    assert raised.value.help == "there are those of steps 1"


def test_other_names_and_shapes_are_all_named(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1, state(1))
    own = {"layers.0.weight": torch.zeros(4, 4), "new.weight": torch.zeros(1)}
    with pytest.raises(Problem) as raised:
        read_checkpoint(path, {"model": own})
    assert raised.value.message.splitlines()[1:] == [
        "  model.norm.weight: only in the checkpoint",
        "  model.new.weight: not in the checkpoint",
        "  model.layers.0.weight: [3, 4] in the checkpoint, [4, 4] here",
    ]


def test_damage_in_the_tensors_is_found_in_reading(tmp_path: Path) -> None:
    for step in (1, 2):
        path = write_checkpoint(tmp_path, step, state(step))
    tensors = path / "__0_0.distcp"
    tensors.write_bytes(b"x" * tensors.stat().st_size)
    with pytest.raises(Problem, match="step-00000002 is damaged") as raised:
        read_checkpoint(path, {"model": state(0)})
    assert "\n" not in raised.value.message
    assert raised.value.help is not None and raised.value.help.startswith("step-00000001 is whole")


def test_disk_that_takes_no_more_is_a_problem_and_leaves_nothing(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, state(1))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(Problem, match="step-00000002 could not be written: File too large"):
            write_checkpoint(tmp_path, 2, {"weight": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
