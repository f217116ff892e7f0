"""Checkpoints: whole or absent, the last few kept, and errors that say what is wrong with them."""

from __future__ import annotations

import os
import resource
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dskc.runtime.problem import Problem
from dskc.runtime.train import write_checkpoint
from dskc.runtime.train.checkpoint import Position, find_checkpoint, list_checkpoints, read_checkpoint, stored_dtype


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
    assert raised.value.help is not None and raised.value.help.startswith("step-00000002 is whole: remove ")
    assert find_checkpoint(tmp_path, 2)[1].step == 2


def test_damage_that_sizes_do_not_show_is_found_in_reading(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1, state(1))
    metadata = path / ".metadata"
    metadata.write_bytes(b"x" * metadata.stat().st_size)
    find_checkpoint(tmp_path)
    with pytest.raises(Problem, match=r"is damaged: .*"):
        read_checkpoint(path, {"model": state(0)})


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
